"""Scores a population of pruning candidates at once: losses looked up, costs against budgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import check_finite, check_offsets, check_tensor
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

    Args:
        population: int64 [runs, candidates, axes] or [candidates, axes], widths; each from 1 to its
            axis's channels.
        loss: Losses of `axes` axes.
        cost: Costs in the same axes.
        budget: int64 [runs, costs] or [costs] (the same for all runs): the most of each cost that
            is allowed.

    Returns:
        float64 [runs, candidates] or [candidates].

    Raises:
        TypeError: A tensor of another dtype.
        ValueError: Shapes that do not fit, a width outside its axis, a loss that is not finite, a
            budget below 1.
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
    if isinstance(population, Tensor) and population.device.type != "cpu":
        raise ValueError(
            f"{OP}: population: expected a tensor on the CPU (this version has no kernel for "
            f"other devices), got one on {population.device}"
        )
    single = population.dim() == 2
    widths = check_tensor(
        OP, "population", population[None] if single else population, torch.int64, (None,) * 3
    )
    runs, candidates, axes = widths.shape
    values = check_tensor(OP, "loss.values", loss_values, torch.float64, (None,))
    offsets = check_offsets(OP, "loss.offsets", loss_offsets, len(values), "losses")
    if len(offsets) != axes + 1:
        raise ValueError(
            f"{OP}: loss: expected a table of the {axes} axes of population, got one of "
            f"{len(offsets) - 1}"
        )
    check_finite(OP, "loss.values", values)
    if bool((offsets.diff() < 1).any()):
        raise ValueError(f"{OP}: loss.offsets: expected at least one width in every axis")
    channels = offsets.diff()
    outside = ((widths < 1) | (widths > channels)).nonzero()
    if len(outside):
        run, candidate, a = outside[0].tolist()
        raise ValueError(
            f"{OP}: population: expected widths of axis {a} between 1 and {channels[a]}, got "
            f"{widths[run, candidate, a]} in candidate {candidate} of run {run}"
        )
    limits = budget.expand(runs, -1) if budget.dim() == 1 else budget
    limits = check_tensor(OP, "budget", limits, torch.int64, (runs, len(coefficients)))
    if bool((limits < 1).any()):
        raise ValueError(f"{OP}: budget: expected numbers of at least 1, got {int(limits.min())}")
    parts = _checked_cost(axes, constant, count_offsets, axis, factor, terms, coefficients)
    fitness = torch.empty((runs, candidates), dtype=torch.float64)
    native.evaluate_population(
        widths.data_ptr(), runs, candidates, axes, values.data_ptr(), offsets.data_ptr(),
        [part.data_ptr() for part in parts], [len(constant), len(terms), len(coefficients)],
        limits.data_ptr(), fitness.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return fitness[0] if single else fitness


@_evaluate_population.register_fake
def _(population: Tensor, *_: Tensor) -> Tensor:
    return population.new_empty(population.shape[:-1], dtype=torch.float64)


def _checked_cost(
    axes: int,
    constant: Tensor,
    offsets: Tensor,
    axis: Tensor,
    factor: Tensor,
    terms: Tensor,
    coefficients: Tensor,
) -> tuple[Tensor, ...]:
    """A cost model's tensors, contiguous; every index in them was found to point at something."""
    entries, counts = len(axis), len(constant)
    parts = (
        check_tensor(OP, "cost.constant", constant, torch.int64, (None,)),
        check_offsets(OP, "cost.offsets", offsets, entries, "entries of cost.axis"),
        check_tensor(OP, "cost.axis", axis, torch.int64, (None,)),
        check_tensor(OP, "cost.factor", factor, torch.int64, (entries,)),
        check_tensor(OP, "cost.terms", terms, torch.int64, (None, 2)),
        check_tensor(OP, "cost.coefficients", coefficients, torch.int64, (None, len(terms))),
    )
    if len(offsets) != counts + 1:
        raise ValueError(
            f"{OP}: cost.offsets: expected {counts + 1} numbers for {counts} counts, got "
            f"{len(offsets)}"
        )
    for name, indices, bound in (("axis", axis, axes), ("terms", terms, counts)):
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < bound:
            raise ValueError(
                f"{OP}: cost.{name}: expected indices from 0 to {bound - 1}, got "
                f"{int(indices.min())} to {int(indices.max())}"
            )
    return parts
