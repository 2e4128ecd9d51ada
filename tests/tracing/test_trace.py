"""`trace` finds what can be pruned, says why the rest cannot, and leaves the network alone."""

from __future__ import annotations

import copy
import random
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, Residual, SeveralInputs, TrainingHead, image
from plans import random_plan
from torch import Tensor, nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.planning.method import Method
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.axes import Axis, ParameterSlice
from mdcp_fast.tracing.cost import COSTS, cost_model, position_counts
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(Residual(), image(batch=1))


def test_axes_know_their_places(graph: ChannelGraph) -> None:
    stem, inner = graph.axes
    assert [place.parameter for place in stem.producers] == ["stem.weight", "b.weight"]
    assert [place.parameter for place in stem.consumers] == ["a.weight", "head.weight"]
    along = {place.parameter for place in stem.places if place.role == "along"}
    assert along >= {"b.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}
    assert all(place.positions.tolist() == [[c] for c in range(8)] for place in stem.places)
    assert (inner.name, inner.channels, inner.exact) == ("a", 6, True)
    assert graph.normalized_by == {
        "stem.weight": "bn.running_mean",
        "a.weight": "bn_a.running_mean",
    }
    assert torch.equal(graph.widths, torch.tensor([8, 6]))


def test_positions_name_only_what_loses_something(graph: ChannelGraph) -> None:
    positions = graph.positions([range(8), [5, 0, 2]])
    assert set(positions) == {
        "a.weight", "a.bias", "bn_a.weight", "bn_a.bias", "bn_a.running_mean", "bn_a.running_var",
        "b.weight",
    }  # fmt: skip
    assert positions["a.weight"][0].tolist() == [0, 2, 5]
    assert positions["b.weight"][1].tolist() == [0, 2, 5]


def test_weights_of_an_axis(graph: ChannelGraph) -> None:
    first, second = graph.weights(graph.axes[0])
    assert torch.equal(first, graph.model.stem.weight.detach().flatten(1))
    assert torch.equal(second, graph.model.b.weight.detach().flatten(1))


def test_shares_and_text(graph: ChannelGraph) -> None:
    macs = {"stem": 27 * 8, "a": 9 * 48, "b": 9 * 48, "head": 9 * 16}
    assert graph.macs == 36 * sum(macs.values())
    assert graph.shares() == pytest.approx([1.0, (9 * 96) / sum(macs.values())])
    text = str(graph)
    assert "stem: 8 channels, in 100.0% of the MACs" in text
    assert "written by stem, b" in text and "read by a, head" in text
    assert "head: 2 channels: the network's output" in text


def test_tracing_twice_gives_the_same(graph: ChannelGraph) -> None:
    assert str(trace(graph.model, graph.example_inputs)) == str(graph)


@pytest.mark.parametrize("name", ["residual", "a head for training", "old weight norm"])
def test_the_network_is_left_alone(name: str) -> None:
    model = BLOCKS[name].make().train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy({n: t.clone() for n, t in model.state_dict().items()})
    graph = trace(model, image())
    assert graph.model is model
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_ignored_layers_stay_whole() -> None:
    model = Residual()
    for ignore in ["stem", model.stem, ["stem.weight"], [model.stem, "a"]]:
        graph = trace(model, image(), ignore=ignore, check=False)
        names = [axis.name for axis in graph.axes]
        assert "stem" not in names and ("a" in names) == (ignore != [model.stem, "a"])
        reasons = {one.name: one.reason for one in graph.fixed}
        assert reasons["stem"] == "ignored, as asked"


@pytest.mark.parametrize("ignore", ["bn", "bn.weight", "bn.running_mean"])
def test_an_ignored_normalisation_keeps_its_channels(ignore: str) -> None:
    graph = trace(Residual(), image(), ignore=ignore, check=False)
    assert [axis.name for axis in graph.axes] == ["a"]


def test_an_ignored_module_keeps_what_it_writes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)))
    model.append(nn.Conv2d(4, 2, 1))
    graph = trace(model, image(), ignore="1", check=False)
    assert [axis.name for axis in graph.axes] == ["0"]  # what its first layer reads may go


