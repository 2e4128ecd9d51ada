"""The Lagrangian start: within the limits, and close to the best where all can be tried."""

from __future__ import annotations

import itertools

import torch

from mdcp_fast.ops.evaluate_population import CostModel, LossTable
from mdcp_fast.planning.relaxation import relaxed_widths


def integers(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def chain(channels: list[int], seed: int) -> tuple[LossTable, CostModel, list[torch.Tensor]]:
    """A chain of layers: MACs are the products of neighbouring widths, parameters their sum."""
    axes = len(channels)
    generator = torch.Generator().manual_seed(seed)
    # Convex tables: there relaxation has no gap but that of whole numbers.
    weights = torch.rand(axes, generator=generator, dtype=torch.float64).tolist()
    tables = [
        weight * (1 - torch.arange(1, c + 1, dtype=torch.float64) / c).square()
        for weight, c in zip(weights, channels, strict=True)
    ]
    offsets = torch.cat([integers([0]), integers(channels).cumsum(0)])
    pairs = [[i, i + 1] for i in range(1, axes)]
    singles = [[0, i + 1] for i in range(axes)]
    cost = CostModel(
        constant=integers([1] + [0] * axes),
        offsets=integers([0, *range(axes + 1)]),
        axis=torch.arange(axes),
        factor=torch.ones(axes, dtype=torch.int64),
        terms=integers(pairs + singles),
        coefficients=integers(
            [[1] * len(pairs) + [0] * axes, [0] * len(pairs) + [1] * axes],
        ),
    )
    return LossTable(torch.cat(tables), offsets), cost, [torch.arange(1, c + 1) for c in channels]


def test_meets_the_limits_and_comes_close_to_the_optimum() -> None:
    channels = [12, 10, 14, 8]
    loss, cost, choices = chain(channels, 0)
    dense = cost.evaluate(integers(channels))
    limits = torch.stack([dense // 2, torch.stack([dense[0], dense[1] * 6 // 10]), dense])
    found = relaxed_widths(loss, cost, limits, choices)
    assert (cost.evaluate(found) <= limits.unsqueeze(1)).all()

    every = integers(list(itertools.product(*[one.tolist() for one in choices])))
    losses = loss.values[loss.offsets[:-1] + every - 1].sum(-1)
    reached = loss.values[loss.offsets[:-1] + found - 1].sum(-1).amin(1)
    for limit, loss_found in zip(limits, reached, strict=True):
        allowed = (cost.evaluate(every) <= limit).all(-1)
        assert loss_found <= losses[allowed].min() * 1.05 + 1e-12


def test_only_choices_are_chosen_and_a_loose_limit_keeps_everything() -> None:
    loss, cost, _ = chain([16, 9, 16], 1)
    choices = [integers([8, 16]), integers([9]), integers([4, 8, 12, 16])]
    dense = cost.evaluate(integers([16, 9, 16]))
    found = relaxed_widths(loss, cost, torch.stack([dense, dense * 7 // 10]), choices)
    for a, one in enumerate(choices):
        assert torch.isin(found[..., a], one).all()
    assert (
        loss.values[loss.offsets[:-1] + found[0] - 1].sum(-1).amin()
        <= loss.values[loss.offsets[:-1] + integers([16, 9, 16]) - 1].sum()
    )


def test_a_limit_that_only_the_smallest_widths_meet() -> None:
    loss, cost, choices = chain([4, 4, 4], 2)
    smallest = cost.evaluate(integers([1, 1, 1])).unsqueeze(0)
    found = relaxed_widths(loss, cost, smallest, choices)
    assert torch.equal(found, torch.ones_like(found))


def test_costs_in_tables_have_a_price_too() -> None:
    """The same costs, as products of counts and as tables of all that they may be."""
    loss, products, choices = chain([7, 9, 6], 2)
    edges = [[1] if count == 0 else choices[count - 1].tolist() for count in range(4)]
    rows, columns = zip(*products.terms.tolist(), strict=True)
    sizes = [len(edges[count]) for pair in products.terms.tolist() for count in pair]
    values = [
        [r * c for r in edges[row] for c in edges[column]]
        for row, column in zip(rows, columns, strict=True)
    ]
    tables = CostModel(
        constant=products.constant,
        offsets=products.offsets,
        axis=products.axis,
        factor=products.factor,
        terms=products.terms[:0],
        coefficients=products.coefficients[:, :0],
        tables=products.terms,
        table_offsets=integers([0, 2, 5]),
        edges=integers([e for pair in products.terms.tolist() for c in pair for e in edges[c]]),
        edge_offsets=integers([0, *itertools.accumulate(sizes)]),
        values=integers([v for table in values for v in table]),
        value_offsets=integers([0, *itertools.accumulate(map(len, values))]),
    )
    dense = products.evaluate(integers([7, 9, 6]))
    limits = torch.stack([dense // 2, dense * 3 // 4])
    assert torch.equal(
        tables.evaluate(integers([[3, 2, 6]])), products.evaluate(integers([[3, 2, 6]]))
    )
    expected = relaxed_widths(loss, products, limits, choices)
    assert torch.equal(relaxed_widths(loss, tables, limits, choices), expected)
    assert (expected[:, -1] > 1).any()
