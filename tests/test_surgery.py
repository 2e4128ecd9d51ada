"""`prune` gives a smaller ordinary module that computes what the zeroed dense one does."""

from __future__ import annotations

import pytest
import torch
import torchvision
from pruning import uniform_plan

from mdcp_fast.graph import ChannelGraph, count_macs, trace
from mdcp_fast.surgery import prune


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64))


def test_the_budget_holds_in_counted_macs(graph: ChannelGraph) -> None:
    plan = uniform_plan(graph, macs=0.5)
    small = prune(graph, plan)
    counted = count_macs(small, graph.example_inputs)
    assert counted == plan.macs <= 0.5 * graph.macs
    assert sum(p.numel() for p in small.parameters()) == plan.params
