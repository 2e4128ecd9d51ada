"""What tests of CUDA kernels share: the kernels, run on the CPU, and the demand for a device."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import pytest
import torch
from emulation.build import COMPILER, EmulatedCore, emulated_core

from mdcp_fast.ops._native import native


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked needs_cuda where it cannot run; MDCP_REQUIRE_CUDA=1: fails it."""
    if item.get_closest_marker("needs_cuda") is None:
        return
    reason = None
    if not torch.cuda.is_available():
        reason = "needs_cuda: torch finds no CUDA device"
    elif not native.with_cuda:
        reason = "needs_cuda: mdcp_fast was built without CUDA"
    if reason is not None and os.environ.get("MDCP_REQUIRE_CUDA") == "1":
        pytest.fail(f"{reason}, and MDCP_REQUIRE_CUDA=1 allows no skip", pytrace=False)
    if reason is not None:
        pytest.skip(reason)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Ends a worker in which a kernel has failed: every later call there would fail, too."""
    if item.get_closest_marker("needs_cuda") is None or not torch.cuda.is_available():
        return
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{item.nodeid}: {error}", file=sys.stderr, flush=True)
        os._exit(70)  # xdist starts another one


def _build(mode: str) -> EmulatedCore:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} to build the emulated kernels with")
    return emulated_core(mode)


@pytest.fixture(scope="session")
def _fibers_core() -> EmulatedCore:
    return _build("fibers")


@pytest.fixture(scope="session")
def _checked_core() -> EmulatedCore:
    return _build("checked")


def _prepared(core: EmulatedCore, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCore]:
    data_ptr = torch.Tensor.data_ptr

    def recorded(tensor: torch.Tensor) -> int:
        address = data_ptr(tensor)
        offset = tensor.storage_offset() * tensor.element_size()
        core.buffers[address] = tensor.untyped_storage().nbytes() - offset
        return address

    monkeypatch.setattr(torch.Tensor, "data_ptr", recorded)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    core.set_schedule(1)
    yield core
    torch.use_deterministic_algorithms(before)
    core.set_launch_hook(None)
    core.buffers.clear()


@pytest.fixture
def emulated(_fibers_core: EmulatedCore, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCore]:
    """The native core with emulated kernels, on a schedule drawn from seed 1.

    Its `buffers` are those whose address the test, or an op, has asked for since the last call:
    every pointer that reaches a kernel comes from `Tensor.data_ptr`. Memory that torch leaves
    uninitialised is filled with NaN or the largest integer.
    """
    yield from _prepared(_fibers_core, monkeypatch)


@pytest.fixture
def checked(_checked_core: EmulatedCore, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCore]:
    """As `emulated`, several times slower, with every access of a kernel checked.

    A kernel may touch the `buffers`, its shared memory (to read it: what the block has written) and
    nothing else.
    """
    yield from _prepared(_checked_core, monkeypatch)
