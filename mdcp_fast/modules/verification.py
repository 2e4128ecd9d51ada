"""Checks that removing channels equals zeroing them: the smaller network against the dense one.

Both run in evaluation mode and, if the network can, in float64, where the two agree to rounding if
every position was taken from every place it should be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mdcp_fast.modules.calls import Inputs, call, map_tensors, tensors_in
from mdcp_fast.modules.hooks import forward_hooks
from mdcp_fast.modules.names import plain_tensors
from mdcp_fast.modules.removal import Kept, Positions, kept_tensor, rebuilt, remove, tensor_of

TOLERANCE = 1e-10  # largest difference, relative to the largest output, of a right removal
OWN_TOLERANCE = 1e-4  # the same in the network's own dtype, if that is float32 or wider
NARROW_TOLERANCE = 3e-2  # and in half precision
NUDGE = 30.0  # by how many units in the last place tensors are changed to see what rounding does
ROUNDING = 30.0  # times as much as a nudge changes is taken for rounding
CHAOS = 1e-2  # what rounding alone may change before a network says nothing
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


def keeping(change: Callable[[Tensor], Tensor]) -> Kept:
    """Makes of each tensor a changed copy of what is kept of it."""

    def kept_in(tensor: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
        return change(kept_tensor(tensor, dimensions) if dimensions else tensor)

    return kept_in


def as_it_is(tensor: Tensor) -> Tensor:
    """A copy in the same precision."""
    return tensor.detach().clone()


def scrambling(change: Callable[[Tensor], Tensor] = in_float64) -> Kept:
    """Makes random weights of each tensor under which every channel matters to the outputs.

    Whether removing equals zeroing is a matter of structure. Untrained or badly scaled weights
    would hide a difference: where signals die out on their way, everything equals everything.
    """
    generator, plain = torch.Generator().manual_seed(0), keeping(change)
    noise = torch.randn(NOISE, generator=generator, dtype=torch.float64)
    at = 0

    def fresh(tensor: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
        nonlocal at
        is_weight = isinstance(tensor, nn.Parameter) or tensor.dim() == 1
        if not (is_weight and tensor.is_floating_point()):
            return plain(tensor, dimensions)
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
        values = flat.view(shape)
        if len(shape) < 2:
            values.clamp_(-2, 2).mul_(0.2).add_(1)  # scales stay positive, shifts are not zero
        return values.to(tensor.device, change(tensor.detach().flatten()[:1]).dtype)

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


@dataclass(frozen=True)
class Gap:
    """How far a pruned network is from the zeroed one.

    Attributes:
        size: The largest difference of their outputs, relative to the largest.
        rounding: What rounding explains of it; 0 where that was not looked at.
    """

    size: float
    rounding: float = 0.0


@torch.no_grad()
def difference(
    model: nn.Module,
    kept: Positions,
    inputs: Inputs,
    *,
    scramble: bool = False,
    change: Callable[[Tensor], Tensor] = in_float64,
    tolerance: float = TOLERANCE,
) -> Gap:
    """Largest relative difference between the outputs of the pruned and the zeroed network.

    Where that is more than `tolerance`, the zeroed network is run once more, with its tensors and
    inputs changed by some units in the last place: there are networks that make much of that.

    Args:
        model: The dense network; not changed.
        kept: Positions that stay.
        inputs: Example inputs, of any dtype.
        scramble: With random weights under which every channel matters.
        change: Copies a tensor, in the precision to compare in.
        tolerance: What needs no explanation.

    Raises:
        Exception: Whatever the pruned network raises when its sizes do not fit.
    """
    fresh = scrambling(change) if scramble else keeping(change)
    inputs = map_tensors(inputs, change)
    small = remove(model, kept, fresh).eval()
    # Before `small` runs, which may write to its buffers.
    full = zeroed(model, small, kept, lambda tensor: fresh(tensor, {}))
    once_more = _once_more(full)
    left, right = _alike(small, inputs), _alike(full, inputs)
    size = relative_difference(left, right)
    if size <= tolerance or not math.isfinite(size):
        return Gap(size)
    with suppress(Exception):  # what it raises is no reason to accept anything
        if relative_difference(_alike(once_more(as_it_is), inputs), right) > tolerance:
            return Gap(size)  # it draws numbers of its own
        moved = _alike(once_more(_nudge), map_tensors(inputs, _nudge))
        return Gap(size, ROUNDING * relative_difference(moved, right))
    return Gap(size)


def _alike(model: nn.Module, inputs: Inputs) -> Any:
    """A network's outputs, what it draws at random and what it drops being the same each time."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), NothingDropped():
        torch.manual_seed(0)
        return call(model, inputs)


class NothingDropped(TorchFunctionMode):
    """Dropout leaves its inputs alone: with fewer channels it would draw other numbers."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _DROPS:
            return args[0] if args else (kwargs or {})["input"]
        return function(*args, **(kwargs or {}))


_DROPS = {
    getattr(torch.nn.functional, name)
    for name in (
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    )
} | {torch.dropout, torch.dropout_}  # fmt: skip


def _once_more(model: nn.Module) -> Callable[[Callable[[Tensor], Tensor]], nn.Module]:
    """Makes copies of a network as it is now, when they are asked for, with all tensors changed."""
    buffers = [buffer.clone() for buffer in model.buffers()]

    def made(change: Callable[[Tensor], Tensor]) -> nn.Module:
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        return rebuilt(model, change).eval()

    return made


def _nudge(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    step = NUDGE * torch.finfo(tensor.dtype).eps
    return tensor * (1 + step) if bool(tensor.any()) else tensor + step


@torch.no_grad()
def runs(
    model: nn.Module,
    kept: Positions,
    inputs: Inputs,
    change: Callable[[Tensor], Tensor] = in_float64,
) -> None:
    """Runs the pruned network, and raises whatever it raises when its sizes do not fit."""
    call(remove(model, kept, keeping(change)).eval(), map_tensors(inputs, change))


@torch.no_grad()
def stopped_in(
    model: nn.Module,
    kept: Positions,
    inputs: Inputs,
    change: Callable[[Tensor], Tensor] = in_float64,
) -> list[str]:
    """Names of the modules in which a pruned network stops with an error, the innermost first.

    Behind them, the one that was done last. None where it does not stop.
    """
    running: list[str] = []
    done: list[str] = []

    def entering(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leaving(name: str) -> Callable[..., None]:
        def leave(*_: Any) -> None:
            running.remove(name)
            done[:] = [name]

        return leave

    try:
        small = remove(model, kept, keeping(change)).eval()
        modules = dict(small.named_modules())
        with (
            forward_hooks([(m, entering(name)) for name, m in modules.items()], before=True),
            forward_hooks([(m, leaving(name)) for name, m in modules.items()], before=False),
        ):
            call(small, map_tensors(inputs, change))
    except Exception:  # whatever the user's forward raises
        return [*reversed(running), *done]
    return []


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
