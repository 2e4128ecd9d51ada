"""Counts the instructions of every native op, and fails if one takes more than it did.

python benchmarks/speed/instructions.py           compares with results/instructions.json
python benchmarks/speed/instructions.py --write   renews it

Times move with what else a machine does; how many instructions an op takes does not. The ops run on
fixed inputs (instructions.cpp), one thread, compiled for AVX2 alone, whichever instruction sets
this processor has: valgrind knows none above it. Counted is what callgrind sees of the program's
own code below `measured`: what the C and C++ libraries execute is left out, since they choose their
code by the processor (memory copies, tan), and so is the making of the inputs. Counts say nothing
of memory: that is for the benchmarks.

The numbers belong to a compiler. With another one nothing is compared, and it says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks" / "results" / "instructions.json"
ALLOWED = 0.03  # share by which a count may move


class Comparison(NamedTuple):
    """Attributes:
    lines: The table, and what to do about it.
    failed: An op takes too many instructions, or was never recorded.
    """

    lines: list[str]
    failed: bool


def compare(recorded: dict[str, int], counted: dict[str, int]) -> Comparison:
    """What moved, by op."""
    lines, failed, renew = [f"{'op':24}{'recorded':>14}{'now':>14}{'change':>10}"], False, False
    for op in recorded | counted:
        if op not in counted:
            lines.append(f"{op:24}{recorded[op]:14,}{'none':>14}   is gone")
            renew = True
            continue
        if op not in recorded:
            lines.append(f"{op:24}{'none':>14}{counted[op]:14,}   FAILED: was never recorded")
            failed = True
            continue
        change = counted[op] / recorded[op] - 1
        note = ""
        if counted[op] > recorded[op] * (1 + ALLOWED):
            note, failed = f"   FAILED: more than {ALLOWED:.0%} more", True
        elif counted[op] < recorded[op] * (1 - ALLOWED):
            note, renew = "   fewer", True
        lines.append(f"{op:24}{recorded[op]:14,}{counted[op]:14,}{change:10.2%}{note}")
    if failed:
        lines.append(
            "If that is meant, `python benchmarks/speed/instructions.py --write` records it."
        )
    elif renew:
        lines.append("Renew the record: `python benchmarks/speed/instructions.py --write`.")
    return Comparison(lines, failed)


def why_not(recorded_compiler: str, compiler: str) -> str | None:
    """Why counts of this compiler cannot be compared, None if they can."""
    if compiler == recorded_compiler:
        return None
    return (
        f"skipped: instruction counts: recorded with {recorded_compiler}, this is {compiler}; "
        "`python benchmarks/speed/instructions.py --write` records it"
    )


def compiler_version() -> str:
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True)
    return f"{version.stdout.splitlines()[0]}, {platform.machine()}"


def build(folder: Path) -> Path:
    """The program of instructions.cpp, compiled with the flags of setup.py."""
    setup = (ROOT / "setup.py").read_text()
    found = re.search(r'^flags = "(.+)"$', setup, re.MULTILINE)
    assert found, "setup.py: expected a line flags = ..."
    command = ["g++", "-std=c++17", *found.group(1).split(), f"-I{ROOT / 'csrc'}"]
    command += ["-mavx2", "-DMDCP_ONE_LEVEL"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
        return target

    sources = [
        *sorted((ROOT / "csrc" / "cpu").glob("*.cpp")),
        ROOT / "benchmarks/speed/instructions.cpp",
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "instructions"
    subprocess.run(["g++", *map(str, objects), "-pthread", "-o", str(program)], check=True)
    return program


def count(program: Path, op: str) -> int:
    """Instructions of the program's own code below `measured`."""
    profile = program.parent / "callgrind.out"
    command = ["valgrind", "--tool=callgrind", "--toggle-collect=measured", "--compress-strings=no"]
    command += ["--compress-pos=no", f"--callgrind-out-file={profile}", str(program), op]
    subprocess.run(command, check=True, capture_output=True)
    return own_instructions(profile.read_text(), program.name)


def own_instructions(profile: str, name: str) -> int:
    """The sum of a callgrind profile's costs of the object file of that name, calls left out."""
    total, own, after_calls = 0, False, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            own = Path(line[3:]).name == name
        elif line.startswith("calls="):
            after_calls = True  # the next line's cost is that of the callee
        elif line[:1].isdigit():
            if own and not after_calls:
                total += int(line.split()[1])
            after_calls = False
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="renew the record")
    write = parser.parse_args().write
    for tool in ("g++", "valgrind"):
        if shutil.which(tool) is None:
            sys.exit(f"instructions: expected {tool} on the PATH, found none")
    compiler = compiler_version()
    recorded = {} if write else json.loads(RECORD.read_text())
    reason = None if write else why_not(recorded["compiler"], compiler)
    if reason:
        print(reason)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        ops = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        counted = {op: count(program, op) for op in ops.splitlines()}
    if write:
        record = {"compiler": compiler, "instructions": counted}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    result = compare(counted if write else recorded["instructions"], counted)
    print("\n".join(result.lines))
    return int(result.failed)


if __name__ == "__main__":
    sys.exit(main())
