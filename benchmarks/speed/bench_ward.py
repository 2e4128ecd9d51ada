"""Ward's hierarchies, beside fastcluster and SciPy.

pytest benchmarks/speed/bench_ward.py -s [--threads 2]

Results are checked against SciPy before they are timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import roofline
import workloads
from comparison import peak_bytes
from scipy.cluster.hierarchy import ward as scipy_ward
from workloads import Workload

from mdcp_fast.ops.ward import ward

pytestmark = pytest.mark.usefixtures("threads")
LAYERS = functools.cache(workloads.resnet50_layers)
Compare = Callable[..., dict[str, Any]]


def tables(work: Workload) -> list[np.ndarray]:
    """The points of every problem as peers take them."""
    return [own.double().numpy() for own in work.points.split(work.offsets.diff().tolist())]


def check(work: Workload) -> None:
    """Heights and sizes are SciPy's, in up to 64 of the problems."""
    linkages = ward(work.points, work.offsets).split((work.offsets.diff() - 1).tolist())
    step = 1 + len(linkages) // 64
    for mine, table in zip(linkages[::step], tables(work)[::step], strict=True):
        theirs = scipy_ward(table)
        np.testing.assert_allclose(mine[:, 2], theirs[:, 2], rtol=1e-5)
        np.testing.assert_array_equal(mine[:, 3], theirs[:, 3])


def peers_of(work: Workload) -> dict[str, Callable[[], Callable[[], Any]]]:
    def fastcluster(variant: str) -> Callable[[], Any]:
        import fastcluster

        run, points = getattr(fastcluster, variant), tables(work)
        return lambda: [run(table, "ward") for table in points]

    def scipy() -> Callable[[], Any]:
        points = tables(work)
        return lambda: [scipy_ward(table) for table in points]

    return {
        "fastcluster linkage": lambda: fastcluster("linkage"),
        "fastcluster linkage_vector": lambda: fastcluster("linkage_vector"),
        "SciPy": scipy,
    }


def test_layers(compare: Compare) -> None:
    """All layers of ResNet-50, a problem each."""
    work = workloads.half(LAYERS())
    check(work)
    jobs = [roofline.ward(work)]
    compare(lambda: ward(work.points, work.offsets), peers_of(work), jobs=jobs)


@pytest.mark.parametrize("kind", workloads.KINDS[1:])
def test_weights(compare: Compare, kind: str) -> None:
    work = workloads.half(workloads.resnet50_layers(kind))
    check(work)
    compare(lambda: ward(work.points, work.offsets), peers_of(work))


@pytest.mark.parametrize("dimensions", [3, 8, 16])
@pytest.mark.parametrize(
    "n", [64, 256, 512, 1024, 2048, pytest.param(4096, marks=pytest.mark.slow)]
)
def test_growth(compare: Compare, benchmark: Any, n: int, dimensions: int) -> None:
    work = workloads.normal(1, n, dimensions, 1)
    check(work)
    peers = peers_of(work)
    if n == 4096:
        peak = {"ours": lambda: ward(work.points, work.offsets)}
        peak |= {name: make() for name, make in peers.items() if name == "SciPy"}
        benchmark.extra_info["peak bytes"] = {name: peak_bytes(run) for name, run in peak.items()}
    compare(
        lambda: ward(work.points, work.offsets),
        peers,
        growth=("n", n, f"D = {dimensions}"),
    )


@pytest.mark.parametrize("problems", [1, 30, 1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_problems(compare: Compare, problems: int) -> None:
    """Many problems of 32 points."""
    work = workloads.normal(problems, 32, 3, 1)
    check(work)
    growth = ("problems", problems, "32 points, D = 3")
    compare(lambda: ward(work.points, work.offsets), peers_of(work), growth=growth)
