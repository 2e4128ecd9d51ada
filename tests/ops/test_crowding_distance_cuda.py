"""crowding_distance's CUDA kernels, emulated: the CPU op's bits on every schedule."""

from __future__ import annotations

import pytest
import torch
from crowding_distance_cases import cases, offsets_of, points_of
from emulation.build import EmulatedCore
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mdcp_fast.ops import _arguments
from mdcp_fast.ops.crowding_distance import _launch, crowding_distance

CASES = cases()
SCHEDULES = (0, 1, 2)  # in order, and two drawn at random
THREADS, TILE = 256, 2048  # as csrc/cuda/crowding_distance.cu has them


def assert_agrees(emulated: EmulatedCore, points: Tensor, offsets: Tensor) -> None:
    expected = crowding_distance(points, offsets)
    for seed in SCHEDULES:
        emulated.set_schedule(seed)
        assert torch.equal(_launch(emulated, points, offsets), expected)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_cpu(emulated: EmulatedCore, name: str) -> None:
    assert_agrees(emulated, *CASES[name])


@pytest.mark.parametrize("decimals", [0, 6])
def test_sizes_around_those_of_blocks_and_tiles(emulated: EmulatedCore, decimals: int) -> None:
    sizes = (THREADS - 1, 1, THREADS, THREADS + 1, 3, 512, TILE - 1, TILE, 0, TILE + 1, 2 * TILE)
    offsets = offsets_of(*sizes, 2 * TILE + 1, 7)
    points = points_of(int(offsets[-1]), 2).round(decimals=decimals)
    assert_agrees(emulated, points, offsets)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_tiles_of_points_all_alike(emulated: EmulatedCore, value: float) -> None:
    points = torch.full((TILE + 500, 2), value)
    points[::2] = 0.0
    assert_agrees(emulated, points, offsets_of(len(points)))


@pytest.mark.parametrize("dimensions", range(1, 17))
def test_any_number_of_dimensions(emulated: EmulatedCore, dimensions: int) -> None:
    offsets = offsets_of(50, 40, 260)
    assert_agrees(emulated, points_of(350, dimensions), offsets)


def test_a_thousand_ragged_segments(emulated: EmulatedCore) -> None:
    sizes = torch.randint(0, 20, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert_agrees(emulated, points_of(sum(sizes), 3), offsets_of(*sizes))


def test_more_empty_segments_than_a_task_holds(emulated: EmulatedCore) -> None:
    sizes = [*[0] * 1000, 5, *[0] * 300, 6]
    assert_agrees(emulated, points_of(11, 3), offsets_of(*sizes))


def test_one_launch_unless_a_segment_exceeds_a_tile(emulated: EmulatedCore) -> None:
    launches: list[str] = []
    emulated.set_launch_hook(lambda kernel, *_: launches.append(kernel))
    _launch(emulated, points_of(4000, 3), offsets_of(10, 0, 300, TILE, 1642))
    assert len(launches) == 1
    _launch(emulated, points_of(4000, 3), offsets_of(10, 4000 - 10))
    assert len(launches) == 3
    _launch(emulated, torch.empty(0, 3), offsets_of(0, 0))
    assert len(launches) == 3


def test_shared_memory_fits_every_device(emulated: EmulatedCore) -> None:
    """At most 48 KiB, which no device makes a launch ask for."""
    needed: list[int] = []
    emulated.set_launch_hook(lambda kernel, grid, block, shared, *_: needed.append(shared))
    for size in (1, THREADS, THREADS + 1, TILE, TILE + 1):
        _launch(emulated, torch.zeros(size, 16), offsets_of(size))
    _launch(emulated, torch.zeros(THREADS, 16), offsets_of(*[1] * THREADS))
    assert 0 < max(needed) <= 48 * 1024


def test_fake_cuda_tensors() -> None:
    with FakeTensorMode():
        points = torch.empty(12, 3, device="cuda")
        result = torch.ops.mdcp_fast.crowding_distance(points, torch.empty(3).long(), None)
    assert result.shape == (12,) and result.dtype == torch.float32
    assert result.device.type == "cuda"


def test_other_devices_are_named() -> None:
    points = torch.empty(4, 2, device="meta")
    with pytest.raises(ValueError, match="crowding_distance: points: expected a tensor on cpu or"):
        _arguments.runs_on_cuda("crowding_distance", "points", points)


def test_without_cuda_in_the_build_the_error_says_how_to_rebuild(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Core:
        with_cuda = False

    monkeypatch.setattr(_arguments, "native", Core)
    with FakeTensorMode():
        points = torch.empty(4, 2, device="cuda")
    with pytest.raises(RuntimeError, match=r"without CUDA.*MDCP_CUDA=1 pip install"):
        _arguments.runs_on_cuda("crowding_distance", "points", points)
    monkeypatch.setattr(Core, "with_cuda", True)
    assert _arguments.runs_on_cuda("crowding_distance", "points", points)
