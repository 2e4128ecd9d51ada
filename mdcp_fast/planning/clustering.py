"""How many clusters every axis has, where that is searched by the quality of the clustering."""

from __future__ import annotations

import torch
from torch import Tensor

from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.planning.budgets import Grid
from mdcp_fast.planning.channels import ChannelScorer
from mdcp_fast.planning.descriptors import Descriptors
from mdcp_fast.planning.selection import Selection, select

NUMBERS = 64  # of clusters that are tried for an axis


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


def searched_clusters(scorer: ChannelScorer, width: Tensor, seed: int) -> tuple[Selection, Tensor]:
    """The channels that stay at the best numbers of clusters, and the search's history.

    Args:
        scorer: Of the traced network.
        width: int64 [axes].
        seed: Of the evolution and of k-means.
    """
    how, points = scorer.method, scorer.descriptors
    assert points is not None and how.rule is not None
    numbers, qualities = cluster_numbers(points, width, init=how.seeding, seed=seed)
    grid = Grid(numbers)
    worse = torch.cat([1 - one for one in qualities])
    found = how.minimize(
        lambda candidates: worse[grid.start + candidates].sum(-1),
        torch.zeros_like(grid.high),
        grid.high,
        population=how.evaluator.population,
        generations=how.evaluator.generations,
        seeds=[seed],
        initial=None,
    )
    chosen = select(
        points,
        torch.arange(len(width)),
        width,
        clusters=grid.widths(found.best)[0],
        rule=how.rule,
        init=how.seeding,
        seed=seed,
        dead=scorer.dead,
    )
    return chosen, found.history[0]
