"""evaluate_population: the reference is CostModel.evaluate and a sum of look-ups, written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from evaluate_population_cases import (
    CHANNELS,
    cases,
    cost_model,
    integers,
    loss_table,
    random_population,
    with_tables,
)
from torch import Tensor

from mdcp_fast.ops.evaluate_population import CostModel, LossTable, evaluate_population

CASES = cases()


def reference(population: Tensor, loss: LossTable, cost: CostModel, budget: Tensor) -> Tensor:
    losses = loss.values[loss.offsets[:-1] + population - 1].sum(-1)
    parts = loss.values.split(loss.offsets.diff().tolist())
    ceiling = sum((part.max() for part in parts), torch.zeros(()))
    excess = (cost.evaluate(population) - budget.unsqueeze(-2)).clamp_min(0)
    violation = (excess.double() / budget.unsqueeze(-2)).sum(-1)
    return torch.where(violation > 0, ceiling + violation, losses)


def test_cost_model_is_the_formula_it_was_built_from() -> None:
    widths = random_population(2, 50)
    w0, w1, w2 = widths.unbind(-1)
    expected = torch.stack([w0 * (w1 + 2 * w2 + 5) * 9 + 11, 3 * w1], -1)
    assert torch.equal(cost_model().evaluate(widths), expected)


def test_a_table_is_looked_up_at_the_first_edge_that_is_not_below() -> None:
    widths = random_population(2, 200)
    w0, w1, w2 = widths.unbind(-1)
    rows, columns = (w0 > 2).long(), (w1 + 2 * w2 + 5 > 8).long() + (w1 + 2 * w2 + 5 > 16)
    found = integers([[7, 1, 30], [4, 5, 60]])[rows, columns] + torch.where(3 * w1 > 0, 200, 100)
    expected = cost_model().evaluate(widths) + torch.stack([torch.zeros_like(found), found], -1)
    cost = with_tables(cost_model())
    assert torch.equal(cost.evaluate(widths), expected)
    # One that asks for more of the second cost than there is says how much there is.
    fitness = evaluate_population(widths, loss_table(), cost, integers([10**9, 1]))
    ceiling = sum(part.max() for part in loss_table().values.split(CHANNELS.tolist()))
    assert torch.equal(fitness, ceiling + (expected[..., 1] - 1).double())


def test_an_empty_set_of_tables_changes_no_bit() -> None:
    none = dataclasses.replace(
        cost_model(), table_offsets=integers([0, 0, 0]), edge_offsets=integers([0]),
        value_offsets=integers([0]),
    )  # fmt: skip
    args = (random_population(2, 50), loss_table())
    budget = integers([150, 12])
    expected = evaluate_population(*args, cost_model(), budget)
    assert torch.equal(evaluate_population(*args, none, budget), expected)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str) -> None:
    args = CASES[name]
    assert torch.allclose(evaluate_population(*args), reference(*args), rtol=1e-12, atol=1e-12)


def test_every_feasible_candidate_beats_every_infeasible_one() -> None:
    population, cost = random_population(1, 500), cost_model()
    budget = integers([150, 12])
    fitness = evaluate_population(population[0], loss_table(), cost, budget)
    feasible = (cost.evaluate(population[0]) <= budget).all(-1)
    assert feasible.any() and not feasible.all()
    assert fitness[feasible].max() < fitness[~feasible].min()


def test_a_single_run_needs_no_run_dimension() -> None:
    population, budget = random_population(1, 20), integers([150, 12])
    args = (loss_table(), cost_model(), budget)
    assert torch.equal(
        evaluate_population(population[0], *args), evaluate_population(population, *args)[0]
    )


def test_the_same_bits_at_every_thread_count() -> None:
    population = random_population(4, 301)
    args = (population, loss_table(), cost_model(), integers([150, 12]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = evaluate_population(*args)
        torch.set_num_threads(3)
        assert torch.equal(evaluate_population(*args), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("cost", [cost_model(), with_tables(cost_model())])
def test_opcheck_and_compile(cost: CostModel) -> None:
    loss = loss_table()
    tensors = (*dataclasses.astuple(loss), *dataclasses.astuple(cost))
    args = (random_population(2, 8), *tensors, integers([150, 12]))
    torch.library.opcheck(torch.ops.mdcp_fast.evaluate_population, args)


BAD_TABLES = [
    ({"tables": integers([[1, 4], [3, 3]])}, ValueError, "cost.tables: expected indices .* 3, got"),
    ({"tables": integers([[1, 2]])}, ValueError, "cost.table_offsets: expected .* 1, the number"),
    ({"table_offsets": integers([0, 2])}, ValueError, "table_offsets: expected 3 numbers for 2 co"),
    ({"edges": integers([4, 4, 8, 16, 24, 5, 0, 9])}, ValueError, "edges: expected edges that ris"),
    ({"edge_offsets": integers([0, 2, 5, 5, 8])}, ValueError, "edge_offsets: expected at least on"),
    ({"edge_offsets": integers([0, 2, 8])}, ValueError, "edge_offsets: expected 5 numbers for 4 r"),
    ({"edges": integers([2, 4, 8])}, ValueError, "cost.edge_offsets: expected"),
    ({"values": integers([7, 1, 30])}, ValueError, "cost.value_offsets: expected"),
    ({"values": torch.ones(8)}, TypeError, "cost.values: expected dtype torch.int64"),
    ({"value_offsets": integers([0, 5, 8])}, ValueError, "expected 6 entries of table 0, got 5"),
    ({"table_offsets": integers([])}, ValueError, "cost.table_offsets: expected"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"population": random_population(1, 4).int()}, TypeError, "population: expected dtype"),
        ({"population": integers([1, 1, 1])}, ValueError, "population: expected shape"),
        ({"population": integers([[1, 1]])}, ValueError, "loss: expected a table of the 2 axes"),
        ({"population": integers([[1, 8, 1]])}, ValueError, "axis 1 between 1 and 7, got 8"),
        ({"population": integers([[0, 1, 1]])}, ValueError, "axis 0 between 1 and 4, got 0"),
        ({"budget": integers([5])}, ValueError, r"budget: expected shape \[any, 2\]"),
        ({"budget": integers([[5, 5], [5, 5]])}, ValueError, "budget: expected 1 runs, got 2"),
        ({"budget": integers([5, 0])}, ValueError, "budget: expected numbers of at least 1"),
        ({"budget": torch.ones(2)}, TypeError, "budget: expected dtype"),
        (
            {"loss": LossTable(torch.full((14,), float("nan")).double(), loss_table().offsets)},
            ValueError,
            "loss.values: expected finite",
        ),
        (
            {"cost": dataclasses.replace(cost_model(), axis=integers([0, 1, 3, 1]))},
            ValueError,
            "cost.axis: expected indices from 0 to 2, got 0 to 3",
        ),
        (
            {"cost": dataclasses.replace(cost_model(), offsets=integers([0, 0, 3, 1, 4]))},
            ValueError,
            "cost.offsets: expected numbers that never decrease",
        ),
        *(
            ({"cost": dataclasses.replace(with_tables(cost_model()), **change)}, error, message)
            for change, error, message in BAD_TABLES
        ),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {
        "population": random_population(1, 4)[0],
        "loss": loss_table(),
        "cost": cost_model(),
        "budget": integers([150, 12]),
    }
    with pytest.raises(error, match=message):
        evaluate_population(**{**arguments, **change})
