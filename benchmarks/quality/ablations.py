"""Parts of a method that are no better than ours: each measures what ours adds.

They are handed to `search` as anyone's own are, in a `mdcp_fast.Method`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdcp_fast import Clusters, Descriptors, Evolution

SCALE, RATE = 0.5, 0.9


@dataclass(frozen=True)
class RandomInCluster:
    """Any channels of a cluster stay: what a selection inside clusters has to beat.

    Attributes:
        seed: Of the random numbers.
    """

    seed: int = 0

    def scores(self, descriptors: Descriptors, clusters: Clusters) -> Tensor:
        """A random number for each channel, the same at all widths."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(len(descriptors.points), generator=generator)[clusters.rows]


def plain_evolution(
    evaluate: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    *,
    population: int,
    generations: int,
    seeds: Sequence[int],
    initial: Tensor | None,
) -> Evolution:
    """Differential evolution as first published: rand/1/bin with constant scale and rate.

    From random candidates, whatever `initial` says, and with no descent after it.

    Source: R. Storn and K. Price, "Differential evolution", Journal of Global Optimization 11,
    1997.

    Args: see `mdcp_fast.Minimizer`.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(*shape: int) -> Tensor:  # [runs, *shape]
        return torch.stack(
            [torch.rand(shape, generator=g, dtype=torch.float64) for g in generators]
        )

    def rounded(genotypes: Tensor) -> Tensor:
        return genotypes.round().long().clamp(low, high)

    bottom, top = low - 0.5, high + 0.5
    runs, width = torch.arange(len(seeds)), len(low)
    trials = members = bottom + uniform(population, width) * (top - bottom)
    scores = torch.full((len(seeds), population), torch.inf, dtype=torch.float64)
    best, lowest = rounded(members)[:, 0], scores[:, 0]
    history = []
    for generation in range(generations):
        if generation:
            trials = _trials(
                members, uniform(population, width + 1), uniform(population, population)
            )
            trials = trials.clamp(bottom, top)
        fitness = evaluate(rounded(trials))
        better = fitness <= scores
        members = torch.where(better.unsqueeze(2), trials, members)
        scores = torch.where(better, fitness, scores)
        least, where = fitness.min(1)
        best = torch.where((least < lowest).unsqueeze(1), rounded(trials)[runs, where], best)
        lowest = torch.minimum(least, lowest)
        history.append(lowest)
    return Evolution(best, lowest, torch.stack(history, 1), population * generations)


def _trials(members: Tensor, chance: Tensor, keys: Tensor) -> Tensor:
    """Mutants of three others, crossed with the members.

    Args:
        members: float64 [runs, N, D].
        chance: float64 [runs, N, 1 + D], random: the coordinate that changes for sure, and whether
            each of them does.
        keys: float64 [runs, N, N], random, below 1: their order says which three.
    """
    _, n, width = members.shape
    # All different: the member itself is last in its order.
    others = (keys + 2 * torch.eye(n, dtype=torch.float64)).argsort(dim=2)[..., :3]
    first, second, third = (
        members.gather(1, one.unsqueeze(2).expand(-1, -1, width)) for one in others.unbind(2)
    )
    crossed = chance[..., 1:] < RATE
    crossed.scatter_(2, (chance[..., 0] * width).long().unsqueeze(2), True)
    return torch.where(crossed, first + SCALE * (second - third), members)
