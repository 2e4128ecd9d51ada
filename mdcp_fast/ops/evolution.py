"""Minimises a function of integers: L-SHADE, then descent by one and by two coordinates.

Many independent runs advance together: a run is one more tensor dimension, so that one call of the
evaluator scores the candidates of them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import check_tensor
from mdcp_fast.ops._native import native

Evaluate = Callable[[Tensor], Tensor]  # int64 [runs, candidates, D] -> float64 [runs, candidates]

CPU = torch.device("cpu")
HISTORY = 6  # entries of the success memory
GREEDINESS = 0.11  # share of the population that "pbest" is drawn from
ARCHIVE = 2.6  # archive size over population size
SMALLEST = 4  # population at the end
MOVES = 512  # random moves that the descent tries at a time
PATIENCE = 8  # batches of moves without a better one before the descent ends


class Evolution(NamedTuple):
    """What `differential_evolution` found.

    Attributes:
        best: int64 [runs, D], the best candidate of every run.
        fitness: float64 [runs], its fitness.
        history: float64 [runs, steps], the best fitness so far after every generation of the
            evolution, and last after the descent.
        evaluations: Candidates scored in each run.
    """

    best: Tensor
    fitness: Tensor
    history: Tensor
    evaluations: int


class State(NamedTuple):
    """The native core's EvolutionState, whose memory its calls change."""

    low: Tensor  # int64 [D]
    high: Tensor  # int64 [D]
    bottom: Tensor  # float64 [D], bounds of the genotypes
    top: Tensor  # float64 [D]
    members: Tensor  # float64 [runs, population, D], of which the first N are alive
    trials: Tensor  # float64 [runs, population, D]
    scores: Tensor  # float64 [runs, population], fitness of the members
    scales: Tensor  # float64 [runs, population], what the trials were made with
    rates: Tensor  # float64 [runs, population]
    archive: Tensor  # float64 [runs, rows, D]
    archived: Tensor  # int64 [runs], rows of the archive in use
    scale_memory: Tensor  # float64 [runs, HISTORY]
    rate_memory: Tensor  # float64 [runs, HISTORY], below 0 where it ended
    slot: Tensor  # int64 [runs], the entry of the memories to write next

    def native(self) -> Any:
        """The native core's view of it, of which a copy's memory needs one of its own."""
        runs, population, width = self.members.shape
        return native.EvolutionState(
            **{name: part.data_ptr() for name, part in self._asdict().items()},
            runs=runs,
            population=population,
            width=width,
            archive_rows=self.archive.shape[1],
            history=HISTORY,
        )


