"""What widths are chosen by: a table of losses, or networks that are run on calibration batches.

The classes here are settings, plain values that `Method.evaluator` takes. Those that run networks
make the judge that scores candidates, and say how to search by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mdcp_fast.ops.evolution import SMALLEST, descend, differential_evolution
from mdcp_fast.planning.budgets import Grid, indices
from mdcp_fast.planning.judge import AnswerJudge, KeptChannels
from mdcp_fast.planning.masked import MEMORY, MaskedJudge
from mdcp_fast.planning.refit_evaluator import RefitJudge, evolve_widths
from mdcp_fast.planning.widths import WidthProblem, Widths
from mdcp_fast.pruning.calibration_data import CalibrationData


@dataclass(frozen=True)
class TableEvaluator:
    """Widths are chosen by a table of what every axis loses at every width.

    Differential evolution under the budgets, started from a Lagrangian relaxation. The default.

    Attributes:
        population: Candidates of the evolution's first generation, at least 4.
        generations: It scores at most `population * generations` candidates.
        probes: At how many widths of each axis the network is run on calibration images, with
            nothing else cut, so that the losses of different axes compare. 0: not at all, as
            without calibration.

    Raises:
        TypeError, ValueError: A number that is no int, or too small.
    """

    population: int = 64
    generations: int = 100
    probes: int = 2

    name: ClassVar[str] = "table"
    labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_numbers(self, population=SMALLEST, generations=1, probes=0)


@dataclass(frozen=True)
class NetworkEvaluator:
    """Widths are chosen by the answers of the dense network with masks, on calibration batches.

    The channels of candidates are masked, BatchNorm normalises by each candidate's own batch
    statistics, and many candidates share one forward pass. The search starts from the table's plan,
    the relaxation's and uniform widths, so that its plan scores no worse than theirs. It runs at
    most `2 * population * generations` candidates, 320 by default, each about as much work as the
    dense network on all calibration batches; candidates over the budget and ones seen before cost
    nothing. 128 to 256 samples in batches of 32 to 128 tell widths apart; batches should have 16
    samples or more, since they stand in for the statistics that BatchNorm is to have.

    Attributes:
        labels: Score by the cross entropy with the labels of the batches, which are then pairs; by
            default by the divergence KL(dense || candidate) of the class probabilities, which needs
            none.
        memory: Bytes that the activations of a forward pass may take, by default 1 GiB; candidates
            run in groups that fit. Scratch space inside convolutions comes on top.
        population: Candidates of the evolution's first generation, at least 4.
        generations: It scores at most `population * generations` candidates, and the descent that
            follows at most as many again.

    Raises:
        TypeError, ValueError: A number that is no int, or too small.
    """

    labels: bool = False
    memory: int = MEMORY
    population: int = 16
    generations: int = 10

    name: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        _check_numbers(self, population=SMALLEST, generations=1)
        memory = self.memory
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
            raise ValueError(
                f"NetworkEvaluator: memory: expected a number of bytes (int), got {memory!r}"
            )

    def judge(
        self, problem: WidthProblem, kept: KeptChannels, calibration: CalibrationData
    ) -> AnswerJudge:
        """What scores candidates."""
        return MaskedJudge(problem.graph, kept, problem.limits, calibration, memory=self.memory)

    def improve(self, judge: AnswerJudge, start: Widths, problem: WidthProblem) -> Widths:
        """Better widths than those to start with: evolution and descent, few candidates in each."""
        grid = Grid(problem.choices)
        low = torch.zeros_like(grid.high)
        starts = torch.cat(
            [start.best.unsqueeze(1), problem.uniform().unsqueeze(1), start.relaxed], 1
        )

        def evaluate(candidates: Tensor) -> Tensor:
            return judge(grid.widths(candidates))

        found = differential_evolution(
            evaluate,
            low,
            grid.high,
            population=self.population,
            generations=self.generations,
            seeds=problem.seeds,
            initial=indices(starts, problem.choices),
            descent=False,
        )
        best, fitness, _ = descend(
            evaluate,
            found.best,
            found.fitness,
            low,
            grid.high,
            seeds=problem.seeds,
            moves=self.population,
            evaluations=self.population * self.generations,
        )
        history = torch.cat([found.history, fitness.unsqueeze(1)], 1)
        return start._replace(best=grid.widths(best), history=history)


@dataclass(frozen=True)
class RefitEvaluator:
    """Widths are chosen by trial: networks pruned and fitted as `prune` does it.

    The widths from the table are the start of an evolution strategy that prunes and fits the
    network for every candidate, on three quarters of the calibration samples, and compares its
    answers on the rest with the dense network's: `population * generations` times, 40 by default,
    each some two or three times the work of the dense network on all samples. It starts with widths
    between those and uniform ones, so that its plan scores no worse than either.

    Attributes:
        labels: Score by the cross entropy with the labels of the batches, which are then pairs; by
            default by the divergence KL(dense || candidate) of the class probabilities, which needs
            none.
        population: Candidates of a generation, at least 4.
        generations: How many, of which the start is the first.

    Raises:
        TypeError, ValueError: A number that is no int, or too small.
    """

    labels: bool = False
    population: int = 5
    generations: int = 8

    name: ClassVar[str] = "fitted"

    def __post_init__(self) -> None:
        _check_numbers(self, population=SMALLEST, generations=1)

    def judge(
        self, problem: WidthProblem, kept: KeptChannels, calibration: CalibrationData
    ) -> AnswerJudge:
        """What scores candidates."""
        return RefitJudge(problem.graph, kept, problem.limits, calibration)

    def improve(self, judge: AnswerJudge, start: Widths, problem: WidthProblem) -> Widths:
        """Better widths than those to start with: see `evolve_widths`."""
        found = evolve_widths(
            judge,
            start.best,
            problem.uniform(),
            problem.graph.cost,
            problem.limits,
            problem.choices,
            (self.population, self.generations),
            problem.seed,
        )
        return start._replace(best=found.best, history=found.history)


Evaluator = TableEvaluator | NetworkEvaluator | RefitEvaluator


def _check_numbers(evaluator: Evaluator, **least_of: int) -> None:
    for name, least in least_of.items():
        value = getattr(evaluator, name)
        where = f"{type(evaluator).__name__}: {name}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{where}: expected an int, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{where}: expected at least {least}, got {value}")


EVALUATORS: dict[str, Evaluator] = {
    "table": TableEvaluator(),
    "network": NetworkEvaluator(),
    "fitted": RefitEvaluator(),
}
