"""search: budgets hold exactly and are used, wishes are met or named, the same plan every time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.planning.budgets import largest_within, limits_of
from mdcp_fast.planning.method import Method
from mdcp_fast.planning.rounding import allowed_widths
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing import cost
from mdcp_fast.tracing.cost import ParameterUse, register_cost
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

INPUT = torch.randn(1, 3, 16, 16)


class Net(nn.Module):
    """A residual stream, a bottleneck, and a layer too narrow for multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU())
        self.back = nn.Conv2d(48, 32, 3, padding=1)
        self.narrow = nn.Conv2d(32, 6, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.back(self.wide(x))
        return self.head(self.narrow(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(Net().eval(), INPUT)


def widths(plan: PruningPlan) -> dict[str, int]:
    return {axis.name: axis.width for axis in plan.axes}


@pytest.mark.parametrize("macs", [0.05, 0.3, 0.5, 0.8])
def test_the_budget_holds_in_counted_macs_and_is_used(graph: ChannelGraph, macs: float) -> None:
    plan = search(graph, macs=macs, round_to=1)
    counted = count_macs(prune(graph, plan), INPUT)
    assert counted == plan.macs <= macs * graph.macs
    assert counted >= 0.9 * macs * graph.macs
    assert plan.budget == {"macs": macs}


def test_params_and_macs_hold_together(graph: ChannelGraph) -> None:
    plan = search(graph, macs=0.6, params=0.4)
    small = prune(graph, plan)
    assert count_macs(small, INPUT) <= 0.6 * graph.macs
    assert sum(p.numel() for p in small.parameters()) == plan.params <= 0.4 * graph.params


def test_a_list_of_budgets_gives_the_plans_that_each_would(graph: ChannelGraph) -> None:
    plans = search(graph, macs=[0.3, 0.5])
    assert [plan.budget for plan in plans] == [{"macs": 0.3}, {"macs": 0.5}]
    for plan, macs in zip(plans, (0.3, 0.5), strict=True):
        assert plan.to_json() == search(graph, macs=macs).to_json()
    assert plans[0].macs < plans[1].macs


def test_everything_may_stay(graph: ChannelGraph) -> None:
    plan = search(graph, macs=1.0)
    assert plan.macs == graph.macs and plan.positions == {}


def test_a_seed_gives_the_same_plan_at_every_thread_count(graph: ChannelGraph) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = search(graph, macs=0.4, seed=3)
        torch.set_num_threads(2)
        assert search(graph, macs=0.4, seed=3).to_json() == one.to_json()
    finally:
        torch.set_num_threads(threads)


def test_search_does_not_touch_the_callers_random_state(graph: ChannelGraph) -> None:
    torch.manual_seed(5)
    search(graph, macs=0.5)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_no_axis_collapses(graph: ChannelGraph) -> None:
    for axis in search(graph, params=0.2, min_keep=0.25).axes:
        assert axis.width >= 0.25 * axis.channels
    for axis in search(graph, params=0.2, min_keep=5).axes:
        assert axis.width >= min(5, axis.channels)


def test_widths_are_multiples_where_the_axis_allows_it_and_named_where_not(
    graph: ChannelGraph,
) -> None:
    plan = search(graph, macs=0.5, round_to=8)
    named = {axis.name: axis.reason for axis in plan.axes if axis.reason}
    assert list(named) == ["narrow"] and "round_to=8" in named["narrow"]
    assert widths(plan)["narrow"] == 6
    assert all(axis.width % 8 == 0 for axis in plan.axes if axis.name != "narrow")
    assert "round_to=8" in str(plan)


class Narrow(nn.Sequential):
    """Axes of 48, 20, 9, 6 and 36 channels."""

    def __init__(self) -> None:
        widths = (3, 48, 20, 9, 6, 36, 4)
        super().__init__(*(nn.Conv2d(a, b, 1) for a, b in pairwise(widths)))


def test_by_default_widths_are_multiples_of_eight_and_finer_where_an_axis_is_narrow() -> None:
    torch.manual_seed(0)
    graph = trace(Narrow().eval(), INPUT)
    choices, notes, multiple = allowed_widths(graph.axes, "auto", 0.1)
    assert [one.tolist() for one in choices] == [
        [8, 16, 24, 32, 40, 48], [4, 8, 12, 16, 20], [2, 4, 6, 8, 9], [1, 2, 3, 4, 5, 6],
        [8, 16, 24, 32, 36],
    ]  # fmt: skip
    assert (notes, multiple) == ({}, 8)
    plan = search(graph, macs=0.6)
    good = [axis for axis in plan.axes if axis.width % 8 == 0]
    assert f"{len(good)} of 5 widths are multiples of 8" in str(plan)
    for axis in plan.axes:
        assert (axis.reason is None) == (axis in good)
        assert axis in good or str(axis.reason).startswith("no multiple of 8: ")
    # Nothing asked, nothing removed, also where the dense widths are no multiples.
    assert all(axis.width == axis.channels for axis in search(graph, macs=1.0).axes)


def test_grouped_axes_are_rounded_by_positions_by_default_too() -> None:
    torch.manual_seed(0)
    grouped = nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=4), nn.Conv2d(64, 4, 1)
    )
    graph = trace(grouped.eval(), INPUT)
    assert [axis.channels for axis in graph.axes] == [16, 16]
    for one in allowed_widths(graph.axes, "auto", 1).choices:
        assert one.tolist() == [2, 4, 6, 8, 10, 12, 14, 16]  # four positions each


def test_grouped_channels_count_as_the_positions_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.ReLU(), nn.Conv2d(32, 4, 1)
    )
    graph = trace(model.eval(), INPUT)
    small = prune(graph, search(graph, macs=0.5, round_to=8))
    assert small[0].out_channels % 8 == 0 and small[0].out_channels < 32
    assert small[1].out_channels % 8 == 0 and small[1].groups == 8


