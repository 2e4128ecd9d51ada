"""Which channels stay when an axis keeps so many, and what that loses.

Everything works on jobs: job j asks for `width[j]` channels of axis `axis[j]`. All jobs of all axes
are one batch for the kernels. Whatever answers jobs is a `Chooser`: by clusters, or by a nested
order of every axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.planning.descriptors import Descriptors
from mdcp_fast.planning.elimination import elimination_order
from mdcp_fast.planning.reconstruction import Reading, ridge_losses

RULES = ("crowding", "medoid", "random")  # inside a cluster
GRID = 24  # widths of an axis whose loss is computed; the others are interpolated
NUMBERS = 64  # of clusters that are tried for an axis


class Selection(NamedTuple):
    """What stays in each job.

    Attributes:
        kept: int64 [sum of widths], channels of the job's axis, increasing within a job.
        clusters: int64 [sum of channels], the cluster of every channel of the job's axis; None
            where there are no clusters.
        widths: int64 [jobs], how many `kept` holds for each job.
        channels: int64 [jobs], how many `clusters` holds for each job.
    """

    kept: Tensor
    clusters: Tensor | None
    widths: Tensor
    channels: Tensor


class Chooser(Protocol):
    """Answers jobs: which channels stay. The answer to a job does not depend on the others."""

    def __call__(self, axis: Tensor, width: Tensor) -> Selection:
        """The channels that stay.

        Args:
            axis: int64 [jobs].
            width: int64 [jobs], from 1 to the axis's channels.
        """
        ...


@dataclass(frozen=True)
class Clustered:
    """Chooses by clusters of descriptors: see `select`, whose arguments these are."""

    descriptors: Descriptors
    channels_per_cluster: float = 1.0
    rule: str = "crowding"
    init: str = "ward"
    seed: int = 0

    def __call__(self, axis: Tensor, width: Tensor) -> Selection:
        return select(
            self.descriptors,
            axis,
            width,
            channels_per_cluster=self.channels_per_cluster,
            rule=self.rule,
            init=self.init,
            seed=self.seed,
        )


class Nested:
    """Chooses by one order of every axis, the first `width` of which stay.

    Args:
        readings: Of every axis, at least one each (see `elimination_order`).
        channels: int64 [axes].

    Attributes:
        orders: For each axis, int64 [channels].
        losses: For each axis, float64 [channels], the loss at every width from 1.
    """

    def __init__(self, readings: Sequence[Sequence[Reading]], channels: Tensor) -> None:
        self.orders: list[Tensor] = []
        self.losses: list[Tensor] = []
        for own, count in zip(readings, channels.tolist(), strict=True):
            order, losses = elimination_order(own, count)
            self.orders.append(order)
            self.losses.append(losses)

    def __call__(self, axis: Tensor, width: Tensor) -> Selection:
        channels = torch.tensor([len(order) for order in self.orders])
        _check_widths(width, channels[axis])
        kept = [
            self.orders[a][:w].sort().values
            for a, w in zip(axis.tolist(), width.tolist(), strict=True)
        ]
        return Selection(torch.cat(kept), None, width, channels[axis])

    def table(self) -> LossTable:
        """The losses at every width, from the readings that the orders were made from."""
        sizes = torch.tensor([0] + [len(one) for one in self.losses])
        return LossTable(torch.cat(self.losses), sizes.cumsum(0))


def select(
    descriptors: Descriptors,
    axis: Tensor,
    width: Tensor,
    *,
    channels_per_cluster: float = 1.0,
    clusters: Tensor | None = None,
    rule: str = "crowding",
    init: str = "ward",
    seed: int = 0,
) -> Selection:
    """Clusters each job's channels and keeps some of every cluster.

    Every cluster keeps one channel; what is left of the width goes to the clusters by largest
    remainder of their further channels. Inside a cluster stay, by `rule`, those with the largest
    crowding distance, those nearest to its centre, or random ones; among equals the largest norm,
    then the smallest index.

    Args:
        descriptors: The channels as points.
        axis: int64 [jobs].
        width: int64 [jobs], from 1 to the axis's channels.
        channels_per_cluster: Channels kept in a cluster on average, at least 1; there are
            ceil(width / channels_per_cluster) clusters.
        clusters: int64 [jobs], how many there are, from 1 to the width, instead.
        rule: "crowding", "medoid" or "random".
        init: Of `kmeans`: "ward" or "k-means++".
        seed: Of the random numbers of "k-means++" and of "random".

    Returns:
        The channels that stay, and the clusters.

    Raises:
        ValueError: A width outside its axis, `channels_per_cluster` below 1, an unknown rule,
            points that are not finite.
    """
    if not channels_per_cluster >= 1:
        raise ValueError(
            f"select: channels_per_cluster: expected at least 1, got {channels_per_cluster}"
        )
    if rule not in RULES:
        raise ValueError(f"select: rule: expected one of {', '.join(RULES)}, got {rule!r}")
    channels = descriptors.offsets.diff()[axis]  # [jobs]
    _check_widths(width, channels)
    if clusters is None:
        clusters = (width.double() / channels_per_cluster).ceil().long().clamp_min(1)
    k, points = clusters, descriptors.points
    found = kmeans(points, descriptors.offsets, k, problem=axis, init=init, seed=seed)

    job = torch.repeat_interleave(channels)  # [M]: the job of each entry, M = sum of channels
    entry = torch.arange(len(job)) - (channels.cumsum(0) - channels)[job]  # its channel
    point = descriptors.offsets[axis][job] + entry  # its row in the descriptors
    segment = (k.cumsum(0) - k)[job] + found.labels  # its cluster, counted over all jobs
    sizes = torch.bincount(segment, minlength=int(k.sum()))
    bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    if rule == "crowding":
        by_segment = segment.argsort(stable=True)
        worth = torch.empty(len(job), dtype=torch.float32)
        worth[by_segment] = crowding_distance(points[point[by_segment]], bounds)
    elif rule == "medoid":
        worth = -(points[point].double() - found.centers[segment].double()).square().sum(1)
    else:
        generator = torch.Generator().manual_seed(seed)
        worth = torch.rand(len(points), generator=generator)[point]

    # Stable sorts from the least to the most significant key leave ties in index order.
    order = descriptors.norms[point].argsort(descending=True, stable=True)
    order = order[worth[order].argsort(descending=True, stable=True)]
    order = order[segment[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - bounds[segment[order]]
    stays = rank < _quotas(sizes, torch.repeat_interleave(k), width, channels)[segment]
    return Selection(entry[stays], found.labels, width, channels)


def _check_widths(width: Tensor, channels: Tensor) -> None:
    outside = ((width < 1) | (width > channels)).nonzero()
    if len(outside):
        j = int(outside[0])
        raise ValueError(f"select: width[{j}]: expected 1 to {channels[j]}, got {width[j]}")


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
    readings: Sequence[Sequence[Reading]],
    channels: Tensor,
    choices: Sequence[Tensor],
    choose: Chooser,
) -> LossTable:
    """What every axis loses at every width: what layers cannot predict of the channels that go.

    Every reading of an axis counts by the share of its effect that goes (see `ridge_losses`), so
    that layers are comparable whatever their scale. Computed as in `loss_table`.

    Args:
        readings: Of every axis, at least one each.
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
    for a, own in enumerate(readings):
        jobs = (axis == a).nonzero().flatten().tolist()
        masks = torch.zeros(len(jobs), int(channels[a]), dtype=torch.bool)
        for mask, j in zip(masks, jobs, strict=True):
            mask[kept[j]] = True
        losses.append(ridge_losses(own, masks))
    return _table(grids, torch.cat(losses), offsets)


