"""How lonely a point is among its neighbours: NSGA-II's crowding distance, for many segments."""

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
    runs_on_cuda,
    simd_level,
)
from mdcp_fast.ops._native import native

_OP = "crowding_distance"


def crowding_distance(points: Tensor, offsets: Tensor, *, simd: str | None = None) -> Tensor:
    """The crowding distance of every point within its segment.

    Along each dimension the segment's points are sorted by (value, index). The first and the last
    get infinity; one between gets (next - previous) / (largest - smallest). A point's distance is
    the sum over the dimensions, not divided by their number. A dimension along which all points are
    alike adds nothing and gives no infinity. Segments of one or two points are all infinity.
    Among equal values (-0.0 equals 0.0) the smaller index comes first.

    Sums are kept in float64 and rounded once: the result is the same bit for bit on CPU and CUDA,
    for any number of threads and any instruction set.

    CUDA tensors: one launch on the current stream, two where a segment has more than 2,048 points.
    The checks wait for the device: offsets, and whether all points are finite, go to the host.

    Args:
        points: float32 [N, D] on CPU or CUDA, 1 <= D <= 16, all finite. Gradients do not flow.
        offsets: int64 [P + 1]: segment p is points[offsets[p] : offsets[p + 1]]; starts at 0, never
            decreases, ends at N.
        simd: the CPU instruction set, None for the best one; no answer depends on it.

    Returns:
        float32 [N] on the device of `points`, from 0 to D, or infinity.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: another shape or device, offsets that are not bounds of segments, a NaN or an
            infinity among the points.
        RuntimeError: a CUDA tensor where mdcp_fast was built without CUDA.

    Source: Deb, Pratap, Agarwal, Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm:
    NSGA-II", IEEE Transactions on Evolutionary Computation 6(2), 2002, section III-B.
    """
    for name, value in (("points", points), ("offsets", offsets)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{_OP}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    return _crowding_distance(points.detach(), offsets, simd)


@torch.library.custom_op("mdcp_fast::crowding_distance", mutates_args=())
def _crowding_distance(points: Tensor, offsets: Tensor, simd: str | None) -> Tensor:
    points = check_points(_OP, points)
    on_cuda = runs_on_cuda(_OP, "points", points)
    offsets = check_offsets(_OP, "offsets", offsets, len(points), "rows of points")
    check_finite(_OP, "points", points)
    level = simd_level(_OP, simd)
    if on_cuda:
        return _launch(native, points, offsets)
    out = torch.empty(len(points), dtype=torch.float32, device="cpu")
    native.crowding_distance(
        _problem(native, points, offsets),
        native.CrowdingDistanceResult(distances=out.data_ptr()),
        native.Execution(threads=torch.get_num_threads(), simd=level),
    )
    return out


def _problem(core: Any, points: Tensor, offsets: Tensor) -> Any:
    return core.CrowdingDistanceProblem(
        points=points.data_ptr(),
        offsets=offsets.data_ptr(),
        segments=len(offsets) - 1,
        dimensions=points.shape[1],
    )


def _launch(core: Any, points: Tensor, offsets: Tensor) -> Tensor:
    """Runs the CUDA kernels on the current stream.

    Args:
        core: the native core. One whose kernels are emulated takes CPU tensors.
        points: contiguous float32 [N, D] on the device, finite.
        offsets: int64 [P + 1] on the CPU, bounds of segments.
    """
    problem = _problem(core, points, offsets)
    tables = cuda_tables(core.crowding_distance_cuda_tables, problem, points.device)
    out = points.new_empty(len(points))
    workspace = points.new_empty(core.crowding_distance_cuda_workspace(problem), dtype=torch.uint8)
    core.crowding_distance_cuda(
        problem,
        core.CrowdingDistanceResult(distances=out.data_ptr()),
        cuda_execution(core, workspace, tables),
    )
    return out


@_crowding_distance.register_fake
def _(points: Tensor, offsets: Tensor, simd: str | None) -> Tensor:
    return check_points(_OP, points).new_empty(points.shape[0])
