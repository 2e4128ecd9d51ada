"""Checks that keeping some channels of a traced network equals zeroing the others."""

from __future__ import annotations

from collections.abc import Sequence

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.modules.verification import (
    TOLERANCE,
    bisect_failures,
    cropped,
    difference,
    fits,
    runs,
)
from mdcp_fast.tracing.graph import ChannelGraph

# MACs up to which both networks compute the whole of the example images in the time that it takes
# to find the sizes there without computing: about a millisecond for every layer.
FEW_MACS = 10**9


def failing_axes(
    graph: ChannelGraph, kept: Sequence[Sequence[int]], *, scramble: bool = False
) -> dict[str, str]:
    """Names of the axes for which keeping `kept` does not give the zeroed network, and how.

    Args:
        graph: The traced network.
        kept: For each axis, the channels that stay.
        scramble: Try it with random weights under which every channel matters; and, unless the
            whole of the example images takes few MACs, on a corner of them, where that passes and
            the sizes fit on the whole of them (networks may take another way there).

    Raises:
        ValueError: The network fails its own check with nothing removed, so it says nothing.
    """

    def trial(indices: Sequence[int], inputs: Inputs = graph.example_inputs) -> str | None:
        wanted = set(indices)
        chosen = [
            kept[i] if i in wanted else range(axis.channels) for i, axis in enumerate(graph.axes)
        ]
        return _failure(graph, chosen, inputs, scramble)

    everything = range(len(graph.axes))
    large = scramble and graph.macs > FEW_MACS
    corner = cropped(graph.example_inputs) if large else None
    if (
        corner is not None
        and trial(everything, corner) is None
        and fits(graph.model, graph.positions(kept), graph.example_inputs)
    ):
        return {}
    if trial(everything) is None:
        return {}
    unpruned = trial([])
    if unpruned is not None:
        raise ValueError(
            "check: model: expected a network that gives the same output twice in float64, got "
            f"one where, with nothing removed, {unpruned}; pass check=False to go unchecked"
        )
    doubts = {i: axis.doubt for i, axis in enumerate(graph.axes) if axis.doubt}
    sure = [i for i in everything if i not in doubts]
    if doubts and trial(sure) is None:
        unsure = [*doubts]
        found = bisect_failures(
            len(unsure), lambda some: trial([*sure, *(unsure[i] for i in some)])
        )
        found = {unsure[i]: f"{doubts[unsure[i]]}: {reason}" for i, reason in found.items()}
        return {graph.axes[i].name: reason for i, reason in found.items()}
    found = bisect_failures(len(graph.axes), trial)
    return {graph.axes[i].name: reason for i, reason in found.items()}


def _failure(
    graph: ChannelGraph, kept: Sequence[Sequence[int]], inputs: Inputs, scramble: bool
) -> str | None:
    """What is wrong with the network pruned to `kept`, or None.

    Inexact axes are only required to run.
    """
    exact = [
        chosen if axis.exact else range(axis.channels)
        for axis, chosen in zip(graph.axes, kept, strict=True)
    ]
    try:
        if not all(axis.exact for axis in graph.axes):
            runs(graph.model, graph.positions(kept), inputs)
        gap = difference(graph.model, graph.positions(exact), inputs, scramble=scramble)
    except Exception as error:  # whatever the user's forward raises on fewer channels
        first = (str(error).strip().splitlines() or [""])[0]
        return (
            f"the pruned network does not run ({type(error).__name__}: {first}); are sizes "
            "written in its source?"
        )
    if gap <= TOLERANCE:
        return None
    return f"the pruned network differs from the zeroed one by {gap:.1e}"
