"""Which widths an axis may have: multiples of what hardware computes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mdcp_fast.tracing.axes import Axis

RoundTo = int | Literal["auto"]
MULTIPLE = 8  # floats of a vector register, and what inference engines block channels by
NARROWEST = 4  # an axis has room for at least so many steps


class AllowedWidths(NamedTuple):
    """What widths may be chosen.

    Attributes:
        choices: For each axis int64, increasing.
        notes: Why an axis may not be rounded, by name.
        multiple: What widths are multiples of where they can be.
    """

    choices: list[Tensor]
    notes: dict[str, str]
    multiple: int

    def rounded(self, axes: Sequence[Axis], widths: Tensor) -> tuple[int, dict[str, str]]:
        """How many of a plan's widths are such multiples, and why each of the others is not.

        Args:
            axes: The network's.
            widths: int64 [axes].

        Returns:
            Their number, and reasons by name.
        """
        notes = dict(self.notes)
        for axis, width, allowed in zip(axes, widths.tolist(), self.choices, strict=True):
            if width * _positions(axis, self.multiple) % self.multiple and axis.name not in notes:
                steps = f"in steps of {int(allowed[:2].diff())}" if len(allowed) > 1 else "whole"
                why = "left whole" if width == axis.channels else f"too narrow: {steps}"
                notes[axis.name] = f"no multiple of {self.multiple}: {why}"
        return len(axes) - len(notes), notes


def preferred_multiple(model: nn.Module) -> int:
    """The multiple of widths that the device likes on which a network lies.

    8 on a CPU and in float32; 16 for tensor cores in half precision, 32 for those that take four
    warps together (compute capability 9.0 and up).
    """
    for parameter in model.parameters():
        if parameter.is_cuda and parameter.dtype in (torch.float16, torch.bfloat16):
            return 32 if torch.cuda.get_device_capability(parameter.device) >= (9, 0) else 16
    return MULTIPLE


def allowed_widths(
    axes: Sequence[Axis], round_to: RoundTo, min_keep: int | float, *, multiple: int = MULTIPLE
) -> AllowedWidths:
    """The widths that every axis may have, and why some may not be rounded.

    Args:
        axes: The network's.
        round_to: What they are multiples of. "auto": of `multiple` where an axis is four times as
            wide or more, of its half, quarter, ... where it is narrower; and the dense width.
        min_keep: See `search`.
        multiple: For "auto", a power of two.

    Raises:
        ValueError: An argument out of range.
    """
    auto = isinstance(round_to, str) and round_to == "auto"
    if not auto and (isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1):
        raise ValueError(
            f'search: round_to: expected a whole number from 1 or "auto", got {round_to!r}'
        )
    _check_min_keep(min_keep)
    wanted = multiple if auto else int(round_to)
    choices, notes = [], {}
    for axis in axes:
        least = min_keep if isinstance(min_keep, int) else math.ceil(min_keep * axis.channels)
        least = min(max(least, axis.least), axis.channels)
        step = wanted // _positions(axis, wanted)
        while auto and step > 1 and axis.channels < NARROWEST * step:
            step //= 2
        first = -(-least // step) * step
        widths = [*range(first, axis.channels + 1, step)]
        if auto and (not widths or widths[-1] < axis.channels):
            widths.append(axis.channels)
        if not widths:
            widths = [axis.channels]
            notes[axis.name] = (
                f"left whole: no multiple of {step} from {least} to {axis.channels} channels "
                f"for round_to={round_to}"
            )
        choices.append(torch.tensor(widths))
    return AllowedWidths(choices, notes, wanted)


def _positions(axis: Axis, multiple: int) -> int:
    """How much of a multiple each channel is: it may be several positions of a layer's output.

    Groups and pixel shuffles make it so.
    """
    return math.gcd(multiple, *(place.multiplicity for place in axis.producers))


def _check_min_keep(min_keep: Any) -> None:
    whole = isinstance(min_keep, int) and not isinstance(min_keep, bool) and min_keep >= 1
    if not whole and not (isinstance(min_keep, float) and 0 <= min_keep < 1):
        raise ValueError(
            "search: min_keep: expected a number of channels (int from 1) or a fraction of them "
            f"(float from 0, below 1), got {min_keep!r}"
        )
