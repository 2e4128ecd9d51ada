"""The methods and the treatments of the benchmark of real networks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from methods import random_channels, rival, searched
from real_subject import Given, RealSubject
from rivals import CRITERIA, NEED_LABELS
from subject import Planner
from torch import Tensor, nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.planning.evaluators import TableEvaluator
from mdcp_fast.planning.method import Method as Search
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.training.finetune import finetune

DROPPED, REESTIMATED, FITTED, MIMICKED = "dropped", "re-estimated", "fitted", "mimicked"
EXPLAINED = {
    DROPPED: "the channels are removed, as the rival's own tool leaves the network",
    REESTIMATED: "then BatchNorm takes the statistics of the calibration images (torch's running "
    "means and variances), as users of that tool would do",
    FITTED: "our treatment: what `prune` does with the calibration images by default",
    MIMICKED: "fitted, then `finetune` without labels on the same images, 400 steps",
}
OURS, RIVAL = "ours", "rival"


@dataclass(frozen=True)
class RealMethod:
    """One row of the tables.

    Attributes:
        family: `OURS` or `RIVAL`.
        plans: Makes a plan for each budget.
        treatments: What its networks go through, each measured.
        first: Whether it comes before the rest.
    """

    family: str
    plans: Planner
    treatments: tuple[str, ...]
    first: bool = False


def default(given: Given, budgets: list[float], seed: int) -> Iterable[PruningPlan]:
    """What `search` finds if any widths are allowed, as rivals' options have it."""
    calibration = given.calibration
    return search(given.graph, macs=budgets, calibration=calibration, round_to=1, seed=seed)


UNTOUCHED = (DROPPED, REESTIMATED, FITTED)
BEST, UNIFORM, ENERGY = "ours", "ours, uniform widths", "ours, without probes"
# The rivals that are measured before the others.
FIRST = ("l2, uniform", "l1, uniform", "l2, global", "bn-scale, global")
METHODS: dict[str, RealMethod] = {
    BEST: RealMethod(OURS, default, (FITTED, MIMICKED), True),
    UNIFORM: RealMethod(OURS, searched(Search(widths="uniform"), calibrated=True), (FITTED,), True),
    ENERGY: RealMethod(
        OURS, searched(Search(evaluator=TableEvaluator(probes=0)), calibrated=True), (FITTED,)
    ),
    **{
        f"{criterion}, {where}": RealMethod(
            RIVAL,
            rival(criterion, where == "global"),
            UNTOUCHED,
            f"{criterion}, {where}" in FIRST,
        )
        for criterion in CRITERIA
        if criterion not in NEED_LABELS
        for where in ("global", "uniform")
    },
    "random, uniform": RealMethod(RIVAL, random_channels, UNTOUCHED),
}


def treated(subject: RealSubject, plan: PruningPlan, treatment: str, given: Given) -> nn.Module:
    """The pruned network after one of the treatments but `MIMICKED`, in evaluation mode.

    Raises:
        RuntimeError: It has other MACs than the plan says.
    """
    fitted = treatment == FITTED
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layer that could not be compensated
        calibration = given.calibration if fitted else None
        small = prune(subject.graph, plan, calibration=calibration, check=treatment == DROPPED)
    counted = count_macs(small, subject.graph.example_inputs)
    if counted != plan.macs:
        raise RuntimeError(f"expected {plan.macs} MACs as planned, got {counted}")
    if treatment == REESTIMATED:
        reestimate(small, given.calibration)
    return small.eval()


@torch.no_grad()
def reestimate(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Gives every BatchNorm the mean of the batches' statistics, by torch's own counting."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def mimicked(subject: RealSubject, small: nn.Module, count: int) -> nn.Module:
    """A fitted network that has learnt, without labels, to answer as the dense one does.

    Args:
        subject: Gives the dense network and the images.
        small: After `FITTED`; stays as it is.
        count: Of calibration images; a quarter of their photographs chooses the best state.
    """
    learnt = copy.deepcopy(small)
    learn, judge = subject.scenes(count)
    parts = (list(images.split(subject.network.batch)) for images in (learn, judge))
    finetune(learnt, *parts, teacher=subject.graph.model, progress=False)
    return learnt.eval()
