"""PTX from nvcc and from Triton, neither of which needs a GPU, and its launch on NumPy arrays."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_versions
from emulation.build import CACHE, EMULATION, ROOT, digest, headers, made_once, run
from emulation.ptx import Module

SAMPLES = EMULATION / "ptx_samples.cu"  # small kernels for the interpreter's own tests
# As in setup.py.
OPTIONS = ["-O3", "-std=c++17", "-fmad=false", f"-I{ROOT / 'csrc'}"]


def nvcc_ptx(source: Path, architecture: int) -> str:
    """The PTX of a CUDA source, from the cache where nothing it is made of has changed."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc to make PTX with")
    options = [*OPTIONS, "-ptx", f"-arch=compute_{architecture}"]
    key = digest([nvcc, *options, source, *headers(ROOT / "csrc")])
    target = CACHE / f"{source.stem}-{key}.ptx"
    made_once(target, lambda path: run([nvcc, *options, source, "-o", path]))
    return target.read_text()


def triton_ptx(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    architecture: int,
) -> tuple[str, int, int]:
    """What Triton makes of a kernel.

    Returns:
        The PTX, the threads of a block and the bytes of dynamic shared memory.
    """
    compiled = triton_versions.compiled(kernel, signature, constants, options, architecture)
    return compiled.asm["ptx"], 32 * compiled.metadata.num_warps, compiled.metadata.shared


def same_name(name: str) -> str:
    """A mangled name with what compilers call anonymous namespaces made alike."""
    found = re.search(r"(?<!\d)(\d+)(?=_GLOBAL__N_)", name)
    if found is None:
        return name
    end = found.end() + int(found.group())
    return same_name(f"{name[: found.start()]}11_anonymous_{name[end:]}")


def launch(
    module: Module,
    name: str,
    grid: int,
    block: int,
    *arguments: np.ndarray | int | bytes,
    shared: int = 0,
) -> None:
    """Arrays are passed as their address, numbers as int32, bytes as they are."""
    given, memory = [], []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            given.append(struct.pack("<Q", argument.ctypes.data))
            memory.append((argument.ctypes.data, argument.nbytes))
        else:
            given.append(argument if isinstance(argument, bytes) else struct.pack("<i", argument))
    module.launch(name, (grid,), (block,), shared, given, memory)
