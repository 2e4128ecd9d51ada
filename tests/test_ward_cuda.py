"""The CUDA kernels of `ward`, emulated: the bits of the CPU op, whatever the schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clustering_inputs import (
    COUNTS,
    POWERS,
    TIES,
    bounds,
    cloud,
    integers_of_magnitude,
    small_problems,
    thousand_sizes,
)
from emulation.build import EmulatedCore
from mdcp_fast.ops.ward import _launch, ward

SCHEDULES = (0, 1, 2, 3)


def check(
    core: EmulatedCore, points: Tensor, *sizes: int, schedules: tuple[int, ...] = SCHEDULES
) -> None:
    offsets = bounds(*(sizes or (len(points),)))
    expected = ward(points, offsets)
    for seed in schedules:
        core.set_schedule(seed)
        assert torch.equal(_launch(core, points.contiguous(), offsets), expected), seed


@pytest.mark.parametrize("count", [*COUNTS, 128, 129, 1024])
def test_every_size_of_block_and_tile(emulated: EmulatedCore, count: int) -> None:
    check(emulated, cloud(count, 3, count), schedules=(0, 1) if count >= 1000 else SCHEDULES)


@pytest.mark.parametrize("dimensions", range(1, 17))
def test_every_dimension(emulated: EmulatedCore, dimensions: int) -> None:
    check(emulated, cloud(150, dimensions, dimensions))


def test_4096_points(emulated: EmulatedCore) -> None:
    check(emulated, cloud(4096, 3), schedules=(1,))


def test_many_equal_points(emulated: EmulatedCore) -> None:
    check(emulated, torch.ones(4096, 16), schedules=(2,))


@pytest.mark.parametrize("dimensions", [1, 3, 4, 5, 16])
def test_large_problems_take_several_blocks(emulated: EmulatedCore, dimensions: int) -> None:
    points = cloud(1200 + 100 + 1025 + 1, dimensions)
    points[1300:1500] = points[2000:2200].round()  # some equal, in one of the large problems
    check(emulated, points, 1200, 100, 1025, 1, schedules=(1,))


def test_a_large_line_of_equal_steps_takes_a_round_for_each_pair(emulated: EmulatedCore) -> None:
    check(emulated, torch.arange(1100.0)[:, None], schedules=(1,))


@pytest.mark.parametrize("name", TIES)
def test_ties(emulated: EmulatedCore, name: str) -> None:
    check(emulated, TIES[name])


def test_small_problems(emulated: EmulatedCore) -> None:
    for points in small_problems():
        check(emulated, points, schedules=(1, 2))


@pytest.mark.parametrize("power", POWERS)
def test_huge_and_tiny_magnitudes(emulated: EmulatedCore, power: int) -> None:
    check(emulated, integers_of_magnitude(power))


def test_a_thousand_problems_in_one_call(emulated: EmulatedCore) -> None:
    sizes = thousand_sizes().tolist()
    check(emulated, cloud(sum(sizes), 3), *sizes, schedules=(1, 2))


@pytest.mark.parametrize("sizes", [(0,), (1,), (0, 1, 0, 1)])
def test_nothing_to_merge(emulated: EmulatedCore, sizes: tuple[int, ...]) -> None:
    check(emulated, cloud(sum(sizes), 2), *sizes)


def test_no_problems(emulated: EmulatedCore) -> None:
    assert _launch(emulated, cloud(0, 2), bounds()).shape == (0, 4)


def test_every_access_is_within_the_memory_given(checked: EmulatedCore) -> None:
    for dimensions in (2, 3, 4, 8, 16):
        check(checked, cloud(300, dimensions), 100, 150, 1, 0, 49, schedules=(1,))
    check(checked, cloud(1050, 3), schedules=(1,))
