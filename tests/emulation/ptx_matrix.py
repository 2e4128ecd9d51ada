"""ldmatrix and stmatrix: a warp moves 8 x 8 matrices between registers and shared memory."""

from __future__ import annotations

import numpy as np
from emulation.ptx_access import space_of
from emulation.ptx_machine import WARP, Machine, Step, ThreadSet
from emulation.ptx_memory import Fault
from emulation.ptx_numbers import Array
from emulation.ptx_operands import Operands
from emulation.ptx_parse import Instruction, Vector

MATRICES = {"x1": 1, "x2": 2, "x4": 4}
SIDE = 8  # rows, and numbers of 16 bits in a row


class MatrixInstructions:
    """Decodes them. By the PTX ISA ("Warp-level matrix instructions"), of matrix m:

    - lane 8 m + i names the address of row i, 16 bytes; the addresses of further lanes are unused;
    - register m of lane i holds numbers 2 (i % 4) and 2 (i % 4) + 1 of row i / 4, or with .trans of
      column i / 4.
    """

    NAMES = ("ldmatrix", "stmatrix")

    def __init__(self, machine: Machine, operands: Operands) -> None:
        self.machine, self.operands = machine, operands

    def step(self, instruction: Instruction) -> Step:
        name, *modifiers, kind = instruction.parts
        shape = [part for part in modifiers if part not in ("sync", "aligned", "trans")]
        count = MATRICES[shape[1]]
        if (shape[0], kind, space_of(instruction)) != ("m8n8", "b16", "shared"):
            raise NotImplementedError(instruction.opcode)
        trans = "trans" in modifiers
        address_operand, registers = instruction.operands[:: 1 if name == "stmatrix" else -1]
        assert isinstance(registers, Vector) and len(registers.items) == count
        address = self.operands.address(address_operand)
        machine = self.machine
        region = machine.regions["shared"]

        def rows(threads: ThreadSet, matrix: int) -> tuple[Array, Array]:
            """Addresses of a matrix's rows, warp after warp, and the threads that name them."""
            addresses = np.zeros(machine.threads, np.int64)
            addresses[threads] = address(threads)
            named = self.first_lanes(threads)[:, None] + np.arange(
                SIDE * matrix, SIDE * (matrix + 1)
            )
            return addresses[named.reshape(-1)], named.reshape(-1)

        readers = [self.operands.reader(item, "b32") for item in registers.items]

        def store(threads: ThreadSet) -> None:
            size = len(self.first_lanes(threads)) * WARP
            for matrix, read in enumerate(readers):
                held = np.broadcast_to(read(threads), (size,))
                words = oriented(held, trans).reshape(-1, SIDE // 2)
                addresses, named = rows(threads, matrix)
                region.store(addresses, list(np.ascontiguousarray(words.T)), named)

        if name == "stmatrix":
            return store
        writers = [self.operands.writer(item, "b32") for item in registers.items]

        def load(threads: ThreadSet) -> None:
            found = []
            for matrix in range(count):
                addresses, named = rows(threads, matrix)
                words = region.load(addresses, np.dtype(np.uint32), SIDE // 2, named)
                found.append(oriented(np.stack(words, 1), trans))
            for write, held in zip(writers, found, strict=True):
                write(threads, held)

        return load

    def first_lanes(self, threads: ThreadSet) -> Array:
        """The first thread of each warp; all of its lanes must be there."""
        machine = self.machine
        numbers = machine.numbers[threads]
        first = np.unique(machine.warp_start[numbers])
        if len(numbers) != len(first) * WARP:
            here = np.bincount(machine.warp_of[numbers], minlength=len(machine.alive))
            missing = here[machine.warp_of[numbers]] != WARP
            raise Fault("lanes of the warp do not take part", int(numbers[missing][0]))
        return first


def oriented(words: Array, trans: bool) -> Array:
    """Matrices as 32 words of 2 numbers each, row after row, transposed if so wished."""
    if not trans:
        return words.reshape(-1)
    halves = np.ascontiguousarray(words).view(np.uint16).reshape(-1, SIDE, SIDE)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).view(np.uint32).reshape(-1)
