"""Widths by trial: a few networks are pruned and fitted for real, near widths that are good.

The table of losses adds up what every axis loses by itself. What the layers behind it make good, or
make worse, only the small network shows, and the less of it stays, the more that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mdcp_fast.modules.calls import Inputs, call, eval_mode, map_tensors, samples_in
from mdcp_fast.ops.evaluate_population import CostModel
from mdcp_fast.ops.evolution import Evolution
from mdcp_fast.planning.budgets import scaled_widths
from mdcp_fast.planning.judge import AnswerJudge, KeptChannels, answers
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.shrink import shrink_and_fit
from mdcp_fast.tracing.graph import ChannelGraph

HELD_OUT = 4  # one of so many samples is scored and not fitted
BETWEEN = 5  # trials of the start: from the given widths to uniform ones, both included
STEP = 0.35  # standard deviation of a logarithm of a width, in the first generation
LONGER, SHORTER = 1.3, 0.8  # what a generation with or without a better child makes of it
CHANGED = 1 / 3  # share of the axes that a child changes before all are scaled to the budget


class RefitJudge(AnswerJudge):
    """Scores candidates as `prune` leaves them: channels removed, layers fitted anew.

    Layers are fitted on three quarters of every batch and the network is scored on the rest, since
    the wider a layer is, the better it fits the samples at hand, and no others. Of batches with
    less than four samples all are used for both. The base class's `samples` are the scored ones.

    Args: see `AnswerJudge`.

    Raises:
        ValueError: As `AnswerJudge`; when called, a BatchNorm gets a single value per channel.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        kept: KeptChannels,
        limits: Tensor,
        calibration: CalibrationData,
    ) -> None:
        batches, labels = calibration.batches, calibration.labels
        sizes = [samples_in(batch) for batch in batches]
        fitted = [
            _samples(batch, size, 0, size - size // HELD_OUT)
            for batch, size in zip(batches, sizes, strict=True)
        ]
        self._fitted = CalibrationData(graph, fitted)  # measured once for all candidates
        first = [size - (size // HELD_OUT or size) for size in sizes]
        scored = [
            _samples(batch, size, at, size)
            for batch, size, at in zip(batches, sizes, first, strict=True)
        ]
        if labels is not None:
            labels = [one[at:] for one, at in zip(labels, first, strict=True)]
        super().__init__(graph, kept, limits, CalibrationData(graph, scored, labels))

    @torch.no_grad()
    def _run(self, widths: Tensor) -> Tensor:
        graph = self._graph
        total = torch.zeros(len(widths), dtype=torch.float64)
        for candidate, kept in enumerate(zip(*self._kept(widths), strict=True)):
            positions = graph.positions([mask.nonzero().flatten().tolist() for mask in kept])
            small = shrink_and_fit(graph, positions, self._fitted).network
            with eval_mode(small):
                for index, batch in enumerate(self._batches):
                    total[candidate] += self._loss(index, answers(call(small, batch))).cpu()
        return total


def _samples(batch: Inputs, size: int, start: int, end: int) -> Inputs:
    """Some samples of a batch: arguments without one entry for each sample stay as they are."""

    def cut(x: Tensor) -> Tensor:
        return x[start:end] if x.dim() and len(x) == size else x

    return map_tensors(batch, cut)


def evolve_widths(
    evaluate: Callable[[Tensor], Tensor],
    given: Tensor,
    uniform: Tensor,
    cost: CostModel,
    limits: Tensor,
    choices: Sequence[Tensor],
    size: tuple[int, int],
    seed: int,
) -> Evolution:
    """Finds better widths than the given ones in few trials: a (1 + lambda) evolution strategy.

    It starts with widths between the given and uniform ones. Then every generation multiplies some
    of the best candidate's widths by random factors and scales all of them to use up the budget;
    how far it goes grows while that finds something better, and shrinks while it does not.

    Source: I. Rechenberg, "Evolutionsstrategie", 1973, for the strategy and its step size.

    Args:
        evaluate: Scores widths, int64 [runs, candidates, axes] -> float64 [runs, candidates]; lower
            is better.
        given: int64 [runs, axes], within the limits.
        uniform: int64 [runs, axes], within the limits.
        cost: Costs in the axes' widths.
        limits: int64 [runs, costs], the most of each cost.
        choices: For each axis the widths that may be chosen, int64, increasing.
        size: Candidates of a generation, and generations, of which the start is the first.
        seed: Of the random numbers. A run gives the same answer alone and beside others.

    Returns:
        The best widths (not indices) of every run and their fitness: no worse than that of the
        given and of the uniform widths.
    """
    population, generations = size
    generators = [torch.Generator().manual_seed(seed) for _ in limits]
    part = torch.linspace(0, 1, max(population, BETWEEN), dtype=torch.float64).view(1, -1, 1)
    between = given.double().unsqueeze(1) ** (1 - part) * uniform.double().unsqueeze(1) ** part
    start = scaled_widths(between, cost, limits, choices)
    start[:, 0], start[:, -1] = given, uniform
    fitness, where = evaluate(start).min(1)
    runs = torch.arange(len(limits))
    best, step = start[runs, where], torch.full((len(limits), 1, 1), STEP, dtype=torch.float64)
    history, evaluations = [fitness], start.shape[1]
    for _ in range(generations - 1):
        shape = (population, len(choices))
        noise = torch.stack([torch.randn(shape, generator=g).double() for g in generators])
        picked = torch.stack([torch.rand(shape, generator=g) < CHANGED for g in generators])
        children = best.unsqueeze(1) * (step * noise * picked).exp()
        children = scaled_widths(children, cost, limits, choices)
        lowest, where = evaluate(children).min(1)
        better = lowest < fitness
        best = torch.where(better.unsqueeze(1), children[runs, where], best)
        fitness = torch.where(better, lowest, fitness)
        step = step * torch.where(better, LONGER, SHORTER).view(-1, 1, 1)
        history.append(fitness)
        evaluations += population
    return Evolution(best, fitness, torch.stack(history, 1), evaluations)
