"""Crowding distance of 10,000 points x 3 in 500 groups, one thread, beside pymoo and DEAP.

pytest benchmarks/bench_crowding.py -s

Times are CPU times of the process. Every result is checked against the float64 reference first.
pymoo runs in the same test as ours too, turn about: how much faster ours is stands in extra_info.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mdcp_fast.ops import reference
from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.crowding import crowding_distance

POINTS, DIMENSIONS = 10_000, 3
ROUNDS = 15
BAR = 20  # times faster than pymoo


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(groups: int) -> tuple[Tensor, Tensor]:
    """float32 [POINTS, DIMENSIONS], int64 [groups + 1]; groups of equal size."""
    points = torch.randn(POINTS, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    return points, torch.linspace(0, POINTS, groups + 1).round().long()


def check(distance: Tensor, points: Tensor, offsets: Tensor) -> None:
    expected = reference.crowding_distance(points, offsets)
    torch.testing.assert_close(distance.double(), expected, rtol=1e-6, atol=0)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def pymoo_of(points: Tensor, offsets: Tensor) -> Callable[[], np.ndarray]:
    metrics = pytest.importorskip("pymoo.operators.survival.rank_and_crowding.metrics")
    table, bounds = points.double().numpy(), offsets.tolist()
    groups = [table[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    return lambda: np.concatenate([metrics.calc_crowding_distance(group) for group in groups])


@pytest.mark.benchmark(timer=time.process_time, min_rounds=ROUNDS)
@pytest.mark.parametrize("simd", simd_levels())
@pytest.mark.parametrize("groups", [500, 50, 5])
def test_ours(benchmark: Any, groups: int, simd: str) -> None:
    points, offsets = problem(groups)
    check(crowding_distance(points, offsets, simd=simd), points, offsets)
    benchmark(crowding_distance, points, offsets, simd=simd)


@pytest.mark.benchmark(timer=time.process_time, min_rounds=ROUNDS)
def test_ours_beside_pymoo(benchmark: Any) -> None:
    points, offsets = problem(500)
    theirs = pymoo_of(points, offsets)
    check(crowding_distance(points, offsets), points, offsets)
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        # Ten calls, or ours would mostly measure how cold pymoo's turn left the caches.
        ten = cpu_seconds(lambda: [crowding_distance(points, offsets) for _ in range(10)])
        times.append((ten / 10, cpu_seconds(theirs)))
    faster = median(other for _, other in times) / median(ours for ours, _ in times)
    benchmark.extra_info["times_faster_than_pymoo"] = faster
    benchmark(crowding_distance, points, offsets)
    print(f"\n{faster:.1f} times faster than pymoo")
    assert faster >= BAR


@pytest.mark.benchmark(timer=time.process_time, min_rounds=ROUNDS)
def test_pymoo(benchmark: Any) -> None:
    points, offsets = problem(500)
    distance = benchmark(pymoo_of(points, offsets))
    # pymoo divides by the number of dimensions.
    check(torch.from_numpy(distance).float() * DIMENSIONS, points, offsets)


@pytest.mark.benchmark(timer=time.process_time, min_rounds=ROUNDS)
def test_deap(benchmark: Any) -> None:
    emo = pytest.importorskip("deap.tools.emo")
    base = pytest.importorskip("deap.base")
    points, offsets = problem(500)

    class Fitness(base.Fitness):
        weights = (-1.0,) * DIMENSIONS

    class Individual:
        def __init__(self, values: list[float]) -> None:
            self.fitness = Fitness(values)

    people = [Individual(values) for values in points.double().tolist()]
    bounds = offsets.tolist()
    groups = [people[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    benchmark(lambda: [emo.assignCrowdingDist(group) for group in groups])
    distance = torch.tensor([one.fitness.crowding_dist for one in people])
    check(distance * DIMENSIONS, points, offsets)
