"""Gates on what the compiler made of csrc/cuda, for every architecture that the wheel serves.

Registers, shared memory and spills are those of ptxas, machine code is that of cuobjdump.
"""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
from collections.abc import Callable
from dataclasses import astuple
from math import prod
from pathlib import Path
from typing import NamedTuple

import crowding_distance_cases
import cubins
import evaluate_population_cases
import occupancy
import pytest
import torch
from cubins import ARCHITECTURES, Instruction, Resources
from emulated_ops import Emulation
from emulation.build import EmulatedCore

from mdcp_fast.ops import crowding_distance, evaluate_population, ward
from mdcp_fast.ops.kmeans import kmeans

needs_nvcc = pytest.mark.skipif(cubins.nvcc() is None, reason="needs nvcc: none on the PATH")
HOPPER = 90


class Compiled(NamedTuple):
    kernels: list[Resources]
    hopper: dict[str, list[Instruction]]  # machine code by symbol


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Everything compiled once, with warnings as errors."""
    objects = cubins.compile_kernels(cubins.sources(), tmp_path_factory.mktemp("cubins"))
    kernels = list(itertools.chain.from_iterable(objects.values()))
    hopper: dict[str, list[Instruction]] = {}
    for path, found in objects.items():
        if found:
            hopper |= cubins.sass(path, HOPPER)
    return Compiled(kernels, hopper)


@needs_nvcc
def test_every_kernel_is_compiled_for_every_architecture(compiled: Compiled) -> None:
    symbols = {kernel.symbol for kernel in compiled.kernels}
    for architecture in ARCHITECTURES:
        assert symbols == {
            kernel.symbol for kernel in compiled.kernels if kernel.architecture == architecture
        }
    assert symbols == set(compiled.hopper)
    with_kernels = {path.name for path in cubins.sources() if "__global__" in path.read_text()}
    assert {kernel.source for kernel in compiled.kernels} >= with_kernels


@needs_nvcc
def test_nothing_is_spilled(compiled: Compiled) -> None:
    assert [kernel for kernel in compiled.kernels if kernel.spilled] == []


@needs_nvcc
def test_every_block_that_the_bounds_allow_can_be_launched(compiled: Compiled) -> None:
    """Without __launch_bounds__, a launch may fail for want of registers."""
    for kernel in compiled.kernels:
        assert kernel.threads > 0, f"{kernel.symbol} has no __launch_bounds__"
        assert kernel.shared <= occupancy.PLAIN_SHARED, kernel
        blocks = occupancy.active_blocks(
            kernel.architecture, kernel.threads, kernel.registers, kernel.shared
        )
        assert blocks >= 1, kernel


def launch_crowding(core: EmulatedCore) -> None:
    for points, offsets in crowding_distance_cases.cases().values():
        crowding_distance._launch(core, points, offsets)


def launch_population(core: EmulatedCore) -> None:
    for members, loss, cost, budget in evaluate_population_cases.cases().values():
        evaluate_population._launch(core, members, loss.values, loss.offsets, astuple(cost), budget)


def launch_ward(core: EmulatedCore) -> None:
    for dimensions in (1, 2, 3, 4, 8, 16):
        points, offsets = torch.zeros(2600, dimensions), torch.tensor([0, 0, 1, 100, 600, 2600])
        ward._launch(core, points, offsets)


def launch_kmeans(core: EmulatedCore) -> None:
    emulation = Emulation([importlib.import_module("mdcp_fast.ops.kmeans")], schedules=(0,))
    emulation.core = core
    for dimensions in (1, 2, 3, 4, 8, 16):
        points, offsets = torch.zeros(2600, dimensions), torch.tensor([0, 0, 1, 100, 600, 2600])
        problem, k = torch.tensor([1, 2, 3, 4, 4]), torch.tensor([1, 70, 2, 2000, 1])
        for init in ("ward", "k-means++", torch.zeros(2074, dimensions)):
            emulation(kmeans, points, offsets, k, problem=problem, init=init)


@needs_nvcc
@pytest.mark.parametrize("launch", [launch_crowding, launch_population, launch_ward, launch_kmeans])
def test_every_launch_fits_what_was_compiled(
    compiled: Compiled, emulated: EmulatedCore, launch: Callable[[EmulatedCore], None]
) -> None:
    """Blocks keep to __launch_bounds__, and their registers and shared memory to the device's."""
    made: set[tuple[str, int, int]] = set()  # symbol, threads and dynamic shared bytes

    def note(
        symbol: str, grid: tuple[int, ...], block: tuple[int, ...], shared: int, *_: object
    ) -> None:
        assert 1 <= grid[0] < 2**31 and max(grid[1:]) < 2**16
        made.add((symbol, prod(block), shared))

    emulated.set_launch_hook(note)
    launch(emulated)
    assert made
    for symbol, threads, shared in made:
        found = [kernel for kernel in compiled.kernels if kernel.symbol == symbol]
        assert [kernel.architecture for kernel in found] == list(ARCHITECTURES), symbol
        for kernel in found:
            assert threads <= kernel.threads, kernel
            held = (kernel.architecture, threads, kernel.registers, kernel.shared + shared)
            assert occupancy.active_blocks(*held) >= 1, (kernel, threads, shared)


@needs_nvcc
def test_no_atomic_is_a_compare_and_swap_loop_on_hopper(compiled: Compiled) -> None:
    """32-bit integer atomics are native there; float, double and 64-bit adds to shared are not."""
    for symbol, code in compiled.hopper.items():
        assert len(code) > 0 and cubins.compare_and_swaps(code) == [], symbol


