"""The emulator gives CUDA's vocabulary CUDA's meaning, in each of its modes."""

from __future__ import annotations

import pytest

from emulation.build import EMULATION, MODES, EmulatedCore, build_program, run_program


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_vocabulary(mode: str, seed: int) -> None:
    program = build_program(EMULATION / "probe.cu", mode, kernels=[], cpu=False)
    assert run_program(program, seed) == ""


def test_the_core_has_a_device(emulated: EmulatedCore) -> None:
    assert emulated.with_cuda
    assert emulated.cuda_device_count() == 1


def test_the_checked_core_has_a_device(checked: EmulatedCore) -> None:
    assert checked.cuda_device_count() == 1
