"""One run of L-SHADE written out in NumPy, a member at a time; it draws the random numbers of
`mdcp_fast.ops.evolution.LShade` in its order."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import torch

from mdcp_fast.ops.evolution import ARCHIVE, GREEDINESS, HISTORY, SMALLEST

Array = np.ndarray


class ReferenceLShade:
    """As LShade, of a single run; arrays have [D] or [N, D]."""

    def __init__(
        self, low: Array, high: Array, population: int, evaluations: int, seed: int
    ) -> None:
        self.low, self.high, self.first, self.budget = low, high, population, evaluations
        self.generator = torch.Generator().manual_seed(seed)
        self.bottom, self.top = low - 0.5, high + 0.5
        self.trials = self.bottom + self.uniform(population, len(low)) * (self.top - self.bottom)
        self.members = self.trials.copy()
        self.scores = np.full(population, np.inf)
        self.scales = self.rates = np.zeros(population)
        self.archive: list[Array] = []
        self.capacity = round(ARCHIVE * population)
        self.scale_memory, self.rate_memory = [0.5] * HISTORY, [0.5] * HISTORY
        self.slot = self.evaluated = 0

    def uniform(self, *shape: int) -> Array:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).numpy()

    def ask(self) -> Array:
        if self.evaluated:
            self.mutate()
        return np.clip(np.rint(self.trials), self.low, self.high).astype(np.int64)

    def tell(self, fitness: Array) -> None:
        if self.evaluated:
            self.remember(fitness)
        for i, score in enumerate(fitness):
            if score <= self.scores[i]:
                self.members[i], self.scores[i] = self.trials[i], score
        self.evaluated += len(fitness)
        self.shrink()

    def mutate(self) -> None:
        n, width = self.members.shape
        chance = self.uniform(n, width + 7)
        order = np.argsort(self.scores, kind="stable")
        best = order[: max(2, round(GREEDINESS * n))]
        self.trials, self.scales, self.rates = self.members.copy(), np.empty(n), np.empty(n)
        for i, (memory, normal, cauchy, pbest, first, second, forced, *crossing) in enumerate(
            chance
        ):
            mean = self.rate_memory[int(memory * HISTORY)]
            self.rates[i] = (
                0.0 if mean < 0 else np.clip(mean + 0.1 * NormalDist().inv_cdf(normal), 0, 1)
            )
            self.scales[i] = positive_cauchy(self.scale_memory[int(memory * HISTORY)], cauchy)

            others = [j for j in range(n) if j != i]
            one = others[int(first * len(others))]
            pool = [self.members[j] for j in others if j != one] + self.archive
            mutant = self.members[i] + self.scales[i] * (
                self.members[best[int(pbest * len(best))]] - self.members[i]
            )
            mutant += self.scales[i] * (self.members[one] - pool[int(second * len(pool))])
            mutant = np.where(mutant < self.bottom, (self.bottom + self.members[i]) / 2, mutant)
            mutant = np.where(mutant > self.top, (self.top + self.members[i]) / 2, mutant)
            crossed = np.array(crossing) < self.rates[i]
            crossed[int(forced * width)] = True
            self.trials[i, crossed] = mutant[crossed]

    def remember(self, fitness: Array) -> None:
        keys = self.uniform(self.capacity + len(fitness))
        won = np.flatnonzero(fitness < self.scores)
        beaten = [(keys[self.capacity + i], self.members[i].copy()) for i in won]
        present = list(zip(keys, self.archive, strict=False)) + beaten
        present.sort(key=lambda one: one[0])
        self.archive = [row for _, row in present[: self.capacity]]
        if len(won) == 0:
            return
        gain = self.scores[won] - fitness[won]
        gain = np.where(np.isinf(gain), 1.0, gain)
        scales, rates = self.scales[won], self.rates[won]
        self.scale_memory[self.slot] = lehmer(gain, scales)
        ended = self.rate_memory[self.slot] < 0 or rates.max() <= 0
        self.rate_memory[self.slot] = -1.0 if ended else lehmer(gain, rates)
        self.slot = (self.slot + 1) % HISTORY

    def shrink(self) -> None:
        progress = min(1.0, self.evaluated / self.budget)
        n = max(SMALLEST, round(self.first + (SMALLEST - self.first) * progress))
        if n < len(self.members):
            kept = np.argsort(self.scores, kind="stable")[:n]
            self.members, self.scores = self.members[kept], self.scores[kept]
            self.capacity = round(ARCHIVE * n)
            self.archive = self.archive[: self.capacity]


def positive_cauchy(location: float, chance: float) -> float:
    below = 0.5 - np.arctan(location / 0.1) / np.pi
    quantile = below + (1 - below) * chance
    return np.clip(location + 0.1 * np.tan(np.pi * (quantile - 0.5)), 1e-12, 1)


def lehmer(weights: Array, values: Array) -> float:
    share = weights / weights.sum()
    bottom = (share * values).sum()
    return (share * values**2).sum() / bottom if bottom > 0 else 0.0
