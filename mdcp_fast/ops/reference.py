"""What the kernels answer to: the same definitions, written plainly, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod

import torch
from torch import Tensor


def channel_statistics(weights: Sequence[Tensor], *, unit: str = "filter") -> list[Tensor]:
    """As `mdcp_fast.ops.statistics.channel_statistics`, in float64: a list of [rows, 3]."""
    outer = {"filter": 1, "kernel": 2}[unit]
    results = []
    for weight in weights:
        shape = weight.shape
        rows = weight.detach().double().reshape(prod(shape[:outer]), prod(shape[outer:]))
        mean = rows.mean(dim=1)
        variance = (rows - mean[:, None]).square().mean(dim=1)
        # 1 - cos = |u - e|^2 / 2 for unit vectors u = w / |w| and e = 1 / sqrt(n).
        unit_rows = rows / rows.norm(dim=1, keepdim=True)
        distance = (unit_rows - rows.shape[1] ** -0.5).square().sum(dim=1) / 2
        distance = torch.where((rows == 0).all(dim=1), 1.0, distance)
        results.append(torch.stack([mean, variance, distance], dim=1))
    return results


def crowding_distance(points: Tensor, offsets: Tensor) -> Tensor:
    """As `mdcp_fast.ops.crowding.crowding_distance`, in float64: [N]."""
    distance = torch.zeros(len(points), dtype=torch.float64)
    bounds = offsets.tolist()
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        segment = points[begin:end].detach().double()
        if len(segment) <= 2:
            distance[begin:end] = inf
            continue
        for values in segment.T:
            order = torch.argsort(values, stable=True)
            ordered = values[order]
            spread = ordered[-1] - ordered[0]
            if spread == 0:
                continue
            distance[begin + order[1:-1]] += (ordered[2:] - ordered[:-2]) / spread
            distance[begin + order[[0, -1]]] = inf
    return distance


def population_norm(
    x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """As `mdcp_fast.ops.population_norm.population_norm`, in float64."""
    parts = x.detach().double().unflatten(0, (len(masks), -1))  # [P, B, C, ...]
    ones = [1] * (x.dim() - 2)
    results = []
    for part, mask in zip(parts, masks.double(), strict=True):
        channels = part.movedim(1, 0).flatten(1)  # [C, B * places]
        centred = channels - channels.mean(1, keepdim=True)
        normal = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
        y = normal * weight.double()[:, None] + bias.double()[:, None]
        y = y.view(part.movedim(1, 0).shape).movedim(0, 1)  # [B, C, ...]
        results.append(torch.where(mask.view(-1, *ones) != 0, mask.view(-1, *ones) * y, 0.0))
    return torch.cat(results)
