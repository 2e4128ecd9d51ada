"""A plan says what stays and why, survives JSON, and carries an optimizer's state along."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from blocks import BLOCKS, Residual, SharedWeights, image
from plans import random_plan
from torch import nn

from mdcp_fast.modules.removal import remove
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

KEPT = [[6, 1, 3], [0, 2, 5, 4]]


@pytest.fixture
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(Residual(), image(), check=False)


def plan_of(graph: ChannelGraph) -> PruningPlan:
    return PruningPlan.build(
        graph,
        [torch.tensor(KEPT[0]), KEPT[1]],
        clusters=[torch.arange(8) % 3, None],
        budget={"macs": 0.5},
        settings={"descriptor": "moments", "seed": 0},
        history=[torch.tensor(3.0), 2.5],
        notes={"a": "too narrow for round_to=8"},
    )


def test_what_a_plan_says(graph: ChannelGraph) -> None:
    plan = plan_of(graph)
    stem, inner = plan.axes
    assert stem.kept == (1, 3, 6) and stem.width == 3 and stem.clusters == (0, 1, 2, 0, 1, 2, 0, 1)
    assert inner.kept == (0, 2, 4, 5) and inner.clusters is None
    assert plan.dense_macs == graph.macs and plan.dense_params == graph.params
    assert plan.macs < graph.macs and plan.history == (3.0, 2.5)
    text = str(plan)
    assert "8 -> 3" in text and "(too narrow for round_to=8)" in text
    assert "head: 2 channels: the network's output" in text


def test_old_positions_by_parameter(graph: ChannelGraph) -> None:
    plan = plan_of(graph)
    small = remove(graph.model, plan.positions)
    for name, parameter in graph.model.named_parameters():
        kept = parameter.detach()
        for dimension in range(parameter.dim()):
            positions = plan.kept(name, dimension)
            if positions is not None:
                kept = kept.index_select(dimension, positions)
        assert torch.equal(small.get_parameter(name), kept)
    assert plan.kept("stem.weight", 1) is None and plan.kept("nowhere", 0) is None
    plan.kept("stem.weight", 0).zero_()
    assert plan.kept("stem.weight", 0).tolist() == [1, 3, 6]


def test_shared_parameters_are_known_by_all_their_names() -> None:
    graph = trace(SharedWeights(), image(), check=False)
    plan = PruningPlan.build(graph, [[0, 2], [1, 3]])
    assert plan.kept("c.weight", 0).tolist() == plan.kept("b.weight", 1).tolist() == [0, 2]
    assert plan.kept("decode.weight", 0).tolist() == [1, 3]


def test_json_round_trip(graph: ChannelGraph) -> None:
    plan = plan_of(graph)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan and hash(again) == hash(plan) and again.axes == plan.axes
    assert again.positions["a.weight"][1].dtype == torch.int64
    assert again != random_plan(graph) and again != "a plan"


def test_plans_of_the_first_format_are_read(graph: ChannelGraph) -> None:
    """They had a field for each of two costs."""
    plan, two = plan_of(graph), ("macs", "params")
    costs, dense_costs = ({name: of[name] for name in two} for of in (plan.costs, graph.costs))
    plan = replace(plan, costs=costs, dense_costs=dense_costs)
    data = json.loads(plan.to_json())
    fields = costs | {f"dense_{name}": cost for name, cost in dense_costs.items()}
    old = {k: v for k, v in data.items() if k not in ("costs", "dense_costs")} | fields
    assert PruningPlan.from_json(json.dumps({**old, "format": 1})) == plan


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: "no json",
        lambda data: "[]",
        lambda data: "3",
        lambda data: json.dumps({**data, "format": 99}),
        lambda data: json.dumps({k: v for k, v in data.items() if k != "axes"}),
        lambda data: json.dumps({**data, "axes": [{"name": "stem"}]}),
        lambda data: json.dumps({**data, "positions": {"stem.weight": {"zero": [1]}}}),
        lambda data: json.dumps({**data, "positions": {"stem.weight": {"0": ["one"]}}}),
        lambda data: json.dumps({**data, "positions": {"stem.weight": {"0": [2**70]}}}),
        lambda data: json.dumps({**data, "costs": {**data["costs"], "macs": None}}),
        lambda data: json.dumps({**data, "dense_costs": {"macs": 3}}),
        lambda data: json.dumps({**data, "format": 1}),
    ],
)
def test_other_text_is_refused(graph: ChannelGraph, spoil: Callable[[Any], str]) -> None:
    with pytest.raises(ValueError, match=r"PruningPlan.from_json: text: expected a plan"):
        PruningPlan.from_json(spoil(json.loads(plan_of(graph).to_json())))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0]], "kept: expected 2 entries, one for each axis, got 1"),
        ([[], [0]], r"expected 1 to 8 different channels of stem, from 0 to 7, got \[\]"),
        ([[0, 0], [0]], "different channels of stem"),
        ([[0], [6]], r"different channels of a, from 0 to 5, got \[6\]"),
        ([[-1], [0]], "different channels of stem"),
        ([list(range(9)), [0]], r"got \[0, 1, 2, 3, 4, 5, 6, 7\]\.\.\."),
    ],
)
def test_bad_channels(graph: ChannelGraph, kept: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=f"PruningPlan: {message}|{message}"):
        PruningPlan.build(graph, kept)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(2, 3, 6, 6)).square().mean().backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on(graph: ChannelGraph, name: str) -> None:
    """With the same gradients, a step of the follower is the selected part of the dense step."""
    model, plan = graph.model, plan_of(graph)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    small = remove(model, plan.positions)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    follower = plan.apply_to_optimizer(optimizer, model, small)
    assert type(follower) is type(optimizer)
    assert follower.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())

    train(small, follower)  # the state fits
    small, twins = remove(model, plan.positions), dict(model.named_parameters())
    follower = plan.apply_to_optimizer(optimizer, model, small)
    for n, p in small.named_parameters():
        twins[n].grad = torch.randn_like(twins[n])
        p.grad = remove_from(twins[n].grad, plan, n)
    if name == "Adafactor":
        return  # its step depends on norms over whole tensors
    optimizer.step()
    follower.step()
    for n, p in small.named_parameters():
        assert torch.equal(p, remove_from(twins[n].detach(), plan, n)), n


def remove_from(tensor: torch.Tensor, plan: PruningPlan, name: str) -> torch.Tensor:
    for dimension, kept in plan.positions.get(name, {}).items():
        tensor = tensor.index_select(dimension, kept)
    return tensor


def test_parameter_groups_and_names_survive(graph: ChannelGraph) -> None:
    model, plan = graph.model, plan_of(graph)
    head = [(f"head.{n}", p) for n, p in model.head.named_parameters()]
    rest = [(n, p) for n, p in model.named_parameters() if not n.startswith("head")]
    optimizer = torch.optim.SGD(
        [{"params": rest, "lr": 0.1}, {"params": head, "weight_decay": 0.0}],
        lr=0.01, momentum=0.9, weight_decay=0.1,
    )  # fmt: skip
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    small = remove(model, plan.positions)
    follower = plan.apply_to_optimizer(optimizer, model, small)  # without a state yet
    first, second = follower.param_groups
    assert (first["lr"], first["weight_decay"]) == (0.1, 0.1)
    assert (second["lr"], second["weight_decay"], second["initial_lr"]) == (0.01, 0.0, 0.01)
    assert second["param_names"] == ["head.weight", "head.bias"]
    assert second["params"][0] is small.head.weight


def test_foreign_optimizers_and_networks_are_refused(graph: ChannelGraph) -> None:
    model, plan = graph.model, plan_of(graph)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    small = remove(model, plan.positions)
    with pytest.raises(ValueError, match="optimizer: expected one that trains parameters of"):
        plan.apply_to_optimizer(torch.optim.SGD(small.parameters()), model, small)
    with pytest.raises(ValueError, match=r"small: expected stem.weight of shape \[3, 3, 3, 3\]"):
        plan.apply_to_optimizer(optimizer, model, model)
    optimizer.state[model.stem.weight]["odd"] = torch.zeros(5)
    with pytest.raises(ValueError, match="optimizer: expected odd of stem.weight to have its sh"):
        plan.apply_to_optimizer(optimizer, model, small)


def test_blocks_without_axes_have_empty_plans() -> None:
    block = BLOCKS["written in place"]
    graph = trace(block.make(), block.inputs)
    plan = PruningPlan.build(graph, [])
    assert plan.positions == {} and (plan.macs, plan.params) == (graph.macs, graph.params)
    assert "Left whole" in str(plan)


def changed(data: Any, key: str, value: Any) -> Any:
    """A plan's JSON with another value under a key such as axes.0.kept."""
    at, (*way, last) = data, key.split(".")
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return data


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("axes.0.kept", [5, 5, -3, 10**9], r"axes\[0\].kept\[2\]: expected a number from 0 to 7"),
        ("axes.0.kept", [5, 5], r"axes\[0\].kept: expected at least one position, in rising order"),
        ("axes.0.kept", [5, 3], r"axes\[0\].kept: expected at least one position, in rising order"),
        ("axes.0.kept", [], r"axes\[0\].kept: expected at least one position"),
        ("axes.0.kept", [0.5], r"axes\[0\].kept\[0\]: expected a whole number, got 0.5"),
        ("axes.0.kept", [1.0], r"axes\[0\].kept\[0\]: expected a whole number, got 1.0"),
        ("axes.0.kept", ["1"], r"axes\[0\].kept\[0\]: expected a whole number, got '1'"),
        ("axes.0.kept", [True], r"axes\[0\].kept\[0\]: expected a whole number, got True"),
        ("axes.0.kept", {"0": 1}, r"axes\[0\].kept: expected a list"),
        ("axes.0.channels", -8, r"axes\[0\].channels: expected a number from 1, got -8"),
        ("axes.0.channels", "8", r"axes\[0\].channels: expected a whole number, got '8'"),
        ("axes.0.channels", True, r"axes\[0\].channels: expected a whole number, got True"),
        ("axes.0.name", 3, r"axes\[0\].name: expected text, got 3"),
        ("axes.0.name", "a", "axes: expected different names, got 'a' twice"),
        ("axes.0.clusters", [0], r"axes\[0\].clusters: expected 8 numbers"),
        ("axes.0.clusters", "0", r"axes\[0\].clusters: expected a list or null"),
        ("axes.0.clusters", [-1] * 8, r"axes\[0\].clusters\[0\]: expected a number from 0 to 7"),
        ("axes.0.rotated", 1, r"axes\[0\].rotated: expected"),
        ("axes.0.reason", 1, r"axes\[0\].reason: expected text or null"),
        ("axes.0", None, r"axes\[0\]: expected an object"),
        ("costs.macs", 1e300, "costs.macs: expected a whole number"),
        ("costs.macs", -1, "costs.macs: expected a number from 0"),
        ("costs.macs", 2**62, "costs.macs: expected at most the dense network's"),
        ("costs.extra", 1, "costs: expected macs, params and the names of dense_costs"),
        ("budget", {"macs": "0.5"}, "budget.macs: expected a finite number, got '0.5'"),
        ("history", [None], r"history\[0\]: expected a finite number, got None"),
        ("settings", [], "settings: expected an object"),
        ("settings", {"multiple": "8"}, "settings.multiple: expected a whole number, got '8'"),
        ("positions.stem.weight", [], "positions.stem.weight: expected an object"),
        ("shapes", {}, None),
        ("shapes", 3, "shapes: expected an object"),
        ("format", True, "format: expected a whole number, got True"),
        ("format", 1.0, "format: expected a whole number, got 1.0"),
        ("format", 0, "format: expected 1 to"),
    ],
)
def test_every_value_is_checked_and_named(
    graph: ChannelGraph, key: str, value: Any, message: str | None
) -> None:
    data = json.loads(plan_of(graph).to_json())
    if key.startswith("positions."):
        data["positions"][key.removeprefix("positions.")] = value
    else:
        data = changed(data, key, value)
    if message is None:
        PruningPlan.from_json(json.dumps(data))
        return
    with pytest.raises(ValueError, match=f"PruningPlan: {message}"):
        PruningPlan.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("dimensions", "message"),
    [
        ({"-1": [0]}, "expected the number of a dimension, got '-1'"),
        ({"00": [0]}, "expected the number of a dimension, got '00'"),
        ({" 0": [0]}, "expected the number of a dimension, got ' 0'"),
        ({"4": [0]}, "positions.stem.weight.4: expected a number from 0 to 3, got 4"),
        ({"0": [8]}, r"positions.stem.weight.0\[0\]: expected a number from 0 to 7, got 8"),
        ({"0": [-1]}, r"positions.stem.weight.0\[0\]: expected a number from 0"),
        ({"0": [2, 1]}, "positions.stem.weight.0: expected at least one position, in rising"),
        ({"0": [1, 1]}, "positions.stem.weight.0: expected at least one position, in rising"),
        ({"0": []}, "positions.stem.weight.0: expected at least one position"),
        ({"0": [1.0]}, r"positions.stem.weight.0\[0\]: expected a whole number, got 1.0"),
        ({"0": [False]}, r"positions.stem.weight.0\[0\]: expected a whole number, got False"),
        ({"0": "01"}, "positions.stem.weight.0: expected a list, got str"),
    ],
)
def test_every_position_is_checked_and_named(
    graph: ChannelGraph, dimensions: dict[str, Any], message: str
) -> None:
    data = json.loads(plan_of(graph).to_json())
    data["positions"]["stem.weight"] = dimensions
    with pytest.raises(ValueError, match=message):
        PruningPlan.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 4, "format": 3}', "the key 'format' twice in an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"format": NaN}', "the number NaN, which is not finite"),
        ('{"format": -Infinity}', "the number -Infinity, which is not finite"),
        ('{"format": 1e999}', "the number 1e999, which is not finite"),
        (
            '{"format": 9223372036854775808}',
            "number 9223372036854775808, which is beyond",
        ),
        ('{"format": ' + "9" * 10_000 + "}", "which is beyond int64"),
        ("", "Expecting value"),
        ("\0", "Expecting value"),
    ],
)
def test_text_that_json_lets_pass_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"PruningPlan.from_json: text: .*{message}"):
        PruningPlan.from_json(text)


def test_plans_made_by_hand_are_checked_alike(graph: ChannelGraph) -> None:
    plan = plan_of(graph)
    with pytest.raises(ValueError, match=r"PruningPlan: axes\[0\].kept: expected"):
        replace(plan, axes=(replace(plan.axes[0], kept=(1, 0)), *plan.axes[1:]))
    with pytest.raises(ValueError, match=r"PruningPlan: history\[0\]: expected a finite number"):
        replace(plan, history=(float("inf"),))
    with pytest.raises(ValueError, match="positions.stem.weight.0: expected an int64 tensor"):
        replace(plan, positions={"stem.weight": {0: torch.zeros(2)}}, shapes={})


def test_the_dense_networks_shapes_are_recorded(graph: ChannelGraph) -> None:
    plan = plan_of(graph)
    sizes = {name: tuple(tensor.shape) for name, tensor in graph.model.state_dict().items()}
    assert plan.shapes == {name: sizes[name] for name in plan.positions}
    assert PruningPlan.from_json(plan.to_json()).shapes == plan.shapes
