"""`kmeans` for one job, written out: slow, plain, and the same bit for bit."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FIXED_ONE = 2.0**40
CYCLE_START = 16


class Reference(NamedTuple):
    """What one job found."""

    labels: NDArray[np.int64]  # [n]
    centers: NDArray[np.float32]  # [k, D]
    inertia: float
    iterations: int


def kmeans_reference(
    points: NDArray[np.float32], centers: NDArray[np.float32], max_iter: int
) -> Reference:
    """Lloyd's iteration from given centres.

    Args:
        points: [n, D].
        centers: [k, D].
        max_iter: the most iterations.

    Returns:
        Labels, centres, inertia and iterations.
    """
    scale = unit_scale(points)
    scaled = (points * scale).astype(np.float32)
    fixed = np.rint(scaled.astype(np.float64) * FIXED_ONE).astype(np.int64)
    at = (centers * scale).astype(np.float32)
    labels, distance = _assign(scaled, at)
    iterations, before, cycles = 0, at, False
    while iterations < max_iter and not cycles:
        iterations += 1
        nearest = labels
        labels = _relocate(labels, distance, len(at))
        size = np.bincount(labels, minlength=len(at))
        moved = at.copy()
        for cluster in np.flatnonzero(size):
            sums = fixed[labels == cluster].sum(0).astype(np.float64)
            moved[cluster] = (sums / (size[cluster] * FIXED_ONE)).astype(np.float32)
        if np.array_equal(moved, at) and np.array_equal(labels, nearest):
            break
        at = moved
        # Rounding may send centres round in a circle: see kCycleStart in csrc/numerics/fixed.h.
        if iterations >= CYCLE_START and iterations & (iterations - 1):
            cycles = np.array_equal(at, before)
        elif iterations >= CYCLE_START:
            before = at
        labels, distance = _assign(scaled, at)
    found = (at / scale).astype(np.float32)
    return Reference(labels, found, _inertia(points, found, labels), iterations)


def ward_centers(
    points: NDArray[np.float32], linkage: NDArray[np.float64], k: int
) -> NDArray[np.float32]:
    """The means of the k clusters of a hierarchy, numbered as it divides them from the top.

    Args:
        points: [n, D].
        linkage: [n - 1, 4], as of `ward`.
        k: from 1 to n.

    Returns:
        [k, D].
    """
    count = len(points)
    members: list[list[int]] = [[i] for i in range(count)]
    for left, right, _, _ in linkage:
        members.append(members[int(left)] + members[int(right)])
    clusters = [2 * count - 2]
    while len(clusters) < k:
        node = 2 * count - 1 - len(clusters)
        parts = sorted(
            (int(part) for part in linkage[node - count, :2]), key=lambda part: min(members[part])
        )
        clusters[clusters.index(node)] = parts[0]
        clusters.append(parts[1])
    scale = unit_scale(points)
    fixed = np.rint((points * scale).astype(np.float32).astype(np.float64) * FIXED_ONE)
    means = [fixed[members[node]].sum(0) / (len(members[node]) * FIXED_ONE) for node in clusters]
    return (np.array(means).astype(np.float32) / scale).astype(np.float32)


def plus_plus_centers(points: NDArray[np.float32], k: int, seed: int) -> NDArray[np.float32]:
    """Greedy k-means++ seeds.

    Args:
        points: [n, D].
        k: from 1 to n.
        seed: from 0 to 2^63 - 1.

    Returns:
        [k, D].
    """
    count = len(points)
    scaled = (points * unit_scale(points)).astype(np.float32)
    seeds = [_below(philox((0, 0, 0, 0), seed), count)]
    distance = _squared_distances(scaled, scaled[seeds])[:, 0]
    while len(seeds) < k:
        if distance.max() == 0:
            seeds.append(next(i for i in range(count) if i not in seeds))
            continue
        bits = (count - 1).bit_length()
        whole = 2.0 ** (51 - bits - math.frexp(float(distance.max()))[1])
        before = np.cumsum(np.rint(distance.astype(np.float64) * whole))
        best, least, after = -1, math.inf, distance
        for trial in range(2 + int(math.log(count))):
            ticket = _below(philox((len(seeds), trial, 0, 0), seed), int(before[-1]))
            candidate = int(np.searchsorted(before, ticket, side="right"))
            tried = np.minimum(distance, _squared_distances(scaled, scaled[[candidate]])[:, 0])
            left = np.rint(tried.astype(np.float64) * whole).sum()
            if left < least:
                best, least, after = candidate, left, tried
        seeds.append(best)
        distance = after
    return points[seeds]


def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """Philox-4x32-10 (Salmon, Moraes, Dror, Shaw 2011): four 32-bit words.

    Args:
        counter: four 32-bit words.
        seed: 64 bits.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = product1 >> 32 ^ c1 ^ key0, product1 & 0xFFFFFFFF
        c2, c3 = product0 >> 32 ^ c3 ^ key1, product0 & 0xFFFFFFFF
        key0, key1 = key0 + 0x9E3779B9 & 0xFFFFFFFF, key1 + 0xBB67AE85 & 0xFFFFFFFF
    return c0, c1, c2, c3


def unit_scale(points: NDArray[np.float32]) -> float:
    """The power of two that brings all coordinates into (-1, 1)."""
    return 2.0 ** -math.frexp(float(np.abs(points).max()))[1]


def _below(random: tuple[int, int, int, int], bound: int) -> int:
    return (random[1] << 32 | random[0]) * bound >> 64


def _squared_distances(
    points: NDArray[np.float32], centers: NDArray[np.float32]
) -> NDArray[np.float32]:
    total = np.zeros((len(points), len(centers)), np.float32)
    for d in range(points.shape[1]):
        difference = points[:, None, d] - centers[None, :, d]
        total += difference * difference
    return total


def _assign(
    points: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    distances = _squared_distances(points, centers)
    return distances.argmin(1), distances.min(1)


def _relocate(
    labels: NDArray[np.int64], distance: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Gives every empty cluster the farthest point that is not its cluster's only one."""
    labels = labels.copy()
    size = np.bincount(labels, minlength=k)
    empty = list(np.flatnonzero(size == 0))
    for i in np.argsort(-distance, kind="stable"):
        if not empty or distance[i] == 0:
            break
        if size[labels[i]] > 1:
            size[labels[i]] -= 1
            labels[i] = empty.pop(0)
    return labels


def _inertia(
    points: NDArray[np.float32], centers: NDArray[np.float32], labels: NDArray[np.int64]
) -> float:
    lanes = np.zeros(32)
    for i, label in enumerate(labels):
        total = 0.0
        for d in range(points.shape[1]):
            difference = float(points[i, d]) - float(centers[label, d])
            total += difference * difference
        lanes[i % 32] += total
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])
