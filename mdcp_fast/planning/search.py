"""Chooses how many and which channels of every axis stay under budgets of MACs and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from mdcp_fast.modules.precision import full_float32
from mdcp_fast.ops.evaluate_population import PopulationFitness
from mdcp_fast.ops.evolution import SMALLEST, Evolution, descend, differential_evolution
from mdcp_fast.planning.budgets import (
    Grid,
    allowed_widths,
    indices,
    limits_of,
    parsed_budgets,
    uniform_widths,
)
from mdcp_fast.planning.channels import ChannelScorer
from mdcp_fast.planning.clustering import searched_clusters
from mdcp_fast.planning.descriptors import Descriptors
from mdcp_fast.planning.evaluators import AnswerEvaluator, KeptChannels
from mdcp_fast.planning.masked import MEMORY, NetworkEvaluator
from mdcp_fast.planning.method import ALGORITHMS, resolve_method, settings
from mdcp_fast.planning.refit_evaluator import RefitEvaluator, evolve_widths
from mdcp_fast.planning.relaxation import relaxed_widths
from mdcp_fast.pruning.calibration import calibration_batches, labelled_batches
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.graph import ChannelGraph

# Candidates of the first generation, and generations, where the caller does not say.
EVALUATORS = {"table": (64, 100), "network": (16, 10), "fitted": (5, 8)}


@overload
def search(
    graph: ChannelGraph,
    *,
    macs: float | None = None,
    params: float | None = None,
    preset: str | None = ...,
    descriptor: str | Descriptors | None = ...,
    selection: str | None = ...,
    widths: str | None = ...,
    clusters: str | None = ...,
    seeding: str | None = ...,
    evolution: str | None = ...,
    channels_per_cluster: float | None = ...,
    round_to: int = ...,
    min_keep: int | float = ...,
    population: int | None = ...,
    generations: int | None = ...,
    seed: int = ...,
    evaluator: str | None = ...,
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
    preset: str | None = ...,
    descriptor: str | Descriptors | None = ...,
    selection: str | None = ...,
    widths: str | None = ...,
    clusters: str | None = ...,
    seeding: str | None = ...,
    evolution: str | None = ...,
    channels_per_cluster: float | None = ...,
    round_to: int = ...,
    min_keep: int | float = ...,
    population: int | None = ...,
    generations: int | None = ...,
    seed: int = ...,
    evaluator: str | None = ...,
    calibration: Iterable[Any] | None = ...,
    labels: bool = ...,
    memory: int = ...,
) -> list[PruningPlan]: ...
@full_float32()
def search(
    graph: ChannelGraph,
    *,
    macs: Sequence[float] | float | None = None,
    params: Sequence[float] | float | None = None,
    preset: str | None = None,
    descriptor: str | Descriptors | None = None,
    selection: str | None = None,
    widths: str | None = None,
    clusters: str | None = None,
    seeding: str | None = None,
    evolution: str | None = None,
    channels_per_cluster: float | None = None,
    round_to: int = 1,
    min_keep: int | float = 0.1,
    population: int | None = None,
    generations: int | None = None,
    seed: int = 0,
    evaluator: str | None = None,
    calibration: Iterable[Any] | None = None,
    labels: bool = False,
    memory: int = MEMORY,
) -> PruningPlan | list[PruningPlan]:
    """Finds which channels to keep so that the network meets its budgets and loses least.

    How many channels every axis keeps is found by differential evolution under the budgets, started
    from a Lagrangian relaxation, on a table of what each width loses. Which ones stay follows from
    `selection`.

    With `calibration` (a few hundred samples; labels are not used) what a width loses is measured:
    the share of what the layers that read an axis respond to, weighted by how much the network's
    answer depends on it, that ridge regression from the channels that stay cannot predict. `prune`
    lets those layers take over the rest.

    preset="best" drops, one after the other, the channels that the others replace best (greedy), by
    their responses; without calibration by their weights, some twenty seconds for ResNet-50. It is
    the default where there is calibration. Without, the default is quick, a second for ResNet-50:
    clusters of the paper's three numbers, the largest crowding distance, widths that are searched.

    preset="paper" is the method of Sun et al., "A Clustering Pruning Method Based on
    Multidimensional Channel Information", Neural Processing Letters 2024, of which not all is
    published:

    1. A channel is described by the mean and the variance of its weights and their cosine distance
       to the all-ones vector (published). Each number is standardised over the axis, a tied axis
       has the numbers of all its layers, at most 16 principal components (ours).
    2. Channels of an axis are clustered by k-means++ (published); greedily, with 2 + ln k trials
       for each seed, and Lloyd's iteration to convergence (ours).
    3. An enhanced differential evolution chooses the number of clusters of every axis (published;
       neither how it is enhanced nor what it minimises is). Ours is L-SHADE, and minimises 1 minus
       the Calinski-Harabasz index as a share of the axis's best, summed over the axes.
    4. The channels to keep are not said to be searched: every axis keeps the same share of its
       channels, the largest within the budget (ours).
    5. In each cluster the channels with the largest NSGA-II crowding distance stay (published); how
       many of each is not said: one, and the rest by largest remainder of the cluster's size, ties
       by norm, then index (ours).

    With `evaluator="fitted"` the widths from the table are the start of an evolution strategy that
    prunes and fits the network for every candidate, as `prune` does, on three quarters of the
    calibration samples, and compares its answers on the rest with the dense network's: `population
    * generations` times, 40 by default, each some two or three times the work of the dense network
    on all samples. It starts with widths between those and uniform ones, so that its plan scores no
    worse than either.

    With `evaluator="network"` candidates are scored on the dense network with masks, on calibration
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
        preset: "best", "paper" or None, the default. The options up to `channels_per_cluster`
            override it.
        descriptor: What describes a channel. "moments": the paper's three numbers. "weights": the
            filters that write it, BatchNorm folded in. "responses": what it adds, on calibration
            batches, to the outputs of the layers that read it. Or points of your own,
            `mdcp_fast.Descriptors`, for all axes.
        selection: Which channels stay. Of each cluster "crowding": those with the largest crowding
            distance; "medoid": those nearest to its centre; "random": any. Or, without clusters,
            "greedy": those that are left after dropping, again and again, the one that the others
            replace best; with "weights" or "responses".
        widths: "searched", or "uniform": the largest share that all axes can keep.
        clusters: "width": as many as channels stay, over `channels_per_cluster`. "searched": chosen
            by differential evolution for the best clustering; with widths="uniform".
        seeding: Of k-means: "ward" or "k-means++".
        evolution: "l-shade", or "plain": rand/1/bin from random candidates, with neither the
            relaxation before nor the descent after it.
        channels_per_cluster: Channels kept in a cluster on average, at least 1; by default 1.
        round_to: Widths become multiples of this, for hardware that wants them. Axes that cannot
            are left whole and named in the plan.
        min_keep: The least that stays of every axis: a number of channels (int), or a fraction of
            them (float below 1).
        population: Candidates of the evolution's first generation; by default 64, 16 with
            `evaluator="network"`, 5 with `evaluator="fitted"`.
        generations: It scores at most `population * generations` candidates; by default 100, 8 with
            `evaluator="fitted"`, and 10 with `evaluator="network"`, where the descent that follows
            scores at most as many again.
        seed: Of everything random. The same seed gives the same plan; without calibration at any
            number of threads.
        evaluator: What widths are chosen by: "table", "fitted" or "network".
        calibration: Batches of inputs (tensors, tuples of the model's arguments, dicts of named
            ones, or (input, label) pairs; a DataLoader, a list or an iterator). An iterator is used
            up: `prune` then needs another one. With `evaluator="network"` of 16 samples or more
            each, since they stand in for the statistics that BatchNorm is to have.
        labels: For `evaluator="network"` and "fitted": score by the cross entropy with the labels
            of the batches, which are then pairs; by default by the divergence KL(dense ||
            candidate) of the class probabilities, which needs none.
        memory: For `evaluator="network"`: bytes that the activations of a forward pass may take, by
            default 1 GiB; candidates run in groups that fit. Scratch space inside convolutions
            comes on top.

    Returns:
        A plan, or a list of plans where a budget is a list. Its MACs and parameters are exact. Its
        history holds losses of the table, or of the networks that were tried.

    Raises:
        TypeError: A budget is not a number, or calibration batches are no inputs.
        ValueError: No budget, one outside (0, 1], one that cannot be met (the message says the
            smallest that can), nothing to prune, an unknown name, options that do not go together
            or out of range, calibration batches that do not fit the network or are not finite. With
            `evaluator="network"` or "fitted" also: no calibration, labels that do not fit, outputs
            that are no logits; with "network" a network whose samples depend on one another,
            `memory` too small for one candidate.
    """
    if not isinstance(graph, ChannelGraph):
        raise TypeError(
            f"search: graph: expected what mdcp_fast.trace returns, got {type(graph).__name__}"
        )
    budgets, several = parsed_budgets(graph, {"macs": macs, "params": params})
    how = resolve_method(
        preset,
        calibration is not None,
        descriptor=descriptor,
        selection=selection,
        widths=widths,
        clusters=clusters,
        seeding=seeding,
        evolution=evolution,
        evaluator=evaluator,
        channels_per_cluster=channels_per_cluster,
    )
    _check_options(how.evaluator, labels, memory)
    if not graph.axes:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in graph.fixed[:5])
        raise ValueError(
            f"search: graph: expected at least one prunable axis, got none: {reasons or 'no layer'}"
        )
    on_table = how.evaluator == "table"
    default = EVALUATORS[how.evaluator]
    population = default[0] if population is None else population
    generations = default[1] if generations is None else generations
    least = {"population": SMALLEST, "generations": 1, "seed": 0}
    for (name, low), value in zip(least.items(), (population, generations, seed), strict=True):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"search: {name}: expected an int, got {type(value).__name__}")
        if value < low:
            raise ValueError(f"search: {name}: expected at least {low}, got {value}")
    choices, notes = allowed_widths(graph.axes, round_to, min_keep)
    limits = limits_of(graph, budgets, choices, notes)

    batches, targets = None, None
    if calibration is not None:
        if labels:
            batches, targets = labelled_batches(graph, calibration)
        else:
            batches = calibration_batches(graph, calibration)
    own = descriptor if isinstance(descriptor, Descriptors) else None
    scorer = ChannelScorer(graph, how, batches, own, seed)
    size = (population, generations)
    table_size = size if on_table else EVALUATORS["table"]
    uniform = uniform_widths(graph, limits, choices)
    history: Sequence[Tensor] = [torch.zeros(0)] * len(budgets)
    extra: dict[str, Any] = {}
    if how.widths == "uniform":
        found_widths = uniform
    else:
        grid = Grid(choices)
        losses = scorer.losses(choices)
        relaxed = relaxed_widths(losses, graph.cost, limits, choices)
        fitness = PopulationFitness(losses, graph.cost, limits)
        found = differential_evolution(
            lambda candidates: fitness(grid.widths(candidates)),
            torch.zeros_like(grid.high),
            grid.high,
            population=table_size[0],
            generations=table_size[1],
            seeds=[seed] * len(budgets),
            initial=None if how.evolution == "plain" else indices(relaxed, choices),
            descent=how.evolution != "plain",
            algorithm=ALGORITHMS[how.evolution],
        )
        found = found._replace(best=grid.widths(found.best))
        if not on_table:
            assert batches is not None
            kept = KeptChannels(graph.widths, scorer.choose)
            if how.evaluator == "fitted":
                judge: AnswerEvaluator = RefitEvaluator(
                    graph, kept, limits, batches, labels=targets
                )
                found = evolve_widths(
                    judge, found.best, uniform, graph.cost, limits, choices, size, seed
                )
            else:
                judge = NetworkEvaluator(
                    graph, kept, limits, batches, labels=targets, memory=memory
                )
                starts = torch.cat([found.best.unsqueeze(1), uniform.unsqueeze(1), relaxed], 1)
                found = _on_network(judge, starts, choices, size, seed)
            extra = {"labels": labels, "samples": judge.samples}
        found_widths, history = found.best, list(found.history)

    options = {
        **({} if preset is None else {"preset": preset}),
        **settings(how),
        "round_to": round_to,
        "min_keep": min_keep,
        "population": population,
        "generations": generations,
        "seed": seed,
        **extra,
    }
    plans = []
    for budget, width, steps in zip(budgets, found_widths, history, strict=True):
        if how.clusters == "searched":
            chosen, steps = searched_clusters(scorer, width, size, seed)
        else:
            chosen = scorer.choose(torch.arange(len(width)), width)
        plans.append(
            PruningPlan.build(
                graph,
                chosen.kept.split(width.tolist()),
                clusters=None
                if chosen.clusters is None
                else chosen.clusters.split(chosen.channels.tolist()),
                budget=budget,
                settings=options,
                history=steps.tolist(),
                notes=notes,
            )
        )
    return plans if several else plans[0]


def _check_options(evaluator: str, labels: bool, memory: int) -> None:
    if evaluator == "table" and labels:
        raise ValueError(
            "search: labels: expected False with evaluator='table', which needs none; pass "
            "evaluator='network' or 'fitted' to use them"
        )
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError(f"search: memory: expected a number of bytes (int), got {memory!r}")


def _on_network(
    judge: NetworkEvaluator,
    starts: Tensor,
    choices: Sequence[Tensor],
    size: tuple[int, int],
    seed: int,
) -> Evolution:
    """Differential evolution and descent, with few candidates of which each is dear.

    Args:
        starts: Widths, int64 [runs, candidates, axes].
        size: Population and generations.

    Returns:
        The best widths, not indices.
    """
    grid = Grid(choices)
    low, seeds = torch.zeros_like(grid.high), [seed] * len(starts)

    def evaluate(candidates: Tensor) -> Tensor:
        return judge(grid.widths(candidates))

    population, generations = size
    found = differential_evolution(
        evaluate,
        low,
        grid.high,
        population=population,
        generations=generations,
        seeds=seeds,
        initial=indices(starts, choices),
        descent=False,
    )
    best, fitness, more = descend(
        evaluate,
        found.best,
        found.fitness,
        low,
        grid.high,
        seeds=seeds,
        moves=population,
        evaluations=population * generations,
    )
    history = torch.cat([found.history, fitness.unsqueeze(1)], 1)
    return Evolution(grid.widths(best), fitness, history, found.evaluations + more)
