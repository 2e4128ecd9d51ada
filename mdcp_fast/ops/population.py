"""Scores a whole population of pruning candidates at once: a look-up of losses, and costs against budgets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mdcp_fast.ops._arguments import check_finite, check_offsets, check_tensor, simd_level
from mdcp_fast.ops._native import native

OP = "evaluate_population"


@dataclass(frozen=True)
class CostModel:
    """Costs of a network (MACs, parameters) as a function of its axis widths w, exact in int64.

    A layer's cost is a product of how many positions stay along its weight's dimensions. Each such number is a count,

        count[i] = constant[i] + sum of factor[j] * w[axis[j]] over j in offsets[i] .. offsets[i + 1] - 1,

    and a cost is a sum of products of two counts (count 0 is the constant 1, for linear and constant terms):

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
