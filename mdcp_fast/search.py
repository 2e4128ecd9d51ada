"""Chooses how many and which channels of every axis stay under budgets of MACs and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from mdcp_fast import descriptors as describe
from mdcp_fast.calibration import calibration_batches, labelled_batches
from mdcp_fast.descriptors import Descriptors
from mdcp_fast.evaluators import MEMORY, KeptChannels, NetworkEvaluator
from mdcp_fast.evolution import (
    SMALLEST,
    Evaluate,
    Evolution,
    descend,
    differential_evolution,
)
from mdcp_fast.graph import Axis, ChannelGraph
from mdcp_fast.ops.population import evaluate_population
from mdcp_fast.plan import PruningPlan
from mdcp_fast.relaxation import relaxed_widths
from mdcp_fast.selection import loss_table, select

# Candidates of the first generation, and generations, where the caller does not say.
EVALUATORS = {"table": (64, 100), "network": (16, 10)}
SHARES = 256  # uniform widths that are tried, to start the network evaluator with
DESCRIPTORS: dict[str, Callable[[ChannelGraph], Descriptors]] = {"moments": describe.moments}
COSTS = ("macs", "params")  # in the order of the cost model


@overload
def search(
    graph: ChannelGraph,
    *,
    macs: float | None = None,
    params: float | None = None,
    descriptor: str = ...,
    round_to: int = ...,
    min_keep: int | float = ...,
    channels_per_cluster: float = ...,
    population: int | None = ...,
    generations: int | None = ...,
    seed: int = ...,
    evaluator: str = ...,
    calibration: Iterable[Any] | None = ...,
    labels: bool = ...,
    memory: int = ...,
) -> PruningPlan: ...
@overload
def search(
    graph: ChannelGraph,
    *,
    macs: Sequence[float] | float | None = None,
    params: Sequence[float] | float | None = None,
    descriptor: str = ...,
    round_to: int = ...,
    min_keep: int | float = ...,
    channels_per_cluster: float = ...,
    population: int | None = ...,
    generations: int | None = ...,
    seed: int = ...,
    evaluator: str = ...,
    calibration: Iterable[Any] | None = ...,
    labels: bool = ...,
    memory: int = ...,
) -> list[PruningPlan]: ...
def search(
    graph: ChannelGraph,
    *,
    macs: Sequence[float] | float | None = None,
    params: Sequence[float] | float | None = None,
    descriptor: str = "moments",
    round_to: int = 1,
    min_keep: int | float = 0.1,
    channels_per_cluster: float = 1.0,
    population: int | None = None,
    generations: int | None = None,
    seed: int = 0,
    evaluator: str = "table",
    calibration: Iterable[Any] | None = None,
    labels: bool = False,
    memory: int = MEMORY,
) -> PruningPlan | list[PruningPlan]:
    """Finds which channels to keep so that the network meets its budgets and loses least.

    Each axis's channels are described by a few numbers and clustered. How many clusters every axis
    gets is found by differential evolution under the budgets, started from a Lagrangian relaxation;
    in each cluster the channels with the largest crowding distance stay. By default no data is
    needed: what a width loses is read off a table made from the descriptors.

    With `evaluator="network"` candidates are scored on the real network instead, on calibration
    batches: their channels are masked, BatchNorm normalises by each candidate's own batch
    statistics, and many candidates share one forward pass. It starts from the table's plan, the
    relaxation's and uniform widths, so that its plan scores no worse than theirs. It runs at most
    `2 * population * generations` candidates, 320 by default, each about as much work as the dense
    network on all calibration batches; candidates over the budget and ones seen before cost
    nothing. 128 to 256 samples in batches of 32 to 128 tell widths apart.

    Args:
        graph: What `trace` returned.
        macs: The most multiply-accumulates that may remain, as a fraction of the dense network's in
            (0, 1]; a list asks for one plan for each.
        params: The same for parameters. Where both are given, both hold; a single number beside a
            list holds for all of its entries.
        descriptor: What describes a channel: "moments" (mean, variance and cosine distance to the
            all-ones vector of its weights).
        round_to: Widths become multiples of this, for hardware that wants them. Axes that cannot
            are left whole and named in the plan.
        min_keep: The least that stays of every axis: a number of channels (int), or a fraction of
            them (float below 1).
        channels_per_cluster: Channels kept in a cluster on average, at least 1.
        population: Candidates of the evolution's first generation; by default 64, and 16 with
            `evaluator="network"`.
        generations: It scores `population * generations` candidates; by default 100, and 10 with
            `evaluator="network"`, where the descent that follows scores at most as many again.
        seed: Of the evolution. The same seed gives the same plan, with `evaluator="table"` at any
            number of threads.
        evaluator: "table" or "network".
        calibration: For `evaluator="network"`: batches of inputs (tensors, tuples of the model's
            arguments, dicts of named ones, or (input, label) pairs; a DataLoader, a list or an
            iterator), of 16 samples or more each, since they stand in for the statistics that
            BatchNorm is to have.
        labels: For `evaluator="network"`: score by the cross entropy with the labels of the
            batches, which are then pairs; by default by the divergence KL(dense || candidate) of
            the class probabilities, which needs none.
        memory: For `evaluator="network"`: bytes that the activations of a forward pass may take, by
            default 1 GiB; candidates run in groups that fit. Scratch space inside convolutions
            comes on top.

    Returns:
        A plan, or a list of plans where a budget is a list. Its MACs and parameters are exact. With
        `evaluator="network"` its history holds losses on the network.

    Raises:
        TypeError: A budget is not a number, or calibration batches are no inputs.
        ValueError: No budget, one outside (0, 1], one that cannot be met (the message says the
            smallest that can), nothing to prune, an unknown descriptor or evaluator, or an option
            out of range. With `evaluator="network"` also: no calibration, batches or labels that do
            not fit, outputs that are no logits, a network whose samples depend on one another,
            `memory` too small for one candidate.
    """
    if not isinstance(graph, ChannelGraph):
        raise TypeError(
            f"search: graph: expected what mdcp_fast.trace returns, got {type(graph).__name__}"
        )
    budgets, several = _budgets(macs, params)
    if descriptor not in DESCRIPTORS:
        known = ", ".join(DESCRIPTORS)
        raise ValueError(f"search: descriptor: expected one of {known}, got {descriptor!r}")
    if not graph.axes:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in graph.fixed[:5])
        raise ValueError(
            f"search: graph: expected at least one prunable axis, got none: {reasons or 'no layer'}"
        )
    _check_evaluator(evaluator, calibration, labels, memory)
    default = EVALUATORS[evaluator]
    population = default[0] if population is None else population
    generations = default[1] if generations is None else generations
    least = {"population": SMALLEST, "generations": 1, "seed": 0}
    for (name, low), value in zip(least.items(), (population, generations, seed), strict=True):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"search: {name}: expected an int, got {type(value).__name__}")
        if value < low:
            raise ValueError(f"search: {name}: expected at least {low}, got {value}")
    choices, notes = _choices(graph.axes, round_to, min_keep)
    limits = _limits(graph, budgets, choices, notes)

    points = DESCRIPTORS[descriptor](graph)
    losses = loss_table(points, choices, channels_per_cluster=channels_per_cluster)
    packed = torch.cat(choices)
    counts = torch.tensor([len(one) for one in choices])
    start = counts.cumsum(0) - counts
    relaxed = _indices(relaxed_widths(losses, graph.cost, limits, choices), choices)
    on_table = evaluator == "table"
    found = differential_evolution(
        lambda candidates: evaluate_population(
            packed[start + candidates], losses, graph.cost, limits
        ),
        torch.zeros_like(counts),
        counts - 1,
        population=population if on_table else EVALUATORS["table"][0],
        generations=generations if on_table else EVALUATORS["table"][1],
        seeds=[seed] * len(budgets),
        initial=relaxed,
    )
    if not on_table:
        assert calibration is not None
        batches, targets = (
            labelled_batches(graph, calibration)
            if labels
            else (calibration_batches(graph, calibration), None)
        )
        network = NetworkEvaluator(
            graph,
            KeptChannels(points, channels_per_cluster),
            limits,
            batches,
            labels=targets,
            memory=memory,
        )
        uniform = _indices(_uniform_widths(graph, limits, choices), choices)
        found = _on_network(
            lambda candidates: network(packed[start + candidates]),
            counts - 1,
            torch.cat([found.best.unsqueeze(1), uniform.unsqueeze(1), relaxed], 1),
            population,
            generations,
            seed,
        )
    settings = {
        "descriptor": descriptor,
        "round_to": round_to,
        "min_keep": min_keep,
        "channels_per_cluster": channels_per_cluster,
        "population": population,
        "generations": generations,
        "seed": seed,
    }
    if not on_table:
        settings |= {"evaluator": evaluator, "labels": labels, "samples": network.samples}
    every = torch.arange(len(graph.axes))
    plans = []
    for budget, best, history in zip(budgets, found.best, found.history, strict=True):
        width = packed[start + best]
        chosen = select(points, every, width, channels_per_cluster=channels_per_cluster)
        plans.append(
            PruningPlan.build(
                graph,
                chosen.kept.split(width.tolist()),
                clusters=chosen.clusters.split(chosen.channels.tolist()),
                budget=budget,
                settings=settings,
                history=history.tolist(),
                notes=notes,
            )
        )
    return plans if several else plans[0]


def _check_evaluator(
    evaluator: str, calibration: Iterable[Any] | None, labels: bool, memory: int
) -> None:
    if evaluator not in EVALUATORS:
        known = ", ".join(EVALUATORS)
        raise ValueError(f"search: evaluator: expected one of {known}, got {evaluator!r}")
    if evaluator == "network" and calibration is None:
        raise ValueError(
            "search: calibration: expected batches, since evaluator='network' runs the network on "
            "them, got None"
        )
    if evaluator == "table" and (calibration is not None or labels):
        raise ValueError(
            "search: calibration, labels: expected none with evaluator='table', which needs no "
            "data; pass evaluator='network' to use them"
        )
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError(f"search: memory: expected a number of bytes (int), got {memory!r}")


def _on_network(
    evaluate: Evaluate,
    high: Tensor,
    initial: Tensor,
    population: int,
    generations: int,
    seed: int,
) -> Evolution:
    """Differential evolution and descent, with few candidates of which each is dear."""
    low, seeds = torch.zeros_like(high), [seed] * len(initial)
    found = differential_evolution(
        evaluate,
        low,
        high,
        population=population,
        generations=generations,
        seeds=seeds,
        initial=initial,
        descent=False,
    )
    best, fitness, more = descend(
        evaluate,
        found.best,
        found.fitness,
        low,
        high,
        seeds=seeds,
        moves=population,
        evaluations=population * generations,
    )
    history = torch.cat([found.history, fitness.unsqueeze(1)], 1)
    return Evolution(best, fitness, history, found.evaluations + more)


def _indices(widths: Tensor, choices: Sequence[Tensor]) -> Tensor:
    """Which of each axis's choices the widths are: int64 [..., axes], as `widths`."""
    return torch.stack(
        [
            torch.searchsorted(one, column.contiguous())
            for one, column in zip(choices, widths.unbind(-1), strict=True)
        ],
        -1,
    )


