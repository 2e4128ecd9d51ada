"""Scores a population of pruning candidates at once: losses looked up, costs against budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import (
    check_finite,
    check_offsets,
    check_tensor,
    cuda_execution,
    runs_on_cuda,
)
from mdcp_fast.ops._native import native

OP = "evaluate_population"
TABLE_PARTS = ("tables", "table_offsets", "edges", "edge_offsets", "values", "value_offsets")


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device="cpu")


@dataclass(frozen=True)
class CostModel:
    """Costs of a network (MACs, parameters) as a function of its axis widths w, exact in int64.

    A layer's cost is a product of how many positions stay along its weight's dimensions. Each such
    number is a count,

        count[i] = constant[i] + sum over j of factor[j] * w[axis[j]],

    j from offsets[i] to offsets[i + 1] - 1,

    and a cost is a sum of products of two counts (count 0 is the constant 1, for linear and
    constant terms):

        cost[m] = sum of coefficients[m, t] * count[terms[t, 0]] * count[terms[t, 1]] over t.

    What no product gives, as measured times do not, is an entry of a table by two counts, added to

        cost[m] += values[value_offsets[t] + row * columns + column],

    t from table_offsets[m] to table_offsets[m + 1] - 1. The table's rows go by count[tables[t, 0]]:
    the row is that of the first of their edges that is not below the count, or the last row; its
    columns go by count[tables[t, 1]] likewise. So a table may have entries for multiples of 8
    alone. The rows' edges are edges[edge_offsets[2 t] : edge_offsets[2 t + 1]], the columns' the
    next ones.

    Attributes:
        constant: int64 [counts], positions that no axis touches.
        offsets: int64 [counts + 1], bounds of each count's entries in `axis` and `factor`.
        axis: int64 [entries], the axis whose width counts.
        factor: int64 [entries], positions that each channel of it has there.
        terms: int64 [terms, 2], the two counts of each product.
        coefficients: int64 [costs, terms].
        tables: int64 [tables, 2], the two counts of each table. By default there is no table.
        table_offsets: int64 [costs + 1], bounds of each cost's tables.
        edges: int64 [edges], in rising order within each table's rows and columns.
        edge_offsets: int64 [2 * tables + 1], bounds of the edges of rows and columns.
        values: int64 [entries of all tables], row by row.
        value_offsets: int64 [tables + 1], bounds of each table's entries.
    """

    constant: Tensor
    offsets: Tensor
    axis: Tensor
    factor: Tensor
    terms: Tensor
    coefficients: Tensor
    tables: Tensor = field(default_factory=lambda: _none().reshape(0, 2))
    table_offsets: Tensor = field(default_factory=_none)
    edges: Tensor = field(default_factory=_none)
    edge_offsets: Tensor = field(default_factory=_none)
    values: Tensor = field(default_factory=_none)
    value_offsets: Tensor = field(default_factory=_none)

    def evaluate(self, widths: Tensor) -> Tensor:
        """The costs at `widths` (int64 [..., axes]): int64 [..., costs]."""
        counts = self.counts(widths)
        products = counts[..., self.terms[:, 0]] * counts[..., self.terms[:, 1]]  # [..., terms]
        costs = (products.unsqueeze(-2) * self.coefficients).sum(-1)
        bounds = self.table_offsets.tolist()
        for cost, (begin, end) in enumerate(pairwise(bounds)):
            for table in range(begin, end):
                costs[..., cost] += self.entries(table, counts[..., self.tables[table]])
        return costs

    def counts(self, widths: Tensor) -> Tensor:
        """The counts at `widths` (int64 [..., axes]): int64 [..., counts]."""
        shares = widths[..., self.axis] * self.factor  # [..., entries]
        owner = torch.repeat_interleave(self.offsets.diff())
        counts = self.constant.expand(*widths.shape[:-1], -1).clone()
        return counts.index_add_(-1, owner, shares)

    def entries(self, table: int, counts: Tensor) -> Tensor:
        """The entries of a table at its two counts, int64 [..., 2]: int64 [...]."""
        begin, middle, end = self.edge_offsets[2 * table : 2 * table + 3].tolist()
        row, column = (
            torch.bucketize(count.contiguous(), edges).clamp_max(len(edges) - 1)
            for count, edges in zip(
                counts.unbind(-1), (self.edges[begin:middle], self.edges[middle:end]), strict=True
            )
        )
        first = int(self.value_offsets[table])
        return self.values[first + row * (end - middle) + column]


@dataclass(frozen=True)
class LossTable:
    """The loss of each axis at each width.

    Attributes:
        values: float64 [sum of channels], finite; axis a at width w is at `offsets[a] + w - 1`.
        offsets: int64 [axes + 1]; the difference is each axis's dense width.
    """

    values: Tensor
    offsets: Tensor


def evaluate_population(
    population: Tensor, loss: LossTable, cost: CostModel, budget: Tensor
) -> Tensor:
    """Fitness of every candidate of every run, lower is better.

    A candidate within its run's budgets scores the sum of its axes' losses. Any other scores the
    largest possible sum of losses plus its excesses as fractions of the budgets, so that feasible
    beats infeasible and less excess beats more (Deb's rules, "An efficient constraint handling
    method for genetic algorithms", 2000).

    Costs are exact, losses are added in the order of the axes: the result is the same bit for bit
    on CPU and CUDA, for any number of threads. All candidates of all runs are scored in one launch
    on the current stream. The checks read values, so with CUDA tensors they wait for the device.

    Args:
        population: int64 [runs, candidates, axes] or [candidates, axes] on CPU or CUDA, widths;
            each from 1 to its axis's channels.
        loss: Losses of `axes` axes, on the same device (the offsets on any).
        cost: Costs in the same axes, on the same device (the offsets on any).
        budget: int64 [runs, costs], or [costs] or [1, costs] (the same for all runs), on the same
            device: the most of each cost that is allowed.

    Returns:
        float64 [runs, candidates] or [candidates], on the device of `population`.

    Raises:
        TypeError: A tensor of another dtype.
        ValueError: Shapes or devices that do not fit, a width outside its axis, a loss that is not
            finite, a budget below 1, a cost that may leave int64.
        RuntimeError: CUDA tensors where mdcp_fast was built without CUDA.
    """
    fitness: Tensor = torch.ops.mdcp_fast.evaluate_population(
        population, loss.values, loss.offsets, cost.constant, cost.offsets, cost.axis, cost.factor,
        cost.terms, cost.coefficients, cost.tables, cost.table_offsets, cost.edges,
        cost.edge_offsets, cost.values, cost.value_offsets, budget,
    )  # fmt: skip
    return fitness


@torch.library.custom_op("mdcp_fast::evaluate_population", mutates_args=())
def _evaluate_population(
    population: Tensor,
    loss_values: Tensor,
    loss_offsets: Tensor,
    constant: Tensor,
    count_offsets: Tensor,
    axis: Tensor,
    factor: Tensor,
    terms: Tensor,
    coefficients: Tensor,
    tables: Tensor,
    table_offsets: Tensor,
    edges: Tensor,
    edge_offsets: Tensor,
    values: Tensor,
    value_offsets: Tensor,
    budget: Tensor,
) -> Tensor:
    cost = CostModel(
        constant, count_offsets, axis, factor, terms, coefficients, tables, table_offsets, edges,
        edge_offsets, values, value_offsets,
    )  # fmt: skip
    return PopulationFitness(LossTable(loss_values, loss_offsets), cost, budget)(population)


class PopulationFitness:
    """`evaluate_population` for many populations: all but the population is checked once.

    Args:
        loss, cost, budget: As in `evaluate_population`. They are copied.

    Raises:
        TypeError, ValueError, RuntimeError: As `evaluate_population` does.
    """

    def __init__(self, loss: LossTable, cost: CostModel, budget: Tensor) -> None:
        values = check_tensor(OP, "loss.values", loss.values, torch.float64, (None,)).clone()
        self._on_cuda = runs_on_cuda(OP, "loss.values", values)
        offsets = check_offsets(OP, "loss.offsets", loss.offsets, len(values), "losses").clone()
        check_finite(OP, "loss.values", values)
        channels = offsets.diff()
        if bool((channels < 1).any()):
            raise ValueError(f"{OP}: loss.offsets: expected at least one width in every axis")
        parts = _checked_cost(cost, len(channels), values.device)
        _check_range(CostModel(*parts), channels)
        limits = budget.unsqueeze(0) if budget.dim() == 1 else budget
        shape = (None, len(parts[5]))
        limits = check_tensor(OP, "budget", limits, torch.int64, shape, device=values.device)
        if bool((limits < 1).any()):
            raise ValueError(
                f"{OP}: budget: expected numbers of at least 1, got {int(limits.min())}"
            )
        self._values, self._offsets, self._limits = values, offsets, limits.clone()
        self._channels = channels.to(values.device)
        self._parts = [part.clone() for part in parts]

    def __call__(self, population: Tensor) -> Tensor:
        """The fitness; see `evaluate_population`.

        Args:
            population: int64 [runs, candidates, axes] or [candidates, axes].

        Returns:
            float64 [runs, candidates] or [candidates].
        """
        single = population.dim() == 2
        given = population.unsqueeze(0) if single else population
        device = self._values.device
        widths = check_tensor(OP, "population", given, torch.int64, (None,) * 3, device=device)
        runs, _, axes = widths.shape
        if len(self._channels) != axes:
            raise ValueError(
                f"{OP}: loss: expected a table of the {axes} axes of population, got one of "
                f"{len(self._channels)}"
            )
        limits = self._limits
        if len(limits) != runs:
            if len(limits) != 1:
                raise ValueError(f"{OP}: budget: expected {runs} runs, got {len(limits)}")
            limits = limits.expand(runs, -1).contiguous()
        if self._on_cuda:
            _check_widths(widths, self._channels)
            fitness = _launch(native, widths, self._values, self._offsets, self._parts, limits)
        else:
            fitness = torch.empty(widths.shape[:2], dtype=torch.float64, device=device)
            within = native.evaluate_population(
                _problem(native, widths, self._values, self._offsets, self._parts, limits),
                native.EvaluatePopulationResult(fitness=fitness.data_ptr()),
                native.Execution(threads=torch.get_num_threads(), simd=0),
            )
            if not within:
                _check_widths(widths, self._channels)
        return fitness[0] if single else fitness


def _check_widths(widths: Tensor, channels: Tensor) -> None:
    """Finds every width, int64 [runs, candidates, axes], of its axis's channels, or raises."""
    outside = ((widths < 1) | (widths > channels)).nonzero()
    if len(outside):
        run, candidate, a = outside[0].tolist()
        raise ValueError(
            f"{OP}: population: expected widths of axis {a} between 1 and {channels[a]}, got "
            f"{widths[run, candidate, a]} in candidate {candidate} of run {run}"
        )


def _launch(
    core: Any,
    widths: Tensor,
    values: Tensor,
    offsets: Tensor,
    parts: Sequence[Tensor],
    limits: Tensor,
) -> Tensor:
    """Runs the CUDA kernels on the current stream.

    Args:
        core: the native core. One whose kernels are emulated takes CPU tensors.
        widths: int64 [runs, candidates, axes] on the device.
        values: float64 [sum of channels] on the device, the losses.
        offsets: int64 [axes + 1], bounds of each axis's losses.
        parts: the tensors of a CostModel, in their order.
        limits: int64 [runs, costs] on the device.
    """
    offsets, *parts = (one.to(widths.device) for one in (offsets, *parts))
    fitness = torch.empty(widths.shape[:2], dtype=torch.float64, device=widths.device)
    problem = _problem(core, widths, values, offsets, parts, limits)
    needed = core.evaluate_population_cuda_workspace(problem)
    workspace = torch.empty(needed, dtype=torch.uint8, device=widths.device)
    core.evaluate_population_cuda(
        problem,
        core.EvaluatePopulationResult(fitness=fitness.data_ptr()),
        cuda_execution(core, workspace),
    )
    return fitness


def _problem(
    core: Any,
    widths: Tensor,
    values: Tensor,
    offsets: Tensor,
    parts: Sequence[Tensor],
    limits: Tensor,
) -> Any:
    """The native core's problem; see `_launch` for the tensors."""
    cost = CostModel(*parts)
    addresses = {name: part.data_ptr() for name, part in vars(cost).items()}
    runs, candidates, axes = widths.shape
    return core.EvaluatePopulationProblem(
        population=widths.data_ptr(),
        runs=runs,
        candidates=candidates,
        axes=axes,
        loss=values.data_ptr(),
        loss_offsets=offsets.data_ptr(),
        cost=core.Cost(
            **addresses,
            counts=len(cost.constant),
            term_count=len(cost.terms),
            costs=len(cost.coefficients),
            table_count=len(cost.tables),
        ),
        limits=limits.data_ptr(),
    )


@_evaluate_population.register_fake
def _(population: Tensor, *_: Tensor) -> Tensor:
    return population.new_empty(population.shape[:-1], dtype=torch.float64)


def _checked_cost(cost: CostModel, axes: int, device: torch.device) -> list[Tensor]:
    """A cost model's tensors, contiguous; every index in them was found to point at something.

    They are on the device, but for the offsets, on the CPU.
    """
    constant = _checked_part(cost, device, "constant", None)
    counts = len(constant)
    _checked_part(cost, device, "axis", None)
    _checked_part(cost, device, "terms", None, 2)
    parts = [
        constant,
        _checked_bounds(cost, "offsets", counts, "counts", "axis"),
        _checked_part(cost, device, "axis", None),
        _checked_part(cost, device, "factor", len(cost.axis)),
        _checked_part(cost, device, "terms", None, 2),
        _checked_part(cost, device, "coefficients", None, len(cost.terms)),
    ]
    _check_indices("axis", cost.axis, axes)
    _check_indices("terms", cost.terms, counts)
    tables = [getattr(cost, name) for name in TABLE_PARTS]
    if all(part.numel() == 0 for part in tables):
        none = CostModel(*parts)  # whatever shapes they have, of which only one is of no table
        return parts + [getattr(none, name).to(device) for name in TABLE_PARTS]
    return parts + _checked_tables(cost, device)


def _checked_tables(cost: CostModel, device: torch.device) -> list[Tensor]:
    """The TABLE_PARTS of a cost model that has tables; see `_checked_cost`."""
    where = _checked_part(cost, device, "tables", None, 2)
    tables = len(where)
    _checked_part(cost, device, "edges", None)
    _checked_part(cost, device, "values", None)
    parts = [
        where,
        _checked_bounds(cost, "table_offsets", len(cost.coefficients), "costs", "tables"),
        _checked_part(cost, device, "edges", None),
        _checked_bounds(cost, "edge_offsets", 2 * tables, "rows and columns of tables", "edges"),
        _checked_part(cost, device, "values", None),
        _checked_bounds(cost, "value_offsets", tables, "tables", "values"),
    ]
    _check_indices("tables", cost.tables, len(cost.constant))
    _, _, edges, edge_offsets, _, value_offsets = parts
    lengths = edge_offsets.diff()
    if bool((lengths < 1).any()):
        raise ValueError(f"{OP}: cost.edge_offsets: expected at least one edge of every list")
    inside = torch.ones(max(len(edges) - 1, 0), dtype=torch.bool, device="cpu")
    inside[edge_offsets[1:-1] - 1] = False  # where a list ends and the next begins
    if bool((edges.cpu().diff()[inside] <= 0).any()):
        raise ValueError(f"{OP}: cost.edges: expected edges that rise within every list")
    sizes = lengths[::2] * lengths[1::2]
    wrong = (value_offsets.diff() != sizes).nonzero()
    if len(wrong):
        table = int(wrong[0])
        raise ValueError(
            f"{OP}: cost.value_offsets: expected {int(sizes[table])} entries of table {table}, got "
            f"{int(value_offsets.diff()[table])}"
        )
    return parts


def _check_range(cost: CostModel, channels: Tensor) -> None:
    """Raises ValueError where a cost may leave int64, at any widths: it would wrap around."""
    constant, factor, coefficients, values = (
        part.cpu().abs().double()
        for part in (cost.constant, cost.factor, cost.coefficients, cost.values)
    )
    axis, terms = cost.axis.cpu(), cost.terms.cpu()
    owner = torch.repeat_interleave(cost.offsets.diff())
    counts = constant.index_add(0, owner, factor * channels[axis])  # the largest they can be
    most = coefficients @ (counts[terms[:, 0]] * counts[terms[:, 1]])
    for index, (begin, end) in enumerate(pairwise(cost.table_offsets.tolist())):
        first, last = cost.value_offsets[begin], cost.value_offsets[end]
        most[index] += values[first:last].sum()  # more than the largest of each table
    bad = (most >= 2.0**63).nonzero()
    if len(bad):
        raise ValueError(
            f"{OP}: cost.coefficients: expected costs below 2^63 at the largest widths, got "
            f"{most[bad[0]].item():.3g} for cost {int(bad[0])}"
        )


def _checked_part(cost: CostModel, device: torch.device, name: str, *shape: int | None) -> Tensor:
    part = getattr(cost, name)
    return check_tensor(OP, f"cost.{name}", part, torch.int64, shape, device=device)


def _checked_bounds(cost: CostModel, name: str, count: int, what: str, of: str) -> Tensor:
    """Offsets of the cost model: the bounds of `count` pieces of its tensor `of`, on the CPU."""
    offsets: Tensor = getattr(cost, name)
    total = len(getattr(cost, of))
    checked = check_offsets(OP, f"cost.{name}", offsets, total, f"entries of cost.{of}")
    if len(checked) != count + 1:
        raise ValueError(
            f"{OP}: cost.{name}: expected {count + 1} numbers for {count} {what}, got "
            f"{len(checked)}"
        )
    return checked


def _check_indices(name: str, indices: Tensor, bound: int) -> None:
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < bound:
        raise ValueError(
            f"{OP}: cost.{name}: expected indices from 0 to {bound - 1}, got "
            f"{int(indices.min())} to {int(indices.max())}"
        )
