"""k-means on the channels of a ResNet-50, one thread, beside scikit-learn.

pytest benchmarks/bench_kmeans.py

Times are CPU times of the process. The result is checked first; scikit-learn runs once in the same
process, and how much faster and how much better ours is stands in each benchmark's extra_info.
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
from sklearn.cluster import KMeans as ScikitKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from mdcp_fast.ops.kmeans import KMeans, kmeans

LAYERS = functools.cache(workloads.resnet50_layers)
WORKLOADS = {
    "a: k = n/2": workloads.half,
    "b: 848 jobs": workloads.seventeenths,
    "c: every k of one layer": workloads.every_k_of_one,
    "d: every k of every layer": workloads.every_k,
}
# At least so many times faster than scikit-learn, with at most this share of its inertia.
BARS = {
    "a: k = n/2": (20, 0.90),
    "b: 848 jobs": (150, 0.95),
    "c: every k of one layer": (350, 0.98),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def ours(work: workloads.Workload, init: str) -> KMeans:
    return kmeans(work.points, work.offsets, work.k, problem=work.problem, init=init)


def scikit(work: workloads.Workload) -> float:
    inertia = 0.0
    for k, problem in zip(work.k.tolist(), work.problem.tolist(), strict=True):
        points = work.points[work.offsets[problem] : work.offsets[problem + 1]].numpy()
        model = ScikitKMeans(k, init="k-means++", n_init=1, random_state=0, copy_x=False)
        inertia += model.fit(points).inertia_
    return inertia


@functools.cache
def scikit_once(name: str) -> tuple[float, float]:
    """Seconds and inertia."""
    work = WORKLOADS[name](LAYERS())
    start = time.process_time()
    inertia = scikit(work)
    return time.process_time() - start, inertia


def check(work: workloads.Workload, found: KMeans) -> None:
    """Every label is of the nearest centre, and the inertia is that of the labels."""
    ends = work.k.cumsum(0).tolist()
    for job in range(0, len(work.k), 1 + len(work.k) // 200):
        problem, end = int(work.problem[job]), ends[job]
        points = work.points[work.offsets[problem] : work.offsets[problem + 1]]
        centers = found.centers[end - int(work.k[job]) : end]
        labels = found.labels[found.offsets[job] : found.offsets[job + 1]]
        distances = squared_distances(points, centers)
        np.testing.assert_array_equal(labels, distances.argmin(1))
        own = (points.double() - centers[labels].double()).square().sum()
        assert found.inertia[job].item() == pytest.approx(own.item(), rel=1e-9, abs=1e-12)


def squared_distances(points: Tensor, centers: Tensor) -> np.ndarray:
    total = np.zeros((len(points), len(centers)), np.float32)
    for d in range(points.shape[1]):
        difference = points.numpy()[:, None, d] - centers.numpy()[None, :, d]
        total += difference * difference
    return total


@pytest.mark.benchmark(timer=time.process_time, min_rounds=5)
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("init", ["ward", "k-means++"])
def test_ours(benchmark: Any, name: str, init: str) -> None:
    work = WORKLOADS[name](LAYERS())
    found = ours(work, init)
    check(work, found)
    benchmark.extra_info["inertia"] = found.inertia.sum().item()
    benchmark(ours, work, init)
    if name not in BARS or init != "ward":
        return
    seconds, inertia = scikit_once(name)
    faster, share = seconds / benchmark.stats.stats.min, found.inertia.sum().item() / inertia
    benchmark.extra_info["times faster than scikit-learn"] = faster
    benchmark.extra_info["share of scikit-learn's inertia"] = share
    print(f"\n{name}: {faster:.0f} times faster than scikit-learn, {share:.4f} of its inertia")
    least, most = BARS[name]
    assert share <= most
    assert faster >= least


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("name", list(BARS)[:1])
def test_scikit_learn(benchmark: Any, name: str) -> None:
    benchmark.pedantic(scikit, (WORKLOADS[name](LAYERS()),), rounds=1)
