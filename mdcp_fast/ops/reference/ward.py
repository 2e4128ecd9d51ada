"""`ward` for one problem, written out: slow, plain, and the same bit for bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ward_reference(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ward's hierarchy by rounds of reciprocal nearest neighbours.

    Args:
        points: [n, D].

    Returns:
        [n - 1, 4], rows as of `scipy.cluster.hierarchy.linkage`.
    """
    count, dimensions = points.shape
    at = points.astype(np.float64)  # the centroid of the cluster whose smallest point is i
    size = np.ones(count)
    height = np.zeros(count)  # the cost of the merge that made it
    members: list[list[int]] = [[i] for i in range(count)]
    alive = np.ones(count, bool)
    found: list[tuple[float, int, int, list[int], list[int]]] = []

    def merge(keep: int, drop: int, cost: float, order: int) -> None:
        cost = max(cost, height[keep], height[drop])
        found.append((cost, order, drop, members[keep], members[drop]))
        members[keep] = members[keep] + members[drop]
        at[keep] = (at[keep] * size[keep] + at[drop] * size[drop]) / (size[keep] + size[drop])
        size[keep] += size[drop]
        height[keep] = cost
        alive[drop] = False

    first_of: dict[bytes, int] = {}
    for i in range(count):  # equal points first
        first = first_of.setdefault((points[i] + 0.0).tobytes(), i)
        if first != i:
            merge(first, i, 0.0, 0)

    nearest = np.zeros(count, np.int64)
    cost = np.full(count, np.inf)

    def search(i: int) -> None:
        squared = np.zeros(count)
        for d in range(dimensions):
            difference = at[:, d] - at[i, d]
            squared += difference * difference
        costs = squared / (1 / size + 1 / size[i])
        costs[~alive] = np.inf
        costs[i] = np.inf
        nearest[i] = costs.argmin()
        cost[i] = costs[nearest[i]]

    stale = alive.copy()
    order = 0
    while alive.sum() > 1:
        for i in np.flatnonzero(stale).tolist():
            search(i)
        order += 1
        live = np.flatnonzero(alive).tolist()
        pairs = [(i, int(nearest[i])) for i in live if i < nearest[i] and nearest[nearest[i]] == i]
        changed = np.zeros(count, bool)
        for i, j in pairs:
            merge(i, j, cost[i], order)
            changed[[i, j]] = True
        stale = alive & (changed | changed[nearest]) if pairs else alive.copy()

    linkage = np.zeros((count - 1, 4))
    cluster: dict[tuple[int, ...], int] = {(i,): i for i in range(count)}
    for row, (value, _, _, a, b) in enumerate(sorted(found, key=lambda one: one[:3])):
        left, right = sorted((cluster[tuple(a)], cluster[tuple(b)]))
        linkage[row] = left, right, np.sqrt(2 * value), len(a) + len(b)
        cluster[tuple(a + b)] = count + row
    return linkage
