"""Which channels stay when an axis keeps so many of them.

Everything works on jobs: job j asks for `width[j]` channels of axis `axis[j]`. All jobs of all axes
are one batch for the kernels. Whatever answers jobs is a `Chooser`: by clusters, or by a nested
order of every axis.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.planning.descriptors import Descriptors
from mdcp_fast.planning.elimination import elimination_order
from mdcp_fast.pruning.reconstruction import ReconstructionError


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


class Clusters(NamedTuple):
    """The channels of all jobs, in clusters.

    Attributes:
        rows: int64 [M], M the sum of the jobs' channels: which row of the descriptors each is.
        labels: int64 [M], its cluster, counted over all jobs; channels of different jobs share
            none.
        sizes: int64 [clusters], how many channels each has; some may be empty.
        centers: float32 [clusters, D], their means.
    """

    rows: Tensor
    labels: Tensor
    sizes: Tensor
    centers: Tensor


class SelectionRule(Protocol):
    """Says which channels of a cluster stay: what `Method.selection` takes.

    Any object with this method will do. With a large `Method.channels_per_cluster` there is but one
    cluster: the rule then is an importance of channels.
    """

    def scores(self, descriptors: Descriptors, clusters: Clusters) -> Tensor:
        """How much each channel is worth keeping; in a cluster the largest scores stay.

        The channels of one axis come once for each width that is asked for, in clusters of their
        own each time. How many of a cluster stay is not the rule's to say. Among equal scores the
        largest norm stays, then the smallest index.

        Args:
            descriptors: The channels of all axes as points.
            clusters: The channels to score, M of them.

        Returns:
            Floating point [M], infinities allowed.
        """
        ...


class Crowding:
    """The largest NSGA-II crowding distance stays."""

    def scores(self, descriptors: Descriptors, clusters: Clusters) -> Tensor:
        by_cluster = clusters.labels.argsort(stable=True)
        scores = torch.empty(len(by_cluster), dtype=torch.float32)
        points = descriptors.points[clusters.rows[by_cluster]]
        scores[by_cluster] = crowding_distance(points, _bounds(clusters.sizes))
        return scores


class Medoid:
    """The channels nearest to the cluster's centre stay."""

    def scores(self, descriptors: Descriptors, clusters: Clusters) -> Tensor:
        points = descriptors.points[clusters.rows].double()
        return -(points - clusters.centers[clusters.labels].double()).square().sum(1)


CROWDING = Crowding()
RULES: dict[str, SelectionRule] = {"crowding": CROWDING, "medoid": Medoid()}


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
    rule: SelectionRule = CROWDING
    init: str = "ward"
    seed: int = 0
    dead: Tensor | None = None

    def __call__(self, axis: Tensor, width: Tensor) -> Selection:
        return select(
            self.descriptors,
            axis,
            width,
            channels_per_cluster=self.channels_per_cluster,
            rule=self.rule,
            init=self.init,
            seed=self.seed,
            dead=self.dead,
        )


class Nested:
    """Chooses by one order of every axis, the first `width` of which stay.

    Args:
        errors: Of every axis, at least one each (see `elimination_order`).
        channels: int64 [axes].
        rotated: Axes whose channels come in order.
        dead: For each axis, int64 [channels]: see `elimination_order`.

    Attributes:
        orders: For each axis, int64 [channels].
        losses: For each axis, float64 [channels], the loss at every width from 1.
    """

    def __init__(
        self,
        errors: Sequence[Sequence[ReconstructionError]],
        channels: Tensor,
        rotated: Collection[int] = (),
        dead: Sequence[Tensor] | None = None,
    ) -> None:
        self.orders: list[Tensor] = []
        self.losses: list[Tensor] = []
        for axis, (own, count) in enumerate(zip(errors, channels.tolist(), strict=True)):
            order, losses = elimination_order(
                own, count, given=axis in rotated, dead=None if dead is None else dead[axis]
            )
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
        """The losses at every width, from the errors that the orders were made from."""
        sizes = torch.tensor([0] + [len(one) for one in self.losses])
        return LossTable(torch.cat(self.losses), sizes.cumsum(0))


def select(
    descriptors: Descriptors,
    axis: Tensor,
    width: Tensor,
    *,
    channels_per_cluster: float = 1.0,
    clusters: Tensor | None = None,
    rule: SelectionRule = CROWDING,
    init: str = "ward",
    seed: int = 0,
    dead: Tensor | None = None,
) -> Selection:
    """Clusters each job's channels and keeps some of every cluster.

    Every cluster keeps one channel; what is left of the width goes to the clusters by largest
    remainder of their further channels. Inside a cluster those stay that the rule scores highest;
    among equals the largest norm, then the smallest index. Dead channels go before all others,
    whatever their clusters.

    Args:
        descriptors: The channels as points.
        axis: int64 [jobs].
        width: int64 [jobs], from 1 to the axis's channels.
        channels_per_cluster: Channels kept in a cluster on average, at least 1; there are
            ceil(width / channels_per_cluster) clusters.
        clusters: int64 [jobs], how many there are, from 1 to the width, instead.
        rule: Says which channels of a cluster stay.
        init: Of `kmeans`: "ward" or "k-means++".
        seed: Of the random numbers of "k-means++".
        dead: int64 [channels of all axes], those that go first, the largest numbers before the
            others; 0 for channels that are not dead. None: there are none.

    Returns:
        The channels that stay, and the clusters.

    Raises:
        ValueError: A width outside its axis, `channels_per_cluster` below 1, points that are not
            finite, scores of another shape or NaN.
    """
    if not channels_per_cluster >= 1:
        raise ValueError(
            f"select: channels_per_cluster: expected at least 1, got {channels_per_cluster}"
        )
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
    scores = _checked_scores(rule, descriptors, Clusters(point, segment, sizes, found.centers))

    # Stable sorts from the least to the most significant key leave ties in index order.
    order = descriptors.norms[point].argsort(descending=True, stable=True)
    order = order[scores[order].argsort(descending=True, stable=True)]
    level = torch.zeros_like(point) if dead is None else dead[point]
    alive = level == 0
    order = order[level[order].argsort(stable=True)]
    order = order[segment[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - _bounds(sizes)[segment[order]]
    living = torch.zeros_like(width).index_add_(0, job, alive.long())
    first = torch.minimum(width, living)  # how many stay that are not dead
    alive_sizes = torch.bincount(segment[alive], minlength=len(sizes))
    stays = alive & (
        rank < _quotas(alive_sizes, torch.repeat_interleave(k), first, living)[segment]
    )
    if dead is not None:
        order = level.argsort(stable=True)
        order = order[job[order].argsort(stable=True)]
        rank[order] = torch.arange(len(order)) - _bounds(channels)[job[order]]
        stays |= ~alive & (rank < width[job])  # by level, those that are not dead come first
    return Selection(entry[stays], found.labels, width, channels)


def _bounds(sizes: Tensor) -> Tensor:
    """Where parts of such sizes begin and end, one behind the other: int64 [parts + 1]."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def _checked_scores(rule: SelectionRule, descriptors: Descriptors, clusters: Clusters) -> Tensor:
    scores = rule.scores(descriptors, clusters)
    if scores.shape != clusters.rows.shape or not scores.is_floating_point():
        raise ValueError(
            f"search: selection: expected a floating-point score for each of {len(clusters.rows)} "
            f"channels, got {scores.dtype} of shape {list(scores.shape)}"
        )
    if bool(scores.isnan().any()):
        raise ValueError("search: selection: expected scores that are numbers, got NaN")
    return scores


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
