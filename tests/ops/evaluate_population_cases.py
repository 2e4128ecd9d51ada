"""Populations on which every implementation of evaluate_population must agree."""

from __future__ import annotations

from dataclasses import astuple
from typing import NamedTuple

import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import CostModel, LossTable

CHANNELS = torch.tensor([4, 7, 3])


def integers(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def cost_model() -> CostModel:
    """Two costs of three axes: w0 * (w1 + 2 w2 + 5) * 9 + 11 and 3 w1."""
    return CostModel(
        constant=integers([1, 0, 5, 0]),
        offsets=integers([0, 0, 1, 3, 4]),
        axis=integers([0, 1, 2, 1]),
        factor=integers([1, 1, 2, 3]),
        terms=integers([[1, 2], [0, 0], [0, 3]]),
        coefficients=integers([[9, 11, 0], [0, 0, 1]]),
    )


def loss_table(seed: int = 0) -> LossTable:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(int(CHANNELS.sum()), generator=generator, dtype=torch.float64)
    return LossTable(values, torch.cat([torch.zeros(1, dtype=torch.int64), CHANNELS.cumsum(0)]))


def random_population(runs: int, candidates: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(runs, candidates, len(CHANNELS), generator=generator)
    return (uniform * CHANNELS).long() + 1


class Case(NamedTuple):
    """Arguments of evaluate_population; the population is [runs, candidates, axes]."""

    population: Tensor
    loss: LossTable
    cost: CostModel
    budget: Tensor  # [runs, costs]

    def flat(self) -> tuple[Tensor, ...]:
        """The arguments of the op as torch knows it."""
        return (self.population, *astuple(self.loss), *astuple(self.cost), self.budget)


def random_case(
    axes: int, counts: int, terms: int, costs: int, runs: int, candidates: int, seed: int = 0
) -> Case:
    """Widths up to 40, and budgets about half of the candidates keep to."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    channels = drawn(1, 41, axes)
    values = torch.randn(int(channels.sum()), generator=generator, dtype=torch.float64)
    loss = LossTable(values, torch.cat([integers([0]), channels.cumsum(0)]))
    entries = drawn(0, 4 if axes else 1, counts)
    total = int(entries.sum())
    cost = CostModel(
        constant=drawn(0, 9, counts),
        offsets=torch.cat([integers([0]), entries.cumsum(0)]),
        axis=drawn(0, max(axes, 1), total),
        factor=drawn(1, 4, total),
        terms=drawn(0, counts, terms, 2),
        coefficients=drawn(0, 10**9, costs, terms),  # sums far beyond 2^32, some beyond 2^53
    )
    uniform = torch.rand(runs, candidates, axes, generator=generator)
    population = (uniform * channels).long() + 1
    typical = cost.evaluate(channels // 2 + 1).clamp_min(1)
    return Case(population, loss, cost, typical.expand(runs, -1).contiguous())


def cases() -> dict[str, Case]:
    """Arguments by name."""
    found = {}
    for runs, candidates in ((1, 1), (1, 33), (3, 64), (2, 0), (0, 5)):
        budget = integers([[200, 12], [400, 21], [90, 6]])[:runs]
        found[f"small, {runs} x {candidates}"] = Case(
            random_population(runs, candidates), loss_table(), cost_model(), budget
        )
    found["a network's size"] = random_case(53, 160, 200, 3, 2, 20)
    found["thousands of counts"] = random_case(155, 4000, 3000, 2, 2, 5)
    found["one axis"] = random_case(1, 1, 1, 1, 1, 9)
    found["no axes"] = random_case(0, 3, 2, 1, 2, 3)
    found["no costs"] = random_case(5, 4, 3, 0, 2, 4)
    found["no terms"] = random_case(5, 4, 0, 2, 2, 4)
    return found
