"""Segments of points on which every implementation of crowding_distance must agree."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets_of(*sizes: int) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def points_of(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def _zeros_of_either_sign(size: int) -> Tensor:
    signs = torch.arange(size) % 2 == 0
    return torch.where(signs, 0.0, -0.0)[:, None].contiguous()


def _ends_of_the_range(size: int, scale: float) -> Tensor:
    """largest - smallest overflows float32, or is far below its normal numbers."""
    points = (torch.rand(size, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1) * scale
    points[0] = -scale
    points[1] = scale
    return points


def _one_constant_dimension(size: int) -> Tensor:
    points = points_of(size, 3)
    points[:, 1] = 7.0
    return points


def cases() -> dict[str, tuple[Tensor, Tensor]]:
    """Points and offsets by name."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def add(name: str, points: Tensor, *sizes: int) -> None:
        found[name] = (points, offsets_of(*sizes))

    # Below, at and beyond a block of 16, and on both sides of 128, where sorting takes over.
    sizes = (0, 1, 2, 3, 4, 15, 16, 17, 0, 31, 32, 33, 100, 127, 128, 129, 256, 1000, 0)
    for dimensions in (1, 2, 3, 8, 16):
        add(f"{dimensions} dimensions", points_of(sum(sizes), dimensions), *sizes)
    ties = (3, 20, 64, 300, 2000)
    for decimals in (0, 1):
        add(f"ties, {decimals} decimals", points_of(sum(ties), 3).round(decimals=decimals), *ties)
    for size in (5, 300):
        add(f"constant dimension, {size}", _one_constant_dimension(size), size)
        add(f"all alike, {size}", torch.full((size, 3), -0.5), size)
    add("one and two points", torch.zeros(3, 2), 1, 2)
    for size in (6, 300):
        zeros = _zeros_of_either_sign(size)
        add(f"zeros alone, {size}", zeros, size)
        ends = torch.tensor([[1.0], [-1.0]])
        add(f"zeros between ends, {size}", torch.cat([zeros, ends]), size + 2)
    for scale in (3e38, 1e-38, 1e-44):
        for size in (9, 400):
            add(f"up to {scale}, {size}", _ends_of_the_range(size, scale), size)
    add("no points", torch.empty(0, 3), 0, 0, 0)
    add("no segments", torch.empty(0, 3))
    return found
