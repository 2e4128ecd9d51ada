"""Ranks of tables: random plans use up the budget, and what is ranked is the fitted network."""

from __future__ import annotations

import pytest
import torch
from real_ranks import Given, Ranking, lines, total
from torch import nn

from mdcp_fast.tracing.trace import trace

MACS = 0.6


@pytest.fixture(scope="module")
def given() -> Given:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    ).eval()
    graph = trace(model, torch.randn(1, 3, 16, 16))
    return Given(graph, list(torch.randn(32, 3, 16, 16).split(8)), torch.randn(20, 3, 16, 16))


def test_random_plans_use_up_the_budget(given: Given) -> None:
    ranking = Ranking(given, MACS)
    macs = ranking.graph.cost.evaluate(ranking.random_widths(20))[:, 0]
    assert bool((macs <= MACS * given.graph.macs).all())
    assert bool((macs >= 0.9 * MACS * given.graph.macs).all())


def test_the_dense_network_has_no_divergence_and_no_loss(given: Given) -> None:
    ranking = Ranking(given, MACS)
    widths = given.graph.widths
    assert ranking.divergence(widths) == pytest.approx(0, abs=1e-9)
    assert all(total(table, widths) == 0 for table in ranking.tables.values())
    assert ranking.divergence(widths // 2) > 0


def test_a_line_for_each_table(given: Given) -> None:
    found = list(lines(given, MACS, 6))
    assert [line["table"] for line in found] == ["energy", "probed"]
    assert all(-1 <= float(line["rank correlation"]) <= 1 for line in found)
