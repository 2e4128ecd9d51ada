"""Removing channels: prune, beside torch-pruning's removal.

pytest benchmarks/speed/bench_prune.py -s [--threads 2]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruned_networks import INPUT, NETWORKS, share_of_macs, torch_pruning, traced

from mdcp_fast.planning.search import search
from mdcp_fast.pruning.prune import prune

pytestmark = pytest.mark.usefixtures("threads")


@pytest.mark.parametrize("name", NETWORKS)
def test_network(compare: Callable[..., dict[str, Any]], name: str) -> None:
    """Ours compares with the zeroed network in float64; and without. The peer chooses as well."""
    graph = traced(name)
    plan = search(graph, macs=0.5)
    small = prune(graph, plan)
    assert share_of_macs(small, graph.model) == pytest.approx(plan.macs / plan.dense_macs)
    assert torch.isfinite(small(INPUT)).all()
    peers = {
        "ours unchecked": lambda: lambda: prune(graph, plan, check=False),
        "a copy of the network": lambda: lambda: copy.deepcopy(graph.model),
        "torch-pruning graph and removal": lambda: torch_pruning(graph.model),
    }
    compare(lambda: prune(graph, plan), peers, rounds=3)
