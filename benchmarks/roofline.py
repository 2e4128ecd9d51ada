"""What an H100 needs at least for the jobs of ResNet-50's 53 convolutions: on paper.

A job takes no less than its bytes at full bandwidth, no less than its instructions at the full
issue rate, and no less than a launch. Nothing here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import workloads

from mdcp_fast.ops.kmeans import kmeans

BANDWIDTH = 3.35e12  # bytes a second, HBM3 of an H100 SXM
MULTIPROCESSORS = 132
CLOCK = 1.755e9  # sustained; 1.98e9 at most
LANES = 128  # instructions of threads that a multiprocessor issues a cycle: 4 warps
# Distances of Ward are float64, at half the rate.
DOUBLE_LANES = 64
LAUNCH = 2e-6  # seconds, of an empty kernel in a full stream; up to 6e-6
DIMENSIONS = 3
# Per pair of a point and a centre: subtract, multiply, add (the first needs none) for each
# dimension, compare, keep the smaller distance, keep its index. Contraction is ruled out.
NECESSARY = 3 * DIMENSIONS - 1 + 3


class Job(NamedTuple):
    name: str
    size: str
    bytes: float  # read and written once
    pairs: float  # distances between points and centres; 0 where another count is meant
    operations: float  # instructions of threads that cannot be avoided
    lanes: int
    target: float  # seconds

    @property
    def memory(self) -> float:
        return self.bytes / BANDWIDTH

    @property
    def arithmetic(self) -> float:
        return issue_time(self.operations, self.lanes)

    @property
    def floor(self) -> float:
        return max(self.memory, self.arithmetic, LAUNCH)


def issue_time(instructions: float, lanes: int = LANES) -> float:
    return instructions / (MULTIPROCESSORS * lanes * CLOCK)


def ward(work: workloads.Workload, target: float = 0.0) -> Job:
    """The first round alone: every point looks at all others of its problem."""
    pairs = float(work.offsets.diff().square().sum())
    points = len(work.points)
    operations = pairs * (3 * DIMENSIONS - 1 + 2)  # float64: a distance, a product, a comparison
    size = f"{points:,} filters"
    name = "(a) Ward, first round"
    return Job(name, size, (12 + 32) * points, pairs, operations, DOUBLE_LANES, target)


def crowding(points: int, segment: int, target: float = 0.0) -> Job:
    """Of segments of `segment` points, in three dimensions."""
    size = f"{points:,} points x 3, {points // segment} groups"
    operations = points * DIMENSIONS * segment * 2  # rank by counting: compare and add
    return Job("crowding", size, points * (12 + 4), 0, operations, LANES, target)


def lloyd(name: str, work: workloads.Workload, target: float = 0.0) -> Job:
    """Lloyd's iterations as the CPU op counts them (the devices agree), and the last assignment."""
    found = kmeans(work.points, work.offsets, work.k, problem=work.problem)
    sizes = work.offsets.diff()[work.problem]
    pairs = float((sizes * work.k * (found.iterations + 1)).sum())
    written = 8 * len(found.labels) + 4 * found.centers.numel()
    size = f"{len(work.k):,} jobs, {int(found.iterations.sum()):,} iterations"
    return Job(name, size, work.points.nbytes + written, pairs, pairs * NECESSARY, LANES, target)


def jobs() -> list[Job]:
    layers = workloads.resnet50_layers()
    filters, weights = sum(map(len, layers)), 23_454_912
    works: list[tuple[str, Callable[..., workloads.Workload], float]] = [
        ("(a) Lloyd, k = n/2", workloads.half, 0.3e-3),
        ("(b) Lloyd, 848 jobs", workloads.seventeenths, 0.4e-3),
        ("(d) Lloyd, every k of every layer", workloads.every_k, 20e-3),
    ]
    return [
        Job(
            "statistics, float32",
            f"{weights:,} weights, {filters:,} filters",
            4 * weights + 12 * filters,
            0,
            3 * weights,  # subtract the pivot, add, multiply-add
            LANES,
            35e-6,
        ),
        ward(workloads.half(layers), 0.3e-3),
        *(lloyd(name, make(layers), target) for name, make, target in works),
        crowding(10_000, 20, 5e-6),
    ]
