"""Finding what hangs together: trace, beside torch-pruning's dependency graph.

pytest benchmarks/speed/bench_trace.py -s [--threads 2]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pruned_networks import INPUT, NETWORKS, network

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.tracing.trace import trace

pytestmark = pytest.mark.usefixtures("threads")


@pytest.mark.parametrize("name", NETWORKS)
def test_network(compare: Callable[..., dict[str, Any]], name: str) -> None:
    """Ours checks every axis in float64; and without."""
    model = network(name)
    graph = trace(model, INPUT)
    assert graph.axes
    assert graph.macs == count_macs(model, INPUT) == graph.cost.evaluate(graph.widths)[0]

    def dependency_graph() -> Callable[[], Any]:
        import torch_pruning

        return lambda: torch_pruning.DependencyGraph().build_dependency(model, INPUT)

    peers = {
        "ours unchecked": lambda: lambda: trace(model, INPUT, check=False),
        "torch.export alone": lambda: lambda: torch.export.export(model, (INPUT,)),
        "torch-pruning dependency graph": dependency_graph,
    }
    found = compare(lambda: trace(model, INPUT), peers, rounds=3)
    assert len(found["ours unchecked"].axes) == len(graph.axes)
