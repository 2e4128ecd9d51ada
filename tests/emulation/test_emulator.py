"""The emulator gives CUDA's vocabulary CUDA's meaning."""

from __future__ import annotations

from emulation.build import EmulatedCore


def test_the_core_has_a_device(emulated: EmulatedCore) -> None:
    assert emulated.with_cuda
    assert emulated.cuda_device_count() == 1


def test_the_checked_core_has_a_device(checked: EmulatedCore) -> None:
    assert checked.cuda_device_count() == 1
