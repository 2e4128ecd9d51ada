"""What others take on the same device for the work of bench_device.py; each has to be installed.

pytest benchmarks/device/bench_peers.py [--device cuda|cpu]

k-means is compared by its inertia too, computed from the centres in float64. In a run with
bench_device.py the groups of pytest-benchmark put ours beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import workloads
from bench_device import CLOCK, device, layers, resnet50_weights
from bench_evolution import AXES, GENERATIONS, POPULATION, WIDEST, Problem
from torch import Tensor
from workloads import Workload

from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.evaluate_population import CostModel, LossTable, PopulationFitness
from mdcp_fast.ops.evolution import differential_evolution
from mdcp_fast.ops.kmeans import kmeans

__all__ = ["device"]  # the fixture

ROUNDS, ITERATIONS = 3, 100
pytestmark = pytest.mark.benchmark(timer=CLOCK)
Centers = list[Tensor]  # of every job, [k, D]


def needs(package: str) -> pytest.MarkDecorator:
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def measure(benchmark: Any, device: torch.device, run: Callable[[], object]) -> None:
    """Times `run`, which was called before; on the CPU, where times say nothing, once."""
    benchmark.pedantic(run, rounds=1 if device.type == "cpu" else ROUNDS)


def moments(weight: Tensor) -> Tensor:
    """Mean, variance, cosine distance of every filter in torch's own ops: float32 [filters, 3]."""
    rows = weight.flatten(1)
    cosine = F.cosine_similarity(rows, torch.ones_like(rows[:1]))
    variance, mean = torch.var_mean(rows, 1, correction=0)
    return torch.stack([mean, variance, 1 - cosine], 1)


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_statistics(benchmark: Any, device: torch.device, how: str) -> None:
    if how == "compiled" and device.type == "cpu":
        pytest.skip("compiled on a CUDA device alone")
    weights = [weight.to(device) for weight in resnet50_weights()]
    one = torch.compile(moments, dynamic=True) if how == "compiled" else moments

    def run() -> list[Tensor]:
        return [one(weight) for weight in weights]

    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch(**{limit: 64}):  # beyond it torch would run it eagerly, and say nothing
        for found, expected in zip(run(), channel_statistics(weights), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        measure(benchmark, device, run)


def crowding_by_sorting(points: Tensor, segment: Tensor, segments: int) -> Tensor:
    """All segments at once in torch's own ops: two stable sorts for every dimension."""
    edge = F.pad(segment[1:] != segment[:-1], (1, 1), value=True)  # [N + 1]
    first, last = edge[:-1], edge[1:]
    total = torch.zeros(len(points), device=points.device)
    for values in points.T.double():
        order = values.argsort(stable=True)
        order = order[segment[order].argsort(stable=True)]
        ordered = values[order]
        low = torch.zeros(segments, dtype=values.dtype, device=points.device)
        high = low.clone()
        low[segment[first]], high[segment[last]] = ordered[first], ordered[last]
        spread = (high - low)[segment]
        inner = F.pad(ordered[2:] - ordered[:-2], (1, 1)) / spread
        distance = torch.where(first | last, torch.inf, inner)
        total[order] += torch.where(spread > 0, distance, 0.0).float()
    return total


@pytest.mark.parametrize("groups", [500, 5])
def test_crowding(benchmark: Any, device: torch.device, groups: int) -> None:
    points = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0)).to(device)
    offsets = torch.linspace(0, len(points), groups + 1).round().long().to(device)
    segment = torch.arange(groups, device=device).repeat_interleave(offsets.diff())

    def run() -> Tensor:
        return crowding_by_sorting(points, segment, groups)

    torch.testing.assert_close(run(), crowding_distance(points, offsets), rtol=1e-5, atol=1e-6)
    measure(benchmark, device, run)


def every_job(work: Workload, fit: Callable[[int, Tensor], Tensor]) -> Centers:
    """`fit` (k, points) -> centres on one job after the other."""
    problems = work.points.split(work.offsets.diff().tolist())
    jobs = zip(work.k.tolist(), work.problem.tolist(), strict=True)
    return [fit(k, problems[problem]) for k, problem in jobs]


def fast_pytorch_kmeans(work: Workload) -> Centers:
    from fast_pytorch_kmeans import KMeans

    def fit(k: int, points: Tensor) -> Tensor:
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)  # its seeds are drawn from either, by version
        model = KMeans(k, max_iter=ITERATIONS)
        model.fit_predict(points)
        return model.centroids

    return every_job(work, fit)


def torch_kmeans(work: Workload) -> Centers:
    from torch_kmeans import KMeans

    def fit(k: int, points: Tensor) -> Tensor:
        model = KMeans(n_clusters=k, num_init=1, max_iter=ITERATIONS, verbose=False)
        return model(points[None]).centers[0]

    return every_job(work, fit)


