"""channel_statistics in Triton: a ragged list of tensors in one launch.

The sums keep the order of the native core (csrc/numerics/channel_statistics.h): lane l of 32 adds
up, in float64 and from 0, the d = w - first of the weights l, l + 32, l + 64, ...; then the lanes
are added in halves. With multiply-adds left unfused, the results have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 32
LONG_ROWS = 8  # rows of one program: 8 x 32 lanes, two for each of 128 threads
SHORT_ROWS = 32  # where a row fits the lanes, so that one program still has work
UNROLL = 4  # loads of a row that are under way at a time
COMPILE_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@triton.jit
def channel_statistics_kernel(
    table: tl.tensor,  # int64 [5, tensors]: address, first program, rows, row length, first out row
    tensors: tl.tensor,  # how many
    out: tl.tensor,  # float32 [rows of all tensors, 3]
    WEIGHT: tl.constexpr,  # element type of the weights
    TABLE: tl.constexpr,  # power of two, at least `tensors`
    LANES: tl.constexpr,
    LONG_ROWS: tl.constexpr,
    SHORT_ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
) -> None:
    """One program describes LONG_ROWS or SHORT_ROWS rows of one tensor."""
    program = tl.program_id(0)
    entry = tl.arange(0, TABLE)  # [TABLE]
    starts = tl.load(table + tensors + entry, mask=entry < tensors, other=2**62)  # [TABLE]
    # Tensors without rows start where the next one does; the last with that start has the rows.
    tensor = tl.sum((starts <= program).to(tl.int32), 0) - 1
    address = tl.load(table + tensor).to(tl.pointer_type(WEIGHT))
    block = program - tl.load(table + tensors + tensor)
    rows = tl.load(table + 2 * tensors + tensor)
    n = tl.load(table + 3 * tensors + tensor)
    first_out = tl.load(table + 4 * tensors + tensor)
    if n <= LANES:
        _describe_rows(address, block, rows, n, out + 3 * first_out, LANES, SHORT_ROWS, 1)
    else:
        _describe_rows(address, block, rows, n, out + 3 * first_out, LANES, LONG_ROWS, UNROLL)


@triton.jit
def _describe_rows(
    weights: tl.tensor,  # [rows, n]
    block: tl.tensor,  # which ROWS of them
    rows: tl.tensor,
    n: tl.tensor,
    out: tl.tensor,  # [rows, 3]
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    UNROLL: tl.constexpr,
) -> None:
    row = block * ROWS + tl.arange(0, ROWS)  # [ROWS]
    lane = tl.arange(0, LANES)  # [LANES]
    there = row < rows  # [ROWS]
    begin = weights + row * n  # [ROWS]
    first = tl.load(begin, mask=there, other=0.0).to(tl.float64)  # [ROWS]
    sums = tl.zeros((ROWS, LANES), tl.float64)
    squares = tl.zeros((ROWS, LANES), tl.float64)
    for at in range(0, n, LANES * UNROLL):
        for step in tl.static_range(UNROLL):
            column = at + step * LANES + lane  # [LANES]
            inside = there[:, None] & (column < n)[None, :]  # [ROWS, LANES]
            weight = tl.load(begin[:, None] + column[None, :], mask=inside, other=0.0)
            d = tl.where(inside, weight.to(tl.float64) - first[:, None], 0.0)  # [ROWS, LANES]
            sums += d
            squares += d * d
    shifted = _fold_lanes(sums, ROWS, LANES) / n.to(tl.float64)  # [ROWS]
    raw = _fold_lanes(squares, ROWS, LANES) / n.to(tl.float64) - shifted * shifted
    mean = first + shifted
    variance = tl.where(raw > 0, raw, 0.0)
    norm = tl.sqrt(mean * mean + variance)
    above = tl.where(mean > 0, variance, norm - mean)
    below = tl.where(mean > 0, norm * (norm + mean), norm)
    distance = tl.where(norm > 0, above / tl.where(norm > 0, below, 1.0), 1.0)
    tl.store(out + 3 * row + 0, mean.to(tl.float32), mask=there)
    tl.store(out + 3 * row + 1, variance.to(tl.float32), mask=there)
    tl.store(out + 3 * row + 2, distance.to(tl.float32), mask=there)


@triton.jit
def _fold_lanes(lanes: tl.tensor, ROWS: tl.constexpr, LANES: tl.constexpr) -> tl.tensor:
    """[ROWS]: the sum of [ROWS, LANES], the upper half of the lanes added to the lower each time.

    A sum of two has no order, so this one is fixed whatever the layout.
    """
    tl.static_assert(LANES == 32)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 16)), 1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 8)), 1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 4)), 1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 2)), 1)
    return tl.sum(lanes, 1)


def launch_channel_statistics(
    weights: Sequence[Tensor], shapes: Sequence[tuple[int, int]], out: Tensor
) -> None:
    """Fills `out` with the statistics of every row of every tensor, one launch for each dtype.

    Args:
        weights: contiguous float32, float16 or bfloat16 tensors on the device of `out`.
        shapes: (rows, weights in a row) of every tensor.
        out: float32 [rows of all tensors, 3], on a CUDA device (or on the CPU under
            TRITON_INTERPRET=1).
    """
    entries: dict[torch.dtype, list[tuple[int, int, int, int, int]]] = {}
    programs: dict[torch.dtype, int] = {}
    first_out = 0
    for weight, (rows, n) in zip(weights, shapes, strict=True):
        start = programs.get(weight.dtype, 0)
        entries.setdefault(weight.dtype, []).append((weight.data_ptr(), start, rows, n, first_out))
        programs[weight.dtype] = start + triton.cdiv(rows, SHORT_ROWS if n <= LANES else LONG_ROWS)
        first_out += rows
    with torch.cuda.device_of(out):
        for dtype, table in entries.items():
            if programs[dtype] == 0:
                continue
            # Turned round before it is copied: that is a launch less on the device.
            columns = torch.tensor(table, dtype=torch.int64, device="cpu").T.contiguous()
            channel_statistics_kernel[(programs[dtype],)](
                columns.to(out.device),
                len(table),
                out,
                WEIGHT=TRITON_DTYPES[dtype],
                TABLE=triton.next_power_of_2(len(table)),
                LANES=LANES,
                LONG_ROWS=LONG_ROWS,
                SHORT_ROWS=SHORT_ROWS,
                UNROLL=UNROLL,
                **COMPILE_OPTIONS,
            )
