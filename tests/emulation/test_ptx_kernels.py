"""The PTX that nvcc makes of every kernel, interpreted: the CPU op's bits, nothing to report.

The launchers are the real ones: the emulated core asks the interpreter to run each launch. Every
kernel and every instance of a kernel template is run.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any, cast

import crowding_distance_cases as segments
import evaluate_population_cases
import pytest
import torch
from emulated_ops import Emulation
from emulation.build import EmulatedCore, kernel_sources
from emulation.ptx import PtxError
from emulation.ptx_compile import nvcc_ptx
from emulation.ptx_kernels import PtxKernels
from replay import assert_same_bits
from torch import Tensor

from mdcp_fast.ops import crowding_distance, evaluate_population, ward
from mdcp_fast.ops.kmeans import KMeans, kmeans

OLDEST, NEWEST = 75, 90
CROWDING = segments.cases()
POPULATION = evaluate_population_cases.cases()


@pytest.fixture(scope="module")
def _kernels() -> PtxKernels:
    return PtxKernels(NEWEST)


@pytest.fixture
def ptx(_kernels: PtxKernels, emulated: EmulatedCore) -> Iterator[PtxKernels]:
    """The kernels' PTX in place of the kernels of the emulated core."""
    _kernels.drive(emulated)
    yield _kernels


def crowd(kernels: PtxKernels, points: Tensor, offsets: Tensor) -> Tensor:
    assert kernels.core is not None
    return crowding_distance._launch(kernels.core, points, offsets)


def evaluate(kernels: PtxKernels, case: evaluate_population_cases.Case) -> Tensor:
    assert kernels.core is not None
    members, loss, cost, budget = case
    return evaluate_population._launch(
        kernels.core, members, loss.values, loss.offsets, astuple(cost), budget
    )


def assert_crowding_agrees(kernels: PtxKernels, points: Tensor, offsets: Tensor) -> None:
    expected = crowding_distance.crowding_distance(points, offsets)
    assert kernels.core is not None
    kernels.core.buffers.clear()
    assert torch.equal(crowd(kernels, points, offsets), expected)


@pytest.mark.parametrize("stem", [source.stem for source in kernel_sources()])
def test_architectures_have_the_same_code(stem: str) -> None:
    """What is run for the newest architecture here stands for the oldest too."""
    (source,) = (source for source in kernel_sources() if source.stem == stem)
    texts = [nvcc_ptx(source, architecture) for architecture in (OLDEST, NEWEST)]
    oldest, newest = (re.sub(r"\.target sm_\d+", "", text) for text in texts)
    assert oldest == newest


@pytest.mark.parametrize("name", CROWDING)
def test_crowding_distance(ptx: PtxKernels, name: str) -> None:
    assert_crowding_agrees(ptx, *CROWDING[name])


def test_crowding_distance_of_segments_beyond_a_tile(ptx: PtxKernels) -> None:
    offsets = segments.offsets_of(2048, 2049, 7)
    assert_crowding_agrees(ptx, segments.points_of(4104, 2), offsets)
    assert not ptx.not_launched("crowding_distance")


@pytest.mark.parametrize("name", POPULATION)
def test_evaluate_population(ptx: PtxKernels, name: str) -> None:
    expected = evaluate_population.evaluate_population(*POPULATION[name])
    assert ptx.core is not None
    ptx.core.buffers.clear()
    assert torch.equal(evaluate(ptx, POPULATION[name]), expected)


def points_of(count: int, dimensions: int) -> Tensor:
    """Some of them equal."""
    points = segments.points_of(count, dimensions)
    points[count // 2 : count // 2 + count // 4] = points[: count // 4].round()
    return points


def assert_ward_agrees(kernels: PtxKernels, points: Tensor, offsets: Tensor) -> None:
    expected = ward.ward(points, offsets)
    assert kernels.core is not None
    kernels.core.buffers.clear()
    assert torch.equal(ward._launch(kernels.core, points, offsets), expected)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 8, 11, 16])
def test_ward(ptx: PtxKernels, dimensions: int) -> None:
    """Small problems share a launch; the large one takes several blocks."""
    sizes = (1, 2, 3, 33, 0, 70)
    points = points_of(sum(sizes), dimensions)
    assert_ward_agrees(ptx, points, segments.offsets_of(*sizes))


def test_ward_of_special_problems(ptx: PtxKernels) -> None:
    line = torch.arange(40.0)[:, None]
    for points in (torch.ones(20, 3), line, points_of(30, 2).round(), torch.zeros(0, 3)):
        assert_ward_agrees(ptx, points, segments.offsets_of(len(points)))


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 8, 16])
def test_ward_of_problems_of_several_blocks(ptx: PtxKernels, dimensions: int) -> None:
    points = points_of(1030, dimensions)
    assert_ward_agrees(ptx, points, segments.offsets_of(1026, 4))


def run_kmeans(kernels: PtxKernels, *given: Tensor, **options: Any) -> KMeans:
    assert kernels.core is not None
    emulation = Emulation([importlib.import_module("mdcp_fast.ops.kmeans")], schedules=(0,))
    emulation.core = kernels.core
    return cast(KMeans, emulation(kmeans, *given, **options))


def assert_kmeans_agrees(
    kernels: PtxKernels, points: Tensor, sizes: tuple[int, ...], *jobs: tuple[int, int], init: str
) -> None:
    """jobs: (problem, k) of each."""
    offsets, (problem, k) = (
        segments.offsets_of(*sizes),
        torch.tensor(jobs).T.contiguous(),
    )
    given: Any = points_of(int(k.sum()), points.shape[1]) if init == "given" else init
    assert kernels.core is not None
    kernels.core.buffers.clear()
    found = run_kmeans(kernels, points, offsets, k, problem=problem, init=given)
    assert_same_bits(found, kmeans(points, offsets, k, problem=problem, init=given))


