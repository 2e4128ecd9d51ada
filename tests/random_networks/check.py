"""One network from trace to load: `examine` says what became of it."""

from __future__ import annotations

import copy
import math
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pictures import picture, same
from plans import random_channels
from torch import nn

from mdcp_fast.modules.calls import call, count_macs, map_tensors, tensors_in
from mdcp_fast.modules.removal import rebuilt, tensor_of
from mdcp_fast.modules.verification import (
    OWN_TOLERANCE,
    NothingDropped,
    in_float64,
    relative_difference,
)
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.serialization import load, save
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace
from random_networks.grammar import Network, Spec, example

PRUNED, WHOLE, REFUSED = "pruned", "left whole", "refused"
WRONG, CHANGED, CRASHED, UNSOUND = "wrong", "changed", "crashed", "unsound"
FAILURES = (WRONG, CHANGED, CRASHED, UNSOUND)
INEXACT = ("cast",)  # parts that compute in single precision whatever the network's is


@dataclass(frozen=True)
class Verdict:
    """What became of a network.

    Attributes:
        kind: "pruned"; "left whole", with nothing to prune; "refused", with a reason; or a failure:
            "wrong" (another output, cost or file than promised), "changed" (the user's network),
            "crashed" (an error that is no reason), "unsound" (it does not run by itself: a fault of
            the grammar).
        reason: Why.
        whole: Reasons for which channels of it stay.
    """

    kind: str
    reason: str = ""
    whole: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return self.kind in FAILURES


