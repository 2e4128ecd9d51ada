"""What torch-pruning's criteria keep, as plans of mdcp_fast, so that all get the same treatment.

Each criterion ranks the channels of a copy of the network; torch-pruning removes them, all layers
that hang together at once, residual streams included. Which ones stayed is read off the copy: no
criterion looks at the running means of BatchNorm, nor (by default) at biases, so these are set to
0, 1, 2, ... beforehand and tell afterwards. The share of channels to remove is found by bisection
on the MACs.

Criteria and their options are the library's defaults, but for one: a tenth of the channels of every
group always stays, as in `search`, since a global ranking otherwise empties layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from subject import MIN_KEEP
from torch import Tensor, nn

from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.axes import Axis, ParameterSlice
from mdcp_fast.tracing.graph import ChannelGraph

BISECTIONS = 14  # the share is then known to 1 / 16,384

CRITERIA: dict[str, Callable[[Any], Any]] = {
    "l1": lambda importance: importance.MagnitudeImportance(p=1),
    "l2": lambda importance: importance.MagnitudeImportance(p=2),
    "fpgm": lambda importance: importance.FPGMImportance(),
    "bn-scale": lambda importance: importance.BNScaleImportance(),
    "lamp": lambda importance: importance.LAMPImportance(),
    "taylor": lambda importance: importance.TaylorImportance(),
}
NEED_LABELS = ("taylor",)


class CannotPlan(RuntimeError):
    """A criterion that does not get down to a budget, or whose choice is none of our axes."""


class _Floored:
    """A criterion under which the best tenth of every group is safe."""

    def __init__(self, importance: Any) -> None:
        self.importance = importance

    def __call__(self, group: Any) -> Tensor | None:
        scores = self.importance(group)
        if scores is None:
            return None
        safe = scores.topk(math.ceil(MIN_KEEP * len(scores))).indices
        return scores.index_fill(0, safe, math.inf)


class Rival:
    """One criterion of torch-pruning.

    Args:
        criterion: One of `CRITERIA`.
        everywhere: Rank the channels of all groups together ("global"), or remove the same share
            of each ("uniform").
        round_to: What widths are multiples of.
    """

    def __init__(self, criterion: str, everywhere: bool, *, round_to: int | None = None) -> None:
        self.criterion = criterion
        self.everywhere = everywhere
        self.round_to = round_to

    def plan(
        self, graph: ChannelGraph, macs: float, labelled: list[tuple[Tensor, Tensor]]
    ) -> PruningPlan:
        """The plan that keeps most channels within the budget.

        Args:
            graph: The traced network.
            macs: The share of its MACs that may remain.
            labelled: Batches of (images, classes), for criteria that need gradients.

        Raises:
            CannotPlan: The budget is out of reach, or torch-pruning removed other channels than the
                graph's axes hold.
        """
        model = self.prepared(graph, labelled)
        low, high = 0.0, 1.0
        best = None
        for _ in range(BISECTIONS):
            ratio = (low + high) / 2
            kept = self.kept(graph, model, ratio)
            plan = PruningPlan.build(graph, kept, budget={"macs": macs})
            if plan.macs <= macs * plan.dense_macs:
                best, high = plan, ratio
            else:
                low = ratio
        if best is None:
            raise CannotPlan(f"{self.criterion} cannot get down to {macs:.0%} of the MACs")
        return best

    def prepared(self, graph: ChannelGraph, labelled: list[tuple[Tensor, Tensor]]) -> nn.Module:
        """A copy of the dense network, with gradients where the criterion reads them."""
        model = copy.deepcopy(graph.model).eval()
        if self.criterion in NEED_LABELS:
            _gradients(model, labelled)
        return model

    def kept(self, graph: ChannelGraph, model: nn.Module, ratio: float) -> list[Tensor]:
        """For each axis the channels that stay if a share `ratio` of all channels goes."""
        small = self.pruned(graph, model, ratio)
        return [surviving(axis, small) for axis in graph.axes]

    def pruned(self, graph: ChannelGraph, model: nn.Module, ratio: float) -> nn.Module:
        """A pruned copy of `model` whose running means tell the channels that stayed."""
        import torch_pruning

        small = copy.deepcopy(model)
        for parameter, twin in zip(model.parameters(), small.parameters(), strict=True):
            twin.grad = None if parameter.grad is None else parameter.grad.clone()
        mark(small, graph)
        whole = [small.get_submodule(fixed.name) for fixed in graph.fixed]  # classes, in the main
        pruner = torch_pruning.pruner.BasePruner(
            small,
            graph.example_inputs,
            importance=_Floored(CRITERIA[self.criterion](torch_pruning.pruner.importance)),
            global_pruning=self.everywhere,
            pruning_ratio=ratio,
            ignored_layers=whole,
            round_to=self.round_to,
        )
        pruner.step()
        return small


def mark(model: nn.Module, graph: ChannelGraph) -> None:
    """Sets what tells the channels of every axis (see `marks_of`) to 0, 1, 2, ..."""
    state = model.state_dict()
    for axis in graph.axes:
        for place in marks_of(axis):
            tensor = state[place.parameter]
            tensor.copy_(torch.arange(len(tensor)))


def marks_of(axis: Axis) -> list[ParameterSlice]:
    """Where the channels of an axis are counted: running means, or biases where there are none."""
    for kind in ("running_mean", "bias"):
        found = [place for place in axis.places if place.parameter.endswith(kind)]
        if found:
            return found
    return []


def surviving(axis: Axis, small: nn.Module) -> Tensor:
    """Channels of an axis that stayed, by its marks.

    Raises:
        CannotPlan: There is none, or they disagree.
    """
    found: Tensor | None = None
    state = small.state_dict()
    for place in marks_of(axis):
        marks = state[place.parameter].long()
        there = torch.isin(place.positions, marks).all(1).nonzero().flatten()
        if found is not None and not torch.equal(found, there):
            raise CannotPlan(f"{axis.name}: layers that hang together keep different channels")
        found = there
    if found is None or not len(found):
        raise CannotPlan(f"{axis.name}: expected a BatchNorm or a bias that tells what stayed")
    return found


def _gradients(model: nn.Module, labelled: list[tuple[Tensor, Tensor]]) -> None:
    """Leaves the gradient of the mean cross entropy in the parameters."""
    model.zero_grad()
    for images, classes in labelled:
        F.cross_entropy(model(images), classes).div(len(labelled)).backward()