def _on_grid(
    choices: Sequence[Tensor], choose: Chooser
) -> tuple[list[Tensor], Tensor, Tensor, Selection]:
    """Up to `GRID` of each axis's choices; the axis and width of each job; what stays in it."""
    grids = [
        one[
            torch.linspace(0, len(one) - 1, min(GRID, len(one)), dtype=torch.float64).round().long()
        ]
        for one in choices
    ]
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
    """Losses at the widths 1..channels from those on a grid, linear between; flat outside."""
    widths = torch.arange(1, channels + 1, dtype=torch.float64)
    if len(grid) == 1:
        return losses.expand(channels).clone()
    right = torch.searchsorted(grid, widths).clamp(1, len(grid) - 1)
    low, high = grid[right - 1], grid[right]
    weight = ((widths - low) / (high - low)).clamp(0, 1)
    return losses[right - 1] * (1 - weight) + losses[right] * weight


def cluster_numbers(
    descriptors: Descriptors,
    widths: Tensor,
    *,
    init: str = "ward",
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Numbers of clusters that an axis may have if so many channels stay, and how good each is.

    Quality is the Calinski-Harabasz index: variance between clusters over variance inside, each by
    its degrees of freedom; as a share of the axis's best.

    Args:
        descriptors: The channels as points.
        widths: int64 [axes]; every cluster keeps a channel, so there are at most so many.
        init, seed: As in `select`.

    Returns:
        For each axis up to 64 numbers, int64, increasing (from 2, where two channels stay), and
        their qualities, float64 in [0, 1].
    """
    channels = descriptors.offsets.diff()
    numbers = []
    for width in widths.tolist():
        first = min(2, width)
        steps = min(NUMBERS, width - first + 1)
        numbers.append(torch.linspace(first, width, steps, dtype=torch.float64).round().long())
    axis = torch.repeat_interleave(torch.tensor([len(one) for one in numbers]))
    k = torch.cat(numbers)
    points, offsets = descriptors.points, descriptors.offsets
    inside = kmeans(points, offsets, k, problem=axis, init=init, seed=seed).inertia
    total = kmeans(points, offsets, torch.ones_like(channels)).inertia[axis]
    between = (total - inside).clamp_min(0) / (k - 1).clamp_min(1)
    # Where as many clusters as channels, or as different ones, leave nothing inside: no best.
    within = inside / (channels[axis] - k).clamp_min(1)
    index = torch.where(within > 1e-9 * total, between / within.clamp_min(1e-300), 0.0)
    qualities = [
        one / one.max() if one.max() > 0 else torch.zeros_like(one)
        for one in index.split([len(one) for one in numbers])
    ]
    return numbers, qualities