def test_what_was_left_whole_is_in_the_plan_with_its_reason(graph: ChannelGraph) -> None:
    plan = search(graph, macs=0.5)
    assert {one.name: one.reason for one in plan.fixed}["head"] == "the network's output"
    assert "the network's output" in str(plan)


def test_pruning_a_pruned_network_again(graph: ChannelGraph) -> None:
    once = prune(graph, search(graph, macs=0.5))
    again = trace(once, INPUT)
    twice = prune(again, search(again, macs=0.5))
    assert count_macs(twice, INPUT) <= 0.25 * graph.macs


def test_history_falls_to_the_fitness_of_the_plan(graph: ChannelGraph) -> None:
    history = search(graph, macs=0.4).history
    assert len(history) > 10 and list(history) == sorted(history, reverse=True)


def test_a_budget_of_any_cost_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new quantity is one function: here bytes, of which a large layer's count double."""
    monkeypatch.setattr(cost, "COSTS", {**cost.COSTS})

    @register_cost
    def bytes(use: ParameterUse) -> int:
        return 8 if "wide" in use.name else 4

    with pytest.raises(ValueError, match="register_cost: cost: expected a new name, got 'bytes'"):
        register_cost(bytes)
    torch.manual_seed(0)
    graph = trace(Net().eval(), INPUT)
    plan = search(graph, macs=0.9, bytes=0.4)
    assert 0.36 * graph.costs["bytes"] < plan.costs["bytes"] <= 0.4 * graph.costs["bytes"]
    assert plan.macs <= 0.9 * graph.macs and plan.budget == {"macs": 0.9, "bytes": 0.4}
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert f"{plan.costs['bytes']:,} of {graph.costs['bytes']:,} bytes (" in str(plan)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "expected at least one budget, got none"),
        ({"macs": 0}, ValueError, r"macs: expected fractions .* in \(0, 1\], got 0"),
        ({"macs": 45}, ValueError, r"in \(0, 1\], got 45"),
        ({"macs": float("nan")}, ValueError, "got nan"),
        ({"params": -0.1}, ValueError, "params: expected fractions"),
        ({"macs": True}, TypeError, "macs: expected a number or a list of numbers, got bool"),
        ({"macs": 0.5, "seed": 1.5}, TypeError, "seed: expected an int, got float"),
        ({"macs": 0.5, "seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"macs": 0.5, "population": 64}, TypeError, r"costs \(macs, params.*\), got 'population'"),
        ({"macs": 0.9, "round_to": 64}, ValueError, "got 0.9; stem.0: left whole: no multiple"),
        ({"macs": "half"}, TypeError, "macs: expected a number or a list of numbers, got str"),
        ({"macs": []}, ValueError, "expected lists of the same length"),
        ({"macs": [0.5, 0.4], "params": [0.5]}, ValueError, "expected lists of the same length"),
        ({"macs": 0.001}, ValueError, r"macs: expected at least 0\.\d+, which keeps the smallest"),
        ({"macs": 0.5, "round_to": 0}, ValueError, "round_to: expected a whole number from 1"),
        ({"macs": 0.5, "round_to": 2.5}, ValueError, "round_to: expected a whole number from 1"),
        ({"macs": 0.5, "min_keep": 1.5}, ValueError, "min_keep: expected a number of channels"),
        ({"macs": 0.5, "min_keep": -1}, ValueError, "min_keep: expected a number of channels"),
        ({"macs": 0.5, "method": "paper"}, TypeError, "expected a mdcp_fast.Method, got str"),
        ({"macs": 0.5, "preset": "quick", "method": Method()}, ValueError, "None beside a method"),
    ],
)
def test_bad_input_is_named(
    graph: ChannelGraph, arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(graph, **arguments)


def test_a_network_instead_of_its_graph_is_named() -> None:
    with pytest.raises(TypeError, match="graph: expected what mdcp_fast.trace returns, got Net"):
        search(Net(), macs=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_callers_default_dtype_changes_nothing(graph: ChannelGraph, dtype: torch.dtype) -> None:
    expected = search(graph, macs=0.5).to_json()
    torch.set_default_dtype(dtype)
    try:
        assert search(graph, macs=0.5).to_json() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_smallest_budget_that_the_message_names_can_be_met(graph: ChannelGraph) -> None:
    with pytest.raises(ValueError) as raised:
        search(graph, macs=0.001)
    smallest = float(str(raised.value).split("at least ")[1].split(",")[0])
    assert search(graph, macs=smallest).macs <= smallest * graph.macs


def test_a_model_with_nothing_to_prune_says_why() -> None:
    graph = trace(nn.Linear(4, 3).eval(), torch.randn(1, 4))
    with pytest.raises(ValueError, match="got none: .*the network's output"):
        search(graph, macs=0.5)


@pytest.mark.parametrize("dense", [1, 7, 100, 1_000, 108_000, 2**53 + 1, 10**17 + 3])
def test_a_budget_is_the_most_whose_share_is_no_larger(dense: int) -> None:
    """Among them shares that a product with the dense cost rounds to one less, as 0.29 of 100."""
    some = {*range(1, min(dense, 200)), dense // 3, dense // 2 + 1, dense - 1, dense} - {0}
    for whole in some:
        most = largest_within(whole / dense, dense)
        assert most >= whole and most / dense <= whole / dense
        assert most == dense or (most + 1) / dense > whole / dense
    assert largest_within(0.29, 100) == 29 and largest_within(1.0, dense) == dense
    assert largest_within(math.nextafter(0.29, 0), 100) == 28
    assert largest_within(1e-300, dense) == 0


def test_what_a_plan_costs_is_a_budget_for_as_large_a_plan(graph: ChannelGraph) -> None:
    widest = [axis.channels for axis in graph.axes]
    for axis, channels in enumerate(widest):
        for width in range(1, channels, 5):
            kept = [range(c if i != axis else width) for i, c in enumerate(widest)]
            plan = PruningPlan.build(graph, kept)
            for name in ("macs", "params"):
                fraction = plan.costs[name] / plan.dense_costs[name]
                smallest = [torch.tensor([1])] * len(widest)
                limits = limits_of(graph, [{name: fraction}], smallest, {})
                column = list(graph.costs).index(name)
                assert int(limits[0, column]) == plan.costs[name]
    plan = search(graph, macs=0.37, round_to=1)
    again = search(graph, macs=plan.macs / plan.dense_macs, round_to=1)
    assert again.macs == plan.macs