class LShade:
    """Differential evolution with success-history adaptation and linear population reduction.

    current-to-pbest/1/bin with an external archive; the genotype is real and rounded only to be
    evaluated. Use: `while not it.finished: it.tell(evaluate(it.ask()))`. A run gives the same
    answer alone and beside others.

    Source: R. Tanabe and A. Fukunaga, "Improving the search performance of SHADE using linear
    population size reduction", CEC 2014.

    Args:
        low: int64 [D], the smallest value of every coordinate.
        high: int64 [D], the largest.
        population: Candidates of the first generation, at least 4.
        evaluations: Candidates scored in each run before it is finished.
        seeds: One for each run.
        initial: int64 [runs, candidates, D], members of the first generation; random ones are
            added, or the last ones dropped, to make `population`.

    Attributes:
        best: int64 [runs, D], the best candidates so far.
        fitness: float64 [runs], their fitness.
        evaluated: Candidates scored in each run so far.
        state: The members, what is learned, and what the native core needs beside them.
    """

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        population: int = 64,
        evaluations: int = 6400,
        seeds: Sequence[int] = (0,),
        initial: Tensor | None = None,
    ) -> None:
        low, high = _checked_bounds("LShade", low, high)
        if population < SMALLEST:
            raise ValueError(f"LShade: population: expected at least {SMALLEST}, got {population}")
        if not seeds:
            raise ValueError("LShade: seeds: expected at least one, got none")
        self._generators = _seeded(seeds)
        self._first, self._budget = population, evaluations
        self._alive, self._capacity = population, round(ARCHIVE * population)
        runs, width = len(seeds), len(low)
        self._width = width
        # Half a step of margin gives the first and the last integer the share of the others.
        bottom, top = low.double() - 0.5, high.double() + 0.5
        trials = bottom + _uniform(self._generators, population, width) * (top - bottom)
        if initial is not None:
            given = initial[:, :population].double()
            trials[:, : given.shape[1]] = given.clamp(low.double(), high.double())
        self.state = State(
            low=low,
            high=high,
            bottom=bottom,
            top=top,
            members=_full((runs, population, width), 0.0),
            trials=trials,
            scores=_full((runs, population), torch.inf),
            scales=_full((runs, population), 0.0),
            rates=_full((runs, population), 0.0),
            archive=_full((runs, self._capacity, width), 0.0),
            archived=torch.zeros(runs, dtype=torch.int64, device=CPU),
            scale_memory=_full((runs, HISTORY), 0.5),
            rate_memory=_full((runs, HISTORY), 0.5),
            slot=torch.zeros(runs, dtype=torch.int64, device=CPU),
        )
        self._native = self.state.native()
        self._asked = False
        self.evaluated = 0
        self.best = self._rounded()[:, 0].clone()
        self.fitness = _full((runs,), torch.inf)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_native"}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._native = self.state.native()

    @property
    def finished(self) -> bool:
        return self.evaluated >= self._budget

    def ask(self) -> Tensor:
        """The candidates to score next: int64 [runs, N, D]; N shrinks as the runs go on."""
        if not self._asked and self.evaluated:
            self._mutate()
        self._asked = True
        return self._rounded()

    def tell(self, fitness: Tensor) -> None:
        """Takes the scores of what `ask` returned: float64 [runs, N], lower is better.

        Raises:
            RuntimeError: Nothing was asked.
            ValueError: Another shape, or a NaN.
        """
        if not self._asked:
            raise RuntimeError("LShade: tell: expected a call of ask before, got none")
        fitness = _checked_fitness("LShade", fitness, len(self._generators), self._alive)
        self._asked = False
        if self.evaluated:
            self._remember(fitness)
        self.best, self.fitness = self.best.clone(), self.fitness.clone()
        native.evolution_take(
            self._native,
            n=self._alive,
            fitness=fitness.data_ptr(),
            best=self.best.data_ptr(),
            best_fitness=self.fitness.data_ptr(),
        )
        self.evaluated += self._alive
        self._shrink()

    def _rounded(self) -> Tensor:
        shape = (len(self._generators), self._alive, self._width)
        candidates = torch.empty(shape, dtype=torch.int64, device=CPU)
        native.evolution_round(self._native, n=self._alive, candidates=candidates.data_ptr())
        return candidates

    def _mutate(self) -> None:
        """Makes a trial of every member: current-to-pbest/1, binomial crossover."""
        chance = _uniform(self._generators, self._alive, native.mutation_chances + self._width)
        normal = torch.special.ndtri(chance.select(2, 1)).contiguous()
        greedy = max(2, round(GREEDINESS * self._alive))
        native.evolution_mutate(
            self._native,
            n=self._alive,
            greedy=greedy,
            chance=chance.data_ptr(),
            normal=normal.data_ptr(),
        )

    def _remember(self, fitness: Tensor) -> None:
        """Archives the members that were beaten and learns from the scales and rates that did."""
        keys = _uniform(self._generators, self._capacity + self._alive)
        native.evolution_remember(
            self._native,
            n=self._alive,
            capacity=self._capacity,
            fitness=fitness.data_ptr(),
            keys=keys.data_ptr(),
        )

    def _shrink(self) -> None:
        progress = min(1.0, self.evaluated / self._budget)
        left = max(SMALLEST, round(self._first + (SMALLEST - self._first) * progress))
        if left < self._alive:
            self._capacity = round(ARCHIVE * left)
            native.evolution_shrink(self._native, n=self._alive, left=left, capacity=self._capacity)
            self._alive = left


def differential_evolution(
    evaluate: Evaluate,
    low: Tensor,
    high: Tensor,
    *,
    population: int = 64,
    generations: int = 100,
    seeds: Sequence[int] = (0,),
    initial: Tensor | None = None,
    descent: bool = True,
) -> Evolution:
    """Minimises a function of integers with L-SHADE and a descent from the best candidate.

    Args:
        evaluate: Scores candidates, int64 [runs, candidates, D] -> float64 [runs, candidates];
            lower is better.
        low: int64 [D], the smallest value of every coordinate.
        high: int64 [D], the largest.
        population: Candidates of the first generation, at least 4.
        generations: The evolution scores `population * generations` candidates; as the population
            shrinks there are more generations than that.
        seeds: One for each run.
        initial: int64 [runs, candidates, D], candidates to start with.
        descent: Go on with `descend` from the best candidate.

    Returns:
        The best of every run, its fitness, and the history.

    Raises:
        TypeError: Bounds that are not int64 tensors.
        ValueError: Bounds of different shapes or crossed, a population below 4, generations below
            1, or what `evaluate` returned has another shape or holds NaN.
    """
    if generations < 1:
        raise ValueError(
            f"differential_evolution: generations: expected at least 1, got {generations}"
        )
    run = LShade(
        low,
        high,
        population=population,
        evaluations=population * generations,
        seeds=seeds,
        initial=initial,
    )
    history = []
    while not run.finished:
        run.tell(evaluate(run.ask()))
        history.append(run.fitness)
    best, fitness, evaluated = run.best, run.fitness, run.evaluated
    if descent:
        best, fitness, more = descend(evaluate, best, fitness, low, high, seeds=seeds)
        evaluated += more
        history.append(fitness)
    return Evolution(best, fitness, torch.stack(history, 1), evaluated)


