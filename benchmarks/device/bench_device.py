"""Every op on CUDA tensors, timed by CUDA events, beside the targets of results/compiled.md.

pytest benchmarks/device/bench_device.py, or benchmarks/gpu.sh, which runs the tests first.

The work is that of ResNet-50's 53 convolutions with random weights. Every result is checked before
it is timed: against the CPU op bit for bit where the op promises it. Two times are reported:
what a caller waits for (the op with its checks and its launches from Python), and, in extra_info,
the time that the op's kernels ran on the device, from the profiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import workloads
from device_clock import EventClock
from torch import Tensor

from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.evaluate_population import CostModel, LossTable, evaluate_population
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.ops.reference.channel_statistics import channel_statistics_reference
from mdcp_fast.ops.reference.population_norm import population_norm_reference
from mdcp_fast.ops.ward import ward

ROUNDS, WARM_UP = 50, 5
CLOCK = EventClock()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KMEANS_JOBS = {
    "a": (workloads.half, 0.3e-3),
    "b": (workloads.seventeenths, 0.4e-3),
    "c": (workloads.every_k_of_one, None),
    "d": (workloads.every_k, 20e-3),
}

pytestmark = pytest.mark.benchmark(timer=CLOCK)


def resnet50_shapes() -> list[tuple[int, int, int, int]]:
    """Of its 53 convolutions; written out, so that torchvision is not needed."""
    shapes = [(64, 3, 7, 7)]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, before, 1, 1))
            before = 4 * width
    return shapes


@functools.cache
def resnet50_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = resnet50_shapes()
    return [
        torch.randn(shape, generator=generator) * (2 / (shape[0] * shape[2] * shape[3])) ** 0.5
        for shape in shapes
    ]


@functools.cache
def layers() -> list[Tensor]:
    return [workloads.moments(weight) for weight in resnet50_weights()]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; --device cpu checks the suite without one")
    CLOCK.reset(device)
    return device


def measure(
    benchmark: Any,
    device: torch.device,
    run: Callable[[], object],
    target: float | None = None,
    rounds: int = ROUNDS,
) -> None:
    """Times `run`; the target is for its kernels. On the CPU, where times say nothing, once."""
    if device.type == "cuda" and benchmark.enabled:
        benchmark.extra_info["device"] = torch.cuda.get_device_name(device)
        benchmark.extra_info["kernels"] = kernels = kernel_seconds(run)
        if target is not None:
            benchmark.extra_info["target"] = target
            benchmark.extra_info["times the target"] = sum(kernels.values()) / target
    once = device.type == "cpu"
    benchmark.pedantic(run, rounds=1 if once else rounds, warmup_rounds=0 if once else WARM_UP)


def kernel_seconds(run: Callable[[], object], calls: int = 10) -> dict[str, float]:
    """The seconds of device time of one call, for each kernel and copy."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    times = {one.key: one.self_device_time_total / 1e6 / calls for one in profile.key_averages()}
    return {name: seconds for name, seconds in times.items() if seconds > 0}


def assert_same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result.cpu(), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(benchmark: Any, device: torch.device, dtype: torch.dtype) -> None:
    weights = [weight.to(dtype) for weight in resnet50_weights()]
    there = [weight.to(device) for weight in weights]
    results, expected = channel_statistics(there), channel_statistics_reference(weights)
    for result, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu().double(), exact, rtol=0, atol=1e-6)
    target = 35e-6 if dtype == torch.float32 else None
    measure(benchmark, device, lambda: channel_statistics(there), target)


def test_ward(benchmark: Any, device: torch.device) -> None:
    work = workloads.half(layers())
    points, offsets = work.points.to(device), work.offsets.to(device)
    assert_same((ward(points, offsets),), (ward(work.points, work.offsets),))
    measure(benchmark, device, lambda: ward(points, offsets), 0.3e-3)


@pytest.mark.parametrize("init", ["ward", "k-means++"])
@pytest.mark.parametrize("name", ["a", "b", "c", pytest.param("d", marks=pytest.mark.slow)])
def test_kmeans(benchmark: Any, device: torch.device, name: str, init: str) -> None:
    make, target = KMEANS_JOBS[name]
    work = make(layers())
    there = [tensor.to(device) for tensor in work]

    def run(points: Tensor, offsets: Tensor, k: Tensor, problem: Tensor) -> tuple[Tensor, ...]:
        return kmeans(points, offsets, k, problem=problem, init=init)

    assert_same(run(*there), run(*work))
    # The target of (a) is for hierarchies and Lloyd together, as here; the others' for Lloyd.
    rounds = 5 if name == "d" else ROUNDS
    measure(benchmark, device, lambda: run(*there), target, rounds)


@pytest.mark.parametrize("groups", [500, 50, 5, 1])
def test_crowding(benchmark: Any, device: torch.device, groups: int) -> None:
    points = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
    offsets = torch.linspace(0, len(points), groups + 1).round().long()
    there = points.to(device), offsets.to(device)
    assert_same((crowding_distance(*there),), (crowding_distance(points, offsets),))
    measure(benchmark, device, lambda: crowding_distance(*there), 5e-6 if groups == 500 else None)


@pytest.mark.parametrize(("runs", "candidates"), [(1, 64), (8, 64), (30, 1000)])
def test_population(benchmark: Any, device: torch.device, runs: int, candidates: int) -> None:
    """53 axes of 17 widths, one cost with a term for each pair of neighbours."""
    axes, widest = 53, 17
    generator = torch.Generator().manual_seed(0)
    counts = torch.arange(axes + 1)
    losses = torch.rand(axes * widest, generator=generator, dtype=torch.float64)
    loss = LossTable(losses, counts * widest)
    cost = CostModel(
        constant=torch.tensor([1] + [0] * axes),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts]),
        axis=torch.arange(axes),
        factor=torch.ones(axes, dtype=torch.int64),
        terms=torch.stack([counts[:-1], counts[1:]], 1),
        coefficients=torch.randint(10, 5000, (1, axes), generator=generator),
    )
    population = torch.randint(1, widest + 1, (runs, candidates, axes), generator=generator)
    budget = (cost.evaluate(torch.full((axes,), widest)) // 4).expand(runs, -1).contiguous()
    there = (
        population.to(device),
        LossTable(*(tensor.to(device) for tensor in tensors(loss))),
        CostModel(*(tensor.to(device) for tensor in tensors(cost))),
        budget.to(device),
    )
    expected = evaluate_population(population, loss, cost, budget)
    assert_same((evaluate_population(*there),), (expected,))
    measure(benchmark, device, lambda: evaluate_population(*there))


def tensors(value: LossTable | CostModel) -> list[Tensor]:
    return list(vars(value).values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
def test_population_norm(
    benchmark: Any, device: torch.device, dtype: torch.dtype, channels_last: bool
) -> None:
    """16 candidates, 8 images each, of 64 channels of 56 x 56; reads x twice, writes it once."""
    candidates, images, channels = 16, 8, 64
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(candidates * images, channels, 56, 56, generator=generator).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    masks = torch.rand(candidates, channels, generator=generator) < 0.5
    weight, bias = torch.rand(channels, generator=generator) + 0.5, torch.zeros(channels)
    exact = population_norm_reference(x, masks.float(), weight, bias)
    there = [tensor.to(device) for tensor in (x, masks, weight, bias)]
    step = {torch.float32: 5e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    gap = (population_norm(*there).cpu().double() - exact).abs() / exact.abs().clamp_min(1)
    assert gap.max() <= step
    measure(benchmark, device, lambda: population_norm(*there), 3 * x.nbytes / 3.35e12)
