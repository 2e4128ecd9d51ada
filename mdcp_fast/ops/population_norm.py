"""BatchNorm of a population of masked networks that share one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import check_kind, triton_kernels

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST_RATIO = 32.0  # of mean to deviation, up to which PyTorch's own BatchNorm is accurate
_OP = "population_norm"


def population_norm(
    x: Tensor,
    masks: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalises every candidate's part of a batch by that part's own statistics, and masks it.

    A population of P candidates shares the batch: rows p B to (p + 1) B - 1 of `x` are the
    B samples of candidate p. For each candidate and channel, with the mean m and the biased
    variance v over the samples and the places of a sample,

        y = masks[p, c] * (weight[c] * (x - m) / sqrt(v + eps) + bias[c]),

    and 0 where the mask is 0, whatever x holds there. A single value per channel has v = 0.

    Sums are kept in float32 or better, on CUDA about the mean of each tile, and no finite input
    overflows. For weights and biases of about 1 and |m| <= 10 sqrt(v + eps) the answer is within
    5e-6 max(1, |y|) of the exact one in float32, and that rounded to the dtype of `x` in the
    others; beyond, the error on CUDA grows with |m| / sqrt(v + eps), for m itself is rounded. One
    candidate's answer does not depend on the others.

    Args:
        x: float32, float16, bfloat16 or float64 [P * B, C, ...], with any number of dimensions
            behind the channels, contiguous or in a channels_last format (other strides cost a
            copy). Gradients do not flow: the result is detached.
        masks: bool or floating-point [P, C], on the device of `x`.
        weight: floating-point [C], or None for 1.
        bias: floating-point [C], or None for 0.
        eps: Positive, added to the variance.

    Returns:
        A tensor of the shape, dtype and memory format of `x`.

    Raises:
        TypeError: Something that is not a tensor, or of another dtype.
        ValueError: Shapes or devices that do not fit, no candidates, rows of `x` that cannot be
            shared among them, `eps` not positive.

    Source: Ioffe, Szegedy, "Batch Normalization", 2015.
    """
    _check(x, masks, weight, bias, eps)
    weight, bias = (None if one is None else one.detach() for one in (weight, bias))
    normalised: Tensor = torch.ops.mdcp_fast.population_norm(
        x.detach(), masks.detach(), weight, bias, eps
    )
    return normalised


@torch.library.custom_op("mdcp_fast::population_norm", mutates_args=())
def _population_norm(
    x: Tensor, masks: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    _check(x, masks, weight, bias, eps)
    x, masks = _dense(x.resolve_neg()), masks.resolve_neg()
    weight, bias = (None if one is None else one.resolve_neg() for one in (weight, bias))
    if x.numel() == 0:
        return torch.empty_like(x)
    exact = x.dtype == torch.float64
    dtype = torch.float64 if exact else torch.float32
    channels = x.shape[1]
    gates = masks.to(dtype).contiguous()
    scale = x.new_ones(channels, dtype=dtype) if weight is None else weight.to(dtype)
    shift = x.new_zeros(channels, dtype=dtype) if bias is None else bias.to(dtype)
    if x.device.type == "cuda" and not exact:
        out = torch.empty_like(x)
        triton_kernels(_OP, "population_norm", "x").launch_population_norm(
            x, gates, scale.contiguous(), shift.contiguous(), eps, out
        )
        return out
    if x.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{_OP}: x: expected a tensor on cpu or cuda, got one on {x.device}")
    # One candidate at a time: PyTorch's own BatchNorm is several times as fast as the formula.
    out = torch.empty_like(x)
    for part, gate, into in zip(x.chunk(len(gates)), gates, out.chunk(len(gates)), strict=True):
        _normalise(part, gate, scale, shift, eps, into)
    return out


@_population_norm.register_fake
def _(x: Tensor, masks: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.empty_like(_dense(x))


def _normalise(
    x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor
) -> None:
    """One candidate's masked BatchNorm: x and out [B, C, ...], gate, weight and bias [C]."""
    factor, offset = weight * gate, bias * gate
    mean, inverse = torch.empty_like(weight), torch.empty_like(weight)
    statistics = {"save_mean": mean, "save_invstd": inverse}
    torch.ops.aten.native_batch_norm.out(
        x, factor, offset, None, None, True, 0.0, eps, out=out, **statistics
    )
    fine = mean.isfinite() & (inverse > 0) & (mean.abs() * inverse < LARGEST_RATIO)
    if bool(fine.all()):
        return
    # A sum overflowed, what is masked is not finite, or rounding would show.
    others = [d for d in range(x.dim()) if d != 1]
    wide = x.double()
    variance, mean = torch.var_mean(wide, others, correction=0, keepdim=True)
    shape = [1, -1] + [1] * (x.dim() - 2)
    normal = (wide - mean) * (variance + eps).rsqrt()
    y = normal * factor.view(shape) + offset.view(shape)
    out.copy_(torch.where(gate.view(shape) != 0, y, 0.0))


def _dense(x: Tensor) -> Tensor:
    """`x` itself where the places of a channel are evenly spaced, else a contiguous copy."""
    for memory_format, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.dim() == rank and x.is_contiguous(memory_format=memory_format):
            return x
    return x.contiguous()


def _check(x: Any, masks: Any, weight: Any, bias: Any, eps: float) -> None:
    rank = x.dim() if isinstance(x, Tensor) else 2
    if rank < 2:
        raise ValueError(
            f"{_OP}: x: expected shape [candidates * samples, channels, ...], got {list(x.shape)}"
        )
    check_kind(_OP, "x", x, DTYPES, (None,) * rank)
    channels = x.shape[1]
    check_kind(_OP, "masks", masks, (torch.bool, *DTYPES), (None, channels), device=x.device)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            check_kind(_OP, name, value, DTYPES, (channels,), device=x.device)
    candidates = masks.shape[0]
    if candidates == 0 or x.shape[0] % candidates:
        raise ValueError(
            f"{_OP}: masks: expected a row for each candidate, the {x.shape[0]} rows of x shared "
            f"evenly among them, got {candidates} rows"
        )
    if not eps > 0:
        raise ValueError(f"{_OP}: eps: expected a positive number, got {eps}")