@pytest.mark.parametrize("init", ["ward", "k-means++", "given"])
@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 8, 16])
def test_kmeans(ptx: PtxKernels, dimensions: int, init: str) -> None:
    points = points_of(46, dimensions)
    jobs = ((0, 11), (2, 1), (0, 3), (3, 2), (0, 40))
    assert_kmeans_agrees(ptx, points, (40, 0, 1, 5), *jobs, init=init)


@pytest.mark.parametrize("init", ["ward", "k-means++"])
@pytest.mark.parametrize("dimensions", [2, 8])
def test_kmeans_of_several_points_to_a_thread(ptx: PtxKernels, dimensions: int, init: str) -> None:
    assert_kmeans_agrees(ptx, points_of(530, dimensions), (530,), (0, 9), (0, 70), init=init)


def test_kmeans_of_empty_clusters(ptx: PtxKernels) -> None:
    points = points_of(50, 3).round()
    assert_kmeans_agrees(ptx, points, (50,), (0, 45), (0, 20), init="given")


def test_every_instance_of_a_kernel_was_run(
    ptx: PtxKernels, request: pytest.FixtureRequest
) -> None:
    """By the tests above."""
    options = request.config.option
    if options.keyword or options.markexpr or any("::" in name for name in request.config.args):
        pytest.skip("only some of the tests were chosen")
    for stem in ptx.modules:
        assert not ptx.not_launched(stem), stem


# A check that cannot fail is no check: planted bugs


def without_barriers(stem: str, kernel: str, others: str = "") -> Iterator[PtxKernels]:
    """The kernels, one barrier of one kernel left out each time.

    Args:
        stem: of the kernel's source.
        kernel: a part of its mangled name.
        others: kernels whose names match this pattern are left out, to have less to read.
    """
    (source,) = (source for source in kernel_sources() if source.stem == stem)
    head, *entries = re.split(r"(?=\.visible \.entry )", nvcc_ptx(source, NEWEST))
    name_of = re.compile(r"\.entry (\w+)")
    entries = [e for e in entries if not others or not re.search(others, name_of.search(e)[1])]
    (at,) = (i for i, entry in enumerate(entries) if kernel in name_of.search(entry)[1])
    for barrier in re.finditer(r"bar\.sync\s+0;", entries[at]):
        first, last = barrier.span()
        edited = entries[at][:first] + entries[at][last:]
        yield PtxKernels(NEWEST, {stem: "".join([head, *entries[:at], edited, *entries[at + 1 :]])})


def reports(kernels: PtxKernels, core: EmulatedCore, run: Callable[[PtxKernels], object]) -> bool:
    kernels.drive(core)
    core.buffers.clear()
    try:
        run(kernels)
    except PtxError as error:
        return "race:" in str(error)
    return False


def test_each_barrier_of_the_crowding_kernel_is_missed(emulated: EmulatedCore) -> None:
    offsets = segments.offsets_of(300, 20, 2049)  # in threads, in tiles, beyond a tile
    points = segments.points_of(2369, 2)
    edited = without_barriers("crowding_distance", "15crowding_kernel")
    found = [reports(each, emulated, lambda k: crowd(k, points, offsets)) for each in edited]
    assert found and all(found)


def test_each_barrier_of_the_population_kernel_is_missed(emulated: EmulatedCore) -> None:
    case = evaluate_population_cases.random_case(53, 160, 200, 3, 2, 4)
    edited = without_barriers("evaluate_population", "population_kernelILb1ELb0E")
    found = [reports(each, emulated, lambda k: evaluate(k, case)) for each in edited]
    assert found and all(found)


WARD_KERNELS = {
    # Of some points equal, and of a line, with one pair a round, by a small block each.
    "ward_finish": (torch.cat([points_of(60, 2), torch.arange(40.0)[:, None].expand(40, 2)]), 60),
    "ward_step_problem": (points_of(1030, 2), 1026),
}


@pytest.mark.parametrize("kernel", WARD_KERNELS)
def test_each_barrier_of_wards_kernels_is_missed(emulated: EmulatedCore, kernel: str) -> None:
    points, first = WARD_KERNELS[kernel]
    offsets = segments.offsets_of(first, len(points) - first)
    edited = without_barriers("hierarchy", f"{kernel}ILi2E", "ILi(?!2E)")
    found = [
        reports(each, emulated, lambda k: ward._launch(k.core, points, offsets)) for each in edited
    ]
    assert found and all(found)


def test_each_barrier_of_the_first_assignment_is_missed(emulated: EmulatedCore) -> None:
    """Points in several rounds. What follows has barriers that others make up for."""
    points, offsets, k = (
        points_of(300, 16),
        segments.offsets_of(300),
        torch.tensor([250]),
    )
    edited = without_barriers("lloyd", "lloyd_assignILi16E", "ILi(?!16E)")

    def run(kernels: PtxKernels) -> None:
        run_kmeans(kernels, points, offsets, k, init=points[:250], max_iter=0)

    found = [reports(each, emulated, run) for each in edited]
    assert found and all(found)


def test_a_buffer_that_is_one_number_short_is_missed(
    ptx: PtxKernels, emulated: EmulatedCore
) -> None:
    points, offsets = (
        segments.points_of(70, 3),
        segments.offsets_of(30, 40),
    )

    def launch(*given: Any) -> None:
        address = next(a for a, size in emulated.buffers.items() if size == points.nbytes)
        emulated.buffers[address] -= 4
        ptx(*given)

    emulated.set_launch_hook(launch)
    with pytest.raises(PtxError, match="global access of 4 bytes .* out of bounds: 836 bytes into"):
        crowd(ptx, points, offsets)
