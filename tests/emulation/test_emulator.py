"""The emulator gives CUDA's vocabulary CUDA's meaning, in each of its modes."""

from __future__ import annotations

import pytest
from emulation.build import (
    EMULATION,
    MODES,
    EmulatedCore,
    build_program,
    run_program,
    sanitizer_missing,
)

# Threads have no seeded schedule.
CASES = [(mode, seed) for mode in MODES for seed in range(1 if "threads" in mode else 3)]


@pytest.mark.parametrize(("mode", "seed"), CASES)
def test_vocabulary(mode: str, seed: int) -> None:
    if missing := sanitizer_missing(mode):
        pytest.skip(missing)
    program = build_program(EMULATION / "probe.cu", mode, kernels=[], cpu=False)
    assert run_program(program, seed) == ""


def test_the_core_has_a_device(emulated: EmulatedCore) -> None:
    assert emulated.with_cuda
    assert emulated.cuda_device_count() == 1


def test_the_checked_core_has_a_device(checked: EmulatedCore) -> None:
    assert checked.cuda_device_count() == 1