def _uniform_widths(graph: ChannelGraph, limits: Tensor, choices: Sequence[Tensor]) -> Tensor:
    """The largest widths, all at one share of the dense ones, within the limits: [runs, axes]."""
    shares = torch.linspace(0, 1, SHARES + 1, dtype=torch.float64)
    columns = []
    for axis, one in zip(graph.axes, choices, strict=True):
        wanted = (shares * axis.channels).floor().long()
        columns.append(one[(torch.searchsorted(one, wanted, right=True) - 1).clamp_min(0)])
    widths = torch.stack(columns, 1)  # [shares, axes]
    fits = (graph.cost.evaluate(widths) <= limits.unsqueeze(1)).all(2)  # [runs, shares]
    return widths[fits.long().sum(1) - 1]  # costs never fall as widths grow


def _budgets(macs: Any, params: Any) -> tuple[list[dict[str, float]], bool]:
    """Every wanted budget as {"macs": fraction, ...}, and whether a list of them was asked for."""
    given = {name: value for name, value in zip(COSTS, (macs, params), strict=True)}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise ValueError("search: macs, params: expected at least one budget, got none")
    lists = {
        name: list(value)
        for name, value in given.items()
        if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
    }
    lengths = {len(value) for value in lists.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            "search: macs, params: expected lists of the same length, at least 1, got "
            f"{' and '.join(str(len(value)) for value in lists.values())}"
        )
    count = lengths.pop() if lengths else 1
    columns = {name: lists.get(name, [value] * count) for name, value in given.items()}
    budgets = [
        {name: _fraction(name, column[i]) for name, column in columns.items()} for i in range(count)
    ]
    return budgets, bool(lists)


