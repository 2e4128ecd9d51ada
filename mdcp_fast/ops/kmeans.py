"""k-means clustering of many problems, each for many numbers of clusters, at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import (
    MAX_DIMENSIONS,
    check_finite,
    check_offsets,
    check_points,
    check_tensor,
    cuda_execution,
    cuda_tables,
    runs_on_cuda,
    simd_level,
)
from mdcp_fast.ops._native import native

__all__ = ["MAX_DIMENSIONS", "KMeans", "kmeans"]

INITS = ("ward", "k-means++")
_GIVEN = "given"
_MAX_POINTS = 2**22  # of one problem, for sums in fixed point
_OP = "kmeans"


class KMeans(NamedTuple):
    """What `kmeans` found; job j's labels are labels[offsets[j] : offsets[j + 1]]."""

    labels: Tensor  # int64 [sum of n over the jobs], from 0 to k - 1 within each job
    offsets: Tensor  # int64 [J + 1]
    centers: Tensor  # float32 [sum of k, D], one job after the other
    inertia: Tensor  # float64 [J], the sum of squared distances to the nearest centre
    iterations: Tensor  # int64 [J]


def kmeans(
    points: Tensor,
    offsets: Tensor,
    k: Tensor,
    *,
    problem: Tensor | None = None,
    init: str | Tensor = "ward",
    max_iter: int = 100,
    seed: int = 0,
    simd: str | None = None,
) -> KMeans:
    """Seeds, then Lloyd's iteration until no centre moves, for many jobs over ragged problems.

    It also ends where centres come back to where they were some iterations before, as rounding may
    let them, so that the inertia no longer falls.

    Jobs of one problem share its seeding: one hierarchy, or one series of k-means++ seeds, serves
    every k. A job's result does not depend on the other jobs and problems of the call, on the
    number of threads, on the instruction set or on the device, bit for bit. On a CUDA device it is
    found on the current stream; to check the arguments, a call there waits for the points, and
    copies offsets, k and problem to the host.

    Distances are computed in float32 from coordinates scaled by a power of two, means from sums in
    fixed point. Among equally near centres the smallest index is the nearest. An empty cluster gets
    the point that is farthest from its centre, scikit-learn's rule. Every label is that of the
    nearest of the centres returned, also where `max_iter` ended the iteration early.

    Args:
        points: float32 [N, D], 1 <= D <= 16, all finite; at most 2^22 to a problem. Gradients do
            not flow.
        offsets: int64 [P + 1], on any device: problem p is points[offsets[p] : offsets[p + 1]];
            starts at 0, never decreases, ends at N.
        k: int64 [J], on any device: the number of clusters of each job, from 1 to the points of its
            problem.
        problem: int64 [J], on any device: the problem of each job; None: job j is problem j.
        init: "ward": the means of the clusters of Ward's hierarchy cut at k, numbered in the order
            in which the hierarchy divides them from the top. "k-means++": points drawn in
            proportion to the squared distance from those before them, each the best of
            2 + floor(ln n) candidates; the seeds for a smaller k are the first of those for a
            larger one. Or the centres themselves: float32 [sum of k, D], one job after the other,
            on the device of the points.
        max_iter: the most iterations, at least 0; 0 only finds each point's nearest seed.
        seed: of the random numbers of "k-means++", from 0 to 2^63 - 1.
        simd: the CPU instruction set, None for the best one; no answer depends on it.

    Returns:
        Labels, where each job's labels begin, centres, inertia and iterations, all on the device of
        the points.

    Raises:
        TypeError: not a tensor, or of another dtype.
        RuntimeError: points on a CUDA device, in a build without CUDA.
        ValueError: another shape or device, offsets that are not bounds of problems, k or problem
            out of range, a NaN or an infinity among points or centres, an unknown init.

    Source: Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28,
    1982; Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    for name, value in (("points", points), ("offsets", offsets), ("k", k)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{_OP}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    if problem is not None and not isinstance(problem, Tensor):
        raise TypeError(
            f"{_OP}: problem: expected None or a torch.Tensor, got {type(problem).__name__}"
        )
    centers: Tensor | None = None
    if isinstance(init, Tensor):
        kind, centers = _GIVEN, init.detach()
    elif init in INITS:
        kind = init
    else:
        names = ", ".join(repr(one) for one in INITS)
        raise ValueError(f"{_OP}: init: expected {names} or a tensor of centres, got {init!r}")
    for name, number in (("max_iter", max_iter), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{_OP}: {name}: expected an int, got {type(number).__name__}")
        _check_number(name, number)
    return KMeans(
        *_kmeans(points.detach(), offsets, k, problem, kind, centers, max_iter, seed, simd)
    )


@torch.library.custom_op("mdcp_fast::kmeans", mutates_args=())
def _kmeans(
    points: Tensor,
    offsets: Tensor,
    k: Tensor,
    problem: Tensor | None,
    init: str,
    centers: Tensor | None,
    max_iter: int,
    seed: int,
    simd: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Whoever calls the op past `kmeans` must not make the native core read what is not there.
    if init not in (*INITS, _GIVEN) or (centers is not None) != (init == _GIVEN):
        raise ValueError(
            f"{_OP}: init: expected {_GIVEN!r} with centers, or {' or '.join(map(repr, INITS))} "
            f"without, got {init!r} with{'out' if centers is None else ''}"
        )
    _check_number("max_iter", max_iter)
    _check_number("seed", seed)
    points = check_points(_OP, points)
    offsets = check_offsets(_OP, "offsets", offsets, len(points), "rows of points")
    sizes = offsets.diff()
    if len(sizes) and sizes.max() > _MAX_POINTS:
        raise ValueError(
            f"{_OP}: offsets: expected at most {_MAX_POINTS} points in a problem, "
            f"got {int(sizes.max())} in problem {int(sizes.argmax())}"
        )
    k, problem = _check_jobs(k, problem, sizes)
    clusters = int(k.sum())
    if centers is not None:
        shape = (clusters, points.shape[1])
        centers = check_tensor(_OP, "init", centers, torch.float32, shape, device=points.device)
        check_finite(_OP, "init", centers)
    check_finite(_OP, "points", points)
    level = simd_level(_OP, simd)

    label_offsets = torch.zeros(len(k) + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(sizes[problem], 0, out=label_offsets[1:])
    found = KMeans(
        labels=points.new_empty(int(label_offsets[-1]), dtype=torch.int64),
        offsets=label_offsets.to(points.device),
        centers=points.new_empty((clusters, points.shape[1])),
        inertia=points.new_empty(len(k), dtype=torch.float64),
        iterations=points.new_empty(len(k), dtype=torch.int64),
    )
    on_cuda = runs_on_cuda(_OP, "points", points)
    task = native.KMeansProblem(
        points=points.data_ptr(),
        offsets=offsets.data_ptr(),
        problems=len(sizes),
        dimensions=points.shape[1],
        k=k.data_ptr(),
        problem=problem.data_ptr(),
        jobs=len(k),
        init=native.KMeansInit.__members__[init],
        centers=0 if centers is None else centers.data_ptr(),
        max_iter=max_iter,
        seed=seed,
    )
    result = native.KMeansResult(
        **{name: tensor.data_ptr() for name, tensor in found._asdict().items()}
    )
    if on_cuda:
        _launch(native, task, result, points.device)
    else:
        native.kmeans(task, result, native.Execution(threads=torch.get_num_threads(), simd=level))
    return found.labels, found.offsets, found.centers, found.inertia, found.iterations


def _launch(core: Any, task: Any, result: Any, device: torch.device) -> None:
    """The op on a device.

    Args:
        core: the native module whose kernels are to run.
        task: its KMeansProblem: points and centres are in the device's memory, all else is on the
            CPU.
        result: its KMeansResult, in the device's memory.
    """
    tables = cuda_tables(core.kmeans_cuda_tables, task, device)
    workspace = torch.empty(core.kmeans_cuda_workspace(task), dtype=torch.uint8, device=device)
    core.kmeans_cuda(task, result, cuda_execution(core, workspace, tables))


@_kmeans.register_fake
def _(
    points: Tensor,
    offsets: Tensor,
    k: Tensor,
    problem: Tensor | None,
    init: str,
    centers: Tensor | None,
    max_iter: int,
    seed: int,
    simd: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    points = check_points(_OP, points)
    context = torch.library.get_ctx()
    labels = context.new_dynamic_size()
    clusters = context.new_dynamic_size()
    jobs = k.shape[0]
    return (
        points.new_empty(labels, dtype=torch.int64),
        points.new_empty(jobs + 1, dtype=torch.int64),
        points.new_empty((clusters, points.shape[1])),
        points.new_empty(jobs, dtype=torch.float64),
        points.new_empty(jobs, dtype=torch.int64),
    )


def _check_number(name: str, number: int) -> None:
    if not 0 <= number < 2**63:
        raise ValueError(f"{_OP}: {name}: expected 0 to 2^63 - 1, got {number}")


def _check_jobs(k: Tensor, problem: Tensor | None, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The number of clusters and the problem of every job, found to fit the problems' sizes."""
    k = check_tensor(_OP, "k", k, torch.int64, (None,)).cpu()
    if problem is None:
        if len(k) != len(sizes):
            raise ValueError(
                f"{_OP}: k: expected one number for each of {len(sizes)} problems "
                f"(or the argument problem), got {len(k)}"
            )
        problem = torch.arange(len(k), device="cpu")
    else:
        problem = check_tensor(_OP, "problem", problem, torch.int64, (len(k),)).cpu()
        bad = ((problem < 0) | (problem >= len(sizes))).nonzero()
        if len(bad):
            raise ValueError(
                f"{_OP}: problem: expected 0 to {len(sizes) - 1}, "
                f"got {int(problem[bad[0]])} at {int(bad[0])}"
            )
    bad = ((k < 1) | (k > sizes[problem])).nonzero()
    if len(bad):
        job = int(bad[0])
        raise ValueError(
            f"{_OP}: k: expected 1 to {int(sizes[problem[job]])}, the points of problem "
            f"{int(problem[job])}, got {int(k[job])} at {job}"
        )
    return k, problem
