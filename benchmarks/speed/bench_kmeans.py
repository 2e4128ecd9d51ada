"""k-means on the channels of a ResNet-50, beside scikit-learn, faiss and two libraries of torch.

pytest benchmarks/speed/bench_kmeans.py -s [--threads 2]

The result is checked before it is timed. Whatever a peer gives is compared by its inertia,
computed from its centres in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import roofline
import torch
import workloads
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor
from workloads import Workload

from mdcp_fast.ops.kmeans import KMeans, kmeans

pytestmark = pytest.mark.usefixtures("threads")
LAYERS = functools.cache(workloads.resnet50_layers)
WORKLOADS = {
    "a": workloads.half,
    "b": workloads.seventeenths,
    "c": workloads.every_k_of_one,
    "d": workloads.every_k,
}
ITERATIONS = 100  # at most, of everyone; scikit-learn's and faiss's own defaults are 300 and 25
Compare = Callable[..., dict[str, Any]]
Centers = list[Tensor]  # of each job, [k, D]
Peers = dict[str, Callable[[], Callable[[], Any]]]


def ours(work: Workload, init: str = "ward") -> KMeans:
    return kmeans(work.points, work.offsets, work.k, problem=work.problem, init=init)


def problems_of(work: Workload) -> Iterator[tuple[int, Tensor]]:
    """The k and the points of every job."""
    for k, problem in zip(work.k.tolist(), work.problem.tolist(), strict=True):
        yield k, work.points[work.offsets[problem] : work.offsets[problem + 1]]


def each(work: Workload, one: Callable[[int, Tensor], Any]) -> Callable[[], Centers]:
    """Runs `one` (k, points) -> centres on every job."""
    return lambda: [torch.as_tensor(one(k, points)) for k, points in problems_of(work)]


def scikit_learn(work: Workload, init: str) -> Callable[[], Centers]:
    def one(k: int, points: Tensor) -> Any:
        model = ScikitKMeans(k, init=init, n_init=1, random_state=0, copy_x=False)
        return model.fit(points.numpy()).cluster_centers_

    return each(work, one)


def faiss_kmeans(work: Workload) -> Callable[[], Centers]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())

    def one(k: int, points: Tensor) -> Any:
        model = faiss.Kmeans(points.shape[1], k, seed=0, min_points_per_centroid=1)
        model.train(points.numpy())
        return model.centroids

    return each(work, one)


def fast_pytorch_kmeans(work: Workload) -> Callable[[], Centers]:
    from fast_pytorch_kmeans import KMeans as FastKMeans

    def one(k: int, points: Tensor) -> Any:
        # Its seeds are drawn from here.
        np.random.seed(0)  # noqa: NPY002
        model = FastKMeans(k, max_iter=ITERATIONS)
        model.fit_predict(points)
        return model.centroids

    return each(work, one)


def torch_kmeans(work: Workload) -> Callable[[], Centers]:
    from torch_kmeans import KMeans as TorchKMeans

    def one(k: int, points: Tensor) -> Any:
        model = TorchKMeans(n_clusters=k, num_init=1, max_iter=ITERATIONS, verbose=False)
        return model(points[None]).centers[0]

    return each(work, one)


def peers_of(work: Workload) -> Peers:
    return {
        "scikit-learn k-means++": lambda: scikit_learn(work, "k-means++"),
        "scikit-learn random": lambda: scikit_learn(work, "random"),
        "faiss": lambda: faiss_kmeans(work),
        "fast-pytorch-kmeans": lambda: fast_pytorch_kmeans(work),
        "torch-kmeans": lambda: torch_kmeans(work),
        "ours k-means++": lambda: lambda: ours(work, "k-means++"),
    }


def inertia(work: Workload, found: Centers | KMeans) -> float:
    if isinstance(found, KMeans):
        return float(found.inertia.sum())
    return sum(
        float(torch.cdist(points.double(), centers.double()).min(1).values.square().sum())
        for (_, points), centers in zip(problems_of(work), found, strict=True)
    )


def check(work: Workload, found: KMeans) -> None:
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


def measure(compare: Compare, benchmark: Any, work: Workload, peers: Peers, **options: Any) -> None:
    """Ours beside the peers, with the inertia of all."""
    found = ours(work)
    check(work, found)
    results = compare(lambda: ours(work), peers, **options)
    benchmark.extra_info["inertia"] = {
        name: inertia(work, result) for name, result in {"ours": found, **results}.items()
    }


@pytest.mark.parametrize(
    "name", ["a", *(pytest.param(name, marks=pytest.mark.slow) for name in "bcd")]
)
def test_workload(compare: Compare, benchmark: Any, threads: int, name: str) -> None:
    """(a): one job a layer, k = n/2. (b): 848 jobs. (c): every k of one layer. (d): of every."""
    work = WORKLOADS[name](LAYERS())
    peers = peers_of(work)
    if name == "d":
        peers = {"ours k-means++": peers["ours k-means++"]}
    if threads > 1:
        peers["ours at one thread"] = lambda: lambda: at_one_thread(lambda: ours(work))
    jobs = [roofline.ward(work), roofline.lloyd(name, work)]
    measure(compare, benchmark, work, peers, rounds=3 if name == "d" else 7, jobs=jobs)


def at_one_thread(run: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", workloads.KINDS[1:])
def test_weights(compare: Compare, benchmark: Any, kind: str) -> None:
    """(a), of other weights."""
    work = workloads.half(workloads.resnet50_layers(kind))
    peers = {name: peer for name, peer in peers_of(work).items() if name != "torch-kmeans"}
    measure(compare, benchmark, work, peers)


@pytest.mark.parametrize("dimensions", [3, 8, 16])
@pytest.mark.parametrize("n", [64, 256, 1024, pytest.param(4096, marks=pytest.mark.slow)])
def test_growth(compare: Compare, benchmark: Any, n: int, dimensions: int) -> None:
    """One problem of n points, k = n/4."""
    work = workloads.normal(1, n, dimensions, n // 4)
    peers = {name: peer for name, peer in peers_of(work).items() if name != "torch-kmeans"}
    measure(compare, benchmark, work, peers, growth=("n", n, f"k = n/4, D = {dimensions}"))


@pytest.mark.parametrize("problems", [1, 30, 1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_problems(compare: Compare, benchmark: Any, problems: int) -> None:
    """Many problems of 32 points, k = 4."""
    work = workloads.normal(problems, 32, 3, 4)
    peers = peers_of(work) if problems <= 1000 else {}
    growth = ("problems", problems, "32 points, k = 4, D = 3")
    measure(compare, benchmark, work, peers, growth=growth)
