"""What the built native module carries and what it needs: the wheel is this module and Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import cubins
import pytest
from processes import run_python

from mdcp_fast.ops._native import native

MODULE = Path(str(native.__file__))
MOST_BYTES = 30 * 2**20
# What every Linux of the manylinux standard has.
SYSTEM = {
    "libc",
    "libdl",
    "libgcc_s",
    "libm",
    "libpthread",
    "librt",
    "libstdc++",
    "ld-linux-x86-64",
}

with_cuda = pytest.mark.skipif(not native.with_cuda, reason="this build has no CUDA kernels")
needs_binutils = pytest.mark.skipif(
    shutil.which("readelf") is None or shutil.which("nm") is None, reason="needs readelf and nm"
)


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_it_is_small() -> None:
    assert MODULE.stat().st_size < MOST_BYTES


@needs_binutils
def test_it_needs_nothing_but_the_system() -> None:
    """Neither libcuda nor libcudart, nor torch: the CUDA runtime is inside."""
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\.so", output("readelf", "-d", MODULE))
    assert needed and set(needed) <= SYSTEM | {"ld-linux-aarch64"}


@needs_binutils
def test_it_exports_its_entry_alone() -> None:
    names = [line.split()[-1] for line in output("nm", "-D", "--defined-only", MODULE).splitlines()]
    assert names == ["PyInit__native"]


def test_it_loads_without_torch_and_without_a_driver(tmp_path: Path) -> None:
    code = """
        import sys
        from importlib.machinery import ExtensionFileLoader
        from importlib.util import module_from_spec, spec_from_file_location

        loader = ExtensionFileLoader("_native", sys.argv[1])
        native = module_from_spec(spec_from_file_location("_native", sys.argv[1], loader=loader))
        loader.exec_module(native)
        assert native.cuda_device_count() == 0
        assert native.simd_best() >= 0
        assert "torch" not in sys.modules
    """
    run_python(code, MODULE, folder=tmp_path, CUDA_VISIBLE_DEVICES="")


@with_cuda
def test_it_has_machine_code_for_every_architecture_and_ptx_for_newer_ones() -> None:
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        pytest.skip("TORCH_CUDA_ARCH_LIST may have chosen other architectures")
    compiled, portable = cubins.cubins(MODULE)
    expected = list(cubins.ARCHITECTURES)
    compiler = cubins.nvcc()
    if compiler is not None:  # an older one knows fewer
        known, _ = cubins.run(compiler, "--list-gpu-code")
        expected = [one for one in expected if f"sm_{one}" in known.split()]
    assert compiled == expected
    assert portable == expected[-1:]


@with_cuda
def test_every_source_is_in_it() -> None:
    for architecture in (75, 120):
        names = cubins.sass(MODULE, architecture)
        readable = set(cubins.readable(list(names)).values())
        for path in cubins.sources():
            kernels = re.findall(r"__global__.*?(\w+)\(\w+ ", path.read_text(), re.DOTALL)
            for kernel in kernels:
                assert any(name.split("<")[0] == kernel for name in readable), (path.name, kernel)
