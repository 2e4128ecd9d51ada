"""Copies of the project's kernels with a bug each: every one must be reported.

A substitution that no longer applies fails its test: a check that cannot fail is no check.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from emulation.build import (
    CACHE,
    EMULATION,
    NATIVE,
    build_program,
    digest,
    run_program,
    sanitizer_missing,
)

SEEDS = range(1, 6)


@dataclass(frozen=True)
class Bug:
    """A bug to plant: in `file` of csrc/cuda, `old`, found once, becomes `new`.

    Each of `reports` is a mode of the emulator and what it must say of the op's driver.
    """

    name: str
    op: str
    file: str
    old: str
    new: str
    reports: dict[str, str]


RACE = {"tsan": r"data race.*\n(.*\n)*.*\.cuh?:\d+"}
SHARED = {"checked": r"out of bounds \(shared\): thread .* at \S+:\d+"}
GLOBAL = {"checked": r"out of bounds \(global\): thread .* at \S+:\d+"}
DIVERGENCE = {"fibers": r"barrier divergence: thread .* waits at \S+:\d+ __syncthreads"}
LANES = {"fibers": r"(shuffle without participation|without all of its lanes): .*__shfl_xor_sync"}

BUGS = [
    Bug(
        "no barrier between the steps of a sort",
        "crowding",
        "crowding.cu",
        """                }
            }
            __syncthreads();
""",
        """                }
            }
""",
        RACE | {"fibers": "wrong answer"},
    ),
    Bug(
        "no barrier before the losses are added up",
        "population",
        "population.cu",
        """        __syncthreads();
        if (threadIdx.x == 0) {
            double sum = 0;
""",
        """        if (threadIdx.x == 0) {
            double sum = 0;
""",
        RACE | {"fibers": "wrong answer", "tsan-threads": "data race"},
    ),
    Bug(
        "no barrier before a reduction's scratch memory is used again",
        "population",
        "launch.cuh",
        """op(value, scratch[other]);
    __syncthreads();
""",
        """op(value, scratch[other]);
""",
        RACE,
    ),
    Bug(
        "half of the threads come to a barrier",
        "crowding",
        "crowding.cu",
        """    __syncthreads();
    block_sort(""",
        """    if (threadIdx.x < 128) __syncthreads();
    block_sort(""",
        DIVERGENCE,
    ),
    Bug(
        "threads return before a barrier",
        "crowding",
        "crowding.cu",
        """    __syncthreads();
    if (thread >= count) return;
""",
        """    if (thread >= count) return;
    __syncthreads();
""",
        {"fibers": DIVERGENCE["fibers"] + ", but thread .* has returned"},
    ),
    Bug(
        "a lane does not take part in a shuffle",
        "population",
        "population.cu",
        "    largest = warp_reduce(",
        "    if (lane != 31) largest = warp_reduce(",
        LANES,
    ),
    Bug(
        "one number too many in dynamic shared memory",
        "crowding",
        "crowding.cu",
        "for (int i = thread; i < count; i += kCrowdingThreads) totals[i] = 0;",
        "for (int i = thread; i <= count; i += kCrowdingThreads) totals[i] = 0;",
        SHARED | {"fibers": r"out of bounds \(shared\)"},
    ),
    Bug(
        "the launch asks for too little shared memory",
        "crowding",
        "crowding.cu",
        "static_cast<size_t>(plan.shared_bytes)",
        "static_cast<size_t>(plan.shared_bytes - 8)",
        SHARED,
    ),
    Bug(
        "one number too many in a shared array",
        "population",
        "launch.cuh",
        "if (lane == 0) scratch[warp] = value;\n    __syncthreads();\n    value = scratch[0];",
        "if (lane == 0) scratch[warp + 1] = value;\n    __syncthreads();\n    value = scratch[1];",
        SHARED | {"fibers": r"out of bounds \(shared\)"},
    ),
    Bug(
        "a thread past the last point",
        "crowding",
        "crowding.cu",
        "    if (index >= count) return;",
        "    if (index > count) return;",
        GLOBAL | {"asan-threads": "heap-buffer-overflow"},
    ),
    Bug(
        "blocks write into each other's rows",
        "population",
        "population.cu",
        "            fitness[candidate] = ",
        "            fitness[candidate / 2] = ",
        {"checked": r"race between blocks: thread .* writes .* at \S+:\d+"},
    ),
    Bug(
        "shared memory that nobody wrote",
        "crowding",
        "crowding.cu",
        "for (int i = static_cast<int>(threadIdx.x); i < size; i += kCrowdingThreads) {",
        "for (int i = static_cast<int>(threadIdx.x); i < count; i += kCrowdingThreads) {",
        {"checked": r"uninitialised shared memory: thread .* at \S+:\d+"},
    ),
]
CASES = [
    pytest.param(bug, mode, report, id=f"{bug.op}: {bug.name} ({mode})")
    for bug in BUGS
    for mode, report in bug.reports.items()
]


def plant(bug: Bug) -> Path:
    """A copy of csrc with the bug; its path."""
    text = (NATIVE / "cuda" / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{bug.file} has changed: plant this bug anew"
    sources = [path for path in sorted(NATIVE.rglob("*")) if path.suffix in (".h", ".cuh", ".cu")]
    tree = CACHE / "planted" / digest([bug.file, bug.old, bug.new, *sources]) / "csrc"
    if not tree.exists():
        partial = tree.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        for path in sources:
            target = partial / path.relative_to(NATIVE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        (partial / "cuda" / bug.file).write_text(text.replace(bug.old, bug.new))
        partial.rename(tree)
    return tree


@pytest.mark.parametrize(("bug", "mode", "report"), CASES)
def test_planted_bug_is_reported(bug: Bug, mode: str, report: str) -> None:
    if missing := sanitizer_missing(mode):
        pytest.skip(missing)
    tree = plant(bug)
    driver = EMULATION / f"drive_{bug.op}.cu"
    kernels = [tree / "cuda" / f"{bug.op}.cu"]
    program = build_program(driver, mode, kernels, native=tree)
    # Where the schedule decides, one of a few seeds must do.
    found = ""
    for seed in SEEDS if "threads" not in mode else [1]:
        found = run_program(program, seed)
        if re.search(report, found):
            return
    pytest.fail(f"expected a report like {report!r}, got {found!r}")
