"""The clustering problems of a real network: what the benchmarks of `ward` and `kmeans` run on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("random", "heavy-tailed", "trained-like")


class Workload(NamedTuple):
    """Jobs over ragged problems, as `kmeans` takes them."""

    points: Tensor  # float32 [N, D]
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


def resnet50_weights(kind: str = "random", seed: int = 0) -> list[Tensor]:
    """The weights of ResNet-50's 53 convolutions: 26,560 filters, 23.5 million weights.

    Args:
        kind: "random": as torchvision initialises them. "heavy-tailed": Student's t with three
            degrees of freedom. "trained-like": filters of very different norms and with means, a
            tenth of them all but dead, a fifth all but copies of others.
        seed: Of the random numbers.
    """
    from torchvision.models import resnet50

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet50(weights=None)
        convolutions = [one for one in model.modules() if isinstance(one, torch.nn.Conv2d)]
        weights = [layer.weight.detach() for layer in convolutions]
        if kind == "heavy-tailed":
            student = torch.distributions.StudentT(3.0)
            return [student.sample(one.shape) * one.std() / 3**0.5 for one in weights]
        return [trained_like(one) for one in weights] if kind == "trained-like" else weights


def trained_like(weight: Tensor) -> Tensor:
    """Random filters made like trained ones, from torch's random numbers."""
    rows = weight.flatten(1).clone()
    filters = len(rows)
    rows += 0.3 * rows.std() * torch.randn(filters, 1)
    order = torch.randperm(filters)
    copies, dead = order[: filters // 5], order[-(filters // 10) :]
    rows[copies] = rows[order[filters // 5 : filters // 5 + len(copies)]]
    rows[copies] += 0.05 * rows.std() * torch.randn(len(copies), rows.shape[1])
    rows *= torch.exp(0.5 * torch.randn(filters, 1))
    rows[dead] *= 1e-3
    return rows.view_as(weight)


def resnet50_layers(kind: str = "random", seed: int = 0) -> list[Tensor]:
    """The moments of ResNet-50's 53 convolutions."""
    return [moments(weight) for weight in resnet50_weights(kind, seed)]


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


def of_kernels(statistics: list[Tensor], shapes: list[torch.Size]) -> Workload:
    """The kernel unit: each filter's kernels are a problem, k = floor(log2 of their number) + 1.

    Args:
        statistics: Of every layer, float32 [filters * channels, 3].
        shapes: Of every layer's weight, [filters, channels, ...].
    """
    sizes = torch.cat([torch.full((shape[0],), shape[1]) for shape in shapes])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    k = sizes.double().log2().floor().long() + 1
    return Workload(torch.cat(statistics), offsets, k, torch.arange(len(sizes)))


def sampled(work: Workload, step: int) -> Workload:
    """Every so many problems of a workload with a job each."""
    problems = work.points.split(work.offsets.diff().tolist())[::step]
    return jobs(list(problems), [[k] for k in work.k[::step].tolist()])


def normal(problems: int, size: int, dimensions: int, clusters: int) -> Workload:
    """So many problems of `size` normally distributed points, a job each."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(problems * size, dimensions, generator=generator)
    every = torch.arange(problems)
    offsets = torch.arange(problems + 1) * size
    return Workload(points, offsets, torch.full((problems,), clusters), every)
