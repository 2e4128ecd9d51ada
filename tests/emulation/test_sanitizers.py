"""Every kernel runs clean under the checker and the sanitizers, and agrees with the CPU's op."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulation.build import EMULATION, build_program, kernel_sources, run_program, sanitizer_missing

# Sources without an op of their own; what the drivers of other ops run is all there is in them.
PARTS = {"device", "hierarchy", "lloyd", "seeding", "ward_plan"}
OPS = [path.stem for path in kernel_sources() if path.stem not in PARTS]
MODES = ["checked", "tsan", "asan-threads"]


def driver(op: str) -> Path:
    return EMULATION / f"drive_{op}.cu"


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_driver(op: str) -> None:
    assert driver(op).exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", OPS)
def test_clean(op: str, mode: str) -> None:
    if missing := sanitizer_missing(mode):
        pytest.skip(missing)
    assert run_program(build_program(driver(op), mode), 3) == ""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("op", OPS)
def test_every_schedule_has_the_same_answer(op: str, seed: int) -> None:
    assert run_program(build_program(driver(op), "fibers"), seed) == ""
