"""Checks that removing channels equals zeroing them: the smaller network against the dense one.

Both run in float64 and evaluation mode, where the two agree to rounding if every position was taken
from every place it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.capture import Inputs, call, mapped
from mdcp_fast.removal import Positions, rebuilt, remove, tensor_of

TOLERANCE = 1e-10  # largest difference, relative to the largest output, of a right removal
NOISE = 1_000_003  # a prime, so that no two rows of a weight repeat the same noise


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in double precision and evaluation mode."""
    return rebuilt(model, lambda tensor: _double(tensor, copied=True)).eval()


def _double(tensor: Tensor, copied: bool = False) -> Tensor:
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128, copy=copied)
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=copied)


def scrambled(model: nn.Module) -> nn.Module:
    """A float64 copy with random weights under which every channel matters to the outputs.

    Whether removing equals zeroing is a matter of structure. Untrained or badly scaled weights
    would hide a difference: where signals die out on their way, everything equals everything.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NOISE, generator=generator, dtype=torch.float64)
    at = 0

    def fresh(tensor: Tensor) -> Tensor:
        nonlocal at
        is_weight = isinstance(tensor, nn.Parameter) or tensor.dim() == 1
        if not (is_weight and tensor.is_floating_point()):
            return _double(tensor, copied=True)
        flat = torch.empty(tensor.numel(), dtype=torch.float64)
        scale = (2 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.dim() >= 2 else 1.0
        done = 0
        while done < len(flat):
            count = min(NOISE - at, len(flat) - done)
            torch.mul(noise[at : at + count], scale, out=flat[done : done + count])
            done, at = done + count, (at + count) % NOISE
        values = flat.view(tensor.shape).to(tensor.device)
        if tensor.dim() >= 2:
            return values
        return values.clamp_(-2, 2).mul_(0.2).add_(1)  # scales stay positive, shifts are not zero

    return rebuilt(model, fresh).eval()


def zero(model: nn.Module, kept: Positions) -> nn.Module:
    """Sets to zero, in place, whatever of the parameters `kept` would remove.

    Statistics of a zeroed channel do not matter: its normalisation multiplies by zero.
    """
    with torch.no_grad():
        for name, dimensions in kept.items():
            tensor = tensor_of(model, name)
            if not isinstance(tensor, nn.Parameter):
                continue
            for dimension, positions in dimensions.items():
                gone = torch.ones(tensor.shape[dimension], dtype=torch.bool)
                gone[positions] = False
                tensor.index_fill_(dimension, gone.nonzero().flatten().to(tensor.device), 0)
    return model


@torch.no_grad()
def difference(double: nn.Module, kept: Positions, inputs: Inputs) -> float:
    """Largest relative difference between the outputs of the pruned and the zeroed network.

    Args:
        double: The dense network in float64 and evaluation mode; it becomes the zeroed one.
        kept: Positions that stay.
        inputs: Example inputs, of any dtype.

    Raises:
        Exception: Whatever the pruned network raises when its sizes do not fit.
    """
    inputs = mapped(inputs, _double)
    small = call(remove(double, kept), inputs)
    return relative_difference(small, call(zero(double, kept), inputs))


@torch.no_grad()
def runs(double: nn.Module, kept: Positions, inputs: Inputs) -> None:
    """Runs the pruned network, and raises whatever it raises when its sizes do not fit."""
    call(remove(double, kept), mapped(inputs, _double))


def relative_difference(left: Any, right: Any) -> float:
    """Largest absolute difference over largest absolute value, by tensor of two nested outputs.

    A tensor of vanishing values beside others counts against a millionth of the largest.
    """
    ours, theirs = tensors_in(left), tensors_in(right)
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    gaps, scales = [], []
    for a, b in zip(ours, theirs, strict=True):
        if not a.numel():
            continue
        a, b = (_real(a), _real(b))
        same = (a == b) | (a.isnan() & b.isnan())
        gap = torch.where(same, 0.0, (a - b).abs()).max()
        gaps.append(float(gap.nan_to_num(nan=float("inf"))))
        scales.append(float(b.abs().nan_to_num(nan=0.0, posinf=0.0).max()))
    floor = 1e-6 * max(scales, default=0.0)
    return max(
        (gap / (max(scale, floor) or 1.0) for gap, scale in zip(gaps, scales, strict=True)),
        default=0.0,
    )


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a network's output: a tensor, or mappings and sequences of such."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_in(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in tensors_in(value)]
    return []


def culprits(count: int, trial: Callable[[Sequence[int]], str | None]) -> dict[int, str]:
    """Which of `count` things make a trial fail, and how.

    All are tried together first; where that fails, halves of them, down to single ones; and for
    failures that take several, one more at a time.

    Args:
        count: How many there are.
        trial: Tries some of them together; returns what went wrong, or None.
    """
    failing: dict[int, str] = {}

    def halve(indices: Sequence[int], reason: str | None) -> None:
        if reason is None:
            return
        if len(indices) == 1:
            failing[indices[0]] = reason
            return
        for half in (indices[: len(indices) // 2], indices[len(indices) // 2 :]):
            halve(half, trial(half))

    everything = range(count)
    reason = trial(everything)
    if reason is None or not count:
        return {}
    halve(everything, reason)
    passing = [i for i in everything if i not in failing]
    if passing and trial(passing) is not None:
        together: list[int] = []
        for i in passing:
            reason = trial([*together, i])
            if reason is None:
                together.append(i)
            else:
                failing[i] = reason
    return failing
