"""search's methods: presets and their parts, with calibration batches and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from blocks import image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mdcp_fast.planning.descriptors import moments, weights
from mdcp_fast.planning.method import VALUES
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

X = image(batch=48, size=8)
BATCHES = list(X.split(16))
QUICK: dict[str, Any] = {"macs": 0.5, "population": 16, "generations": 10}


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


@pytest.mark.parametrize("descriptor", VALUES["descriptor"])
@pytest.mark.parametrize("selection", VALUES["selection"])
def test_every_descriptor_goes_with_every_selection(
    graph: ChannelGraph, descriptor: str, selection: str
) -> None:
    options = {"descriptor": descriptor, "selection": selection, **QUICK}
    if descriptor == "moments" and selection == "greedy":
        with pytest.raises(ValueError, match="selection: expected crowding, medoid or random"):
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
    plan = search(graph, macs=0.26, calibration=BATCHES, min_keep=1)
    small = prune(graph, plan, calibration=BATCHES).eval()
    with torch.no_grad():
        wanted = model(X)
        assert (small(X) - wanted).norm() < 0.02 * wanted.norm()


def test_losses_are_measured_where_there_is_something_to_measure_on(graph: ChannelGraph) -> None:
    by_weights = {"descriptor": "weights", "selection": "greedy", **QUICK}
    free, measured = search(graph, **by_weights), search(graph, calibration=BATCHES, **by_weights)
    assert free.history != measured.history


def test_uniform_widths_are_the_largest_that_fit(graph: ChannelGraph) -> None:
    plan = search(graph, widths="uniform", calibration=BATCHES, **QUICK)
    assert plan.macs <= 0.5 * graph.macs and plan.history == ()
    more = torch.tensor([min(axis.channels, axis.width + 1) for axis in plan.axes])
    assert graph.cost.evaluate(more)[0] > 0.5 * graph.macs
    several = search(graph, widths="uniform", **{**QUICK, "macs": [0.3, 0.5]})
    assert several[0].macs < several[1].macs


def test_plain_evolution_is_no_better(graph: ChannelGraph) -> None:
    ours, plain = (
        search(graph, evolution=evolution, descriptor="moments", **QUICK)
        for evolution in VALUES["evolution"]
    )
    assert ours.history[-1] <= plain.history[-1]
    assert plain.macs <= 0.5 * graph.macs
    assert list(plain.history) == sorted(plain.history, reverse=True)


def test_points_of_the_callers_own(graph: ChannelGraph) -> None:
    for describe, name in ((moments, "moments"), (weights, "weights")):
        named = search(graph, descriptor=name, selection="crowding", **QUICK)
        given = search(graph, descriptor=describe(graph), **QUICK)
        assert kept(named) == kept(given) and given.settings["descriptor"] == "given"
    wrong = moments(graph)._replace(offsets=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="descriptor: expected points for axes of"):
        search(graph, descriptor=wrong, **QUICK)
    nan = moments(graph)._replace(points=torch.full_like(moments(graph).points, torch.nan))
    with pytest.raises(ValueError, match="descriptor: expected finite points"):
        search(graph, descriptor=nan, **QUICK)


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
        ({"preset": "good"}, "preset: expected one of best, paper, got 'good'"),
        ({"selection": "worst"}, "selection: expected one of crowding, medoid, random, greedy"),
        ({"widths": "even"}, "widths: expected one of searched, uniform, got 'even'"),
        ({"seeding": "any"}, "seeding: expected one of ward, k-means"),
        ({"evolution": "none"}, "evolution: expected one of l-shade, plain"),
        ({"clusters": "many"}, "clusters: expected one of width, searched"),
        ({"clusters": "searched", "descriptor": "moments"}, "widths: expected 'uniform' where"),
        (
            {"preset": "best", "clusters": "searched", "widths": "uniform"},
            "selection: expected one that clusters",
        ),
        ({"calibration": [X * torch.nan]}, "calibration: expected batches of finite numbers"),
        ({"calibration": [X * 1e37]}, "calibration: expected inputs for which .* is finite"),
        ({"calibration": []}, "calibration: expected at least one batch"),
        ({"labels": True}, "labels: expected False with evaluator='table'"),
        (
            {"widths": "uniform", "evaluator": "network", "calibration": BATCHES},
            "widths: expected 'searched' with evaluator='network'",
        ),
    ],
)
def test_what_does_not_go_is_named(
    graph: ChannelGraph, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        search(graph, **{**QUICK, **options})
