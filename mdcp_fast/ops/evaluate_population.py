"""Scores a population of pruning candidates at once: losses looked up, costs against budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    Attributes:
        constant: int64 [counts], positions that no axis touches.
        offsets: int64 [counts + 1], bounds of each count's entries in `axis` and `factor`.
        axis: int64 [entries], the axis whose width counts.
        factor: int64 [entries], positions that each channel of it has there.
        terms: int64 [terms, 2], the two counts of each product.
        coefficients: int64 [costs, terms].
    """

    constant: Tensor
    offsets: Tensor
    axis: Tensor
    factor: Tensor
    terms: Tensor
    coefficients: Tensor

    def evaluate(self, widths: Tensor) -> Tensor:
        """The costs at `widths` (int64 [..., axes]): int64 [..., costs]."""
        shares = widths[..., self.axis] * self.factor  # [..., entries]
        owner = torch.repeat_interleave(self.offsets.diff())
        counts = self.constant.expand(*widths.shape[:-1], -1).clone()
        counts.index_add_(-1, owner, shares)
        products = counts[..., self.terms[:, 0]] * counts[..., self.terms[:, 1]]  # [..., terms]
        return (products.unsqueeze(-2) * self.coefficients).sum(-1)


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
            finite, a budget below 1.
        RuntimeError: CUDA tensors where mdcp_fast was built without CUDA.
    """
    fitness: Tensor = torch.ops.mdcp_fast.evaluate_population(
        population, loss.values, loss.offsets, cost.constant, cost.offsets, cost.axis, cost.factor,
        cost.terms, cost.coefficients, budget,
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
    budget: Tensor,
) -> Tensor:
    return PopulationFitness(
        LossTable(loss_values, loss_offsets),
        CostModel(constant, count_offsets, axis, factor, terms, coefficients),
        budget,
    )(population)


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
        limits = budget.unsqueeze(0) if budget.dim() == 1 else budget
        shape = (None, len(cost.coefficients))
        limits = check_tensor(OP, "budget", limits, torch.int64, shape, device=values.device)
        if bool((limits < 1).any()):
            raise ValueError(
                f"{OP}: budget: expected numbers of at least 1, got {int(limits.min())}"
            )
        self._values, self._offsets, self._limits = values, offsets, limits.clone()
        self._channels = channels.to(values.device)
        self._parts = [part.clone() for part in _checked_cost(cost, len(channels), values.device)]

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
    constant, count_offsets, axis, factor, terms, coefficients = parts
    runs, candidates, axes = widths.shape
    return core.EvaluatePopulationProblem(
        population=widths.data_ptr(),
        runs=runs,
        candidates=candidates,
        axes=axes,
        loss=values.data_ptr(),
        loss_offsets=offsets.data_ptr(),
        cost=core.Cost(
            constant=constant.data_ptr(),
            offsets=count_offsets.data_ptr(),
            axis=axis.data_ptr(),
            factor=factor.data_ptr(),
            terms=terms.data_ptr(),
            coefficients=coefficients.data_ptr(),
            counts=len(constant),
            term_count=len(terms),
            costs=len(coefficients),
        ),
        limits=limits.data_ptr(),
    )


@_evaluate_population.register_fake
def _(population: Tensor, *_: Tensor) -> Tensor:
    return population.new_empty(population.shape[:-1], dtype=torch.float64)


def _checked_cost(cost: CostModel, axes: int, device: torch.device) -> tuple[Tensor, ...]:
    """A cost model's tensors, contiguous; every index in them was found to point at something.

    They are on the device, but for the offsets, on the CPU.
    """
    entries, counts = len(cost.axis), len(cost.constant)

    def checked(name: str, *shape: int | None) -> Tensor:
        part = getattr(cost, name)
        return check_tensor(OP, f"cost.{name}", part, torch.int64, shape, device=device)

    parts = (
        checked("constant", None),
        check_offsets(OP, "cost.offsets", cost.offsets, entries, "entries of cost.axis"),
        checked("axis", None),
        checked("factor", entries),
        checked("terms", None, 2),
        checked("coefficients", None, len(cost.terms)),
    )
    if len(cost.offsets) != counts + 1:
        raise ValueError(
            f"{OP}: cost.offsets: expected {counts + 1} numbers for {counts} counts, got "
            f"{len(cost.offsets)}"
        )
    for name, indices, bound in (("axis", cost.axis, axes), ("terms", cost.terms, counts)):
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < bound:
            raise ValueError(
                f"{OP}: cost.{name}: expected indices from 0 to {bound - 1}, got "
                f"{int(indices.min())} to {int(indices.max())}"
            )
    return parts
