"""channel_statistics of ResNet-50's 53 convolutions (93.8 MB in float32), one thread.

pytest benchmarks/bench_statistics.py -s

Times are CPU times of the process. The result is checked against float64 first. The op reads every
weight once and writes next to nothing, so memory is its limit: extra_info and the printed line say
what share it reaches of the bandwidth of a copy (bytes read and written) and of a plain sum (bytes
read), both measured in the same run over the same number of bytes, turn about with the op.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mdcp_fast.ops import reference
from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.statistics import channel_statistics

ROUNDS = 40  # the best counts: what else the machine does only ever takes bandwidth away
BAR = 0.60  # of the copy bandwidth


@functools.cache
def resnet50_weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    from torchvision.models import resnet50

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet50(weights=None)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    return [layer.weight.detach().to(dtype) for layer in layers]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def check(results: list[Tensor], weights: list[Tensor], unit: str = "filter") -> None:
    expected = reference.channel_statistics(weights, unit=unit)
    for result, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-6)


def bandwidth_shares(run: Callable[[], object], size: int) -> dict[str, float]:
    """What `run`, which reads `size` bytes, reaches of what memory gives."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    times: dict[str, list[float]] = {"op": [], "copy": [], "sum": []}
    for _ in range(ROUNDS):
        times["op"].append(cpu_seconds(run))
        times["copy"].append(cpu_seconds(lambda: target.copy_(source)))
        times["sum"].append(cpu_seconds(source.sum))
    op, copy, read = (min(times[name]) for name in ("op", "copy", "sum"))
    return {
        "op_GB_per_s": size / op / 1e9,
        "copy_GB_per_s": 2 * size / copy / 1e9,
        "read_GB_per_s": size / read / 1e9,
        "share_of_copy": (size / op) / (2 * size / copy),
        "share_of_read": read / op,
    }


@pytest.mark.benchmark(timer=time.process_time, min_rounds=ROUNDS)
@pytest.mark.parametrize("simd", simd_levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ours(benchmark: Any, dtype: torch.dtype, simd: str) -> None:
    weights = resnet50_weights(dtype)
    run = functools.partial(channel_statistics, weights, simd=simd)
    check(run(), weights)
    shares = bandwidth_shares(run, sum(weight.nbytes for weight in weights))
    benchmark.extra_info.update(shares, simd=simd, dtype=str(dtype))
    benchmark(run)
    print(
        f"\n{dtype} {simd}: {shares['op_GB_per_s']:.1f} GB/s, "
        f"{shares['share_of_copy']:.0%} of copy bandwidth ({shares['copy_GB_per_s']:.1f} GB/s), "
        f"{shares['share_of_read']:.0%} of read bandwidth ({shares['read_GB_per_s']:.1f} GB/s)"
    )
    if dtype == torch.float32 and simd == simd_levels()[-1]:
        assert shares["share_of_copy"] >= BAR


@pytest.mark.benchmark(timer=time.process_time, min_rounds=3)
def test_ours_of_kernels(benchmark: Any) -> None:
    """13.4 million slices, of one weight or nine: the output, 160 MB, is larger than the input."""
    weights = resnet50_weights()
    check(channel_statistics(weights, unit="kernel"), weights, "kernel")
    benchmark(channel_statistics, weights, unit="kernel")


def torch_moments(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, correction=0)
    norm = torch.linalg.vector_norm(rows, dim=1)
    return torch.stack([mean, variance, 1 - mean * rows.shape[1] ** 0.5 / norm], dim=1)


def torch_cosine_similarity(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, correction=0)
    cosine = functional.cosine_similarity(rows, torch.ones(1, rows.shape[1]), dim=1)
    return torch.stack([mean, variance, 1 - cosine], dim=1)


@pytest.mark.benchmark(timer=time.process_time, min_rounds=3)
@pytest.mark.parametrize("one_layer", [torch_moments, torch_cosine_similarity])
def test_torch_loop(benchmark: Any, one_layer: Callable[[Tensor], Tensor]) -> None:
    weights = resnet50_weights()
    results = benchmark(lambda: [one_layer(weight) for weight in weights])
    check(results, weights)
