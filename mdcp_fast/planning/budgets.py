"""What budgets and wishes mean for the widths of a network's axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import CostModel
from mdcp_fast.tracing.graph import ChannelGraph

SHARES = 256  # uniform widths that are tried
HALVINGS = 40  # of the interval in which a common factor of all widths lies


class Grid:
    """Candidates as indices into what each axis may be.

    Args:
        choices: For each axis int64, increasing.

    Attributes:
        start: int64 [axes], where each axis's choices begin when all lie one after the other.
        high: int64 [axes], the largest index.
    """

    def __init__(self, choices: Sequence[Tensor]) -> None:
        self._packed = torch.cat(list(choices))
        counts = torch.tensor([len(one) for one in choices])
        self.start, self.high = counts.cumsum(0) - counts, counts - 1

    def widths(self, candidates: Tensor) -> Tensor:
        """What the indices stand for: int64 [..., axes] -> int64 [..., axes]."""
        return self._packed[self.start + candidates]


def indices(widths: Tensor, choices: Sequence[Tensor]) -> Tensor:
    """Which of each axis's choices the widths are: int64 [..., axes], as `widths`."""
    return torch.stack(
        [
            torch.searchsorted(one, column.contiguous())
            for one, column in zip(choices, widths.unbind(-1), strict=True)
        ],
        -1,
    )


def uniform_widths(graph: ChannelGraph, limits: Tensor, choices: Sequence[Tensor]) -> Tensor:
    """The largest widths, all at one share of the dense ones, within the limits: [runs, axes]."""
    shares = torch.linspace(0, 1, SHARES + 1, dtype=torch.float64)
    wanted = shares.unsqueeze(1) * graph.widths
    widths = Grid(choices).widths(_below(wanted, choices))  # [shares, axes]
    fits = (graph.cost.evaluate(widths) <= limits.unsqueeze(1)).all(2)  # [runs, shares]
    # The last that fits, and not how many do: measured costs may fall as widths grow.
    return widths[(fits * torch.arange(len(shares))).argmax(1)]


def scaled_widths(
    shape: Tensor, cost: CostModel, limits: Tensor, choices: Sequence[Tensor]
) -> Tensor:
    """The largest allowed widths in given proportions that meet the limits.

    Args:
        shape: float64 [runs, candidates, axes], positive.
        cost: Costs in the axes' widths.
        limits: int64 [runs, costs], which the smallest choices must meet.
        choices: For each axis the widths that may be chosen, int64, increasing.

    Returns:
        int64, as `shape`. Costs that are left go to the axes that rounding down took most from.
    """
    grid, limit = Grid(choices), limits.unsqueeze(1)

    def meets(candidates: Tensor) -> Tensor:
        return (cost.evaluate(grid.widths(candidates)) <= limit).all(-1)  # [runs, candidates]

    highest = grid.widths(grid.high)
    low = torch.zeros(shape.shape[:2], dtype=torch.float64)
    high = (highest / shape).amax(2)  # where every axis is whole
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = meets(_below(shape * middle.unsqueeze(2), choices))
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    wanted = shape * low.unsqueeze(2)
    found = _below(wanted, choices)
    share = wanted / grid.widths(found)
    for axis in share.argsort(dim=2, descending=True, stable=True).unbind(2):
        one_more = torch.nn.functional.one_hot(axis, len(choices))
        wider = torch.minimum(found + one_more, grid.high)
        found = torch.where(meets(wider).unsqueeze(2), wider, found)
    return grid.widths(found)


def _below(wanted: Tensor, choices: Sequence[Tensor]) -> Tensor:
    """Indices of the largest choices up to what is wanted, or of the smallest: [..., axes]."""
    columns = [
        torch.searchsorted(one, column.floor().long().contiguous(), right=True) - 1
        for one, column in zip(choices, wanted.unbind(-1), strict=True)
    ]
    return torch.stack(columns, -1).clamp_min(0)


def parsed_budgets(
    graph: ChannelGraph, budgets: Mapping[str, Any]
) -> tuple[list[dict[str, float]], bool]:
    """Every wanted budget as {"macs": fraction, ...}, and whether a list of them was asked for."""
    known = ", ".join(graph.costs)
    for name in budgets:
        if name not in graph.costs:
            raise TypeError(f"search: expected options of search or costs ({known}), got {name!r}")
    given = {name: budgets[name] for name in graph.costs if budgets.get(name) is not None}
    if not given:
        raise ValueError(f"search: {known}: expected at least one budget, got none")
    lists = {
        name: list(value)
        for name, value in given.items()
        if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1
    }
    lengths = {len(value) for value in lists.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"search: {', '.join(lists)}: expected lists of the same length, at least 1, got "
            f"{' and '.join(str(len(value)) for value in lists.values())}"
        )
    count = lengths.pop() if lengths else 1
    columns = {name: lists.get(name, [value] * count) for name, value in given.items()}
    parsed = [
        {name: _fraction(name, column[i]) for name, column in columns.items()} for i in range(count)
    ]
    return parsed, bool(lists)


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


def largest_within(fraction: float, dense: int) -> int:
    """The largest whole t for which t / dense, rounded to a float, is at most `fraction`.

    So what a plan costs, as a fraction of the dense network, is a budget that this plan meets;
    floor(fraction * dense) may be one less, since the product is rounded too.

    Args:
        fraction: From 0 to 1.
        dense: At least 0, of any size.
    """
    low = math.floor(Fraction(fraction) * dense)
    # Quotients up to here may still be rounded down to `fraction`.
    high = min(math.ceil(Fraction(math.nextafter(fraction, math.inf)) * dense), dense)
    while low < high:
        middle = (low + high + 1) // 2
        if middle / dense <= fraction:  # of whole numbers: rounded once
            low = middle
        else:
            high = middle - 1
    return low


def limits_of(
    graph: ChannelGraph,
    budgets: Sequence[dict[str, float]],
    choices: Sequence[Tensor],
    notes: dict[str, str],
) -> Tensor:
    """The most of each cost in numbers: int64 [budgets, costs], costs in the graph's order."""
    least = graph.costs_at(torch.stack([one[0] for one in choices]))
    rows = []
    for budget in budgets:
        row = []
        for name, smallest in least.items():
            dense = graph.costs[name]
            limit = largest_within(budget.get(name, 1.0), dense)
            if limit < smallest:
                possible = math.ceil(smallest / dense * 1e4) / 1e4
                whole = "".join(f"; {axis}: {note}" for axis, note in notes.items())
                raise ValueError(
                    f"search: {name}: expected at least {possible:g}, which keeps the smallest "
                    f"widths that min_keep and round_to allow, got {budget[name]:g}{whole}"
                )
            row.append(max(limit, 1))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)
