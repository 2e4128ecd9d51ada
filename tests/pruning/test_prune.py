"""`prune` gives a smaller ordinary module that computes what the zeroed dense one does."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import pytest
import torch
from blocks import BLOCKS, LiteralViewThatFits, Residual, SeveralInputs, image
from plans import random_plan, uniform_plan
from torch import nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(Residual().eval(), image())


def test_the_dense_network_stays(graph: ChannelGraph) -> None:
    state = copy.deepcopy(graph.model.state_dict())
    small = prune(graph, random_plan(graph), calibration=[image(batch=4)])
    assert small is not graph.model
    assert all(torch.equal(t, state[n]) for n, t in graph.model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in graph.model.modules())


def test_a_pruned_network_can_be_pruned_again(graph: ChannelGraph) -> None:
    once = prune(graph, uniform_plan(graph, 0.6))
    second = trace(once, image())
    assert [axis.name for axis in second.axes] == [axis.name for axis in graph.axes]
    plan = uniform_plan(second, 0.6)
    twice = prune(second, plan)
    assert count_macs(twice, image()) == plan.macs <= 0.6 * second.macs
    assert twice(image()).shape == (2, 2, 6, 6)


def test_a_plan_that_keeps_everything_changes_nothing(graph: ChannelGraph) -> None:
    whole = PruningPlan.build(graph, [range(axis.channels) for axis in graph.axes])
    assert whole.positions == {} and whole.macs == graph.macs
    assert torch.equal(prune(graph, whole)(image()), graph.model(image()))


def test_frozen_parameters_are_pruned_like_others() -> None:
    model = Residual().requires_grad_(False)
    graph = trace(model, image())
    small = prune(graph, random_plan(graph))
    assert [axis.name for axis in graph.axes] == ["stem", "a"]
    assert not any(p.requires_grad for p in small.parameters())


def test_sizes_in_the_source_are_found_before_the_user_does() -> None:
    graph = trace(LiteralViewThatFits(), image(), check=False)
    plan = PruningPlan.build(graph, [[0, 1, 2, 3], range(6)])
    with pytest.raises(RuntimeError, match=r"leave these axes whole with trace.*: a: the pruned"):
        prune(graph, plan)
    assert prune(graph, plan, check=False).a.out_channels == 4  # as asked: unchecked


def test_a_plan_of_another_graph_is_refused(graph: ChannelGraph) -> None:
    block = BLOCKS["dense concatenation"]
    other = trace(block.make(), block.inputs, check=False)
    with pytest.raises(ValueError, match="prune: plan: expected a plan made for this graph"):
        prune(graph, random_plan(other))
    wider = trace(Residual(), image(), ignore="a", check=False)
    with pytest.raises(ValueError, match="prune: plan: expected a plan made for this graph"):
        prune(graph, random_plan(wider))
    plan = random_plan(graph)
    spoiled = {**plan.positions, "head.weight": {0: torch.tensor([0])}}
    with pytest.raises(ValueError, match="prune: plan: expected a plan made for this graph"):
        prune(graph, dataclasses.replace(plan, positions=spoiled))


def test_a_network_with_named_inputs() -> None:
    inputs = {"y": image(2), "x": image(), "scale": 0.5}
    graph = trace(SeveralInputs(), inputs)
    batches = [{**inputs, "label": 3}, inputs]
    small = prune(graph, random_plan(graph), calibration=batches)
    assert small(**inputs).shape == (2, 2, 6, 6)


def test_a_pruned_network_exports() -> None:
    block = BLOCKS["C2f"]
    graph = trace(block.make(), block.inputs)
    small = prune(graph, random_plan(graph)).eval()
    program = torch.export.export(small, block.inputs)
    assert torch.allclose(program.module()(*block.inputs), small(*block.inputs))


def test_hooks_and_modes_of_a_pruned_network(graph: ChannelGraph) -> None:
    model = Residual().train()
    calls: list[str] = []
    model.head.register_forward_hook(lambda *_: calls.append("head"))
    traced = trace(model, image())
    calls.clear()
    small = prune(traced, random_plan(traced), check=False)
    assert small.training and not calls
    small(image())
    assert calls == ["head"]


def test_no_warnings_while_pruning(graph: ChannelGraph) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(graph, random_plan(graph), calibration=[image()])


def test_a_training_step_after_pruning(graph: ChannelGraph) -> None:
    small: nn.Module = prune(graph, random_plan(graph)).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = [p.detach().clone() for p in small.parameters()]
    small(image()).square().mean().backward()
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(small.parameters(), before, strict=True)]
    assert any(moved)


@pytest.mark.parametrize("options", [{}, {"compensate": False}, {"recalibrate": False}])
@pytest.mark.parametrize("size", [1e19, 1e37])
def test_calibration_that_overflows_is_refused(options: dict[str, bool], size: float) -> None:
    """Infinite statistics would make every channel behind them dead, without a word."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    )
    graph = trace(net.eval(), torch.zeros(1, 3, 8, 8))
    plan, images = PruningPlan.build(graph, [range(3)]), torch.randn(8, 3, 8, 8) * size
    with pytest.raises(ValueError, match="calibration: expected inputs for which what the"):
        prune(graph, plan, calibration=[images], check=False, **options)
