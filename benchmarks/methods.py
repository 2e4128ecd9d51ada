"""The methods of the quality benchmark: each makes a plan of a network for every budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from rivals import CRITERIA, MIN_KEEP, Rival
from subject import Subject
from torch import Tensor

from mdcp_fast.descriptors import Descriptors, moments
from mdcp_fast.graph import ChannelGraph
from mdcp_fast.plan import PruningPlan
from mdcp_fast.search import search
from mdcp_fast.selection import select

Planner = Callable[[Subject, list[float], int], Iterable[PruningPlan]]
RANDOM, RIVAL, OURS, ABLATION = "random", "rival", "ours", "ablation"


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


def uniform_widths(graph: ChannelGraph, macs: float) -> list[int]:
    """The largest widths, all at one share of the dense ones, within a budget."""

    def widths(share: float) -> list[int]:
        return [max(int(share * a.channels), math.ceil(MIN_KEEP * a.channels)) for a in graph.axes]

    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        cost = int(graph.cost.evaluate(torch.tensor(widths(share)))[..., 0])
        low, high = (share, high) if cost <= macs * graph.macs else (low, share)
    return widths(low)


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


def searched(needs_data: bool, **options: object) -> Planner:
    """What `search` finds with these options."""

    def plans(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
        given = options | ({"calibration": subject.calibration} if needs_data else {})
        return search(subject.graph, macs=budgets, seed=seed, **given)  # type: ignore[call-overload]

    return plans


def random_in_cluster(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
    """The clusters and quotas of moments + crowding, but members drawn by lot."""
    for plan in search(subject.graph, macs=budgets, descriptor="moments"):
        generator = torch.Generator().manual_seed(seed)
        kept: list[list[int]] = []
        for axis in plan.axes:
            if axis.clusters is None:
                kept.append(list(axis.kept))
                continue
            quota = [axis.clusters[channel] for channel in axis.kept]
            order = torch.randperm(axis.channels, generator=generator).tolist()
            chosen: list[int] = []
            for channel in order:
                if axis.clusters[channel] in quota:
                    quota.remove(axis.clusters[channel])
                    chosen.append(channel)
            kept.append(chosen)
        yield PruningPlan.build(subject.graph, kept, budget=plan.budget)


def without_number(number: int) -> Planner:
    """Moments + crowding at the widths that all three numbers give, chosen by the two others."""

    def plans(subject: Subject, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
        graph = subject.graph
        described = moments(graph)
        for plan in search(graph, macs=budgets, descriptor="moments"):
            widths = torch.tensor([axis.width for axis in plan.axes])
            left = Descriptors(_masked(graph, described, number), *described[1:])
            chosen = select(left, torch.arange(len(widths)), widths)
            yield PruningPlan.build(graph, chosen.kept.split(widths.tolist()), budget=plan.budget)

    return plans


def _masked(graph: ChannelGraph, described: Descriptors, number: int) -> Tensor:
    """Points without one of mean, variance and cosine distance of every layer that writes."""
    points = described.points.clone()
    if any(3 * len(axis.producers) > points.shape[1] for axis in graph.axes):
        raise NotImplementedError("the numbers of an axis are mixed by principal components")
    points[:, number::3] = 0
    return points


METHODS: dict[str, Method] = {
    "random": Method(RANDOM, random_channels, (0, 1, 2), tuned=True),
    "best": Method(OURS, searched(True, preset="best"), tuned=True),
    "paper": Method(OURS, searched(False, preset="paper"), tuned=True),
    **{
        f"{criterion}, {'global' if everywhere else 'uniform'}": Method(
            RIVAL, rival(criterion, everywhere), tuned=True
        )
        for criterion in CRITERIA
        for everywhere in (True, False)
    },
    "moments + crowding": Method(OURS, searched(False, descriptor="moments")),
    "moments, random in cluster": Method(ABLATION, random_in_cluster, (0, 1, 2)),
    **{
        f"moments without {name}": Method(ABLATION, without_number(number))
        for number, name in enumerate(("mean", "variance", "cosine"))
    },
}
