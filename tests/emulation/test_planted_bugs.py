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
# The sources that an op needs, where they are not one of its name.
SOURCES = {
    "kmeans": ["kmeans.cu", "lloyd.cu", "seeding.cu", "hierarchy.cu", "ward_plan.cu"],
    "ward": ["ward.cu", "hierarchy.cu", "ward_plan.cu"],
}
HEADERS = {path.name for path in (NATIVE / "cuda").glob("*.cuh")}


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
        "crowding_distance",
        "crowding_distance.cu",
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
        "evaluate_population",
        "evaluate_population.cu",
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
        "evaluate_population",
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
        "crowding_distance",
        "crowding_distance.cu",
        """    __syncthreads();
    block_sort(""",
        """    if (threadIdx.x < 128) __syncthreads();
    block_sort(""",
        DIVERGENCE,
    ),
    Bug(
        "threads return before a barrier",
        "crowding_distance",
        "crowding_distance.cu",
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
        "evaluate_population",
        "evaluate_population.cu",
        "    largest = warp_reduce(",
        "    if (lane != 31) largest = warp_reduce(",
        LANES,
    ),
    Bug(
        "one number too many in dynamic shared memory",
        "crowding_distance",
        "crowding_distance.cu",
        "for (int i = thread; i < count; i += kCrowdingThreads) totals[i] = 0;",
        "for (int i = thread; i <= count; i += kCrowdingThreads) totals[i] = 0;",
        SHARED | {"fibers": r"out of bounds \(shared\)"},
    ),
    Bug(
        "the launch asks for too little shared memory",
        "crowding_distance",
        "crowding_distance.cu",
        "static_cast<size_t>(plan.shared_bytes)",
        "static_cast<size_t>(plan.shared_bytes - 8)",
        SHARED,
    ),
    Bug(
        "one number too many in a shared array",
        "evaluate_population",
        "launch.cuh",
        "if (lane == 0) scratch[warp] = value;\n    __syncthreads();\n    value = scratch[0];",
        "if (lane == 0) scratch[warp + 1] = value;\n    __syncthreads();\n    value = scratch[1];",
        SHARED | {"fibers": r"out of bounds \(shared\)"},
    ),
    Bug(
        "a thread past the last point",
        "crowding_distance",
        "crowding_distance.cu",
        "    if (index >= count) return;",
        "    if (index > count) return;",
        GLOBAL | {"asan-threads": "heap-buffer-overflow"},
    ),
    Bug(
        "blocks write into each other's rows",
        "evaluate_population",
        "evaluate_population.cu",
        "            fitness[candidate] = ",
        "            fitness[candidate / 2] = ",
        {"checked": r"race between blocks: thread .* writes .* at \S+:\d+"},
    ),
    Bug(
        "shared memory that nobody wrote",
        "crowding_distance",
        "crowding_distance.cu",
        "for (int i = static_cast<int>(threadIdx.x); i < size; i += kCrowdingThreads) {",
        "for (int i = static_cast<int>(threadIdx.x); i < count; i += kCrowdingThreads) {",
        {"checked": r"uninitialised shared memory: thread .* at \S+:\d+"},
    ),
    Bug(
        "no barrier between a round's search and the next step",
        "ward",
        "hierarchy.cu",
        """            ward_search<kDimensions>(front, scratch.points, now.alive, own);
        }
        __syncthreads();
    }
""",
        """            ward_search<kDimensions>(front, scratch.points, now.alive, own);
        }
    }
""",
        RACE | {"fibers": "wrong answer"},
    ),
    Bug(
        "no barrier before the warps' counts are added up",
        "ward",
        "hierarchy.cu",
        "if (lane == 0) scratch[warp] = left;\n    __syncthreads();",
        "if (lane == 0) scratch[warp] = left;",
        RACE,
    ),
    Bug(
        "no barrier before it is read where clusters move to",
        "ward",
        "hierarchy.cu",
        "        next += __popc(stay);\n    }\n    __syncthreads();",
        "        next += __popc(stay);\n    }",
        RACE,
    ),
    Bug(
        "no barrier before the next front is searched",
        "ward",
        "hierarchy.cu",
        "        if (now.alive < 2) return;\n        __syncthreads();",
        "        if (now.alive < 2) return;",
        RACE,
    ),
    Bug(
        "clusters move within the front that they are read from",
        "ward",
        "hierarchy.cu",
        "next = ward_front<kDimensions>(scratch, 1 - now.half, first);",
        "next = ward_front<kDimensions>(scratch, now.half, first);",
        RACE,
    ),
    Bug(
        "both clusters of a pair merge it",
        "ward",
        "hierarchy.cu",
        "} else if (own > other) {",
        "} else if (own > other + count) {",
        RACE,
    ),
    Bug(
        "only some warps come to a barrier",
        "ward",
        "hierarchy.cu",
        "if (lane == 0) scratch[warp] = left;\n    __syncthreads();",
        "if (lane == 0) scratch[warp] = left;\n    if (begin < alive) __syncthreads();",
        DIVERGENCE,
    ),
    Bug(
        "warps without a cluster return before a barrier",
        "ward",
        "hierarchy.cu",
        "        if (now.alive < 2) return;",
        "        if (now.alive < 2 || warp >= now.alive) return;",
        {"fibers": DIVERGENCE["fibers"] + ", but thread .* has returned"},
    ),
    Bug(
        "lanes that found no cluster do not take part in a shuffle",
        "ward",
        "hierarchy.cu",
        "    warp_nearest(best_cost, best);",
        "    if (best != kWardNobody) warp_nearest(best_cost, best);",
        LANES,
    ),
    Bug(
        "shared memory for one warp too few",
        "ward",
        "hierarchy.cu",
        """    ward_finish(WardProblems problems, WardScratch scratch, int64_t skip) {
    __shared__ int32_t shared[kWardThreads / kWarp];""",
        """    ward_finish(WardProblems problems, WardScratch scratch, int64_t skip) {
    __shared__ int32_t shared[kWardThreads / kWarp - 1];""",
        SHARED | {"fibers": r"out of bounds \(shared\)"},
    ),
    Bug(
        "a thread past the last point",
        "ward",
        "hierarchy.cu",
        "    if (own >= count) return;\n    if (own == 0) scratch.progress",
        "    if (own > count) return;\n    if (own == 0) scratch.progress",
        GLOBAL,
    ),
    Bug(
        "a merge past the last one",
        "ward",
        "ward.cu",
        "    if (own == 0 || own >= count) return;",
        "    if (own >= count) return;",
        GLOBAL,
    ),
    Bug(
        "tiles overlap",
        "ward",
        "hierarchy.cu",
        "    const int32_t end = Min()(begin + kWardTile, now.alive);",
        "    const int32_t end = Min()(begin + kWardTile + 1, now.alive);",
        {"checked": r"race between blocks: thread .* reads .* that block 1 writes, at \S+:\d+"},
    ),
    Bug(
        "no barrier before shared centres make room for others",
        "kmeans",
        "lloyd.cu",
        "        __syncthreads();  // nobody needs what the tile had before\n",
        "",
        RACE,
    ),
    Bug(
        "no barrier before shared centres are read",
        "kmeans",
        "lloyd.cu",
        "            tile[i].index = center;\n        }\n        __syncthreads();",
        "            tile[i].index = center;\n        }",
        RACE,
    ),
    Bug(
        "no barrier before the next iteration",
        "kmeans",
        "lloyd.cu",
        "        __syncthreads();\n        if (cycles) break;",
        "        if (cycles) break;",
        RACE,
    ),
    Bug(
        "no barrier between the centres and their assignment",
        "kmeans",
        "lloyd.cu",
        "        lloyd_recenter<kDimensions>(data, job, &moved);\n        __syncthreads();",
        "        lloyd_recenter<kDimensions>(data, job, &moved);",
        RACE,
    ),
    Bug(
        "no barrier before the next empty cluster is looked for",
        "kmeans",
        "lloyd.cu",
        "        __syncthreads();\n        from = empty + 1;",
        "        from = empty + 1;",
        RACE,
    ),
    Bug(
        "blocks add to a sum without an atomic",
        "kmeans",
        "lloyd.cuh",
        "    atomicAdd(data.size + job.row + to, 1);",
        "    ++data.size[job.row + to];",
        RACE,
    ),
    Bug(
        "lanes that found no centre do not take part in a shuffle",
        "kmeans",
        "lloyd.cu",
        "            warp_nearest(best_distance, best);",
        "            if (best != kLloydNobody) warp_nearest(best_distance, best);",
        {"fibers": "warp divergence: .*__shfl_xor_sync"},
    ),
    Bug(
        "one point too many",
        "kmeans",
        "lloyd.cu",
        "            if (point >= end) continue;\n            if (lost",
        "            if (point > end) continue;\n            if (lost",
        GLOBAL,
    ),
    Bug(
        "one cluster too many, in the next array of the workspace",
        "kmeans",
        "kmeans.cu",
        "row < job.row + job.k; row += kKMeansThreads",
        "row <= job.row + job.k; row += kKMeansThreads",
        GLOBAL,
    ),
    Bug(
        "shared memory for a few centres only",
        "kmeans",
        "lloyd.cu",
        "    __shared__ LloydCenter<kDimensions> tile[kLloydShared<kDimensions>];",
        "    __shared__ LloydCenter<kDimensions> tile[4];",
        SHARED,
    ),
    Bug(
        "no barrier before tickets are read",
        "kmeans",
        "seeding.cu",
        "below(random, total);\n        }\n        __syncthreads();",
        "below(random, total);\n        }",
        RACE,
    ),
    Bug(
        "only the warps with a candidate come to a barrier",
        "kmeans",
        "seeding.cu",
        "            if (lane == 0) gain[trial] = found;\n        }\n        __syncthreads();",
        "            if (lane == 0) gain[trial] = found;\n        }\n"
        "        if (warp < trials) __syncthreads();",
        DIVERGENCE,
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
    edits = {bug.file: text.replace(bug.old, bug.new)}
    if bug.op == "ward":  # the only source with instances that its bugs change
        edits["dimensions.cuh"] = fewer_instances()
    sources = [path for path in sorted(NATIVE.rglob("*")) if path.suffix in (".h", ".cuh", ".cu")]
    tree = CACHE / "planted" / digest([*edits, *edits.values(), *sources]) / "csrc"
    if not tree.exists():
        partial = tree.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        for path in sources:
            target = partial / path.relative_to(NATIVE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        for name, edited in edits.items():
            (partial / "cuda" / name).write_text(edited)
        partial.rename(tree)
    return tree


def fewer_instances() -> str:
    """dimensions.cuh with kernels for 2 and 16 dimensions alone: compiled in half of the time."""
    text = (NATIVE / "cuda" / "dimensions.cuh").read_text()
    text, padded = re.subn(r"given <= 2 \? 2 : .* : 16;", "given <= 2 ? 2 : 16;", text)
    text, cases = re.subn(r"case (?:3|4|8):\s+return .*;\n", "", text)
    assert (padded, cases) == (1, 3), "dimensions.cuh has changed"
    return text


@pytest.mark.parametrize(("bug", "mode", "report"), CASES)
def test_planted_bug_is_reported(bug: Bug, mode: str, report: str) -> None:
    if missing := sanitizer_missing(mode):
        pytest.skip(missing)
    tree = plant(bug)
    driver = EMULATION / f"drive_{bug.op}.cu"
    names = SOURCES.get(bug.op, [f"{bug.op}.cu"])
    changed = [name for name in names if bug.file in (name, *HEADERS)]
    kernels = [tree / "cuda" / name for name in changed]
    others = [NATIVE / "cuda" / name for name in names if name not in changed]
    program = build_program(driver, mode, kernels, native=tree, others=others)
    # Where the schedule decides, one of a few seeds must do.
    found = ""
    for seed in SEEDS if "threads" not in mode else [1]:
        found = run_program(program, seed)
        if re.search(report, found):
            return
    pytest.fail(f"expected a report like {report!r}, got {found!r}")