@pytest.mark.parametrize("by_name", [True, False])
def test_an_ignored_layer_may_share_its_weight(by_name: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model.append(nn.Linear(8, 2))
    model[4].weight, model[4].bias = model[2].weight, model[2].bias
    graph = trace(model.eval(), torch.randn(2, 3), ignore=["4" if by_name else model[4]])
    assert not graph.axes and "ignored, as asked" in str(graph)


def test_ignoring_one_writer_keeps_the_whole_axis() -> None:
    graph = trace(Residual(), image(), ignore="b", check=False)
    assert [axis.name for axis in graph.axes] == ["a"]


class Nothing(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if bool(x.sum() > 0) else x


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + random.random())


def test_a_network_with_nothing_to_prune_says_why() -> None:
    graph = trace(Nothing(nn.Conv2d(3, 4, 1)), image())
    assert graph.axes == () and graph.macs == 2 * 36 * 12
    assert "layers.0: 4 channels: the network's output" in str(graph)
    assert graph.cost.evaluate(graph.widths).tolist() == list(graph.costs.values())


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        ("resnet", image(), TypeError, "trace: model: expected a torch.nn.Module, got str"),
        (Nothing(), image(), ValueError, "trace: model: expected parameters to prune, got a"),
        (Nothing(nn.LazyConv2d(4, 1)), image(), ValueError, "layers.0.weight without"),
        (Residual(), 3, TypeError, "trace: example_inputs: expected a tensor, .* got int"),
        (Residual(), image(batch=0), ValueError, "example_inputs: expected at least one example"),
        (Residual(), (3,), TypeError, "example_inputs: expected at least one tensor"),
        (Residual(), image(5), ValueError, "torch.export can capture .* got RuntimeError"),
        (DataDependent(), torch.ones(1, 4), ValueError, "torch.export can capture .* got "),
        (Random(), image(), ValueError, "expected a network that gives the same output twice"),
    ],
)  # fmt: skip
def test_bad_input(model: Any, inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trace(model, inputs)


@pytest.mark.parametrize(
    ("ignore", "error", "message"),
    [
        ([3], TypeError, "trace: ignore: expected names or modules, got int"),
        ("stems", ValueError, "trace: ignore: expected names .* got 'stems'"),
        ([nn.Conv2d(3, 3, 1)], ValueError, "trace: ignore: .* got a foreign Conv2d"),
    ],
)
def test_bad_ignore(ignore: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trace(Residual(), image(), ignore=ignore)


def test_random_networks_can_be_pruned_unchecked() -> None:
    assert [axis.name for axis in trace(Random(), image(), check=False).axes] == ["a"]


def test_what_only_training_reaches_but_cannot_be_captured_is_named() -> None:
    class Fails(TrainingHead):
        def forward(self, x: Tensor) -> Any:
            if self.training:
                raise RuntimeError("needs larger images")
            return super().forward(x)

    graph = trace(Fails(), image())
    reasons = {one.name: one.reason for one in graph.fixed}
    assert re.search("does not run in evaluation mode.*needs larger images", reasons["aux"])
    assert {axis.name for axis in graph.axes} == {"a", "b"}


def test_costs_of_many_candidates_at_once() -> None:
    block = BLOCKS["dense concatenation"]
    graph = trace(block.make(), block.inputs, check=False)
    plans = [random_plan(graph, seed) for seed in range(5)]
    widths = torch.tensor([[axis.width for axis in plan.axes] for plan in plans])
    costs = graph.cost.evaluate(widths.view(5, 1, -1))
    assert costs.squeeze(1).tolist() == [list(plan.costs.values()) for plan in plans]
    assert graph.cost.evaluate(graph.widths).tolist() == list(graph.costs.values())
    assert (graph.costs["macs"], graph.costs["params"]) == (graph.macs, graph.params)


def test_a_cost_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the graph and in the plan by its name, beside the others."""
    monkeypatch.setitem(COSTS, "bytes", lambda use: use.tensor.element_size())
    graph = trace(Residual().double(), image().double(), check=False)
    plan = random_plan(graph)
    assert list(graph.costs) == list(plan.costs) == list(COSTS)
    assert graph.costs["bytes"] == 8 * graph.params
    small = prune(graph, plan)
    assert plan.costs["bytes"] == 8 * sum(p.numel() for p in small.parameters())
    assert plan.dense_costs == graph.costs


@pytest.mark.parametrize("each", [0.5, -1, float("nan")])
def test_a_cost_that_is_no_whole_number_is_named(
    each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COSTS, "joules", lambda use: each)
    with pytest.raises(ValueError, match="joules: expected a whole number from 0 .* stem.weight"):
        trace(Residual(), image(), check=False)


def test_a_parameter_pruned_along_three_dimensions_is_named() -> None:
    along = [ParameterSlice("w", d, torch.arange(4).view(-1, 1), "output") for d in range(3)]
    axes = [Axis(f"axis{place.dimension}", 4, (place,)) for place in along]
    parameters = {"w": torch.zeros(4, 4, 4)}
    counts = position_counts(parameters, axes)
    with pytest.raises(ValueError, match="two dimensions of w at most, .* got dimensions 0, 1, 2"):
        cost_model(parameters, counts, {"params": {"w": 1}}, {"params": 0})


class FixedFilter(nn.Module):
    """Its second layer multiplies by a buffer, and may be pruned as any other."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 4, 1)
        self.register_buffer("filters", torch.rand(6, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.conv2d(F.relu(self.a(x)), self.filters)))


@pytest.mark.filterwarnings("ignore:prune. these lost inputs")
@pytest.mark.parametrize("calibration", [None, [image(batch=8)]])
def test_a_buffer_that_is_multiplied_costs_macs_and_no_parameters(calibration: Any) -> None:
    graph = trace(FixedFilter().eval(), image(batch=1))
    assert [axis.name for axis in graph.axes] == ["a", "filters"]
    assert "written by filters" in str(graph)
    assert graph.params == sum(p.numel() for p in graph.model.parameters())
    for plan in (
        search(graph, macs=0.5, calibration=calibration),
        search(graph, macs=0.5, calibration=calibration, method=Method(descriptor="weights")),
    ):
        small = prune(graph, plan, calibration=calibration)
        assert plan.macs == count_macs(small, image(batch=1)) <= 0.5 * graph.macs
        assert plan.params == sum(p.numel() for p in small.parameters())


def test_networks_that_count_their_calls_are_left_alone() -> None:
    class Counts(Random):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(self.a(x))

    model = Counts()
    graph = trace(model, image())
    prune(graph, random_plan(graph), calibration=[image()])
    assert model.calls == 0 and len(graph.axes) == 1


def test_count_macs() -> None:
    model = SeveralInputs().train()
    by_name = {"x": image(batch=1), "y": image(2, batch=1)}
    assert count_macs(model, by_name) == 36 * 9 * (18 + 12 + 12)
    assert count_macs(model, (image(), image(2))) == 2 * count_macs(model, by_name)
    assert model.training
    assert count_macs(nn.ConvTranspose2d(4, 6, 2, stride=2), image(4, batch=1)) == 36 * 4 * 6 * 4


def test_a_layer_whose_weight_is_computed_is_named_with_the_reason() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3))
    graph = trace(nn.Sequential(layer, nn.ReLU(), nn.Conv2d(16, 4, 1)).eval(), image())
    named = {one.name: one for one in graph.fixed}
    (found,) = [one for name, one in named.items() if name.startswith("0.")]
    assert found.channels == 16 and "weight" in found.reason


