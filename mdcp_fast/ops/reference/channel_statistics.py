"""`channel_statistics` written out, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def channel_statistics_reference(
    weights: Sequence[Tensor], *, unit: str = "filter"
) -> list[Tensor]:
    """As `mdcp_fast.channel_statistics`, in float64: a list of [rows, 3]."""
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
