"""Checks an installed wheel: `python installed_wheel.py WITH_CUDA`, in a folder without the source.

WITH_CUDA is 1 where the wheel must have the CUDA kernels, 0 where it must not. Runs under any torch
that the package allows, built for CUDA or not, on a machine without a CUDA device: the ops and
the steps of pruning on the CPU, and how what would need a device is refused.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mdcp_fast
from mdcp_fast.ops import crowding_distance
from mdcp_fast.ops._arguments import runs_on_cuda
from mdcp_fast.ops._native import native

POINTS, OFFSETS = torch.rand(100, 3), torch.tensor([0, 40, 100])


def check_that_the_wheel_is_what_is_imported(with_cuda: bool) -> None:
    packages = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    for module in (mdcp_fast, native):
        folder = Path(str(module.__file__)).resolve()
        assert any(folder.is_relative_to(one.resolve()) for one in packages), folder
    assert version("mdcp-fast") == mdcp_fast.__version__
    assert native.with_cuda == with_cuda
    assert native.cuda_device_count() == 0 and not torch.cuda.is_available()


def check_the_ops() -> None:
    found = mdcp_fast.kmeans(POINTS, OFFSETS, torch.tensor([5, 7]))
    assert found.labels[:40].unique().tolist() == list(range(5))
    assert found.labels[40:].unique().tolist() == list(range(7))
    linkage = mdcp_fast.ward(POINTS, OFFSETS)  # rows of 39 and of 59 merges
    assert linkage[[38, 97], 3].tolist() == [40, 60]
    distances = mdcp_fast.crowding_distance(POINTS, OFFSETS)
    for segment in distances.split([40, 60]):
        assert segment.isinf().any() and segment.min() >= 0
    (statistics,) = mdcp_fast.channel_statistics([torch.full((4, 3, 3, 3), 2.0)])
    assert statistics.shape == (4, 3) and (statistics[:, 0] == 2).all()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + self.second(x).relu()
        return self.head(x.mean((2, 3)))


def check_pruning() -> None:
    images = torch.rand(8, 3, 8, 8)
    graph = mdcp_fast.trace(Network().eval(), images[:1])
    plan = mdcp_fast.search(graph, macs=0.5)
    small = mdcp_fast.prune(graph, plan, calibration=[images])
    assert small(images).isfinite().all()
    assert mdcp_fast.count_macs(small, images[:1]) == plan.macs <= 0.5 * graph.macs


def check_that_cuda_is_refused(with_cuda: bool) -> None:
    """By torch, whichever build it is; by the launchers; or, without CUDA inside, by the ops."""
    refused(lambda: POINTS.to("cuda"), "NVIDIA driver", "not compiled with CUDA")
    if with_cuda:
        refused(
            lambda: crowding_distance._launch(native, POINTS, OFFSETS), "driver", "no CUDA-capable"
        )
        return
    with FakeTensorMode():
        there = torch.empty(100, 3, device="cuda")
    refused(lambda: runs_on_cuda("op", "points", there), "MDCP_CUDA=1 pip install")


def refused(call: Callable[[], object], *messages: str) -> None:
    """The call raises an error with one of the messages."""
    try:
        call()
    except (RuntimeError, AssertionError) as error:
        assert any(message in str(error) for message in messages), error
        return
    raise AssertionError(f"expected a refusal that names {' or '.join(messages)}")


if __name__ == "__main__":
    inside = sys.argv[1] == "1"
    check_that_the_wheel_is_what_is_imported(inside)
    check_the_ops()
    check_pruning()
    check_that_cuda_is_refused(inside)
    kernels = "with CUDA kernels" if inside else "without CUDA kernels"
    print(f"mdcp_fast {mdcp_fast.__version__} {kernels}, torch {torch.__version__}: all well")
