"""Minimises a function of integers: L-SHADE, then descent by one and by two coordinates.

Many independent runs advance together: a run is one more tensor dimension, so that one call of the
evaluator scores the candidates of them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], Tensor]  # int64 [runs, candidates, D] -> float64 [runs, candidates]

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
        _check_bounds(low, high)
        if population < SMALLEST:
            raise ValueError(f"LShade: population: expected at least {SMALLEST}, got {population}")
        if not seeds:
            raise ValueError("LShade: seeds: expected at least one, got none")
        self.low, self.high = low, high
        # Half a step of margin gives the first and the last integer the share of the others.
        self._bottom, self._top = low.double() - 0.5, high.double() + 0.5
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._first, self._budget = population, evaluations
        self._members = self._bottom + self._uniform(population, len(low)) * (
            self._top - self._bottom
        )  # [runs, N, D]
        if initial is not None:
            given = initial[:, :population].double()
            self._members[:, : given.shape[1]] = given.clamp(low.double(), high.double())
        runs = len(seeds)
        self._scores = torch.full((runs, population), torch.inf, dtype=torch.float64)  # [runs, N]
        self._archive = torch.zeros(
            (runs, round(ARCHIVE * population), len(low)), dtype=torch.float64
        )
        self._archived = torch.zeros(runs, dtype=torch.int64)
        self._scale_memory = torch.full((runs, HISTORY), 0.5, dtype=torch.float64)
        self._rate_memory = torch.full((runs, HISTORY), 0.5, dtype=torch.float64)
        self._slot = torch.zeros(runs, dtype=torch.int64)
        self._trials = self._members
        self._asked = False
        self.evaluated = 0
        self.best = self._rounded(self._members[:, 0])
        self.fitness = torch.full((runs,), torch.inf, dtype=torch.float64)

    @property
    def finished(self) -> bool:
        return self.evaluated >= self._budget

    def ask(self) -> Tensor:
        """The candidates to score next: int64 [runs, N, D]; N shrinks as the runs go on."""
        if not self._asked and self.evaluated:
            self._mutate()
        self._asked = True
        return self._rounded(self._trials)

    def tell(self, fitness: Tensor) -> None:
        """Takes the scores of what `ask` returned: float64 [runs, N], lower is better.

        Raises:
            RuntimeError: Nothing was asked.
            ValueError: Another shape, or a NaN.
        """
        if not self._asked:
            raise RuntimeError("LShade: tell: expected a call of ask before, got none")
        fitness = fitness.detach().to("cpu", torch.float64)
        if fitness.shape != self._scores.shape:
            raise ValueError(
                f"LShade: fitness: expected shape {list(self._scores.shape)}, "
                f"got {list(fitness.shape)}"
            )
        if bool(fitness.isnan().any()):
            raise ValueError("LShade: fitness: expected numbers, got NaN")
        self._asked = False
        candidates = self._rounded(self._trials)
        if self.evaluated:
            self._remember(fitness)
        taken = fitness <= self._scores
        self._members = torch.where(taken.unsqueeze(2), self._trials, self._members)
        self._scores = torch.where(taken, fitness, self._scores)
        self.evaluated += fitness.shape[1]
        lowest, where = fitness.min(1)
        better = lowest < self.fitness
        chosen = candidates[torch.arange(len(where)), where]
        self.best = torch.where(better.unsqueeze(1), chosen, self.best)
        self.fitness = torch.where(better, lowest, self.fitness)
        self._shrink()

    def _uniform(self, *shape: int) -> Tensor:
        """Random numbers of every run from its own generator: float64 [runs, *shape] in [0, 1)."""
        return torch.stack(
            [torch.rand(shape, generator=g, dtype=torch.float64) for g in self._generators]
        )

    def _rounded(self, genotypes: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(genotypes.round().long(), self.low), self.high)

    def _mutate(self) -> None:
        """Makes a trial of every member: current-to-pbest/1, binomial crossover."""
        members = self._members
        runs, n, width = members.shape
        chance = self._uniform(n, width + 7)
        memory = (chance[..., 0] * HISTORY).long()
        rate = self._rate_memory.gather(1, memory)  # [runs, N]
        noise = torch.special.ndtri(chance[..., 1].clamp(1e-12, 1 - 1e-12))
        # A negative mean marks a memory that ended: its crossover rate stays 0.
        self._rates = torch.where(rate < 0, 0.0, (rate + 0.1 * noise).clamp(0, 1))
        self._scales = _positive_cauchy(self._scale_memory.gather(1, memory), chance[..., 2])

        order = self._scores.argsort(dim=1, stable=True)
        best = max(2, round(GREEDINESS * n))
        pbest = order.gather(1, (chance[..., 3] * best).long())
        own = torch.arange(n).expand(runs, n)
        first = (chance[..., 4] * (n - 1)).long()
        first = first + (first >= own)
        # The second difference may come from the archive too, but is neither of the two others.
        second = (chance[..., 5] * (n + self._archived.unsqueeze(1) - 2)).long()
        second = second + (second >= torch.minimum(own, first))
        second = second + (second >= torch.maximum(own, first))
        pool = torch.cat([members, self._archive], 1)

        scale = self._scales.unsqueeze(2)
        mutant = members + scale * (_rows(members, pbest) - members)
        mutant = mutant + scale * (_rows(members, first) - _rows(pool, second))
        mutant = torch.where(mutant < self._bottom, (self._bottom + members) / 2, mutant)
        mutant = torch.where(mutant > self._top, (self._top + members) / 2, mutant)
        crossed = chance[..., 7:] < self._rates.unsqueeze(2)
        crossed.scatter_(2, (chance[..., 6] * width).long().unsqueeze(2), True)
        self._trials = torch.where(crossed, mutant, members)

    def _remember(self, fitness: Tensor) -> None:
        """Archives the members that were beaten and learns from the scales and rates that did."""
        won = fitness < self._scores  # [runs, N]
        self._archive_losers(won)
        gain = torch.where(won, self._scores - fitness, 0.0).nan_to_num(posinf=1.0)
        gain = torch.where(won, gain.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        scale, rate = _lehmer(gain, self._scales), _lehmer(gain, self._rates)
        # Once every successful crossover rate was 0, the memory stays at "ended".
        now = self._rate_memory.gather(1, self._slot.unsqueeze(1)).squeeze(1)
        ended = (now < 0) | (torch.where(won, self._rates, 0.0).amax(1) <= 0)
        rate = torch.where(ended, -1.0, rate)
        any_won = won.any(1)
        here = torch.nn.functional.one_hot(self._slot, HISTORY).bool() & any_won.unsqueeze(1)
        self._scale_memory = torch.where(here, scale.unsqueeze(1), self._scale_memory)
        self._rate_memory = torch.where(here, rate.unsqueeze(1), self._rate_memory)
        self._slot = (self._slot + any_won) % HISTORY

    def _archive_losers(self, won: Tensor) -> None:
        """Adds the beaten members; where that is too many, random ones leave."""
        runs, capacity, _ = self._archive.shape
        pool = torch.cat([self._archive, self._members], 1)
        old = torch.arange(capacity) < self._archived.unsqueeze(1)
        present = torch.cat([old, won], 1)
        keys = torch.where(present, self._uniform(pool.shape[1]), 2.0)
        chosen = keys.argsort(dim=1, stable=True)[:, :capacity]
        self._archive = _rows(pool, chosen)
        self._archived = present.sum(1).clamp_max(capacity)

    def _shrink(self) -> None:
        progress = min(1.0, self.evaluated / self._budget)
        n = max(SMALLEST, round(self._first + (SMALLEST - self._first) * progress))
        if n < self._members.shape[1]:
            kept = self._scores.argsort(dim=1, stable=True)[:, :n]
            self._members, self._scores = _rows(self._members, kept), self._scores.gather(1, kept)
            self._archive = self._archive[:, : round(ARCHIVE * n)]
            self._archived = self._archived.clamp_max(self._archive.shape[1])
        self._trials = self._members


class PlainDE(LShade):
    """Differential evolution as first published: rand/1/bin with constant scale and rate.

    To measure what L-SHADE adds to it.

    Source: R. Storn and K. Price, "Differential evolution", Journal of Global Optimization 11,
    1997.
    """

    SCALE, RATE = 0.5, 0.9

    def _mutate(self) -> None:
        members = self._members
        _, n, width = members.shape
        chance = self._uniform(n, width + 1)
        # Three others, all different: the order of random keys, the member itself last.
        keys = self._uniform(n, n) + 2 * torch.eye(n, dtype=torch.float64)
        first, second, third = keys.argsort(dim=2)[..., :3].unbind(2)
        mutant = _rows(members, first) + self.SCALE * (
            _rows(members, second) - _rows(members, third)
        )
        mutant = torch.minimum(torch.maximum(mutant, self._bottom), self._top)
        crossed = chance[..., 1:] < self.RATE
        crossed.scatter_(2, (chance[..., 0] * width).long().unsqueeze(2), True)
        self._trials = torch.where(crossed, mutant, members)

    def _remember(self, fitness: Tensor) -> None:
        pass

    def _shrink(self) -> None:
        self._trials = self._members


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
    algorithm: type[LShade] = LShade,
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
        algorithm: `LShade` or `PlainDE`.

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
    run = algorithm(
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
    runs, width = start.shape
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    octaves = max(1, int((high - low).max()).bit_length())
    best, evaluated, idle = start.clone(), 0, torch.zeros(runs, dtype=torch.int64)
    rows = torch.arange(runs)
    limit = math.inf if evaluations is None else evaluations
    while bool((idle < PATIENCE).any()) and evaluated < limit:
        chance = torch.stack(
            [torch.rand((moves, 5), generator=g, dtype=torch.float64) for g in generators]
        )
        steps = 2 ** (chance[..., :2].square() * octaves).long()  # [runs, moves, 2]
        up = (chance[..., 2] * width).long().unsqueeze(2)
        down = (chance[..., 3] * width).long().unsqueeze(2)
        kind = chance[..., 4] * 6  # below 1: only up; below 2: only down; else both
        change = torch.zeros((runs, moves, width), dtype=torch.int64)
        change.scatter_add_(2, up, (steps[..., :1] * (kind.unsqueeze(2) // 1 != 1)))
        change.scatter_add_(2, down, -(steps[..., 1:] * (kind.unsqueeze(2) >= 1)))
        candidates = torch.minimum(torch.maximum(best.unsqueeze(1) + change, low), high)
        lowest, where = evaluate(candidates).min(1)
        evaluated += moves
        # A run that has ended stays as it is while others go on, so that none depends on another.
        better = (lowest < fitness) & (idle < PATIENCE)
        best = torch.where(better.unsqueeze(1), candidates[rows, where], best)
        fitness = torch.where(better, lowest, fitness)
        idle = torch.where(better, 0, idle + 1)
    return best, fitness, evaluated


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table [runs, rows, D], index [runs, n] -> [runs, n, D]."""
    return table.gather(1, index.unsqueeze(2).expand(-1, -1, table.shape[2]))


