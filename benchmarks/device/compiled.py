"""Writes results/compiled.json and results/compiled.md: kernels as nvcc makes them, and rooflines.

python benchmarks/device/compiled.py

Needs nvcc; no GPU. The tables are of the kernels in csrc/cuda, which are compiled as for the wheel.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

import cubins
import occupancy
import roofline
from cubins import ARCHITECTURES, Resources

RESULTS = Path(__file__).parents[1] / "results"
HOPPER = 90


def describe(kernel: Resources, name: str) -> dict[str, Any]:
    held = (kernel.architecture, kernel.threads, kernel.registers, kernel.shared)
    return {
        "kernel": name,
        **kernel._asdict(),
        "blocks": occupancy.active_blocks(*held),
        "occupancy": occupancy.occupancy(*held),
        "spare_shared": occupancy.spare_shared(*held),
    }


def inspect(folder: Path) -> tuple[list[dict[str, Any]], dict[str, cubins.Loop]]:
    """Every kernel on every architecture, and the distance loops of Lloyd in three dimensions."""
    objects = cubins.compile_kernels(cubins.sources(), folder)
    kernels = list(itertools.chain.from_iterable(objects.values()))
    names = cubins.readable(sorted({kernel.symbol for kernel in kernels}))
    loops = {}
    for path in (path for path, found in objects.items() if path.stem == "lloyd" and found):
        for symbol, code in cubins.sass(path, HOPPER).items():
            match = re.fullmatch(r".*lloyd\w*<3\b.*>", names[symbol])
            found = cubins.distance_loop(cubins.innermost_loops(code), 3) if match else None
            if found is not None:
                loops[names[symbol]] = found
    rows = [describe(kernel, names[kernel.symbol]) for kernel in kernels]
    rows.sort(key=lambda row: (row["source"], natural(row["kernel"]), row["architecture"]))
    return rows, loops


def natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def kernel_table(rows: list[dict[str, Any]]) -> list[str]:
    architectures = " | ".join(f"sm_{one}" for one in ARCHITECTURES)
    lines = [f"| kernel | threads | shared | stack | {architectures} | spare shared, sm_90 |"]
    lines.append("|---|" + "---:|" * (4 + len(ARCHITECTURES)))
    for (_, name), group in itertools.groupby(rows, lambda row: (row["source"], row["kernel"])):
        found = list(group)
        cells = [f"{row['registers']} · {row['occupancy']:.0%}" for row in found]
        spare = next(row["spare_shared"] for row in found if row["architecture"] == HOPPER)
        stack = max(row["stack"] for row in found)
        shared = max(row["shared"] for row in found)
        start = f"| `{name}` | {found[0]['threads']} | {shared:,} | {stack} | "
        lines.append(start + " | ".join(cells) + f" | {spare / 1024:.1f} KiB |")
    return lines


def time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms"


def roofline_table(found: list[roofline.Job], per_pair: float | None) -> list[str]:
    lines = ["| job | size | MB | pairs | memory | arithmetic | floor | as compiled | target |"]
    lines.append("|---|---|" + "---:|" * 7)
    for job in found:
        compiled = "-"
        if per_pair is not None and "Lloyd" in job.name:
            compiled = time(roofline.issue_time(job.pairs * per_pair))
        pairs = f"{job.pairs / 1e6:,.4g} M" if job.pairs else "-"
        lines.append(
            f"| {job.name} | {job.size} | {job.bytes / 1e6:.3g} | {pairs} | {time(job.memory)} "
            f"| {time(job.arithmetic)} | {time(job.floor)} | {compiled} | {time(job.target)} |"
        )
    return lines


HEAD = """# Kernels as compiled, and what an H100 could do with them

Made by `python benchmarks/device/compiled.py` on {date} with nvcc {nvcc}. **On paper: nothing
on this page was measured on a GPU.** Registers, shared memory and stack are ptxas's; occupancy
follows from them by the rules in `benchmarks/device/occupancy.py`;
`tests/benchmarks/test_compiled.py` keeps spills at 0.

## Kernels

`registers of a thread · occupancy` for each architecture, at the most threads that
`__launch_bounds__` allows and without dynamic shared memory. Shared memory is static, in bytes of
a block; the stack (local memory) in bytes of a thread; both are the largest of all architectures.
The last column says how much dynamic shared memory a block may take on sm_90 before fewer blocks
fit.
"""

ROOFLINE = """
## Roofline of an H100 SXM

3.35 TB/s; 132 multiprocessors that issue 128 thread instructions a cycle each (64 in float64) at
1.755 GHz; an empty launch is 2 us. *Memory*: everything read and written once. *Arithmetic*: the
instructions that no kernel can avoid, all issued at the full rate; {necessary} for each pair of a
point and a centre in three dimensions (3 subtractions, 3 multiplications, 2 additions, a
comparison, two selections; nothing is contracted, so that devices agree). *As compiled*: the same
pairs at the number of instructions that sm_90's machine code really has. Iterations are those of
the CPU op on ResNet-50's 53 convolutions with random weights; every pair counts, so bounds that
skip pairs can beat these floors. The floor is the largest of memory, arithmetic and a launch.
"""


def page(record: dict[str, Any], jobs: list[roofline.Job], loops: dict[str, cubins.Loop]) -> str:
    least = min((loop.per_pair for loop in loops.values()), default=None)
    head = HEAD.format(date=record["date"], nvcc=record["nvcc"])
    lines = [head, *kernel_table(record["kernels"])]
    lines += [ROOFLINE.format(necessary=roofline.NECESSARY), *roofline_table(jobs, least)]
    lines += ["", "### Instructions of the Lloyd kernels per pair, D = 3, sm_90", ""]
    if not loops:
        lines.append("No Lloyd kernel is compiled yet.")
    else:
        lines.append("The innermost loop with the most multiplications; three of them make a pair.")
        lines += [
            "",
            "| kernel | instructions | pairs | per pair | which |",
            "|---|---:|---:|---:|---|",
        ]
        for name, loop in loops.items():
            kinds = ", ".join(f"{count} {kind}" for kind, count in loop.kinds.items())
            numbers = f"{loop.instructions} | {loop.pairs} | {loop.per_pair:.2f}"
            lines.append(f"| `{name}` | {numbers} | {kinds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    compiler = cubins.nvcc()
    if compiler is None:
        raise SystemExit("needs nvcc on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        rows, loops = inspect(Path(folder))
    version, _ = cubins.run(compiler, "--version")
    jobs = roofline.jobs()
    record = {
        "date": datetime.date.today().isoformat(),
        "nvcc": cubins.first(r"V([\d.]+)", version),
        "kernels": rows,
        "lloyd_loops": {
            name: {**loop._asdict(), "per_pair": loop.per_pair} for name, loop in loops.items()
        },
        "jobs": [{**job._asdict(), "floor": job.floor} for job in jobs],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compiled.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "compiled.md").write_text(page(record, jobs, loops))


if __name__ == "__main__":
    main()
