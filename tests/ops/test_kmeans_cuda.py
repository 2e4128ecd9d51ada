"""The CUDA kernels of `kmeans`, emulated: the bits of the CPU op, whatever the schedule."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from emulated_ops import Emulation
from emulation.build import EmulatedCore
from replay import assert_same_bits, replays
from test_kmeans import bounds, cloud, shared_out
from torch import Tensor

from mdcp_fast.ops.kmeans import kmeans

OP = importlib.import_module("mdcp_fast.ops.kmeans")
TWICE, ONCE = Emulation([OP], schedules=(1, 2)), Emulation([OP], schedules=(3,))
# Call the op again and again with what only the CPU heeds; the first one's case is below.
CPU_ONLY = {
    "test_kmeans_same_bits_for_all_threads_and_instruction_sets",
    "test_kmeans_centres_that_go_round_in_circles_come_to_an_end",
}
LONG = {
    "test_kmeans_4096_points",
    "test_kmeans_every_k_at_once_is_each_k_alone",
    "test_kmeans_ragged_jobs_do_not_touch_each_other",
}


@pytest.fixture(autouse=True)
def _emulation(emulated: EmulatedCore) -> None:
    TWICE.core = ONCE.core = emulated


_long = dict(replays("kmeans", ONCE))
for _name, _test in replays("kmeans", TWICE):
    if _name not in CPU_ONLY:
        globals()[_name] = _long[_name] if _name in LONG else _test


def check(points: Tensor, offsets: Tensor, k: Tensor, **options: Any) -> None:
    assert_same_bits(
        ONCE(kmeans, points, offsets, k, **options), kmeans(points, offsets, k, **options)
    )


@pytest.mark.parametrize("init", ["ward", "k-means++"])
@pytest.mark.parametrize("dimensions", [1, 3])
def test_jobs_of_very_different_sizes(dimensions: int, init: str) -> None:
    points, offsets, k, options = shared_out(dimensions)
    check(points, offsets, k, init=init, **options)


@pytest.mark.parametrize("dimensions", range(1, 17))
def test_dimensions(dimensions: int) -> None:
    """Some of them share a kernel; coordinates of zero fill up the others."""
    points, k = cloud(150, dimensions, dimensions), torch.tensor([7, 60])
    for init in ("ward", "k-means++"):
        check(points, bounds(150), k, problem=torch.zeros_like(k), init=init)


@pytest.mark.parametrize("count", [255, 256, 257, 511, 512, 513, 1030])
def test_sizes_around_those_of_blocks_and_tiles(count: int) -> None:
    points = cloud(count, 2, count)
    check(points, bounds(count), torch.tensor([count // 3]))


@pytest.mark.parametrize("dimensions", [2, 3, 4, 8, 16])
def test_more_centers_than_shared_memory_holds(dimensions: int) -> None:
    """The centres pass through it by tiles of 4096 / (dimensions + 1)."""
    count = 4096 // (dimensions + 1) + 40
    points = cloud(count, dimensions)
    check(points, bounds(count), torch.tensor([count - 20]), init="k-means++", max_iter=2)


def test_as_many_clusters_as_4096_points() -> None:
    check(cloud(4096, 3), bounds(4096), torch.tensor([4096]))


@pytest.mark.parametrize("k", [5, 290, 300])
def test_most_clusters_are_empty_at_first(k: int) -> None:
    """All but one: the others are moved to a point each, as long as there are points apart."""
    points = cloud(300, 3).mul(4).round()
    seeds = torch.full((k, 3), 50.0)
    seeds[k // 2] = 0
    for max_iter in (0, 1, 2, 100):
        check(points, bounds(300), torch.tensor([k]), init=seeds, max_iter=max_iter)


@pytest.mark.parametrize("init", ["ward", "k-means++", "given"])
def test_the_number_of_launches_depends_on_no_value(emulated: EmulatedCore, init: str) -> None:
    launches: list[str] = []
    emulated.set_launch_hook(lambda kernel, *_: launches.append(kernel))
    points, k = cloud(600, 3), torch.tensor([50, 1])
    given: Any = cloud(51, 3) if init == "given" else init
    ONCE(kmeans, points, bounds(500, 100), k, init=given, max_iter=100)
    # Scale, clear, start, assign, finish; hierarchies and their cuts, or the draws of seeds.
    assert len(launches) == {"ward": 5 + 5 + 1, "k-means++": 5 + 1, "given": 5}[init]


@pytest.mark.parametrize("init", ["ward", "k-means++", "given"])
def test_every_access_is_within_the_memory_given(checked: EmulatedCore, init: str) -> None:
    ONCE.core = checked
    for dimensions in (1, 2, 3, 5, 16):
        k = torch.tensor([30, 1, 1, 200, 2])
        problem = torch.tensor([1, 1, 2, 1, 4])
        points = cloud(40 + 300 + 1 + 0 + 49, dimensions)
        given: Any = cloud(234, dimensions, 1) if init == "given" else init
        check(points, bounds(40, 300, 1, 0, 49), k, problem=problem, init=given)
