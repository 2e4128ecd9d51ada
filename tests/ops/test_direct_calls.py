"""torch.ops.mdcp_fast.* called past the functions of mdcp_fast: wrong arguments raise, never crash.

And tensors whose memory holds something else than they mean (the negative bit) count as what they
mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluate_population_cases import cost_model, integers, loss_table, random_population
from torch import Tensor

from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.evaluate_population import CostModel, evaluate_population
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.ops.ward import ward

OPS = torch.ops.mdcp_fast
POINTS = torch.arange(10.0).view(5, 2)
OFFSETS, K = integers([0, 5]), integers([2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init": "given"}, "init: expected 'given' with centers, .* got 'given' without"),
        ({"centers": POINTS[:2]}, "init: expected 'given' with centers, .* got 'ward' with"),
        ({"init": ""}, "init: expected 'given' with centers, .* got '' without"),
        ({"init": "given", "centers": POINTS[:1]}, r"init: expected shape \[2, 2\], got \[1, 2\]"),
        ({"max_iter": -1}, "max_iter: expected 0 to 2.63 - 1, got -1"),
        ({"seed": -1}, "seed: expected 0 to 2.63 - 1, got -1"),
        ({"simd": "mmx"}, "simd: expected None or one of"),
        ({"k": integers([6])}, "k: expected 1 to 5"),
        ({"k": integers([-1])}, "k: expected 1 to 5"),
        ({"problem": integers([1])}, "problem: expected 0 to 0, got 1 at 0"),
        ({"offsets": integers([])}, "offsets: expected at least one number"),
        ({"points": torch.tensor(1.0)}, r"points: expected shape \[any, any\], got \[\]"),
        ({"points": POINTS.to("meta")}, "points: expected a tensor on cpu or cuda"),
    ],
)
def test_kmeans(changed: dict[str, Any], message: str) -> None:
    arguments = {
        "points": POINTS, "offsets": OFFSETS, "k": K, "problem": None, "init": "ward",
        "centers": None, "max_iter": 5, "seed": 0, "simd": None,
    } | changed  # fmt: skip
    with pytest.raises(ValueError, match=f"kmeans: {message}"):
        OPS.kmeans(*arguments.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPS.ward(POINTS, integers([0, 6]), None), "ward: offsets: expected to end at 5"),
        (lambda: OPS.ward(POINTS.view(-1), OFFSETS, None), "ward: points: expected shape"),
        (lambda: OPS.ward(POINTS, OFFSETS.view(1, 2), None), "ward: offsets: expected shape"),
        (
            lambda: OPS.crowding_distance(POINTS, integers([0, 6, 5]), None),
            "crowding_distance: offsets: expected numbers that never decrease",
        ),
        (
            lambda: OPS.crowding_distance(POINTS * torch.nan, OFFSETS, None),
            "crowding_distance: points: expected finite numbers",
        ),
        (
            lambda: OPS.channel_statistics([POINTS], "channel", None),
            "channel_statistics: unit: expected one of",
        ),
        (
            lambda: OPS.channel_statistics([POINTS.view(-1)], "kernel", None),
            r"channel_statistics: weights\[0\]: expected at least 2 dimensions",
        ),
        (
            lambda: OPS.population_norm(POINTS, torch.ones(2, 2), None, None, 1e-5),
            "population_norm: masks: expected a row for each candidate",
        ),
        (
            lambda: OPS.population_norm(POINTS, torch.ones(0, 2), None, None, 1e-5),
            "population_norm: masks: expected a row for each candidate",
        ),
        (
            lambda: OPS.population_norm(POINTS, torch.ones(1, 2), None, None, torch.nan),
            "population_norm: eps: expected a positive number, got nan",
        ),
    ],
)
def test_other_ops(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def fitness(cost: CostModel) -> Tensor:
    return evaluate_population(random_population(1, 3), loss_table(), cost, integers([100, 100]))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(CostModel)])
@pytest.mark.parametrize(
    "part",
    [torch.tensor(1), torch.zeros(3, 3, dtype=torch.int64), torch.zeros(2), integers([-1])],
    ids=["no dimension", "two dimensions", "floats", "negative"],
)
def test_every_part_of_a_cost_model_is_checked(name: str, part: Tensor) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"evaluate_population: (cost\.\w+|budget): expected"
    ):
        fitness(dataclasses.replace(cost_model(), **{name: part}))


def test_tables_without_an_entry_are_none() -> None:
    """Whatever shape says so: five tables of no columns would be read from nowhere."""
    none = torch.zeros(5, 0, dtype=torch.int64)
    assert torch.equal(
        fitness(dataclasses.replace(cost_model(), tables=none)), fitness(cost_model())
    )


def test_a_cost_that_may_leave_int64_is_refused() -> None:
    """It would wrap around, and be called feasible."""
    model = cost_model()
    for part in ("coefficients", "constant", "factor"):
        huge = getattr(model, part).clone()
        huge.view(-1)[0] = 2**62
        with pytest.raises(ValueError, match="cost.coefficients: expected costs below 2.63"):
            fitness(dataclasses.replace(model, **{part: huge}))


def negative(value: Tensor) -> Tensor:
    """The same numbers in a view with the negative bit: its memory holds their negatives."""
    view = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert view.is_neg() and torch.equal(view, value)
    return view


def test_the_negative_bit_is_heeded() -> None:
    torch.manual_seed(0)
    points, weight = torch.randn(12, 3), torch.randn(4, 2, 3, 3)
    offsets = integers([0, 5, 12])
    for unit in ("filter", "kernel"):
        found = channel_statistics(negative(weight), unit=unit)
        assert torch.equal(found[0], channel_statistics(weight, unit=unit)[0])
    assert torch.equal(ward(negative(points), offsets), ward(points, offsets))
    found = crowding_distance(negative(points), offsets)
    assert torch.equal(found, crowding_distance(points, offsets))
    k = integers([2, 3])
    centers = torch.randn(5, 3)
    for init, other in (("ward", "ward"), (negative(centers), centers)):
        pairs = zip(
            kmeans(negative(points), offsets, k, init=init),
            kmeans(points, offsets, k, init=other),
            strict=True,
        )
        assert all(torch.equal(one, two) for one, two in pairs)
    masks = torch.rand(2, 3)
    found = population_norm(
        negative(points), negative(masks), negative(points[0]), negative(masks[0])
    )
    assert torch.equal(found, population_norm(points, masks, points[0], masks[0]))
