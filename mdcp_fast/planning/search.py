"""Chooses how many and which channels of every axis stay under budgets of what they cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from mdcp_fast.modules.locks import alone_with_its_network
from mdcp_fast.modules.precision import full_float32
from mdcp_fast.modules.wrappers import nothing_compiled
from mdcp_fast.planning.budgets import limits_of, parsed_budgets
from mdcp_fast.planning.channels import ChannelScorer
from mdcp_fast.planning.clustering import searched_clusters
from mdcp_fast.planning.evaluators import Evaluator, TableEvaluator
from mdcp_fast.planning.judge import KeptChannels
from mdcp_fast.planning.latency_table import LatencyTable
from mdcp_fast.planning.method import (
    EvaluatorName,
    Method,
    PresetName,
    ResolvedMethod,
    choose_method,
    resolve_method,
)
from mdcp_fast.planning.probes import probed_losses
from mdcp_fast.planning.rounding import RoundTo, allowed_widths, preferred_multiple
from mdcp_fast.planning.widths import WidthProblem, widths_by_table
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.graph import ChannelGraph

Budget = float | Sequence[float]


# One plan for one budget, a list for a list: these two say only that, the signature is below.
@overload
def search(
    graph: ChannelGraph,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    **options: Any,
) -> PruningPlan: ...
@overload
def search(
    graph: ChannelGraph,
    *,
    macs: Budget | None = None,
    params: Budget | None = None,
    latency: Budget | None = None,
    **options: Any,
) -> list[PruningPlan]: ...
@full_float32()
@alone_with_its_network
@nothing_compiled()
def search(
    graph: ChannelGraph,
    *,
    macs: Budget | None = None,
    params: Budget | None = None,
    latency: Budget | None = None,
    latency_table: LatencyTable | None = None,
    method: Method | None = None,
    preset: PresetName | None = None,
    evaluator: EvaluatorName | Evaluator | None = None,
    rotate: bool | None = None,
    calibration: Iterable[Any] | CalibrationData | None = None,
    round_to: RoundTo = "auto",
    min_keep: int | float = 0.1,
    seed: int = 0,
    **costs: Budget | None,
) -> PruningPlan | list[PruningPlan]:
    """Finds which channels to keep so that the network meets its budgets and loses least.

    How many channels every axis keeps is found by differential evolution under the budgets, started
    from a Lagrangian relaxation, on a table of what each width loses. Which ones stay follows from
    the method.

    With `calibration` (a few hundred samples; labels are not used) what a width loses is measured:
    the share of what the layers that read an axis respond to, weighted by how much the network's
    answer depends on it, that ridge regression from the channels that stay cannot predict; scaled
    for each axis to what the network's answers differ by where this axis alone is cut. `prune`
    lets those layers take over the rest.

    Args:
        graph: What `trace` returned.
        macs: The most multiply-accumulates that may remain, as a fraction of the dense network's in
            (0, 1]; a list asks for one plan for each.
        params: The same for parameters. Where several budgets are given, all hold; a single number
            beside a list holds for all of its entries.
        latency: The same for the time that the network takes where `latency_table` was measured,
            which says how much each layer takes at each width. The plan's cost of that name is what
            the table predicts, in nanoseconds.
        latency_table: What `measure_latency` measured; needed with `latency`.
        method: How channels are chosen: see `Method`, which lists the ways to describe and to
            select them. By default `Method.best()` with calibration, `Method.quick()` without.
        preset: The name of such a method instead: "best", "paper" (the method as published, and
            what was not: see `Method.paper`) or "quick".
        evaluator: What widths are chosen by, in place of the method's: "table", "fitted" or
            "network", or one with options of its own: see `TableEvaluator`, `RefitEvaluator` and
            `NetworkEvaluator`.
        rotate: Whether linear streams are pruned in another basis, in place of the method's own
            choice, which is to do so with calibration and greedy selection (see `Method.rotate`).
            `prune` needs calibration batches for such plans, too.
        calibration: Batches of inputs (tensors, tuples of the model's arguments, dicts of named
            ones, or (input, label) pairs; a DataLoader, a list or an iterator), or a
            `CalibrationData` of this graph, which `prune` and other searches can use again: what it
            says is measured once. An iterator is used up: `prune` then needs another one.
        round_to: Widths become multiples of this, for hardware that wants them. Axes that cannot
            are left whole and named in the plan. "auto": multiples of 8 (for half precision on a
            GPU of 16 or, from compute capability 9.0 on, of 32) where an axis is four times as
            wide, of 4, 2 or 1 where it is narrower, or whole. 1: any width, which keeps the most
            for its MACs and is often no faster than the dense network.
        min_keep: The least that stays of every axis: a number of channels (int), or a fraction of
            them (float below 1).
        seed: Of everything random. The same seed gives the same plan; without calibration at any
            number of threads.
        costs: The same as `macs` for other costs of the graph (`graph.costs`), by name.

    Returns:
        A plan, or a list of plans where a budget is a list. What it costs is exact. Its history
        holds losses of the table, or of the networks that were tried.

    Warns:
        UserWarning: The network has ops that multiply and that no formula counts.

    Raises:
        TypeError: A budget is not a number, an unknown option, or calibration batches are no
            inputs.
        ValueError: No budget, one outside (0, 1], one that cannot be met (the message says the
            smallest that can), nothing to prune, an unknown name, options that do not go together
            or out of range, calibration batches that do not fit the network or are not finite. With
            `evaluator="network"` or "fitted" also: no calibration, labels that do not fit, outputs
            that are no logits; with "network" a network whose samples depend on one another, too
            little memory for one candidate.
    """
    _check(graph, seed)
    traced, graph = graph, _with_latency(graph, latency, latency_table)
    wanted = {"macs": macs, "params": params, "latency": latency, **costs}
    budgets, several = parsed_budgets(
        graph, {name: one for name, one in wanted.items() if one is not None}
    )
    chosen = choose_method(method, preset, evaluator, calibration is not None, rotate)
    how = resolve_method(chosen, calibration is not None)
    allowed = allowed_widths(
        graph.axes, round_to, min_keep, multiple=preferred_multiple(graph.model)
    )
    choices = allowed.choices
    limits = limits_of(graph, budgets, choices, allowed.notes)
    if graph.uncounted:
        warnings.warn(
            f"search: these ops are not in the MACs: {', '.join(graph.uncounted)}", stacklevel=2
        )
    data, rotated = None, frozenset[int]()
    if calibration is not None:
        data = CalibrationData.read(traced, calibration, how.evaluator.labels)
        if how.rotate:
            rotation, _ = data.rotation()
            data, rotated = data.rotated(rotation), frozenset(rotation.bases)
            graph = graph.with_model(rotation.graph.model)
    problem = WidthProblem(graph, limits, choices, seed)
    scorer = ChannelScorer(graph, how, data, seed, rotated)
    widths, histories, judged = _widths(problem, scorer, how, data)
    widths = problem.whole_where_allowed(widths)
    settings = {
        **({} if preset is None else {"preset": preset}),
        **how.settings,
        "round_to": round_to,
        "min_keep": min_keep,
        "population": how.evaluator.population,
        "generations": how.evaluator.generations,
        "seed": seed,
        **judged,
    }
    plans = []
    for width, budget, history in zip(widths, budgets, histories, strict=True):
        multiples, notes = allowed.rounded(graph.axes, width)
        found = {**settings, "multiple": allowed.multiple, "multiples": multiples}
        plans.append(
            _plan(scorer, width, seed, budget=budget, settings=found, history=history, notes=notes)
        )
    return plans if several else plans[0]


def _check(graph: ChannelGraph, seed: int) -> None:
    if not isinstance(graph, ChannelGraph):
        raise TypeError(
            f"search: graph: expected what mdcp_fast.trace returns, got {type(graph).__name__}"
        )
    if not graph.axes:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in graph.fixed[:5])
        raise ValueError(
            f"search: graph: expected at least one prunable axis, got none: {reasons or 'no layer'}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"search: seed: expected an int, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"search: seed: expected at least 0, got {seed}")


def _with_latency(
    graph: ChannelGraph, latency: Budget | None, table: LatencyTable | None
) -> ChannelGraph:
    """The graph with the cost that `latency` bounds, if it is given."""
    if latency is None or "latency" in graph.costs:
        return graph
    if not isinstance(table, LatencyTable):
        raise TypeError(
            "search: latency_table: expected what mdcp_fast.measure_latency returns, since latency "
            f"is bounded, got {type(table).__name__}"
        )
    return table.graph_with_cost(graph)


def _widths(
    problem: WidthProblem,
    scorer: ChannelScorer,
    how: ResolvedMethod,
    data: CalibrationData | None,
) -> tuple[Tensor, Sequence[Tensor], dict[str, Any]]:
    """The widths of every run, int64 [runs, axes], their search's history, and more settings."""
    if how.uniform:
        return problem.uniform(), [torch.zeros(0)] * len(problem.limits), {}
    if problem.largest_fit.all():  # a budget of everything: nothing to weigh up
        return problem.uniform(), [torch.zeros(1)] * len(problem.limits), {}
    evaluator = how.evaluator
    on_table = evaluator if isinstance(evaluator, TableEvaluator) else TableEvaluator()
    losses = scorer.losses(problem.choices)
    if data is not None and on_table.probes:
        losses = probed_losses(
            problem.graph, losses, problem.choices, scorer.choose, data, on_table.probes
        )
    found = widths_by_table(
        problem,
        losses,
        how.minimize,
        on_table.population,
        on_table.generations,
    )
    judged = {}
    if not isinstance(evaluator, TableEvaluator):
        assert data is not None
        kept = KeptChannels(problem.graph.widths, scorer.choose)
        judge = evaluator.judge(problem, kept, data)
        found = evaluator.improve(judge, found, problem)
        judged = {"labels": evaluator.labels, "samples": judge.samples}
    return found.best, list(found.history), judged


def _plan(
    scorer: ChannelScorer,
    width: Tensor,
    seed: int,
    *,
    history: Tensor,
    budget: Mapping[str, float],
    settings: Mapping[str, Any],
    notes: Mapping[str, str],
) -> PruningPlan:
    """The plan that keeps `width` (int64 [axes]) channels of every axis."""
    if scorer.method.search_clusters:
        chosen, history = searched_clusters(scorer, width, seed)
    else:
        chosen = scorer.choose(torch.arange(len(width)), width)
    clusters = chosen.clusters
    return PruningPlan.build(
        scorer.graph,
        chosen.kept.split(width.tolist()),
        clusters=None if clusters is None else clusters.split(chosen.channels.tolist()),
        budget=budget,
        settings=settings,
        history=history.tolist(),
        notes=notes,
        rotated=scorer.rotated,
    )
