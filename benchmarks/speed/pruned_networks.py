"""What the suites of trace, prune, the selection table and the whole way have in common."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

INPUT = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
NETWORKS = [
    "resnet18",
    "resnet50",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "densenet121")),
]


def network(name: str) -> nn.Module:
    """A torchvision network with random weights, in evaluation mode."""
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(torchvision.models, name)(weights=None).eval()


@functools.lru_cache(maxsize=1)
def traced(name: str) -> ChannelGraph:
    return trace(network(name), INPUT)


def share_of_macs(small: nn.Module, model: nn.Module) -> float:
    return count_macs(small, INPUT) / count_macs(model, INPUT)


def torch_pruning(model: nn.Module) -> Callable[[], nn.Module]:
    """Magnitude pruning by a ratio that leaves about half of the MACs: it has no MAC target.

    It prunes in place, so its time holds a copy of the network, as that of ours does.
    """
    import torch_pruning as pruning

    def run() -> nn.Module:
        twin = copy.deepcopy(model)
        last = [module for module in twin.modules() if isinstance(module, nn.Linear)][-1]
        pruner: Any = pruning.pruner.MagnitudePruner(
            twin,
            INPUT,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.3,
            ignored_layers=[last],
        )
        pruner.step()
        return twin

    return run
