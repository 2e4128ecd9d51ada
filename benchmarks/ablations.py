"""The method of the paper with one part taken out or replaced."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from subject import MIN_KEEP, Planner, Subject, uniform_widths
from torch import Tensor

from mdcp_fast.descriptors import Descriptors, moments
from mdcp_fast.graph import ChannelGraph
from mdcp_fast.ops.population import evaluate_population
from mdcp_fast.plan import PruningPlan
from mdcp_fast.search import search
from mdcp_fast.selection import loss_table, select

# As many evaluations as `search` makes by default.
POPULATION, GENERATIONS = 64, 100


def random_in_cluster(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
    """The clusters and quotas of moments + crowding, but members drawn by lot."""
    for plan in search(subject.graph, macs=budgets, descriptor="moments"):
        generator = torch.Generator().manual_seed(seed)
        kept: list[list[int]] = []
        for axis in plan.axes:
            if axis.clusters is None:
                raise NotImplementedError(f"{axis.name} was not clustered")
            quota = [axis.clusters[channel] for channel in axis.kept]
            chosen: list[int] = []
            for channel in torch.randperm(axis.channels, generator=generator).tolist():
                if axis.clusters[channel] in quota:
                    quota.remove(axis.clusters[channel])
                    chosen.append(channel)
            kept.append(chosen)
        yield PruningPlan.build(subject.graph, kept, budget=plan.budget)


def without_number(number: int) -> Planner:
    """Moments + crowding at the widths that all three numbers give, chosen by the two others.

    Args:
        number: 0 for the mean, 1 for the variance, 2 for the cosine distance.
    """

    def plans(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
        described = moments(subject.graph)
        points = _masked(subject.graph, described, number)
        for plan in search(subject.graph, macs=budgets, descriptor="moments"):
            widths = [axis.width for axis in plan.axes]
            yield _selected(subject.graph, described._replace(points=points), widths)

    return plans


def uniform(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
    """Moments + crowding at uniform widths: nothing is searched."""
    described = moments(subject.graph)
    for macs in budgets:
        yield _selected(subject.graph, described, uniform_widths(subject.graph, macs))


def plain_evolution(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
    """Moments + crowding at the widths that SciPy's DE/rand/1/bin finds on the same loss table.

    From random widths, without success histories, relaxation or descent.
    """
    from scipy.optimize import differential_evolution

    graph = subject.graph
    described = moments(graph)
    lows = [max(round(MIN_KEEP * axis.channels), 1) for axis in graph.axes]
    choices = [
        torch.arange(low, axis.channels + 1) for low, axis in zip(lows, graph.axes, strict=True)
    ]
    table = loss_table(described, choices)
    for macs in budgets:
        limit = torch.tensor([int(macs * graph.macs), graph.params])

        def fitness(candidates: object, limit: Tensor = limit) -> object:
            widths = torch.as_tensor(candidates).T.round().long()  # [candidates, axes]
            return evaluate_population(widths.contiguous(), table, graph.cost, limit).numpy()

        found = differential_evolution(
            fitness,
            [(low, axis.channels) for low, axis in zip(lows, graph.axes, strict=True)],
            strategy="rand1bin",
            popsize=-(-POPULATION // len(graph.axes)),
            maxiter=GENERATIONS,
            tol=0,
            polish=False,
            integrality=True,
            vectorized=True,
            updating="deferred",
            rng=seed,
        )
        yield _selected(graph, described, [round(width) for width in found.x])


def _selected(graph: ChannelGraph, described: Descriptors, widths: list[int]) -> PruningPlan:
    chosen = select(described, torch.arange(len(widths)), torch.tensor(widths))
    return PruningPlan.build(graph, chosen.kept.split(widths))


def _masked(graph: ChannelGraph, described: Descriptors, number: int) -> Tensor:
    """Points without one of the three numbers of every layer that writes an axis."""
    points = described.points.clone()
    if any(3 * len(axis.producers) > points.shape[1] for axis in graph.axes):
        raise NotImplementedError("the numbers of an axis are mixed by principal components")
    points[:, number::3] = 0
    return points
