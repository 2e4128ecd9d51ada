"""crowding_distance on the CPU: exact agreement with the written-out definition."""

from __future__ import annotations

from math import inf

import pytest
import torch
from crowding_distance_cases import cases, offsets_of, points_of
from torch import Tensor

from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.reference.crowding_distance import crowding_distance_reference

CASES = cases()


def assert_agrees(points: Tensor, offsets: Tensor) -> None:
    """Both sum in float64 in the same order, so rounding to float32 gives the same number."""
    expected = crowding_distance_reference(points, offsets).float()
    for level in simd_levels():
        assert torch.equal(crowding_distance(points, offsets, simd=level), expected)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64(name: str) -> None:
    assert_agrees(*CASES[name])


def test_written_out_example() -> None:
    points = torch.tensor([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0], [1.0, 2.0]])
    # By the first dimension 0 1 4 2 3; by the second 3 2 1 4 0. Points 1 and 4 are alike.
    expected = [inf, 1 / 4 + 1 / 4, 3 / 4 + 2 / 4, inf, 2 / 4 + 2 / 4]
    assert crowding_distance(points, offsets_of(5)).tolist() == expected


@pytest.mark.parametrize("size", [5, 300])
def test_constant_dimension_is_left_out(size: int) -> None:
    points = points_of(size, 3)
    points[:, 1] = 7.0
    offsets = offsets_of(size)
    result = crowding_distance(points, offsets)
    assert torch.equal(result, crowding_distance(points[:, [0, 2]], offsets))
    points[:] = -0.5
    assert torch.equal(crowding_distance(points, offsets), torch.zeros(size))


def test_small_segments_are_all_infinity() -> None:
    points = torch.zeros(3, 2)
    assert crowding_distance(points, offsets_of(1, 2)).tolist() == [inf] * 3


@pytest.mark.parametrize("size", [6, 300])
def test_zeros_of_either_sign_are_equal(size: int) -> None:
    signs = torch.arange(size) % 2 == 0
    points = torch.where(signs, 0.0, -0.0)[:, None].contiguous()
    assert crowding_distance(points, offsets_of(size)).tolist() == [0.0] * size
    points = torch.cat([points, torch.tensor([[1.0], [-1.0]])])
    assert torch.equal(
        crowding_distance(points, offsets_of(size + 2)),
        crowding_distance(points + 0.0, offsets_of(size + 2)),
    )


@pytest.mark.parametrize("scale", [3e38, 1e-38, 1e-44])
@pytest.mark.parametrize("size", [9, 400])
def test_no_range_gives_a_nan(scale: float, size: int) -> None:
    assert not crowding_distance(*CASES[f"up to {scale}, {size}"]).isnan().any()


def test_inner_distances_lie_between_0_and_the_dimensions() -> None:
    result = crowding_distance(points_of(500, 4), offsets_of(500))
    inner = result[result.isfinite()]
    assert len(inner) >= 500 - 2 * 4
    assert (inner >= 0).all() and (inner <= 4).all()


def test_shift_and_scale_by_powers_of_two_change_nothing() -> None:
    points, offsets = points_of(60, 3), offsets_of(20, 40)
    expected = crowding_distance(points, offsets)
    assert torch.equal(crowding_distance(points * 0.125, offsets), expected)
    assert torch.equal(crowding_distance(-points, offsets), expected)


def test_same_bits_for_every_thread_count() -> None:
    points, offsets = points_of(20_000, 3), offsets_of(*[20] * 500, 5_000, 5_000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(crowding_distance(points, offsets))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


def test_segments_are_independent() -> None:
    points = points_of(700, 3)
    together = crowding_distance(points, offsets_of(100, 600))
    assert torch.equal(together[:100], crowding_distance(points[:100], offsets_of(100)))
    assert torch.equal(together[100:], crowding_distance(points[100:], offsets_of(600)))


def test_strides_gradients_and_nothing() -> None:
    points, offsets = points_of(40, 3), offsets_of(40)
    expected = crowding_distance(points, offsets)
    assert torch.equal(crowding_distance(points.T.contiguous().T, offsets), expected)
    result = crowding_distance(points.clone().requires_grad_(), offsets)
    assert not result.requires_grad and torch.equal(result, expected)
    assert crowding_distance(torch.empty(0, 3), torch.zeros(1, dtype=torch.int64)).shape == (0,)
    assert crowding_distance(torch.empty(0, 3), torch.zeros(4, dtype=torch.int64)).shape == (0,)


def test_the_default_dtype_does_not_matter() -> None:
    points, offsets = points_of(40, 3), offsets_of(40)
    expected = crowding_distance(points, offsets)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(crowding_distance(points, offsets), expected)
    finally:
        torch.set_default_dtype(torch.float32)


POINTS = torch.zeros(4, 2)
HOLE = torch.tensor([[0.0, 1.0], [2.0, torch.nan], [torch.inf, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("points", "offsets", "error", "message"),
    [
        ([[1.0]], offsets_of(1), TypeError, "points: expected a torch.Tensor, got list"),
        (POINTS, [0, 4], TypeError, "offsets: expected a torch.Tensor, got list"),
        (POINTS.double(), offsets_of(4), TypeError, "points: expected dtype torch.float32"),
        (POINTS, offsets_of(4).int(), TypeError, "offsets: expected dtype torch.int64"),
        (POINTS[0], offsets_of(2), ValueError, r"points: expected shape \[any, any\], got \[2\]"),
        (torch.zeros(4, 0), offsets_of(4), ValueError, "expected 1 to 16 dimensions"),
        (torch.zeros(4, 17), offsets_of(4), ValueError, "expected 1 to 16 dimensions"),
        (POINTS, offsets_of(2, 3), ValueError, "expected to end at 4, .*got 5"),
        (POINTS, torch.tensor([1, 4]), ValueError, "expected to start at 0, got 1"),
        (POINTS, torch.tensor([0, 3, 2, 4]), ValueError, "never decrease, got 3 then 2 at 2"),
        (POINTS, torch.empty(0, dtype=torch.int64), ValueError, "expected at least one number"),
        (POINTS, torch.zeros(2, 2, dtype=torch.int64), ValueError, r"offsets: expected shape"),
        (HOLE, offsets_of(4), ValueError, r"points: expected finite numbers, got nan at \[1, 1\]"),
        (HOLE[2:], offsets_of(2), ValueError, r"expected finite numbers, got inf at \[0, 0\]"),
    ],
)
def test_wrong_input(points: object, offsets: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^crowding_distance: .*{message}"):
        crowding_distance(points, offsets)  # type: ignore[arg-type]


def test_registered_with_torch() -> None:
    points, offsets = points_of(12, 3), offsets_of(5, 7)
    torch.library.opcheck(torch.ops.mdcp_fast.crowding_distance, (points, offsets, None))
    compiled = torch.compile(crowding_distance, fullgraph=True, backend="eager")
    assert torch.equal(compiled(points, offsets), crowding_distance(points, offsets))
