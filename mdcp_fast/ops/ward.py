"""Ward's hierarchical clustering of many problems at once."""

from __future__ import annotations

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import check_finite, check_offsets, check_tensor, simd_level
from mdcp_fast.ops._native import native

MAX_DIMENSIONS = 16
_OP = "ward"


def ward(points: Tensor, offsets: Tensor, *, simd: str | None = None) -> Tensor:
    """Ward's hierarchy of every problem, as `scipy.cluster.hierarchy.ward` would give it.

    Every point starts as a cluster of its own; the two clusters whose union adds least to the sum
    of squared distances from the centroids merge, until one is left. Found by rounds of reciprocal
    nearest neighbours, which is the same hierarchy in memory proportional to the points. Distances
    are computed in float64. Among equally near clusters the one with the smallest point comes
    first. The result is the same bit for bit for any number of threads and any instruction set.

    Args:
        points: float32 [N, D], 1 <= D <= 16, all finite. Gradients do not flow.
        offsets: int64 [P + 1]: problem p is points[offsets[p] : offsets[p + 1]]; starts at 0, never
            decreases, ends at N. Empty problems and single points have no rows.
        simd: the CPU instruction set, None for the best one; no answer depends on it.

    Returns:
        float64 [sum of max(n_p - 1, 0), 4], one problem after the other. Row r of a problem of n
        points: the two clusters merged, smaller first (below n: a point of the problem; else the
        cluster of row id - n), the height sqrt(2 |a| |b| / (|a| + |b|)) times the distance of their
        centroids, and the points of the new cluster. Heights never fall along a problem's rows.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: another shape or device, offsets that are not bounds of problems, a NaN or an
            infinity among the points.

    Source: Ward, "Hierarchical grouping to optimize an objective function", Journal of the American
    Statistical Association 58, 1963; Murtagh, "A survey of recent advances in hierarchical
    clustering algorithms", The Computer Journal 26(4), 1983, for the reciprocal neighbours.
    """
    for name, value in (("points", points), ("offsets", offsets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{_OP}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    return _ward(points.detach(), offsets, simd)


@torch.library.custom_op("mdcp_fast::ward", mutates_args=())
def _ward(points: Tensor, offsets: Tensor, simd: str | None) -> Tensor:
    points = check_points(_OP, points)
    offsets = check_offsets(_OP, "offsets", offsets, len(points), "rows of points")
    check_finite(_OP, "points", points)
    level = simd_level(_OP, simd)
    rows = int((offsets.diff() - 1).clamp(min=0).sum())
    linkage = torch.empty((rows, 4), dtype=torch.float64, device="cpu")
    native.ward(
        points.data_ptr(),
        offsets.data_ptr(),
        len(offsets) - 1,
        points.shape[1],
        linkage.data_ptr(),
        torch.get_num_threads(),
        level,
    )
    return linkage


@_ward.register_fake
def _(points: Tensor, offsets: Tensor, simd: str | None) -> Tensor:
    points = check_points(_OP, points)
    rows = torch.library.get_ctx().new_dynamic_size()
    return points.new_empty((rows, 4), dtype=torch.float64)


def check_points(op: str, points: Tensor) -> Tensor:
    """The points made contiguous, after their dtype, shape and device were found right.

    Args:
        op: name of the op, for the message.
        points: what the caller gave; wanted: float32 [N, 1 to 16] on the CPU.

    Raises:
        TypeError: of another dtype.
        ValueError: another shape or device.
    """
    points = check_tensor(op, "points", points, torch.float32, (None, None))
    if not 1 <= points.shape[1] <= MAX_DIMENSIONS:
        raise ValueError(
            f"{op}: points: expected 1 to {MAX_DIMENSIONS} dimensions, "
            f"got shape {list(points.shape)}"
        )
    if points.device.type != "cpu":
        raise ValueError(
            f"{op}: points: expected a tensor on cpu (this version has no CUDA kernel for this "
            f"op), got one on {points.device}"
        )
    return points
