"""Methods: presets, their parts and parts of one's own, with calibration batches and without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from blocks import image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mdcp_fast.ops.evolution import Evolution
from mdcp_fast.planning.descriptors import DESCRIPTORS, Descriptors, Reconstructs, moments, weights
from mdcp_fast.planning.evaluators import TableEvaluator
from mdcp_fast.planning.method import NAMES, Method
from mdcp_fast.planning.search import search
from mdcp_fast.planning.selection import Clusters
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

X = image(batch=48, size=8)
BATCHES = list(X.split(16))
QUICK: dict[str, Any] = {"macs": 0.5, "evaluator": TableEvaluator(population=16, generations=10)}


class Net(nn.Module):
    """A residual stream, an inner axis, a depthwise layer and a flattened input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.inner = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.back = nn.Conv2d(24, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, stride=2)
        self.last = nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(6 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.back(self.inner(x)))
        return self.head(torch.relu(self.last(self.depthwise(x))).flatten(1))


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(Net().eval(), X[:1])


def shares(plan: PruningPlan) -> list[float]:
    return [axis.width / axis.channels for axis in plan.axes]


def kept(plan: PruningPlan) -> list[tuple[int, ...]]:
    return [axis.kept for axis in plan.axes]


def test_the_paper_keeps_one_share_and_searches_the_clusters(graph: ChannelGraph) -> None:
    plan = search(graph, preset="paper", **QUICK)
    assert plan.settings["preset"] == "paper" and plan.macs <= 0.5 * graph.macs
    assert max(shares(plan)) - min(shares(plan)) < 1 / 6 + 1e-9  # whole channels of the least axis
    for axis in plan.axes:
        assert axis.clusters is not None
        assert set(axis.clusters) == {axis.clusters[channel] for channel in axis.kept}
        assert len(set(axis.clusters)) <= axis.width
    assert any(len(set(axis.clusters or ())) < axis.width for axis in plan.axes)
    assert list(plan.history) == sorted(plan.history, reverse=True)
    assert search(graph, preset="paper", **QUICK) == plan


def test_best_is_the_default_where_there_is_data_and_uses_what_it_is_given(
    graph: ChannelGraph,
) -> None:
    free = search(graph, preset="best", **QUICK)
    assert (free.settings["descriptor"], free.settings["selection"]) == ("weights", "greedy")
    best = search(graph, preset="best", calibration=BATCHES, **QUICK)
    assert (best.settings["descriptor"], best.settings["selection"]) == ("responses", "greedy")
    assert kept(search(graph, calibration=BATCHES, **QUICK)) == kept(best)


def test_without_data_the_default_clusters_moments(graph: ChannelGraph) -> None:
    plan = search(graph, **QUICK)
    assert (plan.settings["descriptor"], plan.settings["selection"]) == ("moments", "crowding")


@pytest.mark.parametrize("descriptor", NAMES["descriptor"])
@pytest.mark.parametrize("selection", NAMES["selection"])
def test_every_descriptor_goes_with_every_selection(
    graph: ChannelGraph, descriptor: str, selection: str
) -> None:
    method = Method(descriptor=descriptor, selection=selection)  # type: ignore[arg-type]
    options = {**QUICK, "method": method}
    if selection == "greedy" and not isinstance(DESCRIPTORS[descriptor], Reconstructs):
        with pytest.raises(ValueError, match="selection: expected .* or a rule with these"):
            search(graph, **options)
        return
    plans = [search(graph, calibration=BATCHES, **options)]
    if descriptor == "responses":
        with pytest.raises(ValueError, match="calibration: expected batches, since descriptor='r"):
            search(graph, **options)
    else:
        plans.append(search(graph, **options))
    for plan in plans:
        assert 0.4 * graph.macs < plan.macs <= 0.5 * graph.macs
        assert (plan.axes[0].clusters is None) == (selection == "greedy")
        assert plan.settings["descriptor"] == descriptor


