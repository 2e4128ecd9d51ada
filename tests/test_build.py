"""The switches of setup.py, with stand-ins for the compilers that note how they were called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = """#!/bin/sh
echo "$(basename $0) $*" >> "$MDCP_TEST_LOG"
case "$*" in
*--list-gpu-code*) printf 'sm_75\\nsm_80\\nsm_90\\n' ;;
*--dryrun*) echo '#$ LIBRARIES= "-L/toolkit/lib/stubs" "-L/toolkit/lib"' >&2 ;;
esac
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then mkdir -p "$(dirname "$2")"; : > "$2"; fi
    shift
done
"""


def build(
    folder: Path, *, nvcc: bool = True, **environment: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs setup.py; what it said, and a line for every call of a compiler."""
    programs = folder / "bin"
    shutil.rmtree(programs, ignore_errors=True)
    programs.mkdir()
    for name in ["g++", "gcc", *(["nvcc"] if nvcc else [])]:
        (programs / name).write_text(COMPILER)
        (programs / name).chmod(0o755)
    for name in ("sh", "basename", "dirname", "mkdir"):
        (programs / name).symlink_to(shutil.which(name))
    log = folder / "log"
    log.write_text("")
    command = [sys.executable, "setup.py", "build_ext"]
    command += ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, "PATH": str(programs), "MDCP_TEST_LOG": str(log)}
        | {"CC": "gcc", "CXX": "g++", "LDSHARED": "gcc -shared", "LDCXXSHARED": "g++ -shared"}
        | environment,
        capture_output=True,
        text=True,
    )
    return run, log.read_text()


@pytest.mark.parametrize(
    ("nvcc", "environment"), [(False, {}), (False, {"MDCP_CUDA": "0"}), (True, {"MDCP_CUDA": "0"})]
)
def test_without_cuda(tmp_path: Path, nvcc: bool, environment: dict[str, str]) -> None:
    run, log = build(tmp_path, nvcc=nvcc, **environment)
    assert run.returncode == 0, run.stderr
    assert "csrc/bindings.cpp" in log
    assert "nvcc" not in log and "MDCP_WITH_CUDA" not in log and "cudart" not in log


@pytest.mark.parametrize("environment", [{}, {"MDCP_CUDA": "1"}, {"MDCP_CUDA": ""}])
def test_with_cuda(tmp_path: Path, environment: dict[str, str]) -> None:
    run, log = build(tmp_path, **environment)
    assert run.returncode == 0, run.stderr
    kernels = next(line for line in log.splitlines() if ".cu" in line)
    assert kernels.startswith("nvcc ")
    for source in ROOT.glob("csrc/cuda/*.cu"):
        assert f"csrc/cuda/{source.name}" in kernels
    # This nvcc knows three of our architectures; their PTX is made once, and that of the newest
    # serves what comes after.
    assert re.findall(r"arch=(\S+)", kernels) == [
        "compute_75,code=[sm_75,sm_80,sm_90]",
        "compute_90,code=compute_90",
    ]
    assert re.search(r"-c csrc/bindings.cpp", log) and "-DMDCP_WITH_CUDA=1" in log
    link = next(line for line in log.splitlines() if "-shared" in line)
    assert "-L/toolkit/lib " in link and "-lcudart_static" in link and "-lcuda " not in link
    assert link.count("/cuda/") == len(list(ROOT.glob("csrc/cuda/*.cu")))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("9.0a 12.0+PTX", "90a,sm_90a 120,sm_120 120,compute_120"),
        ("9.0 8.6", "86,[sm_90,sm_86]"),
        ("9.0+PTX;10.0;", "90,[sm_90] 100,sm_100 90,compute_90"),
    ],
)
def test_named_architectures(tmp_path: Path, named: str, expected: str) -> None:
    run, log = build(tmp_path, TORCH_CUDA_ARCH_LIST=named)
    assert run.returncode == 0, run.stderr
    found = re.findall(r"arch=compute_(\w+),code=(\S+)", log)
    assert " ".join(",".join(one) for one in found) == expected


def test_other_switches_build_anew_and_the_same_do_not(tmp_path: Path) -> None:
    """Nothing of a build without CUDA may end up in one with it, nor the other way round."""
    without = {"MDCP_CUDA": "0"}
    for environment in (without, {}, {"TORCH_CUDA_ARCH_LIST": "8.0"}, without):
        run, log = build(tmp_path, **environment)
        assert run.returncode == 0 and "bindings.cpp" in log, environment
    _, log = build(tmp_path, **without)
    assert "bindings.cpp" not in log


@pytest.mark.parametrize(
    ("nvcc", "environment", "message"),
    [
        (False, {"MDCP_CUDA": "1"}, "MDCP_CUDA=1 demands CUDA, but there is no nvcc on the PATH"),
        (True, {"MDCP_CUDA": "yes"}, "MDCP_CUDA: expected 1, 0 or nothing, got 'yes'"),
        (True, {"TORCH_CUDA_ARCH_LIST": "Hopper"}, "TORCH_CUDA_ARCH_LIST: expected numbers like"),
    ],
)
def test_errors(tmp_path: Path, nvcc: bool, environment: dict[str, str], message: str) -> None:
    run, log = build(tmp_path, nvcc=nvcc, **environment)
    assert run.returncode != 0 and message in run.stderr
    assert "bindings.cpp" not in log
