"""Crowding distance of 10,000 points x 3 in 500 groups, beside pymoo, DEAP and pygmo.

pytest benchmarks/speed/bench_crowding_distance.py -s [--threads 2]

Results, the peers' too, are checked against the float64 reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import roofline
import torch
from torch import Tensor

from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.reference.crowding_distance import crowding_distance_reference

pytestmark = pytest.mark.usefixtures("threads")
POINTS, DIMENSIONS = 10_000, 3
TIED = 1e-5  # share of points with an equal coordinate, of which peers may choose another
Compare = Callable[..., dict[str, Any]]
Peers = dict[str, Callable[[], Callable[[], Any]]]


def problem(
    groups: int, points: int = POINTS, dimensions: int = DIMENSIONS, heavy: bool = False
) -> tuple[Tensor, Tensor]:
    """float32 [points, dimensions], int64 [groups + 1]; groups of equal size."""
    table = torch.randn(points, dimensions, generator=torch.Generator().manual_seed(0))
    if heavy:
        table = table * table.square()
    return table, torch.linspace(0, points, groups + 1, dtype=torch.float64).round().long()


def check(distance: Tensor, points: Tensor, offsets: Tensor) -> None:
    expected = crowding_distance_reference(points, offsets)
    torch.testing.assert_close(distance.double(), expected, rtol=1e-6, atol=0)


def tables(points: Tensor, offsets: Tensor) -> list[np.ndarray]:
    return [own.double().numpy() for own in points.split(offsets.diff().tolist())]


def pymoo(points: Tensor, offsets: Tensor) -> Callable[[], np.ndarray]:
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    groups = tables(points, offsets)
    return lambda: np.concatenate([calc_crowding_distance(group) for group in groups])


def pygmo(points: Tensor, offsets: Tensor) -> Callable[[], np.ndarray]:
    import pygmo

    groups = tables(points, offsets)
    return lambda: np.concatenate([pygmo.crowding_distance(group) for group in groups])


def deap(points: Tensor, offsets: Tensor) -> Callable[[], list[float]]:
    from deap import base
    from deap.tools import emo

    class Fitness(base.Fitness):
        weights = (-1.0,) * points.shape[1]

    class Individual:
        def __init__(self, values: list[float]) -> None:
            self.fitness = Fitness(values)

    groups = [[Individual(row) for row in table.tolist()] for table in tables(points, offsets)]

    def run() -> list[float]:
        for group in groups:
            emo.assignCrowdingDist(group)
        return [one.fitness.crowding_dist for group in groups for one in group]

    return run


def measure(
    compare: Compare, points: Tensor, offsets: Tensor, peers: Peers, **options: Any
) -> None:
    check(crowding_distance(points, offsets), points, offsets)
    expected = crowding_distance_reference(points, offsets)
    found = compare(lambda: crowding_distance(points, offsets), peers, rounds=15, **options)
    for name, distance in found.items():
        # pymoo and DEAP divide by the number of dimensions.
        factor = points.shape[1] if name in ("pymoo", "DEAP") else 1
        near = torch.isclose(torch.as_tensor(distance).double() * factor, expected, rtol=1e-6)
        assert (~near).double().mean() < TIED, name


def peers_of(points: Tensor, offsets: Tensor) -> Peers:
    return {
        "pymoo": lambda: pymoo(points, offsets),
        "DEAP": lambda: deap(points, offsets),
        "pygmo": lambda: pygmo(points, offsets),
    }


@pytest.mark.parametrize("groups", [500, 50, 5])
def test_groups(compare: Compare, groups: int) -> None:
    points, offsets = problem(groups)
    jobs = [roofline.crowding(POINTS, POINTS // groups)] if groups == 500 else []
    measure(compare, points, offsets, peers_of(points, offsets), jobs=jobs)


def test_heavy_tailed(compare: Compare) -> None:
    points, offsets = problem(500, heavy=True)
    measure(compare, points, offsets, peers_of(points, offsets))


@pytest.mark.parametrize("level", simd_levels())
def test_simd(compare: Compare, level: str) -> None:
    points, offsets = problem(500)
    check(crowding_distance(points, offsets, simd=level), points, offsets)
    compare(lambda: crowding_distance(points, offsets, simd=level), rounds=15)


@pytest.mark.parametrize("dimensions", [3, 8, 16])
@pytest.mark.parametrize("n", [64, 256, 1024, 4096])
def test_growth(compare: Compare, n: int, dimensions: int) -> None:
    """One segment of n points."""
    points, offsets = problem(1, n, dimensions)
    growth = ("n", n, f"one segment, D = {dimensions}")
    measure(compare, points, offsets, peers_of(points, offsets), growth=growth)


@pytest.mark.parametrize("segments", [1, 30, 1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_problems(compare: Compare, segments: int) -> None:
    """Many segments of 20 points."""
    points, offsets = problem(segments, 20 * segments)
    growth = ("problems", segments, "20 points, D = 3")
    measure(compare, points, offsets, peers_of(points, offsets), growth=growth)
