"""benchmarks/gpu.sh keeps to its time and its files whatever its steps do; Python is a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {"steps.txt", "build.log", "tests.log", "bench.log", "ops.json", "kmeans.json"}
MOST_FILES, MOST_BYTES = 8, 16 << 20
ON_CPU = ["machine", "build", "tests of the ops", "benchmarks of the ops", "benchmarks of k-means"]
ON_CPU += ["end to end", "tests of the pipeline"]
ON_CUDA = [*ON_CPU[:-1], "memcheck", "racecheck", ON_CPU[-1], "initcheck", "synccheck"]

# Does nothing but what a step is known by: writes the file after --benchmark-json. What $FAULT says
# happens where a word of the command is $WHERE.
STAND_IN = """#!/usr/bin/env bash
case "$*" in *get_device_capability*) echo 9.0; exit ;; esac
while [ $# -gt 0 ]; do
    case $1 in "$WHERE") eval "$FAULT" ;; --benchmark-json) echo '{}' >"$2"; shift ;; esac
    shift
done
"""
SANITIZER = """#!/usr/bin/env bash
[ "$2" != "$WHERE" ] || exit 9
while [ "$1" != "$PYTHON" ]; do shift; done
exec "$@"
"""


def run(
    folder: Path,
    fault: str = "",
    where: str = "",
    device: str = "cpu",
    seconds: int = 28,
    *more: str,
) -> tuple[int, dict[str, str]]:
    """Runs the command.

    Returns:
        Its exit status, and how every step ended.
    """
    for name, text in (("python", STAND_IN), ("compute-sanitizer", SANITIZER)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [
            "bash",
            ROOT / "benchmarks/gpu.sh",
            *("--device", device, "--seconds", str(seconds)),
            *more,
            "out",
        ],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHON": str(folder / "python"),
            "FAULT": fault,
            "WHERE": where or "nowhere",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = (folder / "out/steps.txt").read_text().splitlines()
    steps = dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "=")
    written = list((folder / "out").iterdir())
    assert len(written) <= MOST_FILES
    assert all(path.stat().st_size <= MOST_BYTES for path in written)
    assert lines[-1] in done.stdout  # the verdicts are the last that is printed
    return done.returncode, {name: ending.strip() for name, ending in steps.items()}


@pytest.mark.parametrize(
    ("fault", "ending"),
    [
        ("sleep 1000", "stopped at its limit"),
        ("trap '' INT; while :; do sleep 1; done", "killed"),
        ("kill -SEGV $$", "crashed (SEGV)"),
        ("exit 3", "failed (3)"),
        ("head -c 30000000 /dev/zero; exit 1", "failed (1)"),
    ],
    ids=["hangs", "hangs and ignores the interrupt", "crashes", "fails", "floods its log"],
)
def test_a_step_that_goes_wrong_stops_no_other(tmp_path: Path, fault: str, ending: str) -> None:
    status, steps = run(tmp_path, fault, where="kmeans")
    assert status == 1
    assert list(steps) == ON_CPU
    assert steps.pop("benchmarks of k-means").startswith(ending)
    assert all(how.startswith("passed") for how in steps.values())
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FILES - {"kmeans.json"}


def test_all_steps_of_a_device_run(tmp_path: Path) -> None:
    status, steps = run(tmp_path, device="cuda")
    assert (status, list(steps)) == (0, ON_CUDA)
    assert all(how.startswith("passed") for how in steps.values())


def test_initcheck_is_told_and_no_gate(tmp_path: Path) -> None:
    """torch's own kernels read what was never written."""
    status, steps = run(tmp_path, where="initcheck", device="cuda")
    assert status == 0 and steps["initcheck"].startswith("failed (9)")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_the_other_sanitizers_are_gates(tmp_path: Path, tool: str) -> None:
    status, steps = run(tmp_path, where=tool, device="cuda")
    assert status == 1 and [name for name in steps if steps[name].startswith("failed")] == [tool]


def test_without_its_cuda_build_the_rest_still_runs(tmp_path: Path) -> None:
    fault = '[ "$MDCP_CUDA" = 0 ] || exit 1'
    status, steps = run(tmp_path, fault, where="setup.py", device="cuda")
    assert status == 1 and steps["build"].startswith("failed (1)")
    assert steps["build for the CPU"].startswith("passed")
    assert list(steps)[3:] == ON_CUDA[2:]


def test_steps_for_which_no_time_is_left_are_named(tmp_path: Path) -> None:
    fault = "trap '' INT; while :; do sleep 1; done"
    status, steps = run(tmp_path, fault, where="setup.py", seconds=3)
    assert status == 1 and list(steps) == ON_CPU
    assert steps["build"].startswith("killed")
    assert steps["tests of the pipeline"] == "not begun: no time is left"


def test_steps_can_be_run_again(tmp_path: Path) -> None:
    """With what the first run wrote kept: only the chosen ones, and to their whole limits."""
    run(tmp_path, device="cuda")
    kept = (tmp_path / "out/tests.log").read_text()
    run(tmp_path, "", "", "cuda", 28, "--only", "end to end|memcheck")
    steps = (tmp_path / "out/steps.txt").read_text()
    again = steps.split("synccheck:", 1)[1].splitlines()[1:]
    assert [line.split(":")[0] for line in again] == ["end to end", "memcheck"]
    assert (tmp_path / "out/tests.log").read_text() == kept


def test_a_benchmark_that_was_stopped_costs_no_other_its_numbers(tmp_path: Path) -> None:
    """pytest-benchmark writes no file at all where one has not ended its first round."""
    (tmp_path / "bench_stopped.py").write_text(
        "import os, signal\n"
        "def test_whole(benchmark):\n    benchmark.pedantic(lambda: None, rounds=2)\n"
        "def test_stopped(benchmark):\n"
        "    benchmark.pedantic(lambda: os.kill(os.getpid(), signal.SIGINT), rounds=2)\n"
    )
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench_stopped.py"]
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path[:0] = {[str(ROOT / 'benchmarks'), *map(str, sys.path)]!r}\n"
        f"exec(open({str(ROOT / 'benchmarks/conftest.py')!r}).read())\n"
    )
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npython_files = bench_*.py\npythonpath = {ROOT / 'benchmarks/speed'}\n"
    )
    # pytest-benchmark leaves benchmarks out where it finds itself in a worker of xdist.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command += ["--benchmark-json", "out.json"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    found = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert [one["name"] for one in found] == ["test_whole"]


@pytest.mark.parametrize("arguments", [[], ["--device", "tpu", "out"], ["--seconds", "0", "out"]])
def test_wrong_use_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", *arguments], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 2 and b"usage: benchmarks/gpu.sh" in done.stderr
    assert list(tmp_path.iterdir()) == []
