"""From a network to a smaller one: trace, data-free search for half of the MACs, prune.

pytest benchmarks/bench_end_to_end.py; torch-pruning is measured beside it where it is installed.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from mdcp_fast.graph import count_macs, trace
from mdcp_fast.search import search
from mdcp_fast.surgery import prune

torchvision = pytest.importorskip("torchvision")

INPUT = torch.randn(1, 3, 224, 224)
NETWORKS = ["resnet18", "resnet50", "mobilenet_v2", "densenet121"]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None).eval()


def ours(model: nn.Module, check: bool) -> nn.Module:
    graph = trace(model, INPUT, check=check)
    return prune(graph, search(graph, macs=0.5), check=check)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
def test_ours(benchmark: Any, name: str, check: bool) -> None:
    model = network(name)
    small = benchmark.pedantic(ours, (model, check), rounds=3, warmup_rounds=1)
    used = count_macs(small, INPUT) / count_macs(model, INPUT)
    assert 0.485 <= used <= 0.5
    benchmark.extra_info["macs"] = used


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_pruning(benchmark: Any, name: str) -> None:
    """Magnitude pruning by a ratio that leaves about half of the MACs: it has no MAC target."""
    pruning = pytest.importorskip("torch_pruning")

    def fresh() -> tuple[tuple[nn.Module], dict[str, Any]]:
        return (copy.deepcopy(model),), {}

    def peer(twin: nn.Module) -> nn.Module:
        last = [module for module in twin.modules() if isinstance(module, nn.Linear)][-1]
        pruner = pruning.pruner.MagnitudePruner(
            twin,
            INPUT,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.3,
            ignored_layers=[last],
        )
        pruner.step()
        return twin

    model = network(name)
    small = benchmark.pedantic(peer, setup=fresh, rounds=3, warmup_rounds=1)
    used = count_macs(small, INPUT) / count_macs(model, INPUT)
    assert used < 0.7
    benchmark.extra_info["macs"] = used
