"""How many channels every axis keeps: the problem, and its solution by the table of losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import LossTable, PopulationFitness
from mdcp_fast.ops.evolution import Evaluate, Evolution, differential_evolution
from mdcp_fast.planning.budgets import Grid, indices, uniform_widths
from mdcp_fast.planning.relaxation import relaxed_widths
from mdcp_fast.tracing.graph import ChannelGraph


@dataclass(frozen=True)
class WidthProblem:
    """Which widths may be chosen. A run is one budget.

    Attributes:
        graph: The traced network.
        limits: int64 [runs, costs], the most of each cost, in the order of `graph.costs`.
        choices: For each axis the widths that may be chosen, int64, increasing.
        seed: Of everything random.
    """

    graph: ChannelGraph
    limits: Tensor
    choices: Sequence[Tensor]
    seed: int

    @property
    def seeds(self) -> list[int]:
        """The seed of every run: the same, so that budgets have the plan that each has alone."""
        return [self.seed] * len(self.limits)

    def uniform(self) -> Tensor:
        """The largest widths, all at one share of the dense ones: int64 [runs, axes]."""
        return uniform_widths(self.graph, self.limits, self.choices)

    def whole_where_allowed(self, widths: Tensor) -> Tensor:
        """The same widths, and the largest ones for budgets that these meet.

        Args:
            widths: int64 [runs, axes].
        """
        return torch.where(self.largest_fit.unsqueeze(1), self._largest, widths)

    @property
    def largest_fit(self) -> Tensor:
        """For each run, whether the largest widths meet its limits: bool [runs]."""
        return (self.graph.cost.evaluate(self._largest) <= self.limits).all(1)

    @property
    def _largest(self) -> Tensor:
        return torch.tensor([int(one[-1]) for one in self.choices])


class Widths(NamedTuple):
    """Widths that meet the limits.

    Attributes:
        best: int64 [runs, axes].
        history: float64 [runs, steps], the best fitness after every generation of their search.
        relaxed: int64 [runs, candidates, axes], those of the relaxation, the last one its best.
    """

    best: Tensor
    history: Tensor
    relaxed: Tensor


class Minimizer(Protocol):
    """Minimises a function of integers: what `Method.evolution` takes.

    Any function or object that is called like this will do; `mdcp_fast.differential_evolution` is.
    """

    def __call__(
        self,
        evaluate: Evaluate,
        low: Tensor,
        high: Tensor,
        *,
        population: int,
        generations: int,
        seeds: Sequence[int],
        initial: Tensor | None,
    ) -> Evolution:
        """Minimises a function of integers in several independent runs.

        Args:
            evaluate: Scores candidates, int64 [runs, candidates, D] -> float64 [runs, candidates];
                lower is better.
            low: int64 [D], the smallest value of every coordinate.
            high: int64 [D], the largest.
            population: Candidates of the first generation.
            generations: The evolution scores `population * generations` candidates.
            seeds: One for each run.
            initial: int64 [runs, candidates, D], good candidates to start with; None without any.

        Returns:
            The best of every run, its fitness, and the history.
        """
        ...


MINIMIZERS: dict[str, Minimizer] = {"l-shade": differential_evolution}


def widths_by_table(
    problem: WidthProblem,
    losses: LossTable,
    minimize: Minimizer,
    population: int,
    generations: int,
) -> Widths:
    """The widths whose losses add up to least, by evolution from those of the relaxation.

    Args:
        problem: The limits, and the widths that may be chosen.
        losses: What every axis loses at every width.
        minimize: The evolution.
        population, generations: Of the evolution.
    """
    grid, cost = Grid(problem.choices), problem.graph.cost
    relaxed = relaxed_widths(losses, cost, problem.limits, problem.choices)
    fitness = PopulationFitness(losses, cost, problem.limits)
    found = minimize(
        lambda candidates: fitness(grid.widths(candidates)),
        torch.zeros_like(grid.high),
        grid.high,
        population=population,
        generations=generations,
        seeds=problem.seeds,
        initial=indices(relaxed, problem.choices),
    )
    return Widths(grid.widths(found.best), found.history, relaxed)