def test_a_cost_that_leaves_int64_is_refused() -> None:
    """It would wrap around, and every budget would be met."""
    layer = nn.Linear(8, 8)
    graph = trace(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 8))
    with pytest.raises(ValueError, match="the dense network's macs below 2.63, got 12,970,366"):
        cost_model(
            dict(graph.model.named_parameters()),
            graph.counts,
            {"macs": dict.fromkeys(dict(graph.model.named_parameters()), 2**57)},
            {"macs": 0},
        )


class SizeOfAnother(nn.Module):
    """Takes the size of one axis, or of two together, for another, as wide at first."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4 if several else 8, 1), nn.Conv2d(3, 4, 1)
        self.c, self.head = nn.Linear(8, 8), nn.Conv2d(8, 2, 1)
        self.several = several

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1) if self.several else self.a(x)
        y = self.c(x.flatten(2).transpose(1, 2)).relu()
        return self.head(y.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("several", [False, True])
def test_an_axis_that_takes_its_size_from_another_is_found(several: bool) -> None:
    graph = trace(SizeOfAnother(several), image())
    assert "c" not in {axis.name for axis in graph.axes}
    assert any("sizes" in one.reason for one in graph.fixed if one.name == "c")
    for seed in range(8):  # at any widths of the others
        prune(graph, random_plan(graph, seed))(image())
