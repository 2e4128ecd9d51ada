"""population_norm in Triton: BatchNorm of each candidate of a population, masked, in two launches.

The first launch describes parts of each candidate's channels by mean and standard deviation; the
second joins the parts and normalises. Standard deviations are kept in place of sums of squares, and
differences are halved, so that nothing grows larger than the values themselves: no input
overflows. Sums are float32, each taken about its own tile's mean (Chan, Golub, LeVeque, "Algorithms
for computing the sample variance", 1983).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor, empty, float32
from torch.cuda import device_of

TILE = 2048  # values that a program holds: 16 for each of 128 threads
CHANNELS = 64  # of a tile where channels lie side by side; else a tile has one
PROGRAMS = 1024  # where there are fewer, each candidate's channel is split among several
MOST_SPLITS = 16
TILES_PER_SPLIT = 4
# Fused, a square and its neighbour's sum would differ between the lanes that add them up, and it
# would be left to chance whose sum counts.
COMPILE_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def moments_kernel(
    x: tl.tensor,  # [candidates, samples, channels, places], in memory as the strides say
    masks: tl.tensor,  # float32 [candidates, channels]
    means: tl.tensor,  # float32 [candidates, channels, splits], written
    deviations: tl.tensor,  # float32 [candidates, channels, splits], written
    samples: tl.tensor,  # of a candidate
    channels: tl.tensor,
    places: tl.tensor,  # of a sample's channel
    channel_stride: tl.tensor,
    place_stride: tl.tensor,
    splits: tl.tensor,
    chunk: tl.tensor,  # rows of a split; a row is a place of a sample
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One program describes `chunk` rows of CHANNELS channels of one candidate."""
    candidate, block, split = _program(channels, splits, CHANNELS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)  # [CHANNELS]
    there = channel < channels
    gate = tl.load(masks + candidate * channels + channel, mask=there, other=0.0)  # [CHANNELS]
    base = x + candidate.to(tl.int64) * samples * channels * places
    end = tl.minimum((split + 1) * chunk, samples * places)
    count = 0.0
    mean = tl.zeros((CHANNELS,), tl.float32)
    deviation = tl.zeros((CHANNELS,), tl.float32)
    for at in range(split * chunk, end, ROWS):
        row = at + tl.arange(0, ROWS)  # [ROWS]
        offset = _offsets(row, channel, channels, places, channel_stride, place_stride)
        inside = (row < end)[:, None] & (there & (gate != 0.0))[None, :]  # [ROWS, CHANNELS]
        value = tl.load(base + offset, mask=inside, other=0.0).to(tl.float32)  # [ROWS, CHANNELS]
        own = tl.minimum(end - at, ROWS).to(tl.float32)
        own_mean = tl.sum(value * (1.0 / ROWS), 0) * (ROWS / own)  # [CHANNELS]
        half = tl.where(inside, 0.5 * value - 0.5 * own_mean[None, :], 0.0)  # [ROWS, CHANNELS]
        largest = tl.maximum(tl.max(tl.abs(half), 0), 1e-30)  # [CHANNELS]
        unit = half * (1.0 / largest)[None, :]  # [ROWS, CHANNELS], within -1 and 1
        own_deviation = largest * (2.0 * tl.sqrt_rn(tl.sum(unit * unit, 0) / own))
        mean, deviation = _joined(count, mean, deviation, own, own_mean, own_deviation)
        count += own
    out = (candidate * channels + channel) * splits + split
    tl.store(means + out, mean, mask=there)
    tl.store(deviations + out, deviation, mask=there)


