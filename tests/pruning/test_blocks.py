"""Every way in which channels hang together: pruned right, or left whole with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blocks import BLOCKS, Block
from plans import random_plan

from mdcp_fast.modules.calls import call, count_macs, tensors_in
from mdcp_fast.modules.verification import TOLERANCE, difference
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.trace import trace

SEEDS = range(3)


@pytest.fixture(params=BLOCKS.items(), ids=list(BLOCKS))
def block(request: pytest.FixtureRequest) -> Block:
    torch.manual_seed(0)
    found: Block = request.param[1]
    return found


def spread_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Running statistics and scales away from 0 and 1, where a wrong position would not show."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 2)
                module.bias.data.uniform_(-1, 1)
    return model


def backward(model: torch.nn.Module, inputs: Any) -> None:
    outputs = [tensor for tensor in tensors_in(call(model.train(), inputs)) if tensor.requires_grad]
    torch.stack([tensor.square().sum() for tensor in outputs]).sum().backward()


def test_pruned_right_or_left_whole(block: Block) -> None:
    model = spread_statistics(block.make())
    graph = trace(model, block.inputs)
    assert {axis.name: axis.channels for axis in graph.axes} == block.pruned, graph
    reasons = {one.name: one.reason for one in graph.fixed}
    for name, part in block.whole.items():
        assert part in reasons[name], reasons
    # The labels are right by themselves: what the check alone finds is written in the source.
    unchecked = trace(model, block.inputs, check=False)
    found_by_check = {axis.name for axis in unchecked.axes} - set(block.pruned)
    assert found_by_check == set(block.by_check)

    for seed in SEEDS:
        plan = random_plan(graph, seed)
        small = prune(graph, plan, check=False)
        assert difference(model, plan.positions, graph.example_inputs).size <= TOLERANCE
        assert count_macs(small, graph.example_inputs) == plan.macs
        assert sum(p.numel() for p in small.parameters()) == plan.params
    backward(small, graph.example_inputs)


@pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if block.mixed])
def test_channels_that_mix_are_pruned_on_request(name: str) -> None:
    block = BLOCKS[name]
    graph = trace(block.make(), block.inputs, allow_inexact=True)
    axes = {axis.name: axis for axis in graph.axes}
    assert {name: axes[name].channels for name in block.mixed} == block.mixed
    assert not any(axes[name].exact for name in block.mixed)
    dense = call(graph.model, graph.example_inputs)
    for seed in SEEDS:
        plan = random_plan(graph, seed)
        small = prune(graph, plan)
        assert call(small, graph.example_inputs).shape == dense.shape
        assert count_macs(small, graph.example_inputs) == plan.macs
    whole = PruningPlan.build(graph, [range(axis.channels) for axis in graph.axes])
    assert torch.equal(call(prune(graph, whole), graph.example_inputs), dense)
