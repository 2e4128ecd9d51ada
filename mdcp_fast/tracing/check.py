"""Checks that keeping some channels of a traced network equals zeroing the others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.modules.verification import (
    CHAOS,
    NARROW_TOLERANCE,
    OWN_TOLERANCE,
    TOLERANCE,
    Gap,
    as_it_is,
    cropped,
    difference,
    fits,
    in_float64,
    runs,
    stopped_in,
)
from mdcp_fast.tracing.axes import Axis, module_of
from mdcp_fast.tracing.graph import ChannelGraph

# MACs up to which both networks compute the whole of the example images in the time that it takes
# to find the sizes there without computing: about a millisecond for every layer.
FEW_MACS = 10**9
UNLIKE_TRIALS = 3
SIZES = ("size", "shape", "channel", "dimension", "elements", "broadcast", "divisible", "index")


def failing_axes(
    graph: ChannelGraph, kept: Sequence[Sequence[int]], *, scramble: bool = False
) -> dict[str, str]:
    """Names of the axes for which keeping `kept` does not give the zeroed network, and how.

    Both are compared in float64, or, where the network does not run in that, in its own dtype.

    Args:
        graph: The traced network.
        kept: For each axis, the channels that stay.
        scramble: Try it with random weights under which every channel matters; and, unless the
            whole of the example images takes few MACs, on a corner of them, where that passes and
            the sizes fit on the whole of them (networks may take another way there).

    Raises:
        ValueError: The network fails its own check with nothing removed, so it says nothing.
    """
    trial = _Trial(graph, kept, scramble)
    everything = range(len(graph.axes))
    large = scramble and graph.macs > FEW_MACS
    corner = cropped(graph.example_inputs) if large else None
    if (
        corner is not None
        and trial(everything, corner) is None
        and fits(graph.model, graph.positions(kept), graph.example_inputs)
    ):
        return {}
    reason = trial(everything)
    if reason is None:
        return {}
    unpruned = trial([])
    if unpruned is not None:
        trial = _Trial(graph, kept, scramble, as_it_is, _own_tolerance(graph))
        if trial([]) is not None:
            raise ValueError(
                "check: model: expected a network that gives the same output twice in float64 or "
                f"in its own dtype, got one where, with nothing removed, {unpruned}; "
                f"{_what_it_refuses(graph)}pass check=False to go unchecked"
            )
        reason = trial(everything)
    found = found_failures(len(graph.axes), trial, reason, trial.near)
    return {graph.axes[i].name: _explained(graph.axes[i], why) for i, why in found.items()}


def _explained(axis: Axis, reason: str) -> str:
    return f"{axis.doubt}: {reason}" if axis.doubt else reason


def failing_at_unlike_widths(graph: ChannelGraph) -> dict[str, str]:
    """Names of the axes that fail where all have widths of their own, and how.

    Sizes may be those of something else (`y.reshape(x.shape)`), which shows only where the two lose
    different numbers of channels, and each may be a sum of several axes. Tried at some random
    widths, and, where the sizes fit, without computing anything.
    """
    generator = torch.Generator().manual_seed(0)

    def widths() -> list[list[int]]:
        kept = []
        for axis in graph.axes:  # one channel may be too few: see `with_least_widths`
            least = min(2, axis.channels - 1)
            width = int(torch.randint(least, axis.channels, (), generator=generator))
            width = axis.channels if axis.name in failing else width
            kept.append(torch.randperm(axis.channels, generator=generator)[:width].tolist())
        return kept

    failing: dict[str, str] = {}
    passed = 0
    while passed < UNLIKE_TRIALS and len(failing) < len(graph.axes):
        kept = widths()
        fit = fits(graph.model, graph.positions(kept), graph.example_inputs)
        found = {} if fit else failing_axes(graph, kept, scramble=True)
        new = {name: why for name, why in found.items() if name not in failing}
        failing.update(new)
        passed = 0 if new else passed + 1  # what stays whole now may agree with these by chance
    return failing


def with_least_widths(graph: ChannelGraph) -> list[Axis]:
    """The axes, those that may not be one channel wide with 2 as their least width.

    A dimension of size one is dropped by a `squeeze`, or stretched where tensors meet. Found
    without computing anything; a network that does not run so keeps its axes as they are.
    """

    def trial(indices: Sequence[int]) -> str | None:
        wanted = set(indices)
        kept = [range(1 if i in wanted else axis.channels) for i, axis in enumerate(graph.axes)]
        return None if fits(graph.model, graph.positions(kept), graph.example_inputs) else "stops"

    everything = range(len(graph.axes))
    reason = trial(everything)
    if reason is None or trial([]) is not None:
        return list(graph.axes)
    failing = found_failures(len(graph.axes), trial, reason)
    return [
        replace(axis, least=min(2, axis.channels)) if i in failing else axis
        for i, axis in enumerate(graph.axes)
    ]


@dataclass(frozen=True)
class _Trial:
    """Prunes some axes of a network, and compares it with the zeroed one.

    Attributes:
        graph, kept, scramble: See `failing_axes`.
        change: Copies a tensor in the precision to compare in.
        tolerance: Largest relative difference that needs no explanation.
    """

    graph: ChannelGraph
    kept: Sequence[Sequence[int]]
    scramble: bool
    change: Callable[[Tensor], Tensor] = in_float64
    tolerance: float = TOLERANCE

    def __call__(self, indices: Sequence[int], inputs: Inputs | None = None) -> str | None:
        """What is wrong with the network pruned at these axes alone, or None.

        Inexact axes are only required to run.
        """
        graph, chosen = self.graph, self._chosen(indices)
        inputs = graph.example_inputs if inputs is None else inputs
        exact = [
            positions if axis.exact else range(axis.channels)
            for axis, positions in zip(graph.axes, chosen, strict=True)
        ]
        try:
            if not all(axis.exact for axis in graph.axes):
                runs(graph.model, graph.positions(chosen), inputs, self.change)
            gap = self._gap(exact, inputs, self.scramble)
            # Random weights may make a network chaotic that is not so with its own.
            if self.scramble and self.tolerance < gap.size <= gap.rounding:
                gap = self._gap(exact, inputs, False)
        except Exception as error:  # whatever the user's forward raises on fewer channels
            first = (str(error).strip().splitlines() or [""])[0]
            about_sizes = any(word in first.lower() for word in SIZES)
            return (
                f"the pruned network does not run ({type(error).__name__}: {first})"
                f"{'; are sizes written in its source?' if about_sizes else ''}"
            )
        if gap.size <= max(self.tolerance, min(gap.rounding, CHAOS)):
            return None
        return f"the pruned network differs from the zeroed one by {gap.size:.1e}"

    def near(self, indices: Sequence[int]) -> list[int]:
        """Those of the axes in doubt, or about where the network pruned at all of them stops."""
        doubtful = [i for i in indices if self.graph.axes[i].doubt]
        if doubtful:
            return doubtful
        places = stopped_in(
            self.graph.model,
            self.graph.positions(self._chosen(indices)),
            self.graph.example_inputs,
            self.change,
        )
        for place in places:
            found = [i for i in indices if place and _touches(self.graph.axes[i], place)]
            if found:
                return found
        return []

    def _chosen(self, indices: Sequence[int]) -> list[Sequence[int]]:
        wanted = set(indices)
        return [
            self.kept[i] if i in wanted else range(axis.channels)
            for i, axis in enumerate(self.graph.axes)
        ]

    def _gap(self, exact: Sequence[Sequence[int]], inputs: Inputs, scramble: bool) -> Gap:
        return difference(
            self.graph.model, self.graph.positions(exact), inputs,
            scramble=scramble, change=self.change, tolerance=self.tolerance,
        )  # fmt: skip


def _touches(axis: Axis, module: str) -> bool:
    """Whether an axis sits in a module, or in one of those that it is made of."""
    owners = {module_of(place.parameter) for place in axis.places}
    return any(owner == module or owner.startswith(f"{module}.") for owner in owners)


def _own_tolerance(graph: ChannelGraph) -> float:
    dtypes = {p.dtype for p in graph.model.parameters() if p.is_floating_point()}
    narrow = any(torch.finfo(dtype).bits < 32 for dtype in dtypes)
    return NARROW_TOLERANCE if narrow else OWN_TOLERANCE


def _what_it_refuses(graph: ChannelGraph) -> str:
    """Why a network may not have run: a remark for the error."""
    try:
        copy.deepcopy(graph.model)
    except Exception as error:  # whatever it raises
        first = (str(error).strip().splitlines() or [""])[0]
        return f"it cannot be copied ({type(error).__name__}: {first}); "
    return ""


def found_failures(
    count: int,
    trial: Callable[[Sequence[int]], str | None],
    reason: str | None,
    near: Callable[[Sequence[int]], Sequence[int]] = lambda _: [],
) -> dict[int, str]:
    """Which of `count` things make a trial fail, and how.

    What is near the place of a failure is left out until the rest passes, and then tried one by
    one. Where no place is known, halves are tried, down to single ones; and for failures that take
    several, one more at a time.

    Args:
        count: How many there are.
        trial: Tries some of them together; returns what went wrong, or None.
        reason: What it says of all of them.
        near: Which of those that fail together may be the reason.
    """
    if reason is None or not count:
        return {}
    active, suspects = list(range(count)), list[int]()
    while reason is not None and active:
        found = list(near(active))
        if not found:
            break
        suspects += found
        active = [i for i in active if i not in found]
        reason = trial(active)
    failing = {} if reason is None else _halved(active, trial, reason)
    together = [i for i in active if i not in failing]
    for i in suspects:
        why = trial(sorted([*together, i]))
        if why is None:
            together.append(i)
        else:
            failing[i] = why
    return failing


def _halved(
    indices: Sequence[int], trial: Callable[[Sequence[int]], str | None], reason: str
) -> dict[int, str]:
    """`found_failures` without knowing where; `reason` is what is wrong with all of them."""
    failing: dict[int, str] = {}

    def halve(some: Sequence[int], why: str | None) -> None:
        if why is None:
            return
        if len(some) == 1:
            failing[some[0]] = why
            return
        for half in (some[: len(some) // 2], some[len(some) // 2 :]):
            halve(half, trial(half))

    halve(indices, reason)
    passing = [i for i in indices if i not in failing]
    if passing and trial(passing) is not None:
        together: list[int] = []
        for i in passing:
            why = trial([*together, i])
            if why is None:
                together.append(i)
            else:
                failing[i] = why
    return failing
