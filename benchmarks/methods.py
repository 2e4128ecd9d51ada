"""The methods of the quality benchmark: each makes a plan of a network for every budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from ablations import plain_evolution, random_in_cluster, uniform, without_number
from rivals import CRITERIA, Rival
from subject import Planner, Subject, uniform_widths

from mdcp_fast.plan import PruningPlan
from mdcp_fast.search import search

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
    "moments, uniform widths": Method(ABLATION, uniform),
    "moments, plain DE": Method(ABLATION, plain_evolution),
    "moments, random in cluster": Method(ABLATION, random_in_cluster, (0, 1, 2)),
    **{
        f"moments without {name}": Method(ABLATION, without_number(number))
        for number, name in enumerate(("mean", "variance", "cosine"))
    },
}