def _fraction(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        fraction = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"search: {name}: expected a number or a list of numbers, got {type(value).__name__}"
        ) from None
    if not 0 < fraction <= 1:
        raise ValueError(
            f"search: {name}: expected fractions of the dense network in (0, 1], got {fraction:g}"
        )
    return fraction


def _choices(
    axes: Sequence[Axis], round_to: int, min_keep: int | float
) -> tuple[list[Tensor], dict[str, str]]:
    """The widths that every axis may have, and why some may not be rounded."""
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"search: round_to: expected a whole number from 1, got {round_to!r}")
    whole = isinstance(min_keep, int) and not isinstance(min_keep, bool) and min_keep >= 1
    if not whole and not (isinstance(min_keep, float) and 0 <= min_keep < 1):
        raise ValueError(
            "search: min_keep: expected a number of channels (int from 1) or a fraction of them "
            f"(float from 0, below 1), got {min_keep!r}"
        )
    choices, notes = [], {}
    for axis in axes:
        least = min_keep if isinstance(min_keep, int) else math.ceil(min_keep * axis.channels)
        least = min(max(least, 1), axis.channels)
        # A channel may be several positions of a layer's output (groups, pixel shuffle).
        positions = math.gcd(round_to, *(place.multiplicity for place in axis.producers))
        step = round_to // positions
        first = -(-least // step) * step
        if first <= axis.channels:
            widths = torch.arange(first, axis.channels + 1, step)
        else:
            widths = torch.tensor([axis.channels])
            notes[axis.name] = (
                f"left whole: no multiple of {step} from {least} to {axis.channels} channels "
                f"for round_to={round_to}"
            )
        choices.append(widths)
    return choices, notes


def _limits(
    graph: ChannelGraph,
    budgets: Sequence[dict[str, float]],
    choices: Sequence[Tensor],
    notes: dict[str, str],
) -> Tensor:
    """The most of each cost in numbers: int64 [budgets, costs]."""
    dense = dict(zip(COSTS, (graph.macs, graph.params), strict=True))
    least = graph.cost.evaluate(torch.stack([one[0] for one in choices])).tolist()
    rows = []
    for budget in budgets:
        row = []
        for name, smallest in zip(COSTS, least, strict=True):
            limit = math.floor(budget.get(name, 1.0) * dense[name])
            if limit < smallest:
                possible = math.ceil(smallest / dense[name] * 1e4) / 1e4
                whole = "".join(f"; {axis}: {note}" for axis, note in notes.items())
                raise ValueError(
                    f"search: {name}: expected at least {possible:g}, which keeps the smallest "
                    f"widths that min_keep and round_to allow, got {budget[name]:g}{whole}"
                )
            row.append(max(limit, 1))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)
