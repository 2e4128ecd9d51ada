"""Latency as a budget: predictions and plans on a backend whose times are a formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timed import Known
from torch import Tensor, nn

import mdcp_fast.planning.latency as latency_module
from mdcp_fast.modules.calls import count_macs
from mdcp_fast.planning.latency import calibrate_latency, measure_latency, time_plans
from mdcp_fast.planning.latency_table import LatencyTable
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

INPUT = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers of all kinds, a residual stream, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.expand = nn.Conv2d(32, 96, 1)
        self.depthwise = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.project = nn.Conv2d(96, 32, 1)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 64, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.project(self.depthwise(self.expand(x).relu()).relu())
        x = self.twice(self.twice(x).relu())
        return self.head(self.last(x).relu().mean((2, 3)))


def up(size: int) -> int:
    return -(-size // 8) * 8


class Formula:
    """Takes so long as blocks of eight channels make it, and a bit for each network."""

    def __init__(self, slower: float = 1.0) -> None:
        self.slower = slower

    def prepare(self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int) -> Any:
        assert threads == 1 and all(len(x) == 1 for x in inputs)
        total = [0.05]

        def seen(module: Any, _: Any, output: Tensor) -> None:
            sizes = module.weight.shape
            inputs = 1 if sizes[1] == 1 and sizes[0] > 1 else up(sizes[1])
            places = output[0, 0].numel()
            total[0] += 1e-6 * up(sizes[0]) * inputs * sizes[2:].numel() * places

        hooks = [
            one.register_forward_hook(seen)
            for one in model.modules()
            if isinstance(one, (nn.Conv2d, nn.Linear))
        ]
        with torch.no_grad():
            model(*inputs)
        for hook in hooks:
            hook.remove()
        return Known(total[0] * self.slower)


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(Net().eval(), INPUT)


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Formula:
    made = Formula()
    monkeypatch.setattr(latency_module, "backend", lambda name: made)
    return made


@pytest.fixture(scope="module")
def table(graph: ChannelGraph) -> LatencyTable:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency_module, "backend", lambda name: Formula())
        return measure_latency(graph, seconds=0)


def test_predictions_are_right_where_times_add_up(
    graph: ChannelGraph, table: LatencyTable, formula: Formula
) -> None:
    assert len(table.networks) == 21 and len({one.widths for one in table.networks}) > 15
    assert max(map(abs, table.errors(graph))) < 0.05
    plans = search(graph, macs=[0.3, 0.5, 0.8])
    for plan, time in zip(plans, time_plans(graph, table, plans, seconds=0)[1:], strict=True):
        assert table.predict(graph, plan) == pytest.approx(time.milliseconds, rel=0.05)
    assert table.dense_milliseconds == table.networks[0].milliseconds


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_the_budget_holds_where_it_was_measured(
    graph: ChannelGraph, table: LatencyTable, formula: Formula, share: float
) -> None:
    plan = search(graph, latency=share, latency_table=table)
    assert plan.budget == {"latency": share}
    assert plan.costs["latency"] <= share * plan.dense_costs["latency"]
    dense, pruned = time_plans(graph, table, [plan], seconds=0)
    assert 0.6 * share < pruned.milliseconds / dense.milliseconds < 1.05 * share
    assert "ns of predicted latency" in str(plan)
    assert count_macs(prune(graph, plan), INPUT) == plan.macs


def test_budgets_go_together_and_come_in_lists(graph: ChannelGraph, table: LatencyTable) -> None:
    both = search(graph, latency=0.7, macs=0.4, latency_table=table)
    assert both.macs <= 0.4 * graph.macs
    several = search(graph, latency=[0.5, 0.8], latency_table=table)
    assert several[0].costs["latency"] < several[1].costs["latency"]
    assert several[0].to_json() == search(graph, latency=0.5, latency_table=table).to_json()
    whole = search(graph, latency=1.0, latency_table=table)
    assert all(axis.width == axis.channels for axis in whole.axes)


def test_calibrated_searches_take_a_latency_too(graph: ChannelGraph, table: LatencyTable) -> None:
    data = CalibrationData.read(graph, [INPUT.repeat(4, 1, 1, 1)])
    plan = search(graph, latency=0.6, latency_table=table, calibration=data)
    assert plan.costs["latency"] <= 0.6 * plan.dense_costs["latency"]
    small = prune(graph, plan, calibration=data)
    assert count_macs(small, INPUT) == plan.macs
    again = search(graph, latency=0.6, latency_table=table, calibration=[INPUT.repeat(4, 1, 1, 1)])
    assert again.to_json() == plan.to_json()


def test_new_measurements_correct_a_table(
    graph: ChannelGraph, table: LatencyTable, formula: Formula
) -> None:
    plan = search(graph, latency=0.5, latency_table=table)
    _, before = time_plans(graph, table, [plan], seconds=0)
    better = calibrate_latency(graph, table, plan, seconds=0)
    assert better.predict(graph, plan) == pytest.approx(before.milliseconds, rel=1e-3)
    assert len(better.networks) == len(table.networks) + 1
    formula.slower = 3.0  # a machine that has become slower is no news of the plan
    again = calibrate_latency(graph, table, plan, seconds=0)
    assert again.predict(graph, plan) == pytest.approx(better.predict(graph, plan))


def test_the_dense_network_stays_the_first_of_a_table(
    graph: ChannelGraph, table: LatencyTable, formula: Formula
) -> None:
    whole = search(graph, latency=1.0, latency_table=table)
    again = calibrate_latency(graph, table, [whole, whole], seconds=0)
    assert again.networks[0] == table.networks[0]
    assert again.dense_milliseconds == table.dense_milliseconds


def test_a_table_is_saved_and_loaded(
    graph: ChannelGraph, table: LatencyTable, tmp_path: Path
) -> None:
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert str(again) == str(table) and "onnxruntime" in str(table)
    plans = [search(graph, latency=0.5, latency_table=one) for one in (table, again)]
    assert plans[0].to_json() == plans[1].to_json()
    for content in ("{}", "nonsense", json.dumps({"format": 99})):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match="LatencyTable.load: path: expected a table"):
            LatencyTable.load(tmp_path / "bad.json")


def test_a_busy_machine_is_named(table: LatencyTable) -> None:
    assert "other work" not in str(table)
    dense = replace(table.networks[0], p90=2 * table.networks[0].median)
    busy = replace(table, networks=(dense, *table.networks[1:]))
    assert "the machine had other work" in str(busy)


def test_layers_that_gained_nothing_are_named(graph: ChannelGraph, table: LatencyTable) -> None:
    text = table.explain(graph, search(graph, latency=0.5, latency_table=table))
    lines = text.splitlines()
    assert len(lines) == 2 + len(table.layers)
    whole = table.explain(graph, search(graph, latency=1.0, latency_table=table))
    assert whole.count("not faster: nothing of it was removed") == len(table.layers)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda g, t: search(g, latency=0.5), TypeError, "latency_table: expected what"),
        (lambda g, t: search(g, latency=0.0, latency_table=t), ValueError, "latency: expected fra"),
        (lambda g, t: measure_latency(g.model), TypeError, "graph: expected what"),
        (lambda g, t: measure_latency(g, batch=0), ValueError, "batch: expected a whole number"),
        (lambda g, t: measure_latency(g, threads=True), ValueError, "threads: expected a whole"),
        (
            lambda g, t: search(trace(Net().eval().head, INPUT[:, 0, 0, :1].expand(2, 64)),
                                latency=0.5, latency_table=t),
            ValueError, "expected",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(
    graph: ChannelGraph,
    table: LatencyTable,
    act: Callable[[ChannelGraph, LatencyTable], Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        act(graph, table)


def test_a_table_of_another_network_is_refused(table: LatencyTable) -> None:
    wider = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    with pytest.raises(ValueError, match="expected one of this network, got one with"):
        search(trace(wider.eval(), INPUT), latency=0.5, latency_table=table)


def test_torch_itself_is_measured(graph: ChannelGraph) -> None:
    table = measure_latency(graph, backend="torch", networks=2, seconds=0)
    assert table.settings["backend"] == "torch" and table.dense_milliseconds > 0
    assert "latency" in table.graph_with_cost(graph).costs
