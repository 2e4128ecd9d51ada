"""What every axis loses at every width: a table, by which widths are searched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.planning.descriptors import Descriptors
from mdcp_fast.planning.selection import Chooser, Clustered, Selection
from mdcp_fast.pruning.reconstruction import (
    ReconstructionError,
    nested_ridge_losses,
    ridge_losses,
)

PLATEAU = 1e-3  # of an axis's largest loss: slope where losses are level, so that wider is better
GRID = 24  # widths of an axis whose loss is computed; the others are interpolated


def loss_table(
    descriptors: Descriptors, choices: Sequence[Tensor], choose: Chooser | None = None
) -> LossTable:
    """What every axis loses at every width, from the descriptors alone.

    The loss is the sum of squared distances of the channels to the nearest one that stays, as a
    share of their sum of squared distances to the mean. It is computed at up to 24 of the widths
    that may be chosen, interpolated between, and made to fall as the width grows.

    Args:
        descriptors: The channels as points.
        choices: For each axis the widths that may be chosen, int64, increasing.
        choose: Says which channels stay; by default clusters of `descriptors`, as many as stay.

    Returns:
        A loss for every width from 1 to the axis's channels; below the smallest choice it is that
        one's.
    """
    grids, axis, width, selection = _on_grid(choices, choose or Clustered(descriptors))
    job = torch.repeat_interleave(width)
    centers = descriptors.points[descriptors.offsets[axis][job] + selection.kept]
    points, offsets = descriptors.points, descriptors.offsets
    # No iterations: the labels and the inertia are those of the kept channels as centres.
    left = kmeans(points, offsets, width, problem=axis, init=centers, max_iter=0).inertia
    total = kmeans(points, offsets, torch.ones(len(choices), dtype=torch.int64)).inertia
    share = left / torch.where(total > 0, total, 1.0)[axis]
    return _table(grids, share, offsets)


def ridge_table(
    errors: Sequence[Sequence[ReconstructionError]],
    channels: Tensor,
    choices: Sequence[Tensor],
    choose: Chooser,
) -> LossTable:
    """What every axis loses at every width: what layers cannot predict of the channels that go.

    Every layer that reads an axis counts by the share of its effect that goes (see `ridge_losses`),
    so that layers are comparable whatever their scale. Computed as in `loss_table`.

    Args:
        errors: Of every axis, at least one each.
        channels: int64 [axes].
        choices: For each axis the widths that may be chosen, int64, increasing.
        choose: Says which channels stay.

    Returns:
        A loss for every width from 1 to the axis's channels.
    """
    offsets = torch.cat([channels.new_zeros(1), channels.cumsum(0)])
    grids, axis, width, selection = _on_grid(choices, choose)
    losses = []
    kept = selection.kept.split(width.tolist())
    for a, own in enumerate(errors):
        jobs = (axis == a).nonzero().flatten().tolist()
        masks = torch.zeros(len(jobs), int(channels[a]), dtype=torch.bool)
        for mask, j in zip(masks, jobs, strict=True):
            mask[kept[j]] = True
        losses.append(_sloping(own, ridge_losses(own, masks), grids[a], int(channels[a])))
    return _table(grids, torch.cat(losses), offsets)


def held_out_losses(
    errors: Sequence[ReconstructionError], order: Tensor, choices: Tensor
) -> Tensor:
    """What an axis loses at every width on held-out images, where channels stay in one order.

    Args:
        errors: Of the axis.
        order: int64 [channels], the first of which stay.
        choices: The widths that may be chosen, int64, increasing.

    Returns:
        float64 [channels], falling.
    """
    channels, grid = len(order), _grid(choices)
    losses = nested_ridge_losses(errors, order)[grid - 1]
    losses = _sloping(errors, losses, grid, channels).cummin(0).values
    return _interpolated(grid.double(), losses, channels)


def _sloping(
    errors: Sequence[ReconstructionError], losses: Tensor, grid: Tensor, channels: int
) -> Tensor:
    """On held-out images losses may be level: there, too, wider is to be better."""
    if all(error.held_out is None for error in errors):
        return losses
    return losses.cummin(0).values + PLATEAU * losses[0] * (1 - grid.double() / channels)


def _grid(choices: Tensor) -> Tensor:
    """Up to `GRID` of an axis's choices."""
    count = min(GRID, len(choices))
    return choices[torch.linspace(0, len(choices) - 1, count, dtype=torch.float64).round().long()]


def _on_grid(
    choices: Sequence[Tensor], choose: Chooser
) -> tuple[list[Tensor], Tensor, Tensor, Selection]:
    """Up to `GRID` of each axis's choices; the axis and width of each job; what stays in it."""
    grids = [_grid(one) for one in choices]
    axis = torch.repeat_interleave(torch.tensor([len(grid) for grid in grids]))
    width = torch.cat(grids)
    return grids, axis, width, choose(axis, width)


def _table(grids: Sequence[Tensor], losses: Tensor, offsets: Tensor) -> LossTable:
    """The losses on the grids, made to fall, at every width of every axis."""
    values = []
    for channels, grid, own in zip(
        offsets.diff().tolist(), grids, losses.split([len(grid) for grid in grids]), strict=True
    ):
        values.append(_interpolated(grid.double(), own.cummin(0).values, channels))
    return LossTable(torch.cat(values), offsets)


def _interpolated(grid: Tensor, losses: Tensor, channels: int) -> Tensor:
    """Losses at the widths 1..channels from those on a grid."""
    return piecewise_linear(torch.arange(1, channels + 1, dtype=torch.float64), grid, losses)


def piecewise_linear(x: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """What has `values` `at` increasing places: linear between them, constant beyond them."""
    if len(at) == 1:
        return values.expand(len(x)).clone()
    right = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    low, high = at[right - 1], at[right]
    weight = ((x - low) / (high - low)).clamp(0, 1)
    return values[right - 1] * (1 - weight) + values[right] * weight
