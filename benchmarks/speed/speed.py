"""Speed of every op and of the whole way, beside peers: all suites bench_<op>.py in one command.

python benchmarks/speed run            what is missing in the results of this machine
python benchmarks/speed run --quick    one round, no slow cases: only shows that it works
python benchmarks/speed report         page, figures and the README's table from the results

Each suite runs at one and at two threads, in a process of its own. A case that was measured on
this machine, at this commit and with these versions, is not measured again: a run that was killed
goes on, and what failed is tried anew. `pip install ".[bench]"` installs the peers; one that is
missing or fails is recorded by name with the reason, and the others are measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from comparison import quantiles
from records import Records, environment
from speed_report import write_report

from mdcp_fast.ops._arguments import simd_levels

SPEED = Path(__file__).resolve().parent
BENCHMARKS = SPEED.parent
RESULTS = BENCHMARKS / "results"
SUITES = (
    "channel_statistics",
    "ward",
    "kmeans",
    "kernel_unit",
    "crowding_distance",
    "evolution",
    "selection",
    "trace",
    "prune",
    "end_to_end",
)
THREADS = (1, 2)
KEY = ("suite", "case", "threads")
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pytest-benchmark",
    "scikit-learn",
    "scipy",
    "faiss-cpu",
    "torch-kmeans",
    "fast-pytorch-kmeans",
    "fastcluster",
    "pymoo",
    "deap",
    "pygmo",
    "evox",
    "torch-pruning",
)
NO_TESTS = 5  # pytest's exit status where every case was left out


@functools.cache
def machine() -> dict[str, Any]:
    """The environment of the records, with what matters to speed."""
    return environment(PACKAGES) | {"caches": _caches(), "simd": simd_levels()[-1]}


def _caches() -> str:
    """Of the first core, such as "L1 32K, L2 512K, L3 32768K"."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found) or "unknown"


def default_results(quick: bool) -> Path:
    """results/<machine>.json, such as amd-epyc-2-cores.json."""
    cores, _, processor = machine()["machine"].partition(", ")
    name = re.sub(r"[^a-z0-9]+", "-", f"{processor} {cores}".lower()).strip("-")
    return RESULTS / f"{name}{'_quick' if quick else ''}.json"


def measured(records: Records, suite: str, threads: int) -> list[str]:
    """The cases of a suite that were measured in today's environment, whatever the date."""
    now = machine() | {"date": None}
    current = {
        place for place, one in enumerate(records.environments) if one | {"date": None} == now
    }
    return [
        f"test_{one['case']}"
        for one in records.records
        if (one["suite"], one["threads"]) == (suite, threads) and one["environment"] in current
    ]


def measure(records: Records, suite: str, threads: int, arguments: argparse.Namespace) -> bool:
    """Runs a suite, records its cases, and says whether all went well."""
    with tempfile.TemporaryDirectory() as folder:
        known, report = Path(folder) / "known.json", Path(folder) / "report.json"
        known.write_text(json.dumps(measured(records, suite, threads)))
        command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
        command += [os.fspath(SPEED / f"bench_{suite}.py"), "--benchmark-quiet"]
        command += [f"--benchmark-json={report}", f"--measured={known}", f"--threads={threads}"]
        command += ["--quick"] if arguments.quick else []
        command += ["-k", arguments.cases] if arguments.cases else []
        print(f"== {suite}, threads: {threads}", flush=True)
        status = subprocess.run(
            command,
            cwd=BENCHMARKS.parent,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        ).returncode
        content = report.read_text() if report.is_file() else ""
    for one in json.loads(content)["benchmarks"] if content else []:
        key = (suite, one["name"].removeprefix("test_"), threads)
        ours = quantiles(one["stats"]["data"])
        records.add(key, rounded({"ours": ours, **one["extra_info"]}))
    return status in (0, NO_TESTS)


def rounded(value: Any) -> Any:
    """Every number in it to four significant digits."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def run(arguments: argparse.Namespace) -> None:
    records = Records(arguments.results, KEY, machine)
    if arguments.redo:
        print(f"{records.forget(arguments.redo)} records are measured anew")
    failed = [
        f"{suite}, threads: {threads}"
        for suite in SUITES
        for threads in arguments.threads
        if re.search(arguments.only, suite) and not measure(records, suite, threads, arguments)
    ]
    if failed:
        raise SystemExit(f"not everything could be measured: {'; '.join(failed)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure what is missing in the results file")
    runner.add_argument("--only", default="", metavar="REGEX", help="suites, e.g. 'ward|kmeans'")
    runner.add_argument("--cases", metavar="EXPRESSION", help="as pytest's -k")
    runner.add_argument("--redo", metavar="REGEX", help="records, e.g. 'ward.growth.*1', anew")
    runner.add_argument("--threads", nargs="+", type=int, default=THREADS)
    runner.add_argument("--quick", action="store_true", help="one round, no slow cases")
    drawer = commands.add_parser("report", help="page, figures and the README's table")
    drawer.add_argument("--no-readme", action="store_true", help="leave the README as it is")
    for command in (runner, drawer):
        command.add_argument("--results", type=Path, help="by default that of this machine")
    arguments = parser.parse_args(argv)
    arguments.results = arguments.results or default_results(getattr(arguments, "quick", False))
    if arguments.command == "run":
        run(arguments)
    else:
        readme = None if arguments.no_readme else BENCHMARKS.parent / "README.md"
        write_report(Records(arguments.results, KEY), readme)
