"""Loads, stores, atomics and address conversions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from emulation.ptx_machine import Machine, Step, ThreadSet
from emulation.ptx_memory import WINDOWS, Region
from emulation.ptx_numbers import DTYPES, Array
from emulation.ptx_operands import Operands
from emulation.ptx_parse import Address, Instruction, Name, Operand, Vector, names_in

SPACES = ("global", "shared", "local", "param", "const")
# What is done with the region, the addresses in it, and where in the set the threads stand.
Access = Callable[[Region, Array, Array, slice | Array], None]
Combine = Callable[[Array, Array], Array]
ATOMICS: dict[str, Combine] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "inc": lambda old, limit: np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1)),
}
ORDERLESS = ("add", "min", "max", "and", "or", "xor")


def space_of(instruction: Instruction) -> str:
    for part in instruction.parts[1:]:
        if part.split("::")[0] in SPACES:
            return part.split("::")[0]
    return "generic"


class MemoryInstructions:
    """Decodes what touches memory."""

    NAMES = ("ld", "ldu", "st", "atom", "red", "cvta", "isspacep")

    def __init__(self, machine: Machine, operands: Operands) -> None:
        self.machine, self.operands = machine, operands
        self.read_registers = set()
        for instruction in machine.kernel.instructions:
            for i, operand in enumerate(instruction.operands):
                result = i == 0 and not isinstance(operand, Address)
                if not result or instruction.parts[0] in ("brx", "bar", "barrier"):
                    self.read_registers.update(names_in(operand))
            self.read_registers.update(names_in(instruction.guard))

    def step(self, instruction: Instruction) -> Step:
        match instruction.parts[0]:
            case "ld" | "ldu":
                return self.load(instruction)
            case "st":
                return self.store(instruction)
            case "cvta":
                return self.convert_address(instruction)
            case "isspacep":
                return self.is_space(instruction)
        return self.atomic(instruction)

    def accessor(
        self, instruction: Instruction, operand: Operand
    ) -> Callable[[ThreadSet, Access], None]:
        """Calls an Access for the region, or for each region that generic addresses lie in."""
        machine, address = self.machine, self.operands.address(operand)
        space = space_of(instruction)
        assert isinstance(operand, Address)
        if space == "const":
            space = "global"
        if (
            space == "param"
            and isinstance(operand.base, Name)
            and operand.base.name in machine.local_variables
        ):
            space = "local"
        if space == "global":  # a new region with every launch
            return lambda threads, access: access(
                machine.regions["global"],
                address(threads),
                machine.numbers[threads],
                slice(None),
            )
        if space != "generic":
            region = machine.regions[space]
            return lambda threads, access: access(
                region, address(threads), machine.numbers[threads], slice(None)
            )

        def generic(threads: ThreadSet, access: Access) -> None:
            addresses, numbers = address(threads), machine.numbers[threads]
            if int(addresses.max()) < WINDOWS["shared"]:
                access(machine.regions["global"], addresses, numbers, slice(None))
                return
            window = addresses >> 58
            for name, start in (("global", 0), *WINDOWS.items()):
                low = start >> 58
                at = np.flatnonzero((window >= low) & (window < max(2 * low, 1)))
                if len(at):
                    access(machine.regions[name], addresses[at] - start, numbers[at], at)

        return generic

    def load(self, instruction: Instruction) -> Step:
        to, source = instruction.operands[:2]
        kind = instruction.parts[-1]
        dtype = DTYPES[kind]
        items = to.items if isinstance(to, Vector) else (to,)
        writers = [self.operands.writer(item, kind) for item in items]
        access = self.accessor(instruction, source)
        machine = self.machine

        def run(threads: ThreadSet) -> None:
            found: list[Array] = []

            def read(region: Region, addresses: Array, numbers: Array, at: slice | Array) -> None:
                values = region.load(addresses, dtype, len(writers), numbers)
                if isinstance(at, slice):
                    found.extend(values)
                    return
                if not found:
                    count = len(machine.numbers[threads])
                    found.extend(np.zeros(count, dtype) for _ in writers)
                for all_values, some in zip(found, values, strict=True):
                    all_values[at] = some

            access(threads, read)
            for write, values in zip(writers, found, strict=True):
                write(threads, values)

        return run

    def store(self, instruction: Instruction) -> Step:
        to, source = instruction.operands[:2]
        kind = instruction.parts[-1]
        dtype, machine = DTYPES[kind], self.machine
        items = source.items if isinstance(source, Vector) else (source,)
        readers = [self.operands.reader(item, kind) for item in items]
        access = self.accessor(instruction, to)

        def run(threads: ThreadSet) -> None:
            count = len(machine.numbers[threads])
            values = [np.broadcast_to(np.asarray(r(threads), dtype), (count,)) for r in readers]

            def write(region: Region, addresses: Array, numbers: Array, at: slice | Array) -> None:
                region.store(addresses, [each[at] for each in values], numbers)

            access(threads, write)

        return run

    def convert_address(self, instruction: Instruction) -> Step:
        to, source = instruction.operands
        kind = instruction.parts[-1]
        window = DTYPES[kind].type(WINDOWS.get(space_of(instruction), 0))
        write, read = self.operands.writer(to, kind), self.operands.reader(source, kind)
        if "to" in instruction.parts:
            return lambda threads: write(threads, read(threads) - window)
        return lambda threads: write(threads, read(threads) + window)

    def is_space(self, instruction: Instruction) -> Step:
        to, source = instruction.operands
        write, read = self.operands.writer(to, "pred"), self.operands.reader(source, "s64")
        start = WINDOWS.get(space_of(instruction), 0)
        end = 2 * start or WINDOWS["shared"]
        return lambda threads: write(threads, (read(threads) >= start) & (read(threads) < end))

    # Atomics

    def atomic(self, instruction: Instruction) -> Step:
        operands = list(instruction.operands)
        kind = instruction.parts[-1]
        name = next(p for p in instruction.parts[1:] if p in ATOMICS or p == "cas")
        dtype, machine = DTYPES[kind], self.machine
        write = None
        if instruction.parts[0] == "atom":
            to = operands.pop(0)
            if set(names_in(to)) & self.read_registers:
                write = self.operands.writer(to, kind)
        access = self.accessor(instruction, operands[0])
        readers = [self.operands.reader(operand, kind) for operand in operands[1:]]

        def run(threads: ThreadSet) -> None:
            count = len(machine.numbers[threads])
            values = [np.broadcast_to(np.asarray(r(threads), dtype), (count,)) for r in readers]
            before = np.zeros(count, dtype)

            def change(region: Region, addresses: Array, numbers: Array, at: slice | Array) -> None:
                view, places = region.atomic(addresses, dtype, numbers)
                given = [each[at] for each in values]
                before[at] = apply_atomic(name, view, places, given, write is not None)

            access(threads, change)
            if write is not None:
                write(threads, before)

        return run


def apply_atomic(
    name: str, view: Array, places: Array, values: list[Array], wants_old: bool
) -> Array:
    """Changes view[places], thread after thread; what each found there, where that is wanted."""
    found = np.zeros(len(places), view.dtype)
    if not wants_old and name in ORDERLESS and view.dtype.kind != "f":
        distinct, where = np.unique(places, return_inverse=True)
        changed = view[distinct]  # `at` on a view of all memory makes NumPy abort
        ATOMICS[name].at(changed, where, values[0])  # type: ignore[attr-defined]
        view[distinct] = changed
        return found
    if name == "add" and view.dtype.kind != "f":
        return _add_in_turn(view, places, values[0])
    left = np.arange(len(places))
    while len(left):  # all that come first at their place, then all that come second, ...
        _, first = np.unique(places[left], return_index=True)
        turn = left[first]
        old = view[places[turn]]
        found[turn] = old
        if name == "cas":
            view[places[turn]] = np.where(old == values[0][turn], values[1][turn], old)
        else:
            view[places[turn]] = ATOMICS[name](old, values[0][turn])
        left = np.delete(left, first)
    return found


def _add_in_turn(view: Array, places: Array, values: Array) -> Array:
    """What whole numbers added in turn find: running sums within each place."""
    order = np.argsort(places, kind="stable")
    sums = np.cumsum(values[order], dtype=view.dtype)
    starts = np.flatnonzero(np.diff(places[order], prepend=-1))
    lengths = np.diff(starts, append=len(places))
    before = sums - values[order]
    found = np.empty(len(places), view.dtype)
    own = before - np.repeat(before[starts], lengths)
    found[order] = view[places[order]] + own
    last = order[starts + lengths - 1]
    view[places[last]] = found[last] + values[last]
    return found
