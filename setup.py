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

DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
CUDA_SOURCES = sorted(glob("csrc/cuda/*.cu"))


def find_nvcc() -> str | None:
    """The compiler to use, or None to build for the CPU alone."""
    wanted = os.environ.get("MDCP_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"MDCP_CUDA: expected 1, 0 or nothing, got {wanted!r}")
    nvcc = None if wanted == "0" else shutil.which("nvcc")
    if wanted == "1" and nvcc is None:
        sys.exit("MDCP_CUDA=1 demands CUDA, but there is no nvcc on the PATH")
    return nvcc


def cuda_libraries(nvcc: str) -> list[str]:
    """The toolkit's library folders, as nvcc itself sees them: the nvcc found may be a wrapper."""
    steps = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    ).stderr
    line = re.search(r"^#\$ LIBRARIES=(.*)$", steps, re.MULTILINE)
    return re.findall(r'"?-L([^"\s]+)"?', line.group(1)) if line else []


def architecture_flags() -> list[str]:
    flags = []
    for name in re.split(r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
        if match is None:
            sys.exit(
                f'TORCH_CUDA_ARCH_LIST: expected numbers like "9.0" or "9.0+PTX", got {name!r}'
            )
        number = "".join(match.group(1, 2, 3))
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match.group(4):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class BuildWithCuda(build_ext):
    def build_extension(self, extension: Pybind11Extension) -> None:
        nvcc = find_nvcc()
        if nvcc is not None:
            extension.define_macros.append(("MDCP_WITH_CUDA", "1"))
            extension.library_dirs += cuda_libraries(nvcc)
            extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
            for source in CUDA_SOURCES:
                target = Path(self.build_temp, source).with_suffix(".cu.o")
                target.parent.mkdir(parents=True, exist_ok=True)
                flags = ["-O3", "-std=c++17", "-fmad=false", "-cudart=static", "-Icsrc"]
                flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", *architecture_flags()]
                self.spawn([nvcc, *flags, "-c", source, "-o", str(target)])
                extension.extra_objects.append(str(target))
        super().build_extension(extension)


# Contraction of a*b+c into one rounding would make answers depend on the instruction set.
native = Pybind11Extension(
    "mdcp_fast._native",
    sources=sorted(["csrc/bindings.cpp", *glob("csrc/cpu/*.cpp")]),
    depends=glob("csrc/**/*.h", recursive=True),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=[
        "-O3",
        "-g0",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
)
ParallelCompile("NPY_NUM_BUILD_JOBS", default=0).install()
setup(ext_modules=[native], cmdclass={"build_ext": BuildWithCuda})