def _positive_cauchy(location: Tensor, chance: Tensor) -> Tensor:
    """Cauchy of scale 0.1, at most 1, drawn from its positive part."""
    below = 0.5 - (location / 0.1).atan() / torch.pi
    quantile = below + (1 - below) * chance.clamp(1e-12, 1 - 1e-12)
    return (location + 0.1 * (torch.pi * (quantile - 0.5)).tan()).clamp(1e-12, 1)


def _lehmer(weights: Tensor, values: Tensor) -> Tensor:
    """Weighted Lehmer mean along the last dimension; 0 where nothing has weight."""
    share = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    top, bottom = (share * values.square()).sum(-1), (share * values).sum(-1)
    return torch.where(bottom > 0, top / bottom, 0.0)


def _check_bounds(low: Tensor, high: Tensor) -> None:
    for name, bound in (("low", low), ("high", high)):
        if not isinstance(bound, Tensor) or bound.dtype != torch.int64:
            kind = bound.dtype if isinstance(bound, Tensor) else type(bound).__name__
            raise TypeError(f"LShade: {name}: expected an int64 tensor, got {kind}")
    if low.dim() != 1 or low.shape != high.shape or len(low) == 0:
        raise ValueError(
            f"LShade: low and high: expected the same shape [D], D >= 1, got {list(low.shape)} "
            f"and {list(high.shape)}"
        )
    crossed = (low > high).nonzero()
    if len(crossed):
        at = int(crossed[0])
        raise ValueError(f"LShade: high[{at}]: expected at least {low[at]}, got {high[at]}")
