"""What the tests of tracing and pruning share: plans that need no search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.modules.verification import TOLERANCE, difference
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


def uniform_widths(graph: ChannelGraph, macs: float) -> torch.Tensor:
    """The largest widths, all at one share of the dense ones, whose MACs are within the budget."""
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        widths = (graph.widths * share).long().clamp_min(1)
        if int(graph.cost.evaluate(widths)[0]) <= macs * graph.macs:
            low = share
        else:
            high = share
    return (graph.widths * low).long().clamp_min(1)


def random_channels(widths: torch.Tensor, graph: ChannelGraph, seed: int = 0) -> list[list[int]]:
    """Which channels of each axis stay, at random: `widths` of them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randperm(axis.channels, generator=generator)[:width].tolist()
        for axis, width in zip(graph.axes, widths.tolist(), strict=True)
    ]


def uniform_plan(graph: ChannelGraph, macs: float, seed: int = 0) -> PruningPlan:
    return PruningPlan.build(graph, random_channels(uniform_widths(graph, macs), graph, seed))


def random_plan(graph: ChannelGraph, seed: int = 0) -> PruningPlan:
    generator = torch.Generator().manual_seed(seed)
    widths = [int(torch.randint(1, a.channels + 1, (), generator=generator)) for a in graph.axes]
    return PruningPlan.build(graph, random_channels(torch.tensor(widths), graph, seed))


class Functional(nn.Module):
    """Its second layer is a parameter and a function, no module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight = nn.Conv2d(3, 6, 3), nn.Parameter(torch.randn(4, 6, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self.a(x), self.weight)


def sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def limits_at(graph: ChannelGraph, *macs: float) -> torch.Tensor:
    """Of a run for each share of the MACs, which may cost all else that the whole network does."""
    return torch.tensor(
        [list({**graph.costs, "macs": int(share * graph.macs)}.values()) for share in macs]
    )


def pruned_right(model: nn.Module, inputs: Any, axes: Mapping[str, int]) -> ChannelGraph:
    """Asserts that these axes are found, each pruned exactly and at the cost that is foretold.

    Args:
        model: A network.
        inputs: Its example inputs.
        axes: Names and widths.
    """
    graph = trace(model.eval(), inputs)
    assert {axis.name: axis.channels for axis in graph.axes} == dict(axes), graph
    for seed in range(2):
        plan = random_plan(graph, seed)
        small = prune(graph, plan, check=False)
        assert difference(model, plan.positions, graph.example_inputs).size <= TOLERANCE
        assert count_macs(small, graph.example_inputs) == plan.macs
        assert sum(p.numel() for p in small.parameters()) == plan.params
    assert str(graph)
    return graph
