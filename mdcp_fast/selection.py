"""Which channels stay when an axis keeps so many, and what that loses: clusters, then crowding.

Everything works on jobs: job j asks for `width[j]` channels of axis `axis[j]`. All jobs of all axes
are one batch for the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdcp_fast.descriptors import Descriptors
from mdcp_fast.ops.crowding import crowding_distance
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.ops.population import LossTable

GRID = 24  # widths of an axis whose loss is computed; the others are interpolated


class Selection(NamedTuple):
    """What stays in each job.

    Attributes:
        kept: int64 [sum of widths], channels of the job's axis, increasing within a job.
        clusters: int64 [sum of channels], the cluster of every channel of the job's axis.
        widths: int64 [jobs], how many `kept` holds for each job.
        channels: int64 [jobs], how many `clusters` holds for each job.
    """

    kept: Tensor
    clusters: Tensor
    widths: Tensor
    channels: Tensor


def select(
    descriptors: Descriptors, axis: Tensor, width: Tensor, *, channels_per_cluster: float = 1.0
) -> Selection:
    """Clusters each job's channels and keeps those with the largest crowding distance.

    Every cluster keeps one channel; what is left of the width goes to the clusters by largest
    remainder of their further channels. Inside a cluster the largest crowding distance stays, then
    the largest norm, then the smallest index.

    Args:
        descriptors: The channels as points.
        axis: int64 [jobs].
        width: int64 [jobs], from 1 to the axis's channels.
        channels_per_cluster: Channels kept in a cluster on average, at least 1; there are
            ceil(width / channels_per_cluster) clusters.

    Returns:
        The channels that stay, and the clusters.

    Raises:
        ValueError: A width outside its axis, `channels_per_cluster` below 1, points that are not
            finite.
    """
    if not channels_per_cluster >= 1:
        raise ValueError(
            f"select: channels_per_cluster: expected at least 1, got {channels_per_cluster}"
        )
    channels = descriptors.offsets.diff()[axis]  # [jobs]
    outside = ((width < 1) | (width > channels)).nonzero()
    if len(outside):
        j = int(outside[0])
        raise ValueError(f"select: width[{j}]: expected 1 to {channels[j]}, got {width[j]}")
    k = (width.double() / channels_per_cluster).ceil().long().clamp_min(1)
    found = kmeans(descriptors.points, descriptors.offsets, k, problem=axis)

    job = torch.repeat_interleave(channels)  # [M]: the job of each entry, M = sum of channels
    entry = torch.arange(len(job)) - (channels.cumsum(0) - channels)[job]  # its channel
    point = descriptors.offsets[axis][job] + entry  # its row in the descriptors
    segment = (k.cumsum(0) - k)[job] + found.labels  # its cluster, counted over all jobs
    sizes = torch.bincount(segment, minlength=int(k.sum()))

    by_segment = segment.argsort(stable=True)
    bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    crowding = torch.empty(len(job), dtype=torch.float32)
    crowding[by_segment] = crowding_distance(descriptors.points[point[by_segment]], bounds)

    # Stable sorts from the least to the most significant key leave ties in index order.
    order = descriptors.norms[point].argsort(descending=True, stable=True)
    order = order[crowding[order].argsort(descending=True, stable=True)]
    order = order[segment[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - bounds[segment[order]]
    stays = rank < _quotas(sizes, torch.repeat_interleave(k), width, channels)[segment]
    return Selection(entry[stays], found.labels, width, channels)


def _quotas(sizes: Tensor, job: Tensor, width: Tensor, channels: Tensor) -> Tensor:
    """How many channels each cluster keeps.

    Shares are proportional to what a cluster has beyond its first channel, so that none gets more
    than it has. Clusters may be empty where fewer points differ than there are clusters.

    Args:
        sizes: int64 [clusters of all jobs].
        job: int64 [clusters of all jobs], the job of each.
        width: int64 [jobs].
        channels: int64 [jobs].

    Returns:
        int64 [clusters of all jobs], summing to `width` over each job.
    """
    first = sizes.clamp_max(1)
    filled = torch.zeros_like(width).index_add_(0, job, first)
    spare = width - filled  # may be shared out; at most channels - filled
    beyond = (channels - filled).clamp_min(1)[job]
    numerator = spare[job] * (sizes - first)
    quota = first + numerator // beyond
    missing = width - torch.zeros_like(width).index_add_(0, job, quota)
    order = (numerator % beyond).argsort(descending=True, stable=True)
    order = order[job[order].argsort(stable=True)]
    start = torch.bincount(job, minlength=len(width)).cumsum(0) - torch.bincount(
        job, minlength=len(width)
    )
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - start[job[order]]
    return quota + (rank < missing[job])


def loss_table(
    descriptors: Descriptors, choices: Sequence[Tensor], *, channels_per_cluster: float = 1.0
) -> LossTable:
    """What every axis loses at every width, from the descriptors alone.

    The loss is the sum of squared distances of the channels to the nearest one that stays, as a
    share of their sum of squared distances to the mean. It is computed at up to 24 of the widths
    that may be chosen, interpolated between, and made to fall as the width grows.

    Args:
        descriptors: The channels as points.
        choices: For each axis the widths that may be chosen, int64, increasing.
        channels_per_cluster: As in `select`.

    Returns:
        A loss for every width from 1 to the axis's channels; below the smallest choice it is that
        one's.
    """
    grids = [
        one[
            torch.linspace(0, len(one) - 1, min(GRID, len(one)), dtype=torch.float64).round().long()
        ]
        for one in choices
    ]
    counts = torch.tensor([len(grid) for grid in grids])
    axis, width = torch.repeat_interleave(counts), torch.cat(grids)
    selection = select(descriptors, axis, width, channels_per_cluster=channels_per_cluster)
    job = torch.repeat_interleave(width)
    centers = descriptors.points[descriptors.offsets[axis][job] + selection.kept]
    points, offsets = descriptors.points, descriptors.offsets
    # No iterations: the labels and the inertia are those of the kept channels as centres.
    left = kmeans(points, offsets, width, problem=axis, init=centers, max_iter=0).inertia
    total = kmeans(points, offsets, torch.ones_like(counts)).inertia
    share = left / torch.where(total > 0, total, 1.0)[axis]

    values = []
    for channels, grid, losses in zip(
        offsets.diff().tolist(), grids, share.split(counts.tolist()), strict=True
    ):
        falling = losses.cummin(0).values
        values.append(_interpolated(grid.double(), falling, channels))
    return LossTable(torch.cat(values), offsets)


def _interpolated(grid: Tensor, losses: Tensor, channels: int) -> Tensor:
    """Losses at the widths 1..channels from those on a grid, linear between; flat outside."""
    widths = torch.arange(1, channels + 1, dtype=torch.float64)
    if len(grid) == 1:
        return losses.expand(channels).clone()
    right = torch.searchsorted(grid, widths).clamp(1, len(grid) - 1)
    low, high = grid[right - 1], grid[right]
    weight = ((widths - low) / (high - low)).clamp(0, 1)
    return losses[right - 1] * (1 - weight) + losses[right] * weight
