"""From a network to a smaller one: trace, data-free search for half of the MACs, prune.

pytest benchmarks/speed/bench_end_to_end.py -s [--threads 2]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import clock
from parts import Part, timed
from pruned_networks import INPUT, NETWORKS, network, share_of_macs, torch_pruning
from torch import nn

from mdcp_fast import PruningPlan
from mdcp_fast.planning import channels, descriptors, search, widths
from mdcp_fast.pruning import prune
from mdcp_fast.tracing import graph, trace

pytestmark = pytest.mark.usefixtures("threads")
PARTS: list[Part] = [
    ("capture by torch.export", trace, "export"),
    ("channel labels and axes", trace, "walk_program"),
    ("channel labels and axes", trace, "gather"),
    ("MACs, by one forward pass", trace, "count_macs"),
    ("cost model", graph, "cost_model"),
    ("checks against the zeroed network", trace, "failing_axes"),
    ("statistics", descriptors, "moments"),
    ("clusters, crowding, loss table", channels, "loss_table"),
    ("relaxation", widths, "relaxed_widths"),
    ("evolution", search, "widths_by_table"),
    ("the plan", PruningPlan, "build"),
    ("removal", prune, "remove"),
]


def ours(model: nn.Module, check: bool = True) -> nn.Module:
    traced = trace.trace(model, INPUT, check=check)
    return prune.prune(traced, search.search(traced, macs=0.5), check=check)


def where_the_time_goes(model: nn.Module, rounds: int) -> Counter[str]:
    """The mean seconds in each part, and in all the rest."""
    now = clock(torch.get_num_threads())
    total: Counter[str] = Counter()
    for _ in range(rounds):
        with timed(PARTS) as seconds:
            start = now()
            ours(model)
            seconds["the rest"] = now() - start - sum(seconds.values())
        total += seconds
    return Counter({name: own / rounds for name, own in total.items()})


@pytest.mark.parametrize("name", NETWORKS)
def test_network(compare: Callable[..., dict[str, Any]], benchmark: Any, name: str) -> None:
    """Ours with all its checks, and without; torch-pruning has none."""
    model = network(name)
    small = ours(model)
    assert 0.485 <= share_of_macs(small, model) <= 0.5
    peers = {
        "ours unchecked": lambda: lambda: ours(model, check=False),
        "torch-pruning by magnitude": lambda: torch_pruning(model),
    }
    found = compare(lambda: ours(model), peers, rounds=3)
    benchmark.extra_info["share of MACs left"] = {
        key: share_of_macs(one, model) for key, one in {"ours": small, **found}.items()
    }
    benchmark.extra_info["parts"] = where_the_time_goes(model, rounds=2)
