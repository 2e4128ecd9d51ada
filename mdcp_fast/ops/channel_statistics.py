"""Three numbers that describe every channel of a network, from its weights."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import runs_eagerly, simd_level, triton_kernels
from mdcp_fast.ops._native import native

UNITS = ("filter", "kernel")
# The native core's numbers of the types that weights may have.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_OP = "channel_statistics"


def channel_statistics(
    weights: Tensor | Sequence[Tensor], *, unit: str = "filter", simd: str | None = None
) -> list[Tensor]:
    """Mean, population variance and cosine distance to the all-ones vector of every channel.

    A row w of n weights gives the mean m, the variance v = mean((w - m)^2) and the distance
    c = 1 - <w, 1> / (|w| sqrt(n)) = 1 - m / sqrt(m^2 + v), between 0 (all weights alike and
    positive) and 2 (alike and negative). A row of zeros has c = 1. Where n = 1 (unit "kernel" of a
    1 x 1 convolution or of a linear layer), v = 0 and c is 0, 1 or 2: the sign of the weight.

    Sums are kept in float64, in an order that depends on the row's length alone: the result is the
    same bit for bit on CPU and CUDA, for any number of threads, any instruction set, and any
    strides. All tensors are read in one native call (CPU) or one kernel launch (CUDA, per dtype).

    Args:
        weights: tensors [out, ...] of float32, float16 or bfloat16 on one device, of any shapes and
            strides (strides other than contiguous cost a copy), or one such tensor. Gradients do
            not flow: the result is detached.
        unit: what a channel is: "filter", the rows weight[f].flatten(), or "kernel", the slices
            weight[f, c].flatten(), in the order of f, then c.
        simd: the CPU instruction set, None for the best one; no answer depends on it.

    Returns:
        One float32 tensor [rows, 3] for every tensor of weights, on its device: rows = out, or
        out * in for "kernel". Tensors without channels give [0, 3].

    Raises:
        TypeError: something that is not a tensor, or of another dtype.
        ValueError: an unknown unit, too few dimensions, channels without weights, tensors on
            several devices, a NaN or an infinity among the weights, a variance beyond float32.

    Source: Sun, Chen, Wu, Li, Ma, "A Clustering Pruning Method Based on Multidimensional Channel
    Information", Neural Processing Letters 2024.
    """
    tensors = [weights] if isinstance(weights, Tensor) else weights
    if not isinstance(tensors, Sequence) or isinstance(tensors, str):
        raise TypeError(
            f"{_OP}: weights: expected a tensor or a list of tensors, got {type(weights).__name__}"
        )
    eager = runs_eagerly(tensors)
    for index, tensor in enumerate(() if eager else tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{_OP}: weights[{index}]: expected a torch.Tensor, got {type(tensor).__name__}"
            )
    if not tensors:
        _row_shapes(tensors, unit)
        return []
    with torch.no_grad():
        if eager:
            shapes = _row_shapes(tensors, unit)
            packed = _describe(tensors, shapes, simd)
        else:
            packed = _channel_statistics(tensors, unit, simd)
            shapes = _row_shapes(tensors, unit)
        return list(packed.split_with_sizes([rows for rows, _ in shapes]))


@torch.library.custom_op("mdcp_fast::channel_statistics", mutates_args=())
def _channel_statistics(weights: Sequence[Tensor], unit: str, simd: str | None) -> Tensor:
    return _describe(weights, _row_shapes(weights, unit), simd)


def _describe(weights: Sequence[Tensor], shapes: list[tuple[int, int]], simd: str | None) -> Tensor:
    level = simd_level(_OP, simd)
    tensors = [tensor.resolve_neg().contiguous() for tensor in weights]
    device = tensors[0].device if tensors else torch.device("cpu")
    out = torch.empty(sum(rows for rows, _ in shapes), 3, dtype=torch.float32, device=device)
    if device.type == "cuda":
        triton_kernels(_OP, "channel_statistics", "the weights").launch_channel_statistics(
            tensors, shapes, out
        )
        strange = _first_strange(out, shapes)
    elif device.type == "cpu":
        columns = {
            "addresses": array("q", [tensor.data_ptr() for tensor in tensors]),
            "types": array("q", [DTYPES[tensor.dtype] for tensor in tensors]),
            "rows": array("q", [rows for rows, _ in shapes]),
            "row_lengths": array("q", [length for _, length in shapes]),
        }
        addresses = {name: column.buffer_info()[0] for name, column in columns.items()}
        strange = native.channel_statistics(
            native.ChannelStatisticsProblem(**addresses, tensors=len(tensors)),
            native.ChannelStatisticsResult(statistics=out.data_ptr()),
            native.Execution(threads=torch.get_num_threads(), simd=level),
        )
    else:
        raise ValueError(f"{_OP}: weights: expected tensors on cpu or cuda, got {device}")
    if strange >= 0:
        raise ValueError(_describe_strange(f"{_OP}: weights[{strange}]", tensors[strange]))
    return out


@_channel_statistics.register_fake
def _(weights: Sequence[Tensor], unit: str, simd: str | None) -> Tensor:
    rows = sum(rows for rows, _ in _row_shapes(weights, unit))
    device = weights[0].device if weights else torch.device("cpu")
    return torch.empty(rows, 3, device=device, dtype=torch.float32)


def _row_shapes(weights: Sequence[Tensor], unit: str) -> list[tuple[int, int]]:
    """The (rows, weights in a row) of every tensor, after all that needs no values was checked."""
    if unit not in UNITS:
        raise ValueError(f"{_OP}: unit: expected one of {', '.join(UNITS)}, got {unit!r}")
    outer = _outer_dimensions(unit)
    device = weights[0].device if weights else None
    shapes = []
    for index, tensor in enumerate(weights):
        shape = tuple(tensor.shape)  # whose slices take less time than a torch.Size's
        rows, row_length = prod(shape[:outer]), prod(shape[outer:])
        wrong: str | None = None
        if tensor.dtype not in DTYPES:
            names = " or ".join(str(dtype) for dtype in DTYPES)
            raise TypeError(f"{_OP}: weights[{index}]: expected dtype {names}, got {tensor.dtype}")
        if tensor.layout is not torch.strided:
            wrong = f"a strided tensor, got layout {tensor.layout}"
        elif tensor.device != device:
            wrong = f"a tensor on {device}, as weights[0] is, got one on {tensor.device}"
        elif len(shape) < outer:
            wrong = f"at least {outer} dimensions for unit {unit!r}, got shape {list(shape)}"
        elif row_length == 0 and rows > 0:
            wrong = f"at least one weight in every {unit}, got shape {list(shape)}"
        if wrong:
            raise ValueError(f"{_OP}: weights[{index}]: expected {wrong}")
        shapes.append((rows, row_length))
    return shapes


def _outer_dimensions(unit: str) -> int:
    """How many dimensions number the rows."""
    return UNITS.index(unit) + 1


def _first_strange(out: Tensor, shapes: Sequence[tuple[int, int]]) -> int:
    """The first tensor with a mean or variance that is not a finite float, -1 if there is none."""
    bad = (~torch.isfinite(out[:, :2]).all(dim=1)).nonzero()
    if len(bad) == 0:
        return -1
    row = int(bad[0])
    for index, (rows, _) in enumerate(shapes):
        if row < rows:
            return index
        row -= rows
    return -1


def _describe_strange(name: str, weight: Tensor) -> str:
    bad = (~torch.isfinite(weight)).nonzero()
    if len(bad) == 0:
        return (
            f"{name}: expected weights whose variance is within float32, "
            f"got some of magnitude {weight.abs().max().item():.3g}"
        )
    place = bad[0].tolist()
    return f"{name}: expected finite numbers, got {weight[tuple(place)].item()} at {place}"