class Failure(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


@dataclass
class Depth:
    """How much is looked at.

    Attributes:
        searched: Also a search without data.
        calibrated: Also a search and a pruning with calibration.
        exported: Also torch.export of the pruned network.
    """

    searched: bool = True
    calibrated: bool = False
    exported: bool = False


def examine(spec: Spec, depth: Depth | None = None) -> Verdict:
    """Traces, searches, prunes, saves, loads and runs the network of a spec."""
    depth = depth or Depth()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return _examined(spec, depth)
        except Failure as failure:
            return Verdict(failure.kind, failure.reason)
        except Exception as error:  # whatever the library raises that is no reason
            return Verdict(CRASHED, f"{type(error).__name__}: {_first_line(error)}")


def _examined(spec: Spec, depth: Depth) -> Verdict:
    inputs = example(spec)
    net = Network(spec)
    try:
        _runs_both_ways(copy.deepcopy(net), inputs)
    except Exception as error:
        raise Failure(UNSOUND, f"{type(error).__name__}: {_first_line(error)}") from error
    before = picture(net)

    def untouched(step: str) -> None:
        if not net.training or not same(picture(net), before):
            raise Failure(CHANGED, f"by {step}")

    try:
        graph = trace(net, inputs)
    except ValueError as error:
        untouched("trace")
        return Verdict(REFUSED, _first_line(error))
    untouched("trace")
    whole = tuple(dict.fromkeys(fixed.reason for fixed in graph.fixed))
    if not str(graph):
        raise Failure(WRONG, "it does not print")
    if not graph.axes:
        return Verdict(WHOLE, whole[0] if whole else "no reason given", whole)
    plan = _random_plan(graph, spec.seed)
    small = prune(graph, plan, check=False)
    untouched("prune")
    _exact(graph, plan, small, spec)
    if depth.searched:
        plan = _searched(graph, 0.5)
        small = prune(graph, plan)
        untouched("search and prune")
        _exact(graph, plan, small, spec)
    again = _reloaded(small, plan, spec)
    _alike(again, small.eval(), inputs)
    _runs_both_ways(again, inputs)
    if depth.exported:
        small.eval()
        program = torch.export.export(small, *_as_arguments(inputs))
        gap = relative_difference(
            _quiet(program.module(), inputs), _quiet(copy.deepcopy(small), inputs)
        )
        if gap > OWN_TOLERANCE:
            raise Failure(WRONG, f"the exported network differs by {gap:.1e}")
    if depth.calibrated:
        batches = [example(spec, seed) for seed in range(1, 9)]
        plan = _searched(graph, 0.6, calibration=batches)
        small = prune(graph, plan, calibration=batches)
        untouched("search and prune with calibration")
        _costs(graph, plan, small)
        _alike(_reloaded(small, plan, spec), small.eval(), inputs)
    return Verdict(PRUNED, whole=whole)


def _random_plan(graph: ChannelGraph, seed: int) -> PruningPlan:
    """Each axis to some width, some of its channels."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.tensor(
        [int(torch.randint(a.least, a.channels + 1, (), generator=generator)) for a in graph.axes]
    )
    plan = PruningPlan.build(graph, random_channels(widths, graph, seed))
    return plan


def _searched(graph: ChannelGraph, macs: float, **options: Any) -> PruningPlan:
    """A plan of `macs`, or of the least budget above that can be met."""
    for budget in (macs, 0.75, 0.9, 0.97, 1.0):
        try:
            return search(graph, macs=budget, round_to=1, **options)
        except ValueError as error:
            if "smallest" not in str(error) and "least" not in str(error):
                raise
    raise Failure(WRONG, "search meets not even the budget of the dense network")


def _exact(graph: ChannelGraph, plan: PruningPlan, small: nn.Module, spec: Spec) -> None:
    """Compares with a copy of the dense network in which what is removed is zeroed by hand.

    In its own precision where it computes in single precision, else in float64.
    """
    _costs(graph, plan, small)
    narrow = any(name in INEXACT for name, _ in spec.parts)

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone() if narrow else in_float64(tensor)

    dense = rebuilt(graph.model, copied).eval()
    with torch.no_grad():
        for axis, kept in zip(graph.axes, plan.axes, strict=True):
            chosen = set(map(int, kept.kept))
            lost = [i for i in range(axis.channels) if i not in chosen]
            for place in axis.places:
                tensor = tensor_of(dense, place.parameter)
                if lost and tensor.is_floating_point():
                    tensor.index_fill_(place.dimension, place.positions[lost].flatten(), 0.0)
    inputs = graph.example_inputs
    inputs = inputs if narrow else map_tensors(inputs, in_float64)
    left, right = _quiet(rebuilt(small, copied).eval(), inputs), _quiet(dense, inputs)
    gap = relative_difference(left, right)
    if not gap <= (OWN_TOLERANCE if narrow else 1e-9):
        raise Failure(WRONG, f"the pruned network differs from the zeroed one by {gap:.1e}")


def _costs(graph: ChannelGraph, plan: PruningPlan, small: nn.Module) -> None:
    counted = count_macs(small, graph.example_inputs)
    if counted != plan.macs:
        raise Failure(WRONG, f"{counted} MACs where the plan says {plan.macs}")
    params = sum(p.numel() for p in small.parameters())
    if params != plan.params:
        raise Failure(WRONG, f"{params} parameters where the plan says {plan.params}")


def _reloaded(small: nn.Module, plan: PruningPlan, spec: Spec) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save(path, small, plan)
        return load(path, lambda: Network(spec))


def _alike(left: nn.Module, right: nn.Module, inputs: Any) -> None:
    left, right = copy.deepcopy(left).eval(), copy.deepcopy(right).eval()
    gap = relative_difference(_quiet(left, inputs), _quiet(right, inputs))
    if gap != 0:
        raise Failure(WRONG, f"saved and loaded, it differs by {gap:.1e}")


def _runs_both_ways(net: nn.Module, inputs: Any) -> None:
    """Runs a network in both modes, and backwards; what it puts out must be finite."""
    for training in (False, True):
        net.train(training)
        outputs = tensors_in(call(net, inputs))
        if not all(bool(one.isfinite().all()) for one in outputs):
            raise Failure(WRONG, "its outputs are not finite")
        loss = sum(one.double().square().mean() for one in outputs)
        loss.backward()
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        if not grads or not all(math.isfinite(float(g.abs().sum())) for g in grads):
            raise Failure(WRONG, "its gradients are not finite")
        net.zero_grad()


@torch.no_grad()
def _quiet(net: nn.Module, inputs: Any) -> Any:
    with NothingDropped():
        return call(net, inputs)


def _as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), inputs) if isinstance(inputs, dict) else (inputs, {})


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:300]


def kind_of_reason(reason: str) -> str:
    """A reason without its names and numbers, so that reasons can be counted."""
    short = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    short = re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "N", short)
    return short[:110]
