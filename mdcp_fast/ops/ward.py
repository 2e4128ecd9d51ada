"""Ward's hierarchical clustering of many problems at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import (
    check_finite,
    check_offsets,
    check_points,
    cuda_execution,
    cuda_tables,
    runs_eagerly,
    runs_on_cuda,
    simd_level,
)
from mdcp_fast.ops._native import native

_OP = "ward"


def ward(points: Tensor, offsets: Tensor, *, simd: str | None = None) -> Tensor:
    """Ward's hierarchy of every problem, as `scipy.cluster.hierarchy.ward` would give it.

    Every point starts as a cluster of its own; the two clusters whose union adds least to the sum
    of squared distances from the centroids merge, until one is left. Found by rounds of reciprocal
    nearest neighbours, which is the same hierarchy in memory proportional to the points. Distances
    are computed in float64. Among equally near clusters the one with the smallest point comes
    first. The result is the same bit for bit on the CPU, for any number of threads and any
    instruction set, and on a CUDA device, where it is found on the current stream. To check the
    arguments, a call there waits for the points and copies the offsets to the host.

    Args:
        points: float32 [N, D], 1 <= D <= 16, all finite. Gradients do not flow.
        offsets: int64 [P + 1], on any device: problem p is points[offsets[p] : offsets[p + 1]];
            starts at 0, never decreases, ends at N. Empty problems and single points have no rows.
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
        RuntimeError: points on a CUDA device, but a build without CUDA.

    Source: Ward, "Hierarchical grouping to optimize an objective function", Journal of the American
    Statistical Association 58, 1963; Murtagh, "A survey of recent advances in hierarchical
    clustering algorithms", The Computer Journal 26(4), 1983, for the reciprocal neighbours.
    """
    for name, value in (("points", points), ("offsets", offsets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{_OP}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    run = _find if runs_eagerly((points, offsets)) else _ward
    return run(points.detach(), offsets, simd)


def _find(points: Tensor, offsets: Tensor, simd: str | None) -> Tensor:
    points = check_points(_OP, points)
    offsets = check_offsets(_OP, "offsets", offsets, len(points), "rows of points")
    check_finite(_OP, "points", points)
    level = simd_level(_OP, simd)
    if runs_on_cuda(_OP, "points", points):
        return _launch(native, points, offsets)
    linkage = _empty_linkage(points, offsets)
    native.ward(
        _problem(native, points, offsets),
        native.WardResult(linkage=linkage.data_ptr()),
        native.Execution(threads=torch.get_num_threads(), simd=level),
    )
    return linkage


_ward = torch.library.custom_op("mdcp_fast::ward", _find, mutates_args=())


def _problem(core: Any, points: Tensor, offsets: Tensor) -> Any:
    return core.WardProblem(
        points=points.data_ptr(),
        offsets=offsets.data_ptr(),
        problems=len(offsets) - 1,
        dimensions=points.shape[1],
    )


def _launch(core: Any, points: Tensor, offsets: Tensor) -> Tensor:
    """The op on a device.

    Args:
        core: the native module whose kernels are to run.
        points: contiguous float32 [N, D], in the device's memory.
        offsets: contiguous int64 [P + 1], on the CPU.
    """
    problem = _problem(core, points, offsets)
    tables = cuda_tables(core.ward_cuda_tables, problem, points.device)
    workspace = points.new_empty(core.ward_cuda_workspace(problem), dtype=torch.uint8)
    linkage = _empty_linkage(points, offsets)
    core.ward_cuda(
        problem,
        core.WardResult(linkage=linkage.data_ptr()),
        cuda_execution(core, workspace, tables),
    )
    return linkage


def _empty_linkage(points: Tensor, offsets: Tensor) -> Tensor:
    bounds = offsets.numpy()
    rows = len(points) - int((bounds[1:] > bounds[:-1]).sum())  # none for a problem's first point
    return torch.empty((rows, 4), dtype=torch.float64, device=points.device)


@_ward.register_fake
def _(points: Tensor, offsets: Tensor, simd: str | None) -> Tensor:
    points = check_points(_OP, points)
    rows = torch.library.get_ctx().new_dynamic_size()
    return points.new_empty((rows, 4), dtype=torch.float64)
