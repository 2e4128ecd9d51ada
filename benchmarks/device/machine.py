"""What a benchmark ran on: versions, the device, and how fast it copies memory.

python benchmarks/device/machine.py [--device cuda|cpu]
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "numpy", "setuptools", "pybind11", "pytest", "pytest-benchmark")
ROUNDS = 20
ROOT = Path(__file__).parents[2]


def output(*command: str) -> str:
    """What a program prints, or why it prints nothing."""
    if shutil.which(command[0]) is None:
        return f"{command[0]}: not on the PATH"
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no answer in 20 s"
    return (found.stdout or found.stderr).strip()


def digest_of_sources() -> str:
    """Says what was measured where a copy has no history."""
    digest = hashlib.sha256()
    for folder in ("csrc", "mdcp_fast"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"no {package}"


def processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copies far larger than any cache."""
    numel = 2**31 if device.type == "cuda" else 2**27
    source = torch.ones(numel, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    wait(device)
    start = time.perf_counter()
    for _ in range(ROUNDS):
        target.copy_(source)
    wait(device)
    return ROUNDS * 2 * numel / (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = torch.device(parser.parse_args().device)
    print(datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"))
    git = ("git", "-c", "safe.directory=*")
    changed = len(output(*git, "status", "--porcelain").splitlines())
    print("commit", output(*git, "rev-parse", "HEAD"), f"and {changed} changed files")
    print("sources", digest_of_sources(), platform.platform())
    print(processor())
    print("python", platform.python_version(), *(f"{version(name)}," for name in PACKAGES))
    print(output("nvcc", "--version").rpartition("\n")[2])
    if device.type == "cuda":
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem"
        print(output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"))
        print(torch.cuda.get_device_properties(device))
    print(f"copy {copy_bandwidth(device) / 1e12:.3f} TB/s, read and written")


if __name__ == "__main__":
    main()