@triton.jit
def normalise_kernel(
    x: tl.tensor,  # [candidates, samples, channels, places], in memory as the strides say
    masks: tl.tensor,  # float32 [candidates, channels]
    weight: tl.tensor,  # float32 [channels]
    bias: tl.tensor,  # float32 [channels]
    means: tl.tensor,  # float32 [candidates, channels, splits]
    deviations: tl.tensor,  # float32 [candidates, channels, splits]
    out: tl.tensor,  # as x, written
    root_eps: tl.tensor,  # square root of eps
    samples: tl.tensor,
    channels: tl.tensor,
    places: tl.tensor,
    channel_stride: tl.tensor,
    place_stride: tl.tensor,
    splits: tl.tensor,
    chunk: tl.tensor,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One program normalises the rows that the same program of `moments_kernel` described."""
    candidate, block, split = _program(channels, splits, CHANNELS)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)  # [CHANNELS]
    there = channel < channels
    gate = tl.load(masks + candidate * channels + channel, mask=there, other=0.0)  # [CHANNELS]
    rows = samples * places
    count = 0.0
    mean = tl.zeros((CHANNELS,), tl.float32)
    deviation = tl.zeros((CHANNELS,), tl.float32)
    for part in range(0, splits):
        index = (candidate * channels + channel) * splits + part
        part_mean = tl.load(means + index, mask=there, other=0.0)  # [CHANNELS]
        part_deviation = tl.load(deviations + index, mask=there, other=0.0)  # [CHANNELS]
        own = tl.minimum((part + 1) * chunk, rows) - tl.minimum(part * chunk, rows)
        own = own.to(tl.float32)
        mean, deviation = _joined(count, mean, deviation, own, part_mean, part_deviation)
        count += own
    # 1 / sqrt(deviation^2 + eps), the larger of the two taken out of the root.
    largest = tl.maximum(deviation, root_eps)
    one, other = deviation / largest, root_eps / largest
    scale = 1.0 / (largest * tl.sqrt_rn(one * one + other * other))  # [CHANNELS]
    factor = tl.load(weight + channel, mask=there, other=0.0) * gate
    shift = tl.load(bias + channel, mask=there, other=0.0) * gate

    start = candidate.to(tl.int64) * samples * channels * places
    end = tl.minimum((split + 1) * chunk, rows)
    for at in range(split * chunk, end, ROWS):
        row = at + tl.arange(0, ROWS)  # [ROWS]
        offset = _offsets(row, channel, channels, places, channel_stride, place_stride)
        inside = (row < end)[:, None] & there[None, :]  # [ROWS, CHANNELS]
        kept = inside & (gate != 0.0)[None, :]  # a masked channel is not even read
        value = tl.load(x + start + offset, mask=kept, other=0.0).to(tl.float32)
        normal = (0.5 * value - 0.5 * mean[None, :]) * (2.0 * scale)[None, :]
        result = tl.where(kept, normal * factor[None, :] + shift[None, :], 0.0)
        tl.store(out + start + offset, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _program(
    channels: tl.tensor, splits: tl.tensor, CHANNELS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The candidate, the block of channels and the split of this program."""
    blocks = tl.cdiv(channels, CHANNELS)
    rest = tl.program_id(0) // splits
    return rest // blocks, rest % blocks, tl.program_id(0) % splits


@triton.jit
def _offsets(
    row: tl.tensor,  # [ROWS]
    channel: tl.tensor,  # [CHANNELS]
    channels: tl.tensor,
    places: tl.tensor,
    channel_stride: tl.tensor,
    place_stride: tl.tensor,
) -> tl.tensor:
    """int64 [ROWS, CHANNELS]: where the values lie, counted from the candidate's first."""
    sample = (row // places).to(tl.int64) * channels * places
    within = (row % places).to(tl.int64) * place_stride
    return (sample + within)[:, None] + (channel.to(tl.int64) * channel_stride)[None, :]


@triton.jit
def _joined(
    count: tl.tensor,
    mean: tl.tensor,  # [CHANNELS]
    deviation: tl.tensor,  # [CHANNELS]
    more: tl.tensor,
    more_mean: tl.tensor,  # [CHANNELS]
    more_deviation: tl.tensor,  # [CHANNELS]
) -> tuple[tl.tensor, tl.tensor]:
    """Mean and standard deviation of two sets together, from those of each."""
    share = more / tl.maximum(count + more, 1.0)
    half = 0.5 * more_mean - 0.5 * mean
    joined = 2.0 * (0.5 * mean + half * share)
    largest = tl.maximum(tl.maximum(deviation, more_deviation), tl.maximum(tl.abs(half), 1e-30))
    one, other, gap = deviation / largest, more_deviation / largest, half / largest
    square = (1.0 - share) * one * one + share * other * other
    square += 4.0 * share * (1.0 - share) * gap * gap
    return joined, largest * tl.sqrt_rn(square)


class Layout(NamedTuple):
    """How both kernels are launched.

    Attributes:
        programs: Of the grid.
        splits: Parts that each candidate's channels are described in.
        rows: Of a tile.
        channels: Of a tile.
        sizes: The kernels' arguments from `samples` to `chunk`.
    """

    programs: int
    splits: int
    rows: int
    channels: int
    sizes: tuple[int, ...]


def layout(x: Tensor, candidates: int) -> Layout:
    """The launch for `x` as in `launch_population_norm`."""
    samples, channels, places = x.shape[0] // candidates, x.shape[1], x[0, 0].numel()
    beside = places == 1 or not x.is_contiguous()  # channels lie side by side
    wide = min(CHANNELS, triton.next_power_of_2(channels)) if beside else 1
    rows = min(TILE // wide, triton.next_power_of_2(samples * places))
    programs = candidates * triton.cdiv(channels, wide)
    tiles = triton.cdiv(samples * places, rows)
    splits = min(triton.cdiv(PROGRAMS, programs), triton.cdiv(tiles, TILES_PER_SPLIT), MOST_SPLITS)
    chunk = triton.cdiv(tiles, splits) * rows
    strides = (1, channels) if beside else (places, 1)
    sizes = (samples, channels, places, *strides, splits, chunk)
    return Layout(programs * splits, splits, rows, wide, sizes)


def launch_population_norm(
    x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor
) -> None:
    """Fills `out` with each candidate's masked BatchNorm of `x`.

    Args:
        x: float32, float16 or bfloat16 [candidates * samples, channels, ...], contiguous or with
            channels last, not empty.
        masks: float32 [candidates, channels], contiguous; 0 drops a channel.
        weight: float32 [channels].
        bias: float32 [channels].
        eps: Positive.
        out: As `x`, in the same memory format, on a CUDA device (or on the CPU under
            TRITON_INTERPRET=1).
    """
    launch = layout(x, len(masks))
    means, deviations = empty(2, *masks.shape, launch.splits, dtype=float32, device=x.device)
    grid, sizes = (launch.programs,), launch.sizes
    options = {"ROWS": launch.rows, "CHANNELS": launch.channels, **COMPILE_OPTIONS}
    with device_of(x):
        moments_kernel[grid](x, masks, means, deviations, *sizes, **options)
        normalise_kernel[grid](
            x, masks, weight, bias, means, deviations, out, eps**0.5, *sizes, **options
        )
