"""An interpreter of PTX on NumPy: runs what nvcc and Triton emit, on host memory, without a GPU.

    module = Module(ptx_text)
    module.launch(name, grid, block, shared_bytes, argument_bytes, memory)

Many threads run an instruction together (ptx_machine.py); instructions are decoded once
(ptx_decode.py). A wrong access, a barrier that not all threads reach, a shuffle from a lane that
does not take part, a value that was never written and a race in shared memory raise PtxError, which
names the line of PTX and the thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from emulation.ptx_calls import inline_calls
from emulation.ptx_decode import Decoder
from emulation.ptx_machine import Machine
from emulation.ptx_memory import GlobalRegion
from emulation.ptx_numbers import APPROXIMATE
from emulation.ptx_parse import PtxError, names_in, parse

__all__ = ["Module", "PtxError"]

THREADS_AT_ONCE = 8192


class Module:
    """A PTX module.

    Args:
        text: the PTX.
        max_steps: pieces of straight code that a launch may run before it counts as endless.
    """

    def __init__(self, text: str, max_steps: int = 5_000_000) -> None:
        self.program = parse(text)
        self.max_steps = max_steps
        functions = self.program.functions
        self.kernels = [name for name, function in functions.items() if function.is_kernel]
        for name in self.kernels:
            inline_calls(functions[name], functions)
        self._machines: dict[tuple, Machine] = {}
        # Module-level .global and .const variables are arrays of ours, at their own addresses.
        self._arrays: dict[str, np.ndarray] = {}
        for variable in self.program.variables.values():
            if variable.space in ("global", "const"):
                array = np.zeros(variable.size + 16, np.uint8)
                initial = np.frombuffer(variable.initial, np.uint8)
                skip = -array.ctypes.data % 16
                self._arrays[variable.name] = array[skip : skip + variable.size]
                self._arrays[variable.name][: len(initial)] = initial
        self._addresses = {name: array.ctypes.data for name, array in self._arrays.items()}

    def approximations(self, name: str) -> set[str]:
        """The instructions of a kernel whose results may differ from a GPU's: see APPROXIMATE."""
        used = {".".join(i.parts[:2]) for i in self.program.functions[name].instructions}
        return used & set(APPROXIMATE)

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        argument_bytes: Sequence[bytes],
        memory: Sequence[tuple[int, int]],
    ) -> None:
        """Runs a kernel to its end.

        Args:
            name: the kernel's name in the PTX.
            grid: blocks along x, y, z; missing numbers are 1.
            block: threads of a block, likewise.
            shared_bytes: dynamic shared memory.
            argument_bytes: the bytes of each argument.
            memory: (address, bytes) of every host buffer that the kernel may touch.
        """
        kernel = self.program.functions.get(name)
        if kernel is None or not kernel.is_kernel:
            raise PtxError(f"there is no kernel {name!r}; there are {', '.join(self.kernels)}")
        size = kernel.parameter_layout()
        if len(argument_bytes) != len(kernel.parameters):
            raise PtxError(
                f"{name}: expected {len(kernel.parameters)} arguments, got {len(argument_bytes)}"
            )
        parameters = np.zeros(size, np.uint8)
        for parameter, value in zip(kernel.parameters, argument_bytes, strict=True):
            if len(value) != parameter.size:
                raise PtxError(
                    f"{name}: {parameter.name}: expected {parameter.size} bytes, got {len(value)}"
                )
            at = slice(parameter.offset, parameter.offset + parameter.size)
            parameters[at] = np.frombuffer(value, np.uint8)
        gx, gy, gz = (*map(int, grid), 1, 1, 1)[:3]
        bx, by, bz = (*map(int, block), 1, 1, 1)[:3]
        blocks = gx * gy * gz
        if blocks == 0 or bx * by * bz == 0 or bx * by * bz > 1024:
            raise PtxError(f"{name}: a launch of grid {tuple(grid)}, block {tuple(block)}")
        own = [(array.ctypes.data, len(array)) for array in self._arrays.values()]
        region = GlobalRegion([*memory, *own])
        batches = -(-blocks * bx * by * bz // THREADS_AT_ONCE)
        at_once = -(-blocks // batches)
        machine = self._machine(name, (bx, by, bz), at_once, shared_bytes)
        for first in range(0, blocks, at_once):
            count = min(at_once, blocks - first)
            machine.run(first, count, (gx, gy, gz), parameters, region)

    def _machine(
        self, name: str, shape: tuple[int, int, int], blocks: int, shared_bytes: int
    ) -> Machine:
        key = (name, shape, blocks, shared_bytes)
        if key not in self._machines:
            kernel = self.program.functions[name]
            used = {n for i in kernel.instructions for o in i.operands for n in names_in(o)}
            for variable in self.program.variables.values():
                if variable.space == "shared" and variable.name in used:
                    kernel.variables.setdefault(variable.name, variable)
            machine = Machine(
                kernel,
                self.program.lines,
                shape,
                blocks,
                shared_bytes,
                self._addresses,
                self.max_steps,
            )
            machine.code = Decoder(machine).code()
            self._machines[key] = machine
        return self._machines[key]
