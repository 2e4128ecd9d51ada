"""What tests of CUDA kernels share: the kernels, run on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from emulation.build import COMPILER, EmulatedCore, emulated_core


@pytest.fixture(scope="session")
def emulated_build() -> EmulatedCore:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} to build the emulated kernels with")
    return emulated_core()


@pytest.fixture
def emulated(
    emulated_build: EmulatedCore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmulatedCore]:
    """The native core with emulated kernels, on a schedule drawn from seed 1.

    Its `buffers` are those whose address the test, or an op, has asked for since the last call:
    every pointer that reaches a kernel comes from `Tensor.data_ptr`. Memory that torch leaves
    uninitialised is filled with NaN or the largest integer.
    """
    data_ptr = torch.Tensor.data_ptr

    def recorded(tensor: torch.Tensor) -> int:
        address = data_ptr(tensor)
        storage = tensor.untyped_storage()
        offset = tensor.storage_offset() * tensor.element_size()
        emulated_build.buffers[address] = storage.nbytes() - offset
        return address

    monkeypatch.setattr(torch.Tensor, "data_ptr", recorded)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    emulated_build.set_schedule(1)
    yield emulated_build
    torch.use_deterministic_algorithms(before)
    emulated_build.set_launch_hook(None)
    emulated_build.buffers.clear()
