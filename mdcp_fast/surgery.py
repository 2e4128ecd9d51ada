"""Carries out a plan: a smaller ordinary module, checked against the dense one with the dropped channels zeroed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mdcp_fast.compensation import calibration_batches
from mdcp_fast.compensation import compensate as absorb
from mdcp_fast.compensation import recalibrate as re_estimate
from mdcp_fast.graph import ChannelGraph
from mdcp_fast.plan import PruningPlan
from mdcp_fast.removal import remove


def prune(
    graph: ChannelGraph,
    plan: PruningPlan,
    *,
    calibration: Iterable[Any] | None = None,
    compensate: bool = True,
    recalibrate: bool = True,
    check: bool = True,
) -> nn.Module:
    """Removes channels physically and returns a smaller module of the same class; `graph.model` is left untouched.

    With calibration batches, the layers that read removed channels take over what these carried (ridge regression), and
    then the statistics of BatchNorm are estimated anew. Both need no labels; about 500 images are enough.

    Args:
        graph: What `trace` returned.
        plan: What `search` returned for this graph.
        calibration: Batches of inputs (tensors, tuples of the model's arguments, or (input, label) pairs; a DataLoader, a
            list or an iterator). Without it the channels are merely dropped.
        compensate: Let the consumers absorb the removed channels.
        recalibrate: Re-estimate BatchNorm statistics.
        check: Compare the merely dropped network with the zeroed dense one in float64 first.

    Returns:
        The pruned network: training mode, requires_grad, dtype, device and memory format as in the dense one.

    Raises:
        ValueError: `plan` was not made for this graph, or calibration batches do not fit the model.
        RuntimeError: The check failed (the message names the axes and says what to do).
    """
    if [axis.name for axis in plan.axes] != [axis.name for axis in graph.axes]:
        raise ValueError(
            "prune: plan should have been made for this graph, got one with other axes"
        )
    if check:
        failing = graph.failing([axis.kept for axis in plan.axes])
        if failing:
            listed = "; ".join(f"{name}: {reason}" for name, reason in failing.items())
            raise RuntimeError(
                f"prune: leave these axes whole with trace(..., ignore=...): {listed}"
            )
    small = remove(graph.model, plan.positions)
    if calibration is None:
        return small
    batches = calibration_batches(graph, calibration)
    if compensate:
        absorb(graph, small, plan.positions, batches)
    if recalibrate:
        re_estimate(small, batches)
    return small
