"""Good widths for a budget by Lagrangian relaxation: where the search starts.

With a price on cost instead of a budget, axes can be optimised one after another, exactly: the loss
of one axis is a table, and the cost is quadratic in one width, but for what tables add to it. The
price that just meets the budget is found by narrowing a grid of prices, all of which advance
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import CostModel, LossTable

PRICES = 16  # priced problems that advance together
ROUNDS = 4  # times that the grid is narrowed to the gap around the budget
SWEEPS = 3  # passes over all axes at each price
RANGE = (-4.0, 3.0)  # decimal logarithms of the first prices, in loss per dense cost


def relaxed_widths(
    loss: LossTable, cost: CostModel, limits: Tensor, choices: Sequence[Tensor]
) -> Tensor:
    """Widths that meet the limits and are optimal, axis by axis, for some price on the costs.

    Args:
        loss: Losses of every axis at every width.
        cost: Costs in the axes' widths.
        limits: int64 [runs, costs], the most of each cost; the smallest choices must meet them.
        choices: For each axis the widths that may be chosen, int64, increasing.

    Returns:
        int64 [runs, ROUNDS + 1, axes]: the smallest choices, and the best found in every round.
    """
    lowest = torch.stack([one[0] for one in choices])
    highest = torch.stack([one[-1] for one in choices])
    runs, dense = len(limits), cost.evaluate(highest).double().clamp_min(1)
    # A cost with room to spare has no price.
    binding = (limits < cost.evaluate(highest)).double() / dense  # [runs, costs]
    axes = [
        _Axis(cost, a, one, loss.values[start + one - 1], binding)
        for a, (start, one) in enumerate(zip(loss.offsets[:-1].tolist(), choices, strict=True))
    ]
    logs = torch.linspace(*RANGE, PRICES, dtype=torch.float64).expand(runs, -1)
    widths = highest.expand(runs, PRICES, -1).clone()
    found = [lowest.expand(runs, -1)]
    for _ in range(ROUNDS):
        # Sums of products of whole numbers are exact in whatever order a matrix product adds them.
        price, counts = (10.0**logs).unsqueeze(2), cost.counts(widths).double()
        for _ in range(SWEEPS):
            before = widths.clone()
            for a, axis in enumerate(axes):
                widths[..., a] = axis.improved(widths[..., a], counts, price)
            if torch.equal(widths, before):  # so would all further sweeps leave them
                break
        meets = (cost.evaluate(widths) <= limits.unsqueeze(1)).all(-1)  # [runs, PRICES]
        first = torch.where(meets.any(1), meets.long().argmax(1), PRICES - 1)
        chosen = widths[torch.arange(runs), first]
        found.append(torch.where(meets.any(1, keepdim=True), chosen, found[-1]))
        below = logs.gather(1, (first - 1).clamp_min(0).unsqueeze(1))
        above = logs.gather(1, first.unsqueeze(1))
        logs = below + (above - below) * torch.linspace(0, 1, PRICES, dtype=torch.float64)
        widths = chosen.unsqueeze(1).expand(-1, PRICES, -1).clone()
    return torch.stack(found, 1)


class _Axis:
    """One axis: the widths it may have, and how the costs depend on its width w.

    Where the counts of a term are p + f w and q + g w, it is p q + (p g + q f) w + f g w^2. So,
    with the other axes as they are, a cost is a constant + `linear` * w + `square` * w^2, and what
    its tables have at these counts.

    Args:
        cost: Costs of the network.
        a: Which of its axes.
        choices: int64 [choices], the widths it may have.
        losses: float64 [choices].
        weights: float64 [runs, costs], what each cost counts.
    """

    def __init__(
        self, cost: CostModel, a: int, choices: Tensor, losses: Tensor, weights: Tensor
    ) -> None:
        self._choices, self._losses, self._width = choices, losses, choices.double()
        owner = torch.repeat_interleave(cost.offsets.diff())
        factors = torch.zeros_like(cost.constant)
        factors.index_add_(0, owner, torch.where(cost.axis == a, cost.factor, 0))
        self._own = factors.nonzero().flatten()  # the counts that it is part of
        self._factors = factors[self._own].double()
        (left, right), coefficients = cost.terms.T, cost.coefficients.T  # [terms], [terms, costs]
        f, g = factors[left].unsqueeze(1), factors[right].unsqueeze(1)
        slopes = coefficients.new_zeros(len(factors), coefficients.shape[1])
        slopes.index_add_(0, left, coefficients * g).index_add_(0, right, coefficients * f)
        self._met = slopes.any(1).nonzero().flatten()  # the counts that it is multiplied with
        self._slopes = slopes[self._met].double()  # [met, costs]
        self._square = (coefficients * f * g).sum(0).double()  # [costs]
        self._weights = weights.unsqueeze(1)  # [runs, 1, costs]
        self._bend = (self._weights * self._square).sum(-1, keepdim=True)  # [runs, 1, 1]
        self._cost = cost
        self._tables = [
            (table, factors[cost.tables[table]], weights[:, of].view(-1, 1, 1))
            for of, bounds in enumerate(pairwise(cost.table_offsets.tolist()))
            for table in range(*bounds)
            if factors[cost.tables[table]].any()
        ]

    def improved(self, width: Tensor, counts: Tensor, price: Tensor) -> Tensor:
        """The width of least loss plus priced cost; `counts` follow it.

        Args:
            width: int64 [runs, PRICES], what it is now.
            counts: float64 [runs, PRICES, counts].
            price: float64 [runs, PRICES, 1].

        Returns:
            int64 [runs, PRICES].
        """
        old = width.unsqueeze(2)
        linear = counts.index_select(2, self._met) @ self._slopes - 2 * self._square * old
        rise = (linear * self._weights).sum(-1, keepdim=True)
        priced = (price * rise) * self._width
        if self._bend.any():
            priced += (price * self._bend) * self._width.square()
        for table, factors, weight in self._tables:
            grown = (self._choices - old).unsqueeze(3) * factors  # [runs, PRICES, choices, 2]
            at = counts[..., self._cost.tables[table]].long().unsqueeze(2) + grown
            priced += (price * weight) * self._cost.entries(table, at)
        best = self._choices[priced.add_(self._losses).argmin(2)]
        counts.index_add_(2, self._own, (best.unsqueeze(2) - old) * self._factors)
        return best