def flash_kmeans(work: Workload) -> Centers:
    """Layers of one size are one batch, their points padded with zeros to 16 dimensions."""
    from flash_kmeans import batch_kmeans_Euclid

    torch.manual_seed(0)  # which its seeds are drawn from
    problems = work.points.split(work.offsets.diff().tolist())
    groups: dict[tuple[int, int], list[int]] = {}
    for job, (k, problem) in enumerate(zip(work.k.tolist(), work.problem.tolist(), strict=True)):
        groups.setdefault((k, len(problems[problem])), []).append(job)
    found: dict[int, Tensor] = {}
    for (k, _), jobs in groups.items():
        batch = torch.stack([problems[int(work.problem[job])] for job in jobs])
        padded = F.pad(batch, (0, 16 - batch.shape[2]))
        _, centers, *_ = batch_kmeans_Euclid(padded, k, max_iters=ITERATIONS)
        found |= zip(jobs, centers[:, :, : batch.shape[2]], strict=True)
    return [found[job] for job in range(len(work.k))]


def inertia(work: Workload, centers: Centers) -> float:
    problems = work.points.double().split(work.offsets.diff().tolist())
    return sum(
        float(torch.cdist(problems[problem], found.double()).min(1).values.square().sum())
        for problem, found in zip(work.problem.tolist(), centers, strict=True)
    )


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        pytest.param(peer, name, marks=needs(peer.__name__), id=f"{name}-{peer.__name__}")
        # Not (b): flash_kmeans compiles two kernels for each of its 96 shapes, minutes in all.
        for peer, name in (
            (flash_kmeans, "a"),
            (fast_pytorch_kmeans, "a"),
            (torch_kmeans, "a"),
        )
    ],
)
def test_kmeans(
    benchmark: Any, device: torch.device, peer: Callable[[Workload], Centers], name: str
) -> None:
    if peer is flash_kmeans and device.type == "cpu":
        pytest.skip("flash_kmeans runs on a CUDA device alone")
    made = {"a": workloads.half, "b": workloads.seventeenths}[name](layers())
    work = Workload(*(tensor.to(device) for tensor in made))
    ours = kmeans(work.points, work.offsets, work.k, problem=work.problem)
    found = inertia(work, peer(work))
    benchmark.extra_info["inertia"] = {"ours": float(ours.inertia.sum()), peer.__name__: found}
    measure(benchmark, device, lambda: peer(work))


class OnDevice:
    """The fitness of bench_evolution.py's problem, computed on the device."""

    def __init__(self, device: torch.device) -> None:
        self.problem, self.device = Problem(), device
        loss = LossTable(*(tensor.to(device) for tensor in vars(self.problem.loss).values()))
        cost = CostModel(*(tensor.to(device) for tensor in vars(self.problem.cost).values()))
        self.fitness = PopulationFitness(loss, cost, self.problem.limit.to(device))

    def ours(self) -> float:
        found = differential_evolution(
            lambda widths: self.fitness(widths.to(self.device)).cpu(),
            self.problem.low,
            self.problem.high,
            population=POPULATION,
            generations=GENERATIONS,
            seeds=[0],
        )
        return float(found.fitness)

    def evox(self, name: str) -> float:
        from evox import algorithms
        from evox.core import Problem as EvoxProblem
        from evox.workflows import EvalMonitor, StdWorkflow

        fitness = self.fitness

        class Widths(EvoxProblem):  # type: ignore[misc]
            def evaluate(self, rows: Tensor) -> Tensor:
                return fitness(rows.round().long().clamp(1, WIDEST)).float()

        low, high = (torch.full((AXES,), x, device=self.device) for x in (0.5, WIDEST + 0.49))
        algorithm = getattr(algorithms, name)(POPULATION, low, high, device=self.device)
        monitor = EvalMonitor(full_fit_history=False, device=self.device)
        workflow = StdWorkflow(algorithm, Widths(), monitor, device=self.device)
        workflow.init_step()
        for _ in range(GENERATIONS - 1):
            workflow.step()
        return float(monitor.get_best_fitness())


@pytest.mark.parametrize(
    "name", ["ours", *(pytest.param(name, marks=needs("evox")) for name in ("DE", "SHADE"))]
)
def test_evolution(benchmark: Any, device: torch.device, name: str) -> None:
    where = OnDevice(device)
    torch.manual_seed(0)
    run = where.ours if name == "ours" else functools.partial(where.evox, name)
    benchmark.extra_info["fitness"] = run()
    measure(benchmark, device, run)
