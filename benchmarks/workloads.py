"""The clustering problems of a real network: what the benchmarks of `ward` and `kmeans` run on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Workload(NamedTuple):
    """Jobs over ragged problems, as `kmeans` takes them."""

    points: Tensor  # float32 [N, 3]
    offsets: Tensor  # int64 [P + 1]
    k: Tensor  # int64 [J]
    problem: Tensor  # int64 [J]


def moments(weight: Tensor) -> Tensor:
    """Mean, variance and cosine distance to the ones of every filter, standardised over the layer.

    Args:
        weight: [filters, ...].

    Returns:
        float32 [filters, 3], each column of mean 0 and variance 1; computed in float64.
    """
    rows = weight.detach().flatten(1).double()
    mean = rows.mean(1)
    cosine = rows.sum(1) / (rows.norm(dim=1) * rows.shape[1] ** 0.5)
    table = torch.stack([mean, rows.var(1, correction=0), 1 - cosine], 1)
    return ((table - table.mean(0)) / table.std(0, correction=0)).float()


def resnet50_layers(seed: int = 0) -> list[Tensor]:
    """The moments of ResNet-50's 53 convolutions with random weights: 26,560 filters."""
    from torchvision.models import resnet50

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet50(weights=None)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    return [moments(layer.weight) for layer in layers]


def jobs(layers: list[Tensor], ks: list[list[int]]) -> Workload:
    """The layers packed, and one job for every number of clusters asked of a layer."""
    sizes = torch.tensor([0] + [len(layer) for layer in layers])
    return Workload(
        torch.cat(layers),
        sizes.cumsum(0),
        torch.tensor([k for layer in ks for k in layer]),
        torch.tensor([p for p, layer in enumerate(ks) for _ in layer]),
    )


def half(layers: list[Tensor]) -> Workload:
    """(a): one job a layer, half as many clusters as filters."""
    return jobs(layers, [[len(layer) // 2] for layer in layers])


def seventeenths(layers: list[Tensor]) -> Workload:
    """(b): 848 jobs, k = round(n q / 17) for q = 1..16."""
    return jobs(layers, [[round(len(layer) * q / 17) for q in range(1, 17)] for layer in layers])


def every_k_of_one(layers: list[Tensor]) -> Workload:
    """(c): one layer of 512 filters, k = 1..512."""
    layer = next(layer for layer in layers if len(layer) == 512)
    return jobs([layer], [list(range(1, 513))])


def every_k(layers: list[Tensor]) -> Workload:
    """(d): every k of every layer, 26,560 jobs."""
    return jobs(layers, [list(range(1, len(layer) + 1)) for layer in layers])
