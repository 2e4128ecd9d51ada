"""channel_statistics of ResNet-50's 53 convolutions (93.8 MB in float32), beside loops of torch.

pytest benchmarks/speed/bench_channel_statistics.py -s [--threads 2]

The result is checked against float64 first. The op reads every
weight once and writes next to nothing, so memory is its limit: extra_info and the printed line say
what share it reaches of the bandwidth of a copy (bytes read and written) and of a plain sum (bytes
read), both measured in the same run over the same number of bytes, turn about with the op.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import workloads
from comparison import seconds_of
from torch import Tensor
from torch.nn import functional

from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.reference.channel_statistics import channel_statistics_reference

ROUNDS = 40  # the best counts: what else the machine does only ever takes bandwidth away


pytestmark = pytest.mark.usefixtures("threads")
Compare = Callable[..., dict[str, Any]]


@functools.cache
def resnet50_weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [weight.to(dtype) for weight in workloads.resnet50_weights()]


def check(results: list[Tensor], weights: list[Tensor], unit: str = "filter") -> None:
    expected = channel_statistics_reference(weights, unit=unit)
    for result, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-6)


def bandwidth_shares(run: Callable[[], object], size: int) -> dict[str, float]:
    """What `run`, which reads `size` bytes, reaches of what memory gives."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    times: dict[str, list[float]] = {"op": [], "copy": [], "sum": []}
    for _ in range(ROUNDS):
        times["op"].append(seconds_of(run)[0])
        times["copy"].append(seconds_of(lambda: target.copy_(source))[0])
        times["sum"].append(seconds_of(source.sum)[0])
    op, copy, read = (min(times[name]) for name in ("op", "copy", "sum"))
    return {
        "op_GB_per_s": size / op / 1e9,
        "copy_GB_per_s": 2 * size / copy / 1e9,
        "read_GB_per_s": size / read / 1e9,
        "share_of_copy": (size / op) / (2 * size / copy),
        "share_of_read": read / op,
    }


@pytest.mark.parametrize("simd", simd_levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ours(compare: Compare, benchmark: Any, dtype: torch.dtype, simd: str) -> None:
    weights = resnet50_weights(dtype)
    run = functools.partial(channel_statistics, weights, simd=simd)
    check(run(), weights)
    shares = bandwidth_shares(run, sum(weight.nbytes for weight in weights))
    benchmark.extra_info.update(shares, simd=simd, dtype=str(dtype))
    compare(run)
    print(
        f"\n{dtype} {simd}: {shares['op_GB_per_s']:.1f} GB/s, "
        f"{shares['share_of_copy']:.0%} of copy bandwidth ({shares['copy_GB_per_s']:.1f} GB/s), "
        f"{shares['share_of_read']:.0%} of read bandwidth ({shares['read_GB_per_s']:.1f} GB/s)"
    )


@pytest.mark.slow
def test_ours_of_kernels(compare: Compare) -> None:
    """13.4 million slices, of one weight or nine: the output, 160 MB, is larger than the input."""
    weights = resnet50_weights()
    check(channel_statistics(weights, unit="kernel"), weights, "kernel")
    compare(lambda: channel_statistics(weights, unit="kernel"), rounds=5)


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


def measure(compare: Compare, weights: list[Tensor], **options: Any) -> None:
    """Ours beside loops of torch and a plain read of as many bytes."""
    check(channel_statistics(weights), weights)
    source = torch.ones(sum(weight.numel() for weight in weights))

    def loop(one_layer: Callable[[Tensor], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: [one_layer(weight) for weight in weights]

    peers = {
        "torch loop": lambda: loop(torch_moments),
        "torch loop with cosine_similarity": lambda: loop(torch_cosine_similarity),
        "a plain read": lambda: source.sum,
    }
    found = compare(lambda: channel_statistics(weights), peers, **options)
    for name in list(peers)[:2]:
        check(found[name], weights)


@pytest.mark.parametrize("kind", workloads.KINDS)
def test_layers(compare: Compare, kind: str) -> None:
    measure(compare, workloads.resnet50_weights(kind), rounds=15)


@pytest.mark.parametrize("n", [64, 256, 1024, 4096])
def test_growth(compare: Compare, n: int) -> None:
    """One layer of n filters of 576 weights."""
    weights = [torch.randn(n, 576, generator=torch.Generator().manual_seed(0))]
    measure(compare, weights, growth=("n", n, "filters of 576 weights"))


@pytest.mark.parametrize("tensors", [1, 30, 1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_problems(compare: Compare, tensors: int) -> None:
    """Many layers of 16 filters of 27 weights."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(16, 27, generator=generator) for _ in range(tensors)]
    measure(compare, weights, growth=("problems", tensors, "16 filters of 27 weights"))
