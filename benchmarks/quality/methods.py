"""The methods of the quality benchmark: each makes a plan of a network for every budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from ablations import RandomInCluster, plain_evolution
from rivals import CRITERIA, Rival
from subject import Planner, Subject, uniform_widths

from mdcp_fast.planning.descriptors import moments
from mdcp_fast.planning.method import Method as Search
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan

RANDOM, RIVAL, OURS, ABLATION = "random", "rival", "ours", "ablation"


class DoesNotApply(Exception):
    """A method that a network does not allow."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        family: `RANDOM`, `RIVAL`, `OURS` or `ABLATION`.
        plans: Makes a plan for each budget, from a subject and a seed.
        seeds: Seeds of the choice of channels that are measured.
        tuned: Whether it is among those that are fine-tuned.
    """

    family: str
    plans: Planner
    seeds: tuple[int, ...] = (0,)
    tuned: bool = False


def random_channels(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
    """Uniform widths, channels drawn by lot."""
    for macs in budgets:
        generator = torch.Generator().manual_seed(seed)
        kept = [
            torch.randperm(axis.channels, generator=generator)[:width]
            for axis, width in zip(
                subject.graph.axes, uniform_widths(subject.graph, macs), strict=True
            )
        ]
        yield PruningPlan.build(subject.graph, kept, budget={"macs": macs})


def rival(criterion: str, everywhere: bool) -> Planner:
    def plans(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
        for macs in budgets:
            yield Rival(criterion, everywhere).plan(subject.graph, macs, subject.labelled)

    return plans


def searched(method: Search, *, calibrated: bool) -> Planner:
    """What `search` finds by a method, with the calibration images or without."""

    def plans(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
        batches = subject.calibration if calibrated else None
        options = {"method": method, "calibration": batches, "round_to": 1}
        return search(subject.graph, macs=budgets, seed=seed, **options)

    return plans


def random_in_cluster(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
    """The paper's method, but any channels of a cluster stay."""
    method = replace(Search.paper(), selection=RandomInCluster(seed))
    return search(subject.graph, macs=budgets, method=method, round_to=1, seed=seed)


def without_number(number: int) -> Planner:
    """The paper's method on two of its three numbers.

    Args:
        number: The one that is left out: 0 the mean, 1 the variance, 2 the cosine distance.
    """

    def plans(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
        graph, described = subject.graph, moments(subject.graph)
        if any(3 * len(axis.producers) > described.points.shape[1] for axis in graph.axes):
            raise DoesNotApply("the numbers of an axis are mixed by principal components")
        points = described.points.clone()
        points[:, number::3] = 0  # of every layer that writes the axis
        method = replace(Search.paper(), descriptor=described._replace(points=points))
        return search(graph, macs=budgets, method=method, round_to=1, seed=seed)

    return plans


def grid() -> dict[str, Method]:
    """Each descriptor with each selection, at widths searched on what calibration data say."""
    pairs = [
        (descriptor, selection)
        for descriptor in ("moments", "weights", "responses")
        for selection in ("crowding", "medoid", "greedy")
    ]
    pairs.remove(("moments", "greedy"))  # greedy takes products, which three numbers do not give
    return {
        f"{descriptor} + {selection}": Method(
            OURS, searched(Search(descriptor, selection), calibrated=True)
        )
        for descriptor, selection in pairs
    }


SEEDS = (0, 1, 2)
METHODS: dict[str, Method] = {
    "random": Method(RANDOM, random_channels, SEEDS, tuned=True),
    **{
        f"{criterion}, {'global' if everywhere else 'uniform'}": Method(
            RIVAL, rival(criterion, everywhere), tuned=True
        )
        for criterion in CRITERIA
        for everywhere in (True, False)
    },
    "greedy, uniform widths": Method(
        OURS, searched(Search(widths="uniform"), calibrated=True), tuned=True
    ),
    "paper": Method(OURS, searched(Search.paper(), calibrated=False), tuned=True),
    "best": Method(OURS, searched(Search.best(), calibrated=True), tuned=True),
    **grid(),
    "best, widths tried": Method(ABLATION, searched(Search(evaluator="fitted"), calibrated=True)),
    "best, plain DE": Method(
        ABLATION, searched(Search(evolution=plain_evolution), calibrated=True)
    ),
    "paper, widths searched": Method(
        ABLATION,
        searched(replace(Search.paper(), widths="searched", clusters="width"), calibrated=False),
    ),
    "paper, plain DE": Method(
        ABLATION, searched(replace(Search.paper(), evolution=plain_evolution), calibrated=False)
    ),
    "paper, random in cluster": Method(ABLATION, random_in_cluster, SEEDS),
    **{
        f"paper without {name}": Method(ABLATION, without_number(number))
        for number, name in enumerate(("mean", "variance", "cosine"))
    },
}