def test_a_network_with_spare_channels_loses_nothing() -> None:
    """Half of the channels are sums of others or feed nothing: those go, the answer stays."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 12, 3), nn.Flatten(), nn.Linear(432, 5)
    )
    with torch.no_grad():
        model[0].weight[8:12], model[0].bias[8:12] = (
            3 * one[:4] + one[4:8] for one in (model[0].weight, model[0].bias)
        )
        model[1].weight[:, 12:] = 0
        model[3].weight.view(5, 12, 36)[:, 6:] = 0
    model.eval()
    graph = trace(model, X[:1])
    method = Method(widths="searched")
    plan = search(graph, macs=0.26, calibration=BATCHES, min_keep=1, method=method)
    small = prune(graph, plan, calibration=BATCHES).eval()
    with torch.no_grad():
        wanted = model(X)
        assert (small(X) - wanted).norm() < 0.02 * wanted.norm()


def test_losses_are_measured_where_there_is_something_to_measure_on(graph: ChannelGraph) -> None:
    by_weights = {**QUICK, "method": Method(descriptor="weights")}
    free, measured = search(graph, **by_weights), search(graph, calibration=BATCHES, **by_weights)
    assert free.history != measured.history


def test_uniform_widths_are_the_largest_that_fit(graph: ChannelGraph) -> None:
    uniform = Method(widths="uniform")
    plan = search(graph, method=uniform, calibration=BATCHES, round_to=1, **QUICK)
    assert plan.macs <= 0.5 * graph.macs and plan.history == ()
    more = torch.tensor([min(axis.channels, axis.width + 1) for axis in plan.axes])
    assert graph.cost.evaluate(more)[0] > 0.5 * graph.macs
    several = search(graph, method=Method(widths="uniform"), **{**QUICK, "macs": [0.3, 0.5]})
    assert several[0].macs < several[1].macs


def test_points_of_the_callers_own(graph: ChannelGraph) -> None:
    for describe, name in ((moments, "moments"), (weights, "weights")):
        by_name = Method(descriptor=name, selection="crowding")  # type: ignore[arg-type]
        named = search(graph, method=by_name, **QUICK)
        given = search(graph, method=Method(descriptor=describe(graph)), **QUICK)
        assert kept(named) == kept(given) and given.settings["descriptor"] == "given"
    wrong = moments(graph)._replace(offsets=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="descriptor: expected points for axes of"):
        search(graph, method=Method(descriptor=wrong), **QUICK)
    nan = moments(graph)._replace(points=torch.full_like(moments(graph).points, torch.nan))
    with pytest.raises(ValueError, match="descriptor: expected finite points"):
        search(graph, method=Method(descriptor=nan), **QUICK)


def generated() -> Iterator[Tensor]:
    yield from BATCHES


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(TensorDataset(X, torch.arange(48)), batch_size=16),
        generated,
        lambda: [(batch, torch.zeros(16)) for batch in BATCHES],
    ],
    ids=["DataLoader", "iterator", "pairs"],
)
def test_batches_of_all_kinds_give_one_plan(graph: ChannelGraph, make: Any) -> None:
    assert search(graph, calibration=make(), **QUICK) == search(graph, calibration=BATCHES, **QUICK)


def test_an_iterator_is_used_up(graph: ChannelGraph) -> None:
    batches = generated()
    plan = search(graph, calibration=batches, **QUICK)
    with pytest.raises(ValueError, match="used up"):
        prune(graph, plan, calibration=batches)


def test_the_search_is_repeatable_and_leaves_the_random_state(graph: ChannelGraph) -> None:
    torch.manual_seed(5)
    one = search(graph, calibration=BATCHES, **QUICK)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert search(graph, calibration=BATCHES, **QUICK) == one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "good"}, "preset: expected one of best, paper, quick, got 'good'"),
        ({"calibration": [X * torch.nan]}, "calibration: expected batches of finite numbers"),
        ({"calibration": [X * 1e37]}, "calibration: expected inputs for which .* is finite"),
        ({"calibration": []}, "calibration: expected at least one batch"),
        (
            {"method": Method(selection="greedy", clusters="searched", widths="uniform")},
            "selection: expected one that clusters",
        ),
        ({"method": Method(descriptor="responses")}, "expected batches, since descriptor='r"),
    ],
)
def test_what_does_not_go_is_named(
    graph: ChannelGraph, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        search(graph, **{**QUICK, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"descriptor": "nose"}, ValueError, "moments, weights, .*got 'nose'"),
        ({"descriptor": 3}, TypeError, "an object with a method describe, got int"),
        ({"selection": "worst"}, ValueError, "expected one of crowding, medoid, .*got"),
        ({"selection": nn.ReLU()}, TypeError, "an object with a method scores, got ReLU"),
        ({"widths": "even"}, ValueError, "expected one of searched, uniform, got 'even'"),
        ({"widths": 3}, ValueError, "expected one of searched, uniform, got 3"),
        ({"seeding": "any"}, ValueError, "expected one of ward, k-means"),
        ({"evolution": "none"}, ValueError, "expected one of l-shade, got 'none'"),
        ({"evolution": 3}, TypeError, "a name or a function, got int"),
        ({"evaluator": "oracle"}, ValueError, "expected one of table, network, fitted"),
        ({"evaluator": 3}, TypeError, "NetworkEvaluator or RefitEvaluator, got int"),
        ({"clusters": "many"}, ValueError, "expected one of width, searched, got 'many'"),
        ({"channels_per_cluster": 0}, ValueError, "expected at least 1, got 0"),
    ],
)
def test_a_part_that_is_none_is_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"Method: {next(iter(options))}: .*{message}"):
        Method(**options)


def test_parts_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ValueError, match="widths: expected 'uniform' where the numbers of"):
        Method(clusters="searched")
    with pytest.raises(ValueError, match="widths: expected 'searched' with evaluator='network'"):
        Method(widths="uniform", evaluator="network")


def test_presets_are_names_of_methods(graph: ChannelGraph) -> None:
    for name in ("best", "paper", "quick"):
        method = getattr(Method, name)()
        assert method == getattr(Method, name)() and hash(method) == hash(method)
        by_name, by_value = (
            search(graph, **how, **QUICK) for how in ({"preset": name}, {"method": method})
        )
        assert kept(by_name) == kept(by_value)
        assert by_name.settings == {"preset": name, **by_value.settings}


class FirstWeight:
    """A descriptor of the caller's own: the first number of each filter."""

    def describe(self, graph: ChannelGraph, calibration: CalibrationData | None) -> Descriptors:
        first = [graph.weights(axis)[0][:, :1] for axis in graph.axes]
        norms = [graph.weights(axis)[0].norm(dim=1) for axis in graph.axes]
        offsets = torch.tensor([0, *map(len, first)]).cumsum(0)
        return Descriptors(torch.cat(first), offsets, torch.cat(norms))


