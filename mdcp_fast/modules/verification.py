"""Checks that removing channels equals zeroing them: the smaller network against the dense one.

Both run in float64 and evaluation mode, where the two agree to rounding if every position was taken
from every place it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call, map_tensors, tensors_in
from mdcp_fast.modules.names import plain_tensors
from mdcp_fast.modules.removal import Kept, Positions, kept_tensor, rebuilt, remove, tensor_of

TOLERANCE = 1e-10  # largest difference, relative to the largest output, of a right removal
CORNER = 64  # pixels; what halves its images five times, as most networks do, keeps two
NOISE = 1_000_003  # a prime, so that no two rows of a weight repeat the same noise


def scrambled(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode with random weights: see `scrambling`."""
    return remove(model, {}, scrambling()).eval()


def in_float64(tensor: Tensor) -> Tensor:
    """A copy in double precision."""
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128, copy=True)
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True)


def kept_in_float64(tensor: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
    """What is kept of a tensor, in double precision."""
    return in_float64(kept_tensor(tensor, dimensions) if dimensions else tensor)


def scrambling() -> Kept:
    """Makes random weights of each tensor under which every channel matters to the outputs.

    Whether removing equals zeroing is a matter of structure. Untrained or badly scaled weights
    would hide a difference: where signals die out on their way, everything equals everything.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NOISE, generator=generator, dtype=torch.float64)
    at = 0

    def fresh(tensor: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
        nonlocal at
        is_weight = isinstance(tensor, nn.Parameter) or tensor.dim() == 1
        if not (is_weight and tensor.is_floating_point()):
            return kept_in_float64(tensor, dimensions)
        shape = [
            len(dimensions[dimension]) if dimension in dimensions else size
            for dimension, size in enumerate(tensor.shape)
        ]
        flat = torch.empty(math.prod(shape), dtype=torch.float64)
        scale = (2 / max(math.prod(shape[1:]), 1)) ** 0.5 if len(shape) >= 2 else 1.0
        done = 0
        while done < len(flat):
            count = min(NOISE - at, len(flat) - done)
            torch.mul(noise[at : at + count], scale, out=flat[done : done + count])
            done, at = done + count, (at + count) % NOISE
        values = flat.view(shape).to(tensor.device)
        if len(shape) >= 2:
            return values
        return values.clamp_(-2, 2).mul_(0.2).add_(1)  # scales stay positive, shifts are not zero

    return fresh


def zeroed(
    model: nn.Module, small: nn.Module, kept: Positions, fresh: Callable[[Tensor], Tensor]
) -> nn.Module:
    """A copy of the dense network, in evaluation mode, with zeros for what `small` has lost.

    Statistics of a zeroed channel do not matter: its normalisation multiplies by zero. So buffers
    stay whole.

    Args:
        model: The dense network; not changed.
        small: The pruned one, after `fresh`. Its parameters are shared or copied.
        kept: Positions that `small` has.
        fresh: Makes the removed entries of buffers.
    """
    dimensions = {id(tensor_of(model, name)): wanted for name, wanted in kept.items()}
    twins = {
        id(tensor): tensor_of(small, name)
        for named in (model.named_parameters(), model.named_buffers(), plain_tensors(model).items())
        for name, tensor in named
    }

    def change(tensor: Tensor) -> Tensor:
        twin, lost = twins[id(tensor)].detach(), dimensions.get(id(tensor), {})
        is_parameter = isinstance(tensor, nn.Parameter)
        if not lost:
            return twin if is_parameter else twin.clone()  # which a network may write to
        full = twin.new_zeros(tensor.shape) if is_parameter else fresh(tensor)
        count = max(lost) + 1  # dimensions behind are copied in one piece
        return full.index_put_(
            tuple(
                lost.get(dimension, torch.arange(tensor.shape[dimension]))
                .to(tensor.device)
                .view(-1, *[1] * (count - dimension - 1))
                for dimension in range(count)
            ),
            twin,
        )

    return rebuilt(model, change).eval()


def cropped(inputs: Inputs) -> Inputs | None:
    """A corner of all images: the same layers at less cost, if a network takes it.

    None where nothing is larger. Images with nothing but zeros there stay whole: without biases,
    all outputs would be zero.
    """
    smaller = False

    def corner(tensor: Tensor) -> Tensor:
        nonlocal smaller
        if tensor.dim() != 4 or not tensor.is_floating_point():
            return tensor
        cut = tensor[..., :CORNER, :CORNER]
        if cut.shape == tensor.shape or not cut.any():
            return tensor
        smaller = True
        return cut

    cut: Inputs = map_tensors(inputs, corner)
    return cut if smaller else None


@torch.no_grad()
def difference(
    model: nn.Module, kept: Positions, inputs: Inputs, *, scramble: bool = False
) -> float:
    """Largest relative difference between the outputs of the pruned and the zeroed network.

    Args:
        model: The dense network; not changed.
        kept: Positions that stay.
        inputs: Example inputs, of any dtype.
        scramble: With random weights under which every channel matters.

    Raises:
        Exception: Whatever the pruned network raises when its sizes do not fit.
    """
    fresh = scrambling() if scramble else kept_in_float64
    inputs = map_tensors(inputs, in_float64)
    small = remove(model, kept, fresh).eval()
    # Before `small` runs, which may write to its buffers.
    full = zeroed(model, small, kept, lambda tensor: fresh(tensor, {}))
    return relative_difference(call(small, inputs), call(full, inputs))


@torch.no_grad()
def runs(model: nn.Module, kept: Positions, inputs: Inputs) -> None:
    """Runs the pruned network, and raises whatever it raises when its sizes do not fit."""
    call(remove(model, kept, kept_in_float64).eval(), map_tensors(inputs, in_float64))


@torch.no_grad()
def fits(model: nn.Module, kept: Positions, inputs: Inputs) -> bool:
    """Whether the sizes of the pruned network fit, found without computing anything.

    False also for a network that cannot run on the meta device.
    """

    def sizes(tensor: Tensor) -> Tensor:
        return tensor.to("meta")

    def kept_sizes(tensor: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
        return kept_tensor(sizes(tensor), dimensions)

    try:
        call(remove(model, kept, kept_sizes).eval(), map_tensors(inputs, sizes))
    except Exception:  # whatever the user's forward raises
        return False
    return True


def relative_difference(left: Any, right: Any) -> float:
    """Largest absolute difference over largest absolute value, by tensor of two nested outputs.

    A tensor of vanishing values beside others counts against a millionth of the largest.
    """
    lefts, rights = tensors_in(left), tensors_in(right)
    if [a.shape for a in lefts] != [b.shape for b in rights]:
        return float("inf")
    gaps, scales = [], []
    for a, b in zip(lefts, rights, strict=True):
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


def bisect_failures(count: int, trial: Callable[[Sequence[int]], str | None]) -> dict[int, str]:
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
