"""The CUDA kernels of `ward`, emulated: the bits of the CPU op, whatever the schedule."""

from __future__ import annotations

import importlib

import pytest
import torch
from emulated_ops import Emulation
from emulation.build import EmulatedCore
from replay import replays
from test_ward import bounds, cloud
from torch import Tensor

from mdcp_fast.ops.ward import _launch, ward

ELSEWHERE = Emulation([importlib.import_module("mdcp_fast.ops.ward")], schedules=(1, 2))
SCHEDULES = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def _emulation(emulated: EmulatedCore) -> None:
    ELSEWHERE.core = emulated


for _name, _test in replays("ward", ELSEWHERE):
    globals()[_name] = _test


def check(
    core: EmulatedCore, points: Tensor, *sizes: int, schedules: tuple[int, ...] = SCHEDULES
) -> None:
    offsets = bounds(*(sizes or (len(points),)))
    expected = ward(points, offsets)
    for seed in schedules:
        core.set_schedule(seed)
        assert torch.equal(_launch(core, points.contiguous(), offsets), expected), seed


@pytest.mark.parametrize("count", [32, 33, 127, 128, 129, 255, 256, 257])
def test_sizes_around_those_of_tiles_and_blocks(emulated: EmulatedCore, count: int) -> None:
    check(emulated, cloud(count, 3, count))


@pytest.mark.parametrize("dimensions", [1, 3, 4, 5, 16])
def test_large_problems_take_several_blocks(emulated: EmulatedCore, dimensions: int) -> None:
    points = cloud(1200 + 100 + 1025 + 1, dimensions)
    points[1300:1500] = points[2000:2200].round()  # some equal, in one of the large problems
    check(emulated, points, 1200, 100, 1025, 1, schedules=(1,))


def test_a_large_line_of_equal_steps_takes_a_round_for_each_pair(emulated: EmulatedCore) -> None:
    check(emulated, torch.arange(1100.0)[:, None], schedules=(1,))


def test_the_number_of_launches_depends_on_no_value(emulated: EmulatedCore) -> None:
    launches: list[str] = []
    emulated.set_launch_hook(lambda kernel, *_: launches.append(kernel))
    _launch(emulated, cloud(1000, 3), bounds(30, 0, 970))
    assert len(launches) == 6  # start, search, finish large and small ones, rank, write
    _launch(emulated, cloud(1000, 3), bounds(30, 0, 970))
    assert len(launches) == 12


def test_every_access_is_within_the_memory_given(checked: EmulatedCore) -> None:
    for dimensions in (2, 3, 4, 8, 16):
        check(checked, cloud(300, dimensions), 100, 150, 1, 0, 49, schedules=(1,))
    check(checked, cloud(1050, 3), schedules=(1,))
