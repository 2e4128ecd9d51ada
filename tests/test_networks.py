"""Random networks are pruned exactly or refused, and left as they were; and the harness would tell.

More of them: `python -m random_networks run --count 10000 --seed 0 --results FILE`, in this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import random_networks.check as check
import torch
from random_networks.check import CHANGED, CRASHED, PRUNED, UNSOUND, WRONG, Depth, Verdict, examine
from random_networks.grammar import PARTS, Spec, random_spec
from random_networks.run import run
from random_networks.shrink import shrunk
from torch import nn

from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

CHUNKS, EACH = 30, 10  # 300 networks; in chunks, so that several processes share them
LEAST_PRUNED = 0.7  # of a chunk; of all, more than nine in ten
SIMPLE = Spec((("plain", 1), ("residual", 2), ("activated", 3)))


def quick(seed: int) -> Depth:
    """Most networks take one random plan; some a search, calibration or torch.export besides."""
    return Depth(seed % 10 == 0, seed % 20 == 3, seed % 20 == 7)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_networks_are_pruned_right_or_left_alone(chunk: int) -> None:
    counts = run(range(chunk * EACH, (chunk + 1) * EACH), depth_of=quick)
    assert not counts.failures, counts.failures
    assert counts.share_pruned >= LEAST_PRUNED, counts.report()


def test_the_seeds_reach_every_part() -> None:
    specs = [random_spec(seed) for seed in range(CHUNKS * EACH)]
    assert {name for spec in specs for name, _ in spec.parts} == set(PARTS)
    assert len({str(spec) for spec in specs}) == len(specs)


def test_a_network_is_its_line() -> None:
    for seed in range(20):
        assert Spec.parse(str(random_spec(seed))) == random_spec(seed)


# What is planted, each in its own way of being wrong, and what must be said of it.


def traced(change: Callable[[ChannelGraph], None]) -> Callable[..., ChannelGraph]:
    """`trace`, after which something happens to the graph or the network."""

    def planted(*args: Any, **options: Any) -> ChannelGraph:
        graph = trace(*args, **options)
        change(graph)
        return graph

    return planted


def shifted(graph: ChannelGraph) -> None:
    """The channels of one place of the first axis that can be told apart: one further on."""
    axis = graph.axes[0]
    place = next(p for p in axis.places if p.role == "input")
    wrong = replace(place, positions=place.positions.roll(1, 0))
    places = tuple(wrong if p is place else p for p in axis.places)
    graph.axes = (replace(axis, places=places), *graph.axes[1:])


def forgotten(graph: ChannelGraph) -> None:
    """A bias that should shrink along, and is left."""
    axis = graph.axes[0]
    places = tuple(p for p in axis.places if not p.parameter.endswith("bias"))
    graph.axes = (replace(axis, places=places), *graph.axes[1:])


def left_attribute(graph: ChannelGraph) -> None:
    graph.model.parts.seen = torch.zeros(1)


def changed_weight(graph: ChannelGraph) -> None:
    with torch.no_grad():
        next(graph.model.parameters()).add_(1e-6)


def left_evaluating(graph: ChannelGraph) -> None:
    graph.model.eval()


FAULTS: dict[str, tuple[Callable[[ChannelGraph], None], tuple[str, ...]]] = {
    "positions shifted by one": (shifted, (WRONG,)),
    "a place forgotten": (forgotten, (WRONG, CRASHED)),
    "an attribute left": (left_attribute, (CHANGED,)),
    "a weight changed": (changed_weight, (CHANGED,)),
    "the mode changed": (left_evaluating, (CHANGED,)),
}


@pytest.mark.parametrize(("change", "kinds"), FAULTS.values(), ids=FAULTS.keys())
def test_planted_faults_are_told(
    change: Callable[[ChannelGraph], None], kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "trace", traced(change))
    assert examine(SIMPLE).kind in kinds


def test_nothing_is_told_where_nothing_is_planted() -> None:
    assert examine(SIMPLE).kind == PRUNED


def test_what_load_gives_back_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*args: Any) -> nn.Module:
        net = load(*args)
        with torch.no_grad():
            next(net.parameters()).mul_(1.001)
        return net

    load = check.load
    monkeypatch.setattr(check, "load", spoiled)
    assert examine(SIMPLE).kind == WRONG


def test_errors_and_networks_that_do_not_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*args: Any, **options: Any) -> ChannelGraph:
        raise KeyError("inside")

    monkeypatch.setattr(check, "trace", raising)
    assert examine(SIMPLE) == Verdict(CRASHED, "KeyError: 'inside'")
    monkeypatch.setattr(check, "example", lambda spec: (torch.zeros(2, 5, 8, 8),))
    assert examine(SIMPLE).kind == UNSOUND


def test_a_failing_network_shrinks_to_what_fails() -> None:
    def fails(spec: Spec) -> Verdict:
        return Verdict(WRONG if ("split", 5) in spec.parts else PRUNED)

    spec = Spec((("plain", 1), ("split", 5), ("skip", 2)), 3, "two", "dict", "flatten", 9)
    assert shrunk(spec, fails) == Spec((("split", 5),), seed=9)
