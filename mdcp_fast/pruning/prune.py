"""Carries out a plan: a smaller ordinary module, checked against the zeroed dense one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.locks import alone_with_its_network
from mdcp_fast.modules.precision import full_float32
from mdcp_fast.modules.wrappers import nothing_compiled
from mdcp_fast.pruning.calibration import noise_batches
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.shrink import shrink_and_fit
from mdcp_fast.tracing.check import failing_axes
from mdcp_fast.tracing.graph import ChannelGraph

NOISE = "noise"


@full_float32()
@alone_with_its_network
@nothing_compiled()
def prune(
    graph: ChannelGraph,
    plan: PruningPlan,
    *,
    calibration: Iterable[Any] | CalibrationData | None = None,
    compensate: bool = True,
    recalibrate: bool = True,
    check: bool = True,
) -> nn.Module:
    """Removes channels physically and returns a smaller module; `graph.model` stays as it is.

    With calibration batches the layers are fitted anew, one after another, so that from what they
    now read they give what they gave in the dense network (ridge regression, as strong as held-out
    images say), and in the same pass BatchNorm's statistics change by what pruning has changed on
    these images. Streams that the plan rotates take the basis that these images give. None of it
    needs labels; 500 images are enough, and they need not be those that the network was trained on.
    A plan that keeps everything changes nothing.

    Args:
        graph: What `trace` returned.
        plan: What `search` returned for this graph.
        calibration: Batches of inputs (tensors, tuples of the model's arguments, dicts of named
            ones, or (input, label) pairs; a DataLoader, a list or an iterator), or the
            `CalibrationData` that `search` had, of which what it measured is used. Without any the
            channels are merely dropped. "noise" is for where no data are at hand: layers are fitted
            on smooth random images, and BatchNorm keeps its statistics but for the mean. That
            expects inputs standardised to mean 0 and variance 1, and recovers much of what is lost
            at mild budgets; a hundred real images recover more.
        compensate: Let the remaining weights make up for the removed channels.
        recalibrate: Re-estimate BatchNorm statistics, relative to the dense network's.
        check: Compare the merely dropped network with the zeroed dense one in float64 first.

    Returns:
        The pruned network: training mode, requires_grad, dtype, device and memory format as in the
        dense one.

    Warns:
        UserWarning: Layers that lost inputs and could not be compensated (they are not called as
            modules), or only by themselves, without regard to what changed before them (they are
            called several times).

    Raises:
        TypeError: `graph` or `plan` is something else.
        ValueError: `plan` was not made for this graph, or calibration batches do not fit the model
            or make what its layers compute infinite, or it is "noise" and the model takes integers.
        RuntimeError: The check failed (the message names the axes and says what to do).
    """
    _check_plan(graph, plan)
    data: CalibrationData | None = None
    if isinstance(calibration, str) and calibration == NOISE:
        data, recalibrate = CalibrationData(graph, noise_batches(graph)), False
    elif calibration is not None:
        data = CalibrationData.read(graph, calibration)
    if check:
        failing = failing_axes(graph, [axis.kept for axis in plan.axes])
        if failing:
            listed = "; ".join(f"{name}: {reason}" for name, reason in failing.items())
            raise RuntimeError(
                f"prune: leave these axes whole with trace(..., ignore=...): {listed}"
            )
    dense = graph.model
    if data is not None and compensate and plan.positions:
        data.check_finite()
    graph, data = _in_bases_of(plan, graph, data)
    small, done = shrink_and_fit(
        graph, plan.positions, data, compensate=compensate, recalibrate=recalibrate
    )
    if data is not None:
        _check_finite(dense, small)
    _warn("these lost inputs that they could not be compensated for", done.skipped)
    _warn(
        "these were compensated as if nothing had changed before them (layers that are called "
        "several times, or batches that cannot be joined)",
        done.alone,
    )
    return small


def _check_finite(dense: nn.Module, small: nn.Module) -> None:
    """Raises ValueError where calibration made something infinite that was finite before."""
    before = {**dict(dense.named_parameters()), **dict(dense.named_buffers())}
    for name, tensor in (*small.named_parameters(), *small.named_buffers()):
        if not bool(tensor.isfinite().all()) and _was_finite(before.get(name)):
            raise ValueError(
                "calibration: expected inputs for which what the network's layers put out is "
                f"finite, and its variance, got NaN or infinities in {name}"
            )


def _was_finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def _in_bases_of(
    plan: PruningPlan, graph: ChannelGraph, data: CalibrationData | None
) -> tuple[ChannelGraph, CalibrationData | None]:
    """The traced network with the axes that the plan wants rotated in their bases, and its data."""
    wanted = [index for index, axis in enumerate(plan.axes) if axis.rotated]
    if not wanted:
        return graph, data
    names = ", ".join(plan.axes[index].name for index in wanted[:5])
    if data is None:
        raise ValueError(
            f"prune: calibration: expected batches, since this plan rotates {names}, got None "
            "(search(..., rotate=False) makes plans that need none)"
        )
    rotation, reasons = data.rotation(wanted)
    if set(rotation.bases) != set(wanted):
        missing = [plan.axes[index].name for index in wanted if index not in rotation.bases]
        listed = "; ".join(f"{name}: {reasons.get(name)}" for name in missing)
        raise ValueError(f"prune: plan: expected axes that can be rotated, got {listed}")
    return rotation.graph, data.rotated(rotation)


def _warn(text: str, names: set[str]) -> None:
    if names:
        warnings.warn(f"prune: {text}: {', '.join(sorted(names))}", stacklevel=6)


def _check_plan(graph: ChannelGraph, plan: PruningPlan) -> None:
    for name, value, kind in (("graph", graph, ChannelGraph), ("plan", plan, PruningPlan)):
        if not isinstance(value, kind):
            raise TypeError(
                f"prune: {name}: expected a {kind.__name__}, got {type(value).__name__}"
            )
    expected = [(axis.name, axis.channels) for axis in graph.axes]
    fits = expected == [(axis.name, axis.channels) for axis in plan.axes]
    if fits:
        wanted = graph.positions([axis.kept for axis in plan.axes])
        places, planned = ({n: set(d) for n, d in p.items()} for p in (wanted, plan.positions))
        fits = places == planned and all(
            torch.equal(kept, plan.positions[name][dimension])
            for name, dimensions in wanted.items()
            for dimension, kept in dimensions.items()
        )
    if fits:
        try:
            plan.check_shapes(graph.model)
        except ValueError as error:
            raise ValueError(f"prune: graph: {error}") from None
    if not fits:
        raise ValueError(
            "prune: plan: expected a plan made for this graph, got one for other axes "
            f"({len(plan.axes)} of them; the graph has {len(expected)})"
        )
