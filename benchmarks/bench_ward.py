"""Ward's hierarchies of the channels of a ResNet-50, one thread, beside fastcluster and scipy.

pytest benchmarks/bench_ward.py; fastcluster is measured where it is installed.

Times are CPU times of the process. The result is checked against scipy first.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import workloads
from scipy.cluster.hierarchy import ward as scipy_ward

from mdcp_fast.ops.ward import ward

LAYERS = functools.cache(workloads.resnet50_layers)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(timer=time.process_time, min_rounds=5)
def test_ours(benchmark: Any) -> None:
    work = workloads.half(LAYERS())
    linkage = ward(work.points, work.offsets).numpy()
    row = 0
    for layer in LAYERS():
        theirs = scipy_ward(layer.double().numpy())
        mine = linkage[row : row + len(theirs)]
        np.testing.assert_allclose(mine[:, 2], theirs[:, 2], rtol=1e-5)
        np.testing.assert_array_equal(mine[:, 3], theirs[:, 3])
        row += len(theirs)
    benchmark(ward, work.points, work.offsets)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("variant", ["linkage", "linkage_vector"])
def test_fastcluster(benchmark: Any, variant: str) -> None:
    fastcluster = pytest.importorskip("fastcluster")
    layers = [layer.double().numpy() for layer in LAYERS()]
    run = getattr(fastcluster, variant)
    benchmark.pedantic(lambda: [run(layer, "ward") for layer in layers], rounds=3)


@pytest.mark.benchmark(timer=time.process_time)
def test_scipy(benchmark: Any) -> None:
    layers = [layer.double().numpy() for layer in LAYERS()]
    benchmark.pedantic(lambda: [scipy_ward(layer) for layer in layers], rounds=3)
