"""How many blocks of a kernel a multiprocessor holds at once: the rules of CUDA's occupancy.

Four things bound the blocks of one multiprocessor, and the least of them is the answer:

- blocks:    a fixed number;
- warps:     max_threads / 32, shared among blocks of ceil(threads / 32) warps;
- registers: 65,536, a quarter for each of four partitions. A warp takes 32 x its threads'
             registers, rounded up to 256; a partition holds only whole warps;
- shared:    each block takes its static and dynamic bytes and what the driver reserves (1 KiB from
             8.0 on), rounded up to 128 bytes (256 before 8.0).

Sources: CUDA C++ Programming Guide, "Compute Capabilities"; cuda_occupancy.h of the CUDA toolkit,
with which tests/test_compiled.py compares these rules.
"""

from __future__ import annotations

from typing import NamedTuple

WARP = 32
REGISTERS = 65_536  # of a multiprocessor, and the most a block may have
REGISTER_UNIT = 256
MAX_REGISTERS = 255  # of a thread
PARTITIONS = 4
PLAIN_SHARED = 48 * 1024  # static shared memory, or all of it where a kernel asks for no more


class Multiprocessor(NamedTuple):
    max_threads: int
    max_blocks: int
    shared: int  # bytes
    shared_of_block: int  # bytes a block may have when it asks (opt-in)
    reserved: int  # bytes of shared memory the driver takes of each block
    shared_unit: int


KIB = 1024
MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 * KIB, 64 * KIB, 0, 256),
    80: Multiprocessor(2048, 32, 164 * KIB, 163 * KIB, KIB, 128),
    86: Multiprocessor(1536, 16, 100 * KIB, 99 * KIB, KIB, 128),
    89: Multiprocessor(1536, 24, 100 * KIB, 99 * KIB, KIB, 128),
    90: Multiprocessor(2048, 32, 228 * KIB, 227 * KIB, KIB, 128),
    100: Multiprocessor(2048, 32, 228 * KIB, 227 * KIB, KIB, 128),
    120: Multiprocessor(1536, 24, 100 * KIB, 99 * KIB, KIB, 128),
}


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def active_blocks(architecture: int, threads: int, registers: int, shared: int) -> int:
    """Blocks that run at once on a multiprocessor; 0: such a block cannot be launched at all.

    Args:
        architecture: 90 for compute capability 9.0.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block, static and dynamic.
    """
    machine = MULTIPROCESSORS[architecture]
    warps = -(-threads // WARP)
    if threads > 1024 or registers > MAX_REGISTERS or shared > machine.shared_of_block:
        return 0
    of_warp = round_up(max(registers, 1) * WARP, REGISTER_UNIT)
    # The hardware checks a block's registers as if its warps filled all partitions evenly.
    if of_warp * round_up(warps, PARTITIONS) > REGISTERS:
        return 0
    of_block = round_up(shared + machine.reserved, machine.shared_unit)
    return min(
        machine.max_blocks,
        machine.max_threads // WARP // warps,
        REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps,
        machine.shared // of_block if of_block else machine.max_blocks,
    )


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that are in use."""
    blocks = active_blocks(architecture, threads, registers, shared)
    return blocks * -(-threads // WARP) * WARP / MULTIPROCESSORS[architecture].max_threads


def spare_shared(architecture: int, threads: int, registers: int, shared: int) -> int:
    """Bytes of dynamic shared memory that a block may take before fewer blocks fit."""
    machine = MULTIPROCESSORS[architecture]
    blocks = active_blocks(architecture, threads, registers, shared)
    if blocks == 0:
        return 0
    share = machine.shared // blocks // machine.shared_unit * machine.shared_unit
    return min(share - machine.reserved, machine.shared_of_block) - shared
