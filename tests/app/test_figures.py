"""Figures: drawn for every kind of plan, whole or not at all, and the same for the same plan."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mdcp_fast.app import figures
from mdcp_fast.planning.latency_table import LatencyTable, LayerTimes, NetworkTime
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 2, 3)
    )
    return trace(model, torch.zeros(1, 2, 9, 9))


def plan_for(graph: ChannelGraph, **options: object) -> PruningPlan:
    """The first axis keeps one of each of six clusters, the second is left whole."""
    clusters = [[i // 2 for i in range(12)], None]
    kept = [range(0, 12, 2), range(20)]
    return PruningPlan.build(graph, kept, clusters=clusters, **options)


def picture(path: Path) -> torch.Tensor:
    image = pytest.importorskip("matplotlib.image").imread(path)
    return torch.from_numpy(image)[..., :3]


def test_every_figure_shows_something_and_repeats(graph: ChannelGraph, tmp_path: Path) -> None:
    plan = plan_for(graph, history=[3.0, 2.0, 1.5])
    stages = {
        name: {"accuracy": accuracy, "macs": macs}
        for name, accuracy, macs in (
            ("dense", 0.99, 100),
            ("pruned", 0.1, 40),
            ("compensated", 0.9, 40),
            ("finetuned", 1.0, 40),
        )
    }
    for twice in ("first", "second"):
        folder = tmp_path / twice
        folder.mkdir()
        figures.figure_widths(folder / "widths.png", plan)
        figures.figure_convergence(folder / "convergence.png", plan)
        figures.figure_descriptors(folder / "descriptors.png", graph, plan)
        figures.figure_accuracy(folder / "accuracy.png", stages)
        assert len(os.listdir(folder)) == 4  # no temporary file stays behind
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        pixels = picture(path)
        assert min(pixels.shape[:2]) > 200
        assert 0.005 < (pixels < 0.95).any(-1).float().mean() < 0.9


def test_unusual_plans_are_drawn_as_well(graph: ChannelGraph, tmp_path: Path) -> None:
    bare = PruningPlan.build(graph, [range(5), range(20)])  # neither clusters nor history
    figures.figure_convergence(tmp_path / "bare.png", bare)
    figures.figure_descriptors(tmp_path / "bare.png", graph, bare)
    whole = PruningPlan.build(graph, [range(12), range(20)])
    figures.figure_descriptors(tmp_path / "whole.png", graph, whole, axis="2")
    figures.figure_convergence(
        tmp_path / "flat.png", plan_for(graph, history=[float("inf"), 1.0, 1.0])
    )


def test_many_layers_stay_within_a_page(tmp_path: Path) -> None:
    layers = [nn.Conv2d(4, 4, 1) for _ in range(130)]
    deep = trace(nn.Sequential(*layers), torch.zeros(1, 4, 2, 2), check=False)
    plan = PruningPlan.build(deep, [range(2)] * len(deep.axes))
    figures.figure_widths(tmp_path / "deep.png", plan)
    assert picture(tmp_path / "deep.png").shape[0] <= figures.TALLEST * 144


def test_an_unknown_axis_is_named_and_leaves_no_file(graph: ChannelGraph, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"axis: expected the name of an axis of the plan \(0, 2\)"
    ):
        figures.figure_descriptors(tmp_path / "none.png", graph, plan_for(graph), axis="nowhere")
    assert os.listdir(tmp_path) == []


def test_a_table_of_latencies_is_drawn(graph: ChannelGraph, tmp_path: Path) -> None:
    widths = tuple(graph.widths.tolist())
    layers = [
        LayerTimes(
            layer.weight, "spatial", (weight.shape[0],), (weight.shape[1],),
            np.array([[float(place + 1)]]), np.array([[1.0]]),
        )
        for place, layer in enumerate(graph.layers.values())
        for weight in [graph.model.get_parameter(layer.weight)]
    ]  # fmt: skip
    networks = [NetworkTime(widths, 9.0, 9.1, 9.5), NetworkTime((1,) * len(widths), 5.0, 5.1, 5.2)]
    table = LatencyTable.fitted(graph, {"backend": "none"}, layers, networks)
    figures.figure_latency(tmp_path / "latency.png", graph, table)
    assert (tmp_path / "latency.png").stat().st_size > 5000