@dataclass(frozen=True)
class ByIndex:
    """A selection of the caller's own: the first, or the last, channels of every cluster."""

    sign: float

    def scores(self, descriptors: Descriptors, clusters: Clusters) -> Tensor:
        return self.sign * clusters.rows.double()


def first_candidate(evaluate: Any, low: Tensor, high: Tensor, **options: Any) -> Evolution:
    """An evolution of the caller's own that does not evolve."""
    start = low.expand(len(options["seeds"]), -1)
    if options["initial"] is not None:
        start = options["initial"][:, -1]
    fitness = evaluate(start.unsqueeze(1))[:, 0]
    return Evolution(start, fitness, fitness.unsqueeze(1), 1)


@pytest.mark.parametrize("batches", [None, BATCHES])
def test_parts_of_the_callers_own(graph: ChannelGraph, batches: list[Tensor] | None) -> None:
    one = Method(FirstWeight(), ByIndex(-1), channels_per_cluster=1e9, evolution=first_candidate)
    plan = search(graph, macs=0.5, method=one, calibration=batches)
    assert 0.2 * graph.macs < plan.macs <= 0.5 * graph.macs and len(plan.history) == 1
    assert all(axis.kept == tuple(range(axis.width)) for axis in plan.axes)
    wanted = {"descriptor": "FirstWeight", "selection": "ByIndex(sign=-1)"}
    assert plan.settings == plan.settings | wanted | {"evolution": "first_candidate"}
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_parts_of_the_callers_own_in_the_papers_place(graph: ChannelGraph) -> None:
    parts = {"selection": ByIndex(1), "evolution": first_candidate}
    plan = search(graph, macs=0.5, method=replace(Method.paper(), **parts))
    paper = search(graph, macs=0.5, preset="paper")
    for axis, theirs in zip(plan.axes, paper.axes, strict=True):
        assert axis.width == theirs.width and axis.clusters is not None
        assert len(set(axis.clusters)) == min(2, axis.width)  # the least that may be
        for cluster in set(axis.clusters):
            members = [c for c in range(axis.channels) if axis.clusters[c] == cluster]
            kept_of = [c for c in axis.kept if axis.clusters[c] == cluster]
            assert kept_of == members[-len(kept_of) :]
