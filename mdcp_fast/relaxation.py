"""Good widths for a budget by Lagrangian relaxation: where the search starts.

With a price on cost instead of a budget, axes can be optimised one after another, exactly: the loss
of one axis is a table, and the cost is quadratic in one width. The price that just meets the budget
is found by narrowing a grid of prices, all of which advance together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcp_fast.ops.population import CostModel, LossTable

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
    tables = [
        loss.values[start + one - 1]
        for start, one in zip(loss.offsets[:-1].tolist(), choices, strict=True)
    ]
    logs = torch.linspace(*RANGE, PRICES, dtype=torch.float64).expand(runs, -1)
    widths = highest.expand(runs, PRICES, -1).clone()
    found = [lowest.expand(runs, -1)]
    for _ in range(ROUNDS):
        price = 10.0**logs
        for _ in range(SWEEPS):
            for a, (one, table) in enumerate(zip(choices, tables, strict=True)):
                linear, square = _quadratic(cost, widths, a, binding)
                width = one.double()
                total = linear.unsqueeze(2) * width + square.unsqueeze(2) * width.square()
                best = (table + price.unsqueeze(2) * total).argmin(2)
                widths[..., a] = one[best]
        meets = (cost.evaluate(widths) <= limits.unsqueeze(1)).all(-1)  # [runs, PRICES]
        first = torch.where(meets.any(1), meets.long().argmax(1), PRICES - 1)
        chosen = widths[torch.arange(runs), first]
        found.append(torch.where(meets.any(1, keepdim=True), chosen, found[-1]))
        below = logs.gather(1, (first - 1).clamp_min(0).unsqueeze(1))
        above = logs.gather(1, first.unsqueeze(1))
        logs = below + (above - below) * torch.linspace(0, 1, PRICES, dtype=torch.float64)
        widths = chosen.unsqueeze(1).expand(-1, PRICES, -1).clone()
    return torch.stack(found, 1)


def _quadratic(cost: CostModel, widths: Tensor, a: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of w and w^2 of the weighted cost in the width w of axis a, the others as given.

    Args:
        widths: int64 [runs, PRICES, axes].
        weights: float64 [runs, costs].

    Returns:
        Two float64 [runs, PRICES].
    """
    at = widths.unsqueeze(2).repeat(1, 1, 3, 1)
    at[..., a] = torch.arange(3)
    values = (cost.evaluate(at).double() * weights[:, None, None]).sum(-1)  # [runs, PRICES, 3]
    square = (values[..., 2] - 2 * values[..., 1] + values[..., 0]) / 2
    return values[..., 1] - values[..., 0] - square, square