def descend(
    evaluate: Evaluate,
    start: Tensor,
    fitness: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    seeds: Sequence[int],
    moves: int = MOVES,
    evaluations: int | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Goes downhill by random moves of one or two coordinates until none of many is better.

    A third of the moves change one coordinate; the others raise one and lower another, since under
    a budget that is used up, a single coordinate has nowhere to go. Steps are powers of two, small
    ones more often.

    Args:
        evaluate, low, high, seeds: As in `differential_evolution`.
        start: int64 [runs, D].
        fitness: float64 [runs], of `start`.
        moves: How many are tried at a time.
        evaluations: Candidates scored in each run after which it ends, whether it could go on or
            not; None for no such end.

    Returns:
        The candidates reached, their fitness, and the number of candidates scored in each run.
    """
    low, high = _checked_bounds("descend", low, high)
    runs, width = len(seeds), len(low)
    best = check_tensor("descend", "start", start, torch.int64, (runs, width), device=CPU)
    best = torch.minimum(torch.maximum(best, low), high)
    fitness = _checked_fitness("descend", fitness.unsqueeze(1), runs, 1).squeeze(1).clone()
    generators = _seeded(seeds)
    octaves = max(1, int((high - low).max()).bit_length())
    idle = torch.zeros(runs, dtype=torch.int64, device=CPU)
    evaluated, limit = 0, math.inf if evaluations is None else evaluations
    going = True
    while going and evaluated < limit:
        chance = _uniform(generators, moves, 5)
        candidates = torch.empty((runs, moves, width), dtype=torch.int64, device=CPU)
        native.descent_moves(
            start=best.data_ptr(), runs=runs, moves=moves, width=width, low=low.data_ptr(),
            high=high.data_ptr(), octaves=octaves, chance=chance.data_ptr(),
            candidates=candidates.data_ptr(),
        )  # fmt: skip
        scores = _checked_fitness("descend", evaluate(candidates), runs, moves)
        evaluated += moves
        going = native.descent_take(
            candidates=candidates.data_ptr(), fitness=scores.data_ptr(), runs=runs, moves=moves,
            width=width, patience=PATIENCE, best=best.data_ptr(), best_fitness=fitness.data_ptr(),
            idle=idle.data_ptr(),
        )  # fmt: skip
    return best, fitness, evaluated


def _seeded(seeds: Sequence[int]) -> Tensor:
    """A generator for each seed: int32 [runs, words]."""
    numbers = torch.tensor([seed & 0xFFFFFFFF for seed in seeds], dtype=torch.int64, device=CPU)
    shape = (len(seeds), native.generator_words)
    generators = torch.empty(shape, dtype=torch.int32, device=CPU)
    native.random_seed(seeds=numbers.data_ptr(), runs=len(seeds), generators=generators.data_ptr())
    return generators


def _uniform(generators: Tensor, *shape: int) -> Tensor:
    """float64 [runs, *shape] in [0, 1): from each generator the numbers of torch.rand."""
    runs, _ = generators.shape
    numbers = torch.empty((runs, *shape), dtype=torch.float64, device=CPU)
    native.random_uniform(
        generators=generators.data_ptr(),
        runs=runs,
        count=math.prod(shape),
        out=numbers.data_ptr(),
    )
    return numbers


def _checked_fitness(op: str, fitness: Tensor, runs: int, candidates: int) -> Tensor:
    """What an evaluator returned as float64 on the CPU, after it was found right."""
    fitness = fitness.detach().to(CPU, torch.float64).contiguous()
    if fitness.shape != (runs, candidates):
        raise ValueError(
            f"{op}: fitness: expected shape {[runs, candidates]}, got {list(fitness.shape)}"
        )
    if math.isnan(fitness.min()):  # which any NaN makes NaN
        raise ValueError(f"{op}: fitness: expected numbers, got NaN")
    return fitness


def _full(shape: tuple[int, ...], value: float) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64, device=CPU)


def _checked_bounds(op: str, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds made contiguous, after they were found right."""
    low = check_tensor(op, "low", low, torch.int64, (None,), device=CPU)
    high = check_tensor(op, "high", high, torch.int64, (len(low),), device=CPU)
    if len(low) == 0:
        raise ValueError(f"{op}: low: expected at least one coordinate, got none")
    crossed = (low > high).nonzero()
    if len(crossed):
        at = int(crossed[0])
        raise ValueError(f"{op}: high[{at}]: expected at least {low[at]}, got {high[at]}")
    return low, high