PLANTED = """
__global__ void __launch_bounds__(1024) spills(const float* in, float* out, int n) {
    float held[200];
    for (int i = 0; i < 200; ++i) held[i] = in[i * n + threadIdx.x];
    for (int pass = 0; pass < n; ++pass)
        for (int i = 0; i < 200; ++i) held[i] += held[(i * 7 + 3) % 200] * in[pass];
    for (int i = 0; i < 200; ++i) out[i * n + threadIdx.x] = held[i];
}
__global__ void unbounded(float* out) { out[threadIdx.x] = 1.0f; }
__global__ void __launch_bounds__(128) swaps(const double* in, double* out) {
    __shared__ double total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, in[threadIdx.x]);
    __syncthreads();
    *out = total;
}
"""


@needs_nvcc
def test_the_gates_see_what_they_are_for(tmp_path: Path) -> None:
    """A check that cannot fail is no check."""
    source = tmp_path / "planted.cu"
    source.write_text(PLANTED)
    objects = cubins.compile_kernels([source], tmp_path, [HOPPER])
    ((binary, kernels),) = objects.items()
    by_name = {re.sub(r"^_Z\d+|Pf.*|PK.*|Pd.*", "", kernel.symbol): kernel for kernel in kernels}
    assert by_name["spills"].spilled > 0
    assert by_name["unbounded"].threads == 0
    assert by_name["swaps"].threads == 128 and by_name["swaps"].shared == 8
    swaps = cubins.sass(binary, HOPPER)[by_name["swaps"].symbol]
    assert len(cubins.compare_and_swaps(swaps)) > 0
    source.write_text("__global__ void __launch_bounds__(32) warns() { int unused; }")
    with pytest.raises(RuntimeError, match="declared but never referenced"):
        cubins.compile_kernels([source], tmp_path, [HOPPER])


# Prints what NVIDIA's own header answers for a kernel on a multiprocessor.
ORACLE = """
#include <cstdio>
#include <cstdlib>
#include <cuda_occupancy.h>
int main(int count, char** text) {
    long v[8];
    for (int at = 1; at + 7 < count; at += 8) {
        for (int i = 0; i < 8; ++i) v[i] = std::atol(text[at + i]);
        cudaOccDeviceProp device;
        device.computeMajor = v[0] / 10;
        device.computeMinor = v[0] % 10;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = v[1];
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 49152;
        device.sharedMemPerMultiprocessor = v[2];
        device.numSms = 1;
        device.sharedMemPerBlockOptin = v[3];
        device.reservedSharedMemPerBlock = v[4];
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = v[6];
        kernel.sharedSizeBytes = 0;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = v[3];
        kernel.numBlockBarriers = 1;
        cudaOccDeviceState state;
        cudaOccResult result;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, v[5], v[7]))
            return 1;
        std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
    }
}
"""


def toolkit_include() -> Path | None:
    """The folder of cuda_occupancy.h, as nvcc sees it."""
    compiler = cubins.nvcc()
    if compiler is None:
        return None
    _, steps = cubins.run(compiler, "--dryrun", "-x", "cu", "/dev/null")
    for folder in re.findall(r'-I([^"\s]+)', steps):
        if Path(folder, "cuda_occupancy.h").is_file():
            return Path(folder)
    return None


@needs_nvcc
def test_occupancy_is_that_of_the_toolkits_header(tmp_path: Path) -> None:
    include = toolkit_include()
    if include is None:
        pytest.skip("needs cuda_occupancy.h of the CUDA toolkit")
    source = tmp_path / "oracle.cpp"
    source.write_text(ORACLE)
    cubins.run("g++", "-w", f"-I{include}", source, "-o", tmp_path / "oracle")
    cases = list(
        itertools.product(
            ARCHITECTURES,
            [1, 32, 96, 128, 160, 256, 512, 1024],
            [16, 24, 32, 40, 64, 65, 96, 128, 168, 255],
            [0, 1, 1024, 5000, 16 * 1024, 33_000, 48 * 1024, 64 * 1024, 99 * 1024, 227 * 1024],
        )
    )
    command = [str(tmp_path / "oracle")]
    expected = []
    for begin in range(0, len(cases), 1000):
        numbers: list[int] = []
        for architecture, threads, registers, shared in cases[begin : begin + 1000]:
            machine = occupancy.MULTIPROCESSORS[architecture]
            numbers += [architecture, machine.max_threads, machine.shared]
            numbers += [machine.shared_of_block, machine.reserved]
            numbers += [threads, registers, shared]
        done = subprocess.run(
            [*command, *map(str, numbers)], capture_output=True, text=True, check=True
        )
        expected += [int(line) for line in done.stdout.split()]
    assert [occupancy.active_blocks(*case) for case in cases] == expected


def test_spare_shared_memory_is_all_that_changes_nothing() -> None:
    for architecture, threads, registers in itertools.product(
        ARCHITECTURES, (128, 256, 1024), (32, 64)
    ):
        blocks = occupancy.active_blocks(architecture, threads, registers, 100)
        spare = occupancy.spare_shared(architecture, threads, registers, 100)
        assert occupancy.active_blocks(architecture, threads, registers, 100 + spare) == blocks
        assert occupancy.active_blocks(architecture, threads, registers, 101 + spare) < blocks
