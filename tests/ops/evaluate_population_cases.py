"""Populations on which every implementation of evaluate_population must agree."""

from __future__ import annotations

from dataclasses import astuple, replace
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


def with_tables(cost: CostModel) -> CostModel:
    """The cost_model and, by w0 at 2 and 4 and (w1 + 2 w2 + 5) at 8, 16 and 24, times."""
    return replace(
        cost,
        tables=integers([[1, 2], [3, 3]]),
        table_offsets=integers([0, 0, 2]),
        edges=integers([2, 4, 8, 16, 24, 5, 0, 9]),
        edge_offsets=integers([0, 2, 5, 6, 8]),
        values=integers([7, 1, 30, 4, 5, 60, 100, 200]),
        value_offsets=integers([0, 6, 8]),
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


def with_random_tables(case: Case, tables: int, seed: int = 0) -> Case:
    """The case, its costs with tables at multiples of 8 and at any edges, shared out unevenly."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    costs, counts = len(case.cost.coefficients), len(case.cost.constant)
    lengths = drawn(1, 20, 2 * tables)
    steps = torch.where(drawn(0, 2, 2 * tables) == 0, 8, 3)
    edges = [torch.arange(1, n + 1) * step for n, step in zip(lengths, steps, strict=True)]
    sizes = lengths[::2] * lengths[1::2]
    ends = drawn(0, tables + 1, costs - 1).sort().values
    cost = replace(
        case.cost,
        tables=drawn(0, counts, tables, 2),
        table_offsets=torch.cat([integers([0]), ends, integers([tables])]),
        edges=torch.cat(edges),
        edge_offsets=torch.cat([integers([0]), lengths.cumsum(0)]),
        values=drawn(0, 2**40, int(sizes.sum())),
        value_offsets=torch.cat([integers([0]), sizes.cumsum(0)]),
    )
    channels = case.loss.offsets.diff()
    typical = cost.evaluate(channels // 2 + 1).clamp_min(1)
    return case._replace(cost=cost, budget=typical.expand_as(case.budget).contiguous())


def cases() -> dict[str, Case]:
    """Arguments by name."""
    found = {}
    for runs, candidates in ((1, 1), (1, 33), (3, 64), (2, 0), (0, 5)):
        budget = integers([[200, 12], [400, 21], [90, 6]])[:runs]
        found[f"small, {runs} x {candidates}"] = Case(
            random_population(runs, candidates), loss_table(), cost_model(), budget
        )
    found["a network's size"] = random_case(53, 160, 200, 3, 2, 20)
    found["tables"] = Case(
        random_population(2, 40),
        loss_table(),
        with_tables(cost_model()),
        integers([[400, 90], [250, 300]]),
    )
    found["a network's size, tables"] = with_random_tables(random_case(53, 160, 200, 3, 2, 20), 150)
    found["tables and no terms"] = with_random_tables(random_case(5, 4, 0, 2, 2, 9), 3)
    found["thousands of counts"] = random_case(155, 4000, 3000, 2, 2, 5)
    found["thousands of counts, tables"] = with_random_tables(found["thousands of counts"], 20)
    found["one axis"] = random_case(1, 1, 1, 1, 1, 9)
    found["no axes"] = random_case(0, 3, 2, 1, 2, 3)
    found["no costs"] = random_case(5, 4, 3, 0, 2, 4)
    found["no terms"] = random_case(5, 4, 0, 2, 2, 4)
    return found
