"""Build of the native core: pybind11 and C++ always, the CUDA kernels where there is an nvcc.

MDCP_CUDA             1 demands CUDA, 0 leaves it out, unset: if nvcc is on the PATH.
TORCH_CUDA_ARCH_LIST  the architectures to compile for, as for torch extensions: "8.0;9.0+PTX".
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def find_nvcc() -> str | None:
    """The compiler to use, or None to build for the CPU alone."""
    wanted, nvcc = os.environ.get("MDCP_CUDA", ""), shutil.which("nvcc")
    if wanted not in ("", "0", "1"):
        sys.exit(f"MDCP_CUDA: expected 1, 0 or nothing, got {wanted!r}")
    if wanted == "1" and nvcc is None:
        sys.exit("MDCP_CUDA=1 demands CUDA, but there is no nvcc on the PATH")
    return None if wanted == "0" else nvcc


def cuda_libraries(nvcc: str) -> list[str]:
    """The toolkit's library folders, as nvcc itself sees them: the nvcc found may be a wrapper."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    steps = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    line = re.search(r"^#\$ LIBRARIES=(.*)$", steps, re.MULTILINE)
    return re.findall(r'"?-L([^"\s]+)"?', line.group(1)) if line else []


def architecture_flags(nvcc: str) -> list[str]:
    """A cubin for every architecture named; by default for those of ours that this nvcc knows."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; ,")
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    numbers, ptx = [], []
    for name in re.split(r"[;, ]+", named or ARCHITECTURES):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
        if match is None:
            sys.exit(f'TORCH_CUDA_ARCH_LIST: expected numbers like "9.0+PTX", got {name!r}')
        number = "".join(match.group(1, 2, 3))
        if named or f"sm_{number}" in known:
            numbers.append(number)
        if match.group(4) and numbers:
            ptx.append(f"arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    if not numbers:
        sys.exit(f"{nvcc} knows none of the architectures {ARCHITECTURES}")
    # nvcc makes the same PTX of our kernels for all before 10.0: once will do.
    before_10 = [number for number in numbers if number.isdigit() and int(number) < 100]
    targets = [f"arch=compute_{one},code=sm_{one}" for one in numbers if one not in before_10]
    if codes := ",".join(f"sm_{number}" for number in before_10):
        targets.insert(0, f"arch=compute_{min(before_10, key=int)},code=[{codes}]")
    return [f"-gencode={target}" for target in targets + ptx]


class BuildWithCuda(build_ext):
    def build_extension(self, extension: Pybind11Extension) -> None:
        nvcc = find_nvcc()
        architectures = architecture_flags(nvcc) if nvcc else []
        # What an earlier build with other switches left here is not up to date.
        switches = repr([self.get_ext_fullpath(extension.name), nvcc, architectures])
        last = Path(self.build_temp, "last_switches")
        self.force = self.force or not last.exists() or last.read_text() != switches
        if nvcc is not None:
            sources = sorted(glob("csrc/cuda/*.cu"))
            os.makedirs(folder := Path(self.build_temp, "cuda"), exist_ok=True)
            command = [nvcc, "-optf", "csrc/cuda/nvcc.options", *architectures, "-cudart=static"]
            command += ["--threads", str(os.cpu_count()), "-odir", str(folder), "-c", *sources]
            self.spawn(command)
            extension.define_macros.append(("MDCP_WITH_CUDA", "1"))
            extension.extra_objects += [str(folder / f"{Path(one).stem}.o") for one in sources]
            extension.library_dirs += cuda_libraries(nvcc)
            extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
        super().build_extension(extension)
        last.write_text(switches)


# Contraction of a*b+c into one rounding would make answers depend on the instruction set.
flags = "-O3 -g0 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -pthread"
native = Pybind11Extension(
    "mdcp_fast._native",
    sources=["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
    depends=["csrc/exports.map", *glob("csrc/**/*.h", recursive=True), *glob("csrc/cuda/*")],
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=flags.split(),
    extra_link_args=["-pthread", "-Wl,--version-script=csrc/exports.map"],
)
ParallelCompile("NPY_NUM_BUILD_JOBS", default=0).install()
setup(license="MIT", ext_modules=[native], cmdclass={"build_ext": BuildWithCuda})
