"""The kernel unit of ResNet-50: 13.4 million kernels clustered, each of 26,560 filters by itself.

pytest benchmarks/speed/bench_kernel_unit.py -s [--threads 2]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import workloads
from bench_kmeans import check, inertia, ours, scikit_learn
from comparison import seconds_of
from workloads import Workload

from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.kmeans import KMeans

pytestmark = pytest.mark.usefixtures("threads")
SAMPLE = 500  # every so many filters, a scikit-learn has to be waited for


def test_network(compare: Callable[..., dict[str, Any]], benchmark: Any) -> None:
    """Statistics of all kernels, then k-means++ with k = floor(log2 of the channels) + 1."""
    weights = workloads.resnet50_weights()
    shapes = [weight.shape for weight in weights]

    def run() -> tuple[Workload, KMeans]:
        work = workloads.of_kernels(channel_statistics(weights, unit="kernel"), shapes)
        return work, ours(work, "k-means++")

    work, found = run()
    check(work, found)
    compare(run, rounds=2)
    statistics, _ = seconds_of(lambda: channel_statistics(weights, unit="kernel"))
    clustering, _ = seconds_of(lambda: ours(work, "k-means++"))
    benchmark.extra_info["parts"] = {"channel_statistics": statistics, "kmeans": clustering}


@pytest.mark.parametrize("init", ["k-means++", "ward"])
def test_sample(compare: Callable[..., dict[str, Any]], benchmark: Any, init: str) -> None:
    """Every 500th filter, beside scikit-learn."""
    weights = workloads.resnet50_weights()
    shapes = [weight.shape for weight in weights]
    work = workloads.of_kernels(channel_statistics(weights, unit="kernel"), shapes)
    work = workloads.sampled(work, SAMPLE)
    found = ours(work, init)
    check(work, found)
    peers = {"scikit-learn k-means++": lambda: scikit_learn(work, "k-means++")}
    results = compare(lambda: ours(work, init), peers, rounds=5)
    benchmark.extra_info["inertia"] = {
        name: inertia(work, result) for name, result in {"ours": found, **results}.items()
    }
