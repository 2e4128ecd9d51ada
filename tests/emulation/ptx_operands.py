"""Reading and writing operands: registers, immediates, special registers, addresses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from emulation.ptx_machine import Machine, Register, Step, ThreadSet
from emulation.ptx_numbers import DTYPES, Array
from emulation.ptx_parse import (
    TYPE_BYTES,
    Address,
    Both,
    Immediate,
    Instruction,
    Name,
    Negated,
    Operand,
    Vector,
)

Reader = Callable[[ThreadSet], Array]
Writer = Callable[[ThreadSet, Array], None]


def constant(operand: Immediate, kind: str) -> Array:
    """An immediate as a NumPy scalar of a type."""
    dtype = DTYPES[kind]
    if kind == "pred":
        return np.bool_(operand.value)
    if operand.kind != "int":
        number = np.uint64(operand.value)
        float_value = (
            np.uint32(operand.value).view(np.float32)
            if operand.kind == "f32"
            else number.view(np.float64)
        )
        if dtype.kind == "f":
            return dtype.type(float_value)
        return float_value.view(dtype)
    bits = operand.value & (1 << 8 * dtype.itemsize) - 1
    return np.array(bits, f"u{dtype.itemsize}").view(dtype)[()]


class Operands:
    """Makes readers and writers of operands, over sets of a machine's threads."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def is_register(self, operand: Operand) -> bool:
        return isinstance(operand, Name) and operand.name in self.machine.kernel.registers

    def reader(self, operand: Operand, kind: str) -> Reader:
        """What gives the operand's values, as the type's NumPy dtype."""
        dtype = DTYPES[kind]
        match operand:
            case Immediate():
                value = constant(operand, kind)
                return lambda threads: value
            case Negated(item):
                read = self.reader(item, kind)
                return lambda threads: ~read(threads)
            case Name(name) if name in self.machine.kernel.registers:
                return self._register_reader(self.machine.register(name), dtype)
            case Name(name) if name in self.machine.special:
                values = self.machine.special[name]
                if dtype.itemsize == 4:
                    values = values.view(dtype)
                    return lambda threads: values[threads]
                return lambda threads: values[threads].astype(dtype)
            case Name("WARP_SZ"):
                return lambda threads: dtype.type(32)
            case Name(name) if name in self.machine.addresses:
                address = dtype.type(self.machine.addresses[name])
                return lambda threads: address
            case Address(Name(name), offset) if name in self.machine.addresses:
                address = dtype.type(self.machine.addresses[name] + offset)
                return lambda threads: address
        raise NotImplementedError(f"operand {operand}")

    def _register_reader(self, register: Register, dtype: np.dtype) -> Reader:
        if register.bits.dtype.itemsize == dtype.itemsize:
            view = register.bits.view(dtype)

            def read(threads: ThreadSet) -> Array:
                if not register.whole:
                    register.check(threads)
                return view[threads]

            return read
        if register.bytes < dtype.itemsize:
            raise NotImplementedError(f"{register.name} is too narrow for {dtype}")
        narrow = np.dtype(f"u{dtype.itemsize}")

        def read_low(threads: ThreadSet) -> Array:
            if not register.whole:
                register.check(threads)
            return register.bits[threads].astype(narrow).view(dtype)

        return read_low

    def writer(self, operand: Operand, kind: str) -> Writer:
        """What puts values into a register; a wider one is filled by sign or with zeros."""
        assert isinstance(operand, Name)
        if operand.name == "_":
            return lambda threads, values: None
        register = self.machine.register(operand.name)
        dtype, everyone = DTYPES[kind], self.machine.all
        if register.bits.dtype.itemsize < dtype.itemsize:
            raise NotImplementedError(f"{register.name} is too narrow for {kind}")
        wider = register.bits.dtype.itemsize > dtype.itemsize
        if wider:
            view = register.bits.view(f"{'i' if kind[0] == 's' else 'u'}{register.bytes}")
        else:
            view = register.bits.view(dtype)
        carrier = np.dtype(f"u{dtype.itemsize}")

        def write(threads: ThreadSet, values: Array) -> None:
            if wider and dtype.kind == "f":
                values = values.view(carrier)
            view[threads] = values
            if not register.whole:
                register.defined[threads] = register.every_byte
                register.whole = threads is everyone

        return write

    def pair(self, operand: Operand, kind: str = "pred") -> tuple[Writer, Writer | None]:
        """The writers of `p` or of `p|q`; p is of the given type, q a predicate."""
        if isinstance(operand, Both):
            return self.writer(operand.first, kind), self.writer(operand.second, "pred")
        return self.writer(operand, kind), None

    def address(self, operand: Operand) -> Reader:
        """int64 addresses [threads of the set] of [base + offset]."""
        assert isinstance(operand, Address)
        base, offset = operand.base, np.int64(operand.offset)
        machine = self.machine
        if self.is_register(base):
            assert isinstance(base, Name)
            size = machine.kernel.registers[base.name]
            if TYPE_BYTES[size] == 4:
                read, short = self.reader(base, "u32"), np.uint32(operand.offset & 0xFFFFFFFF)
                return lambda threads: (read(threads) + short).astype(np.int64)  # it wraps
            read = self.reader(base, "s64")
            return lambda threads: read(threads) + offset
        read = self.reader(base, "s64")

        def everywhere(threads: ThreadSet) -> Array:
            return np.full(len(machine.numbers[threads]), read(threads) + offset)

        return everywhere

    # mov

    def move(self, instruction: Instruction) -> Step:
        to, source = instruction.operands
        kind = instruction.parts[-1]
        if isinstance(to, Vector):
            return self._unpack(to, source, kind)
        if isinstance(source, Vector):
            return self._pack(to, source, kind)
        if self.is_register(source) and self.is_register(to):
            assert isinstance(to, Name) and isinstance(source, Name)
            return self._copy(self.machine.register(to.name), self.machine.register(source.name))
        write, read = self.writer(to, kind), self.reader(source, kind)
        return lambda threads: write(threads, read(threads))

    def _copy(self, to: Register, source: Register) -> Step:
        """A copy of what was never written is no fault: compilers make them where paths meet."""
        if to.bits.dtype != source.bits.dtype:
            raise NotImplementedError(f"mov from {source.kind} to {to.kind}")
        everyone = self.machine.all

        def run(threads: ThreadSet) -> None:
            to.bits[threads] = source.bits[threads]
            known = source.every_byte if source.whole else source.defined[threads]
            to.define(threads, known, threads is everyone)

        return run

    # Half of a register may be of no use to anyone, and never written.

    def _unpack(self, to: Vector, source: Operand, kind: str) -> Step:
        size = TYPE_BYTES[kind] // len(to.items)
        part = f"b{8 * size}"
        read, known_of = self.unchecked(source, f"b{8 * TYPE_BYTES[kind]}")
        writers = [self.writer(item, part) for item in to.items]
        registers = [self.machine.registers.get(getattr(item, "name", "")) for item in to.items]
        everyone, every_byte = self.machine.all, (1 << size) - 1

        def run(threads: ThreadSet) -> None:
            bits, known = np.asarray(read(threads)), known_of(threads)
            for i, (write, register) in enumerate(zip(writers, registers, strict=True)):
                write(threads, (bits >> bits.dtype.type(8 * size * i)).astype(DTYPES[part]))
                if known is not None and register is not None:
                    whole = (known >> size * i & every_byte) == every_byte
                    register.define(threads, whole * register.every_byte, threads is everyone)

        return run

    def _pack(self, to: Operand, source: Vector, kind: str) -> Step:
        size = TYPE_BYTES[kind] // len(source.items)
        whole = f"b{8 * TYPE_BYTES[kind]}"
        readers = [self.unchecked(item, f"b{8 * size}") for item in source.items]
        write, dtype = self.writer(to, whole), DTYPES[whole]
        assert isinstance(to, Name)
        register, everyone = self.machine.register(to.name), self.machine.all
        every_byte = np.uint8((1 << size) - 1)

        def run(threads: ThreadSet) -> None:
            bits, bytes_known, holes = dtype.type(0), np.uint8(0), False
            for i, (read, known_of) in enumerate(readers):
                bits = bits | read(threads).astype(dtype) << dtype.type(8 * size * i)
                known = known_of(threads)
                holes |= known is not None
                bytes_known = bytes_known | (every_byte if known is None else known) << size * i
            write(threads, bits)
            if holes:
                register.define(threads, bytes_known, threads is everyone)

        return run

    def unchecked(
        self, operand: Operand, kind: str
    ) -> tuple[Reader, Callable[[ThreadSet], Array | None]]:
        """A reader to which what was never written is no fault, and what gives the bytes that were.

        None stands for all bytes. Predicates are always checked.
        """
        dtype = DTYPES[kind]
        if kind == "pred":
            return self.reader(operand, kind), lambda threads: None
        if isinstance(operand, Name) and self.is_register(operand):
            register = self.machine.register(operand.name)
            if register.bytes == dtype.itemsize:
                view = register.bits.view(dtype)
                return (
                    lambda threads: view[threads],
                    lambda threads: None if register.whole else register.defined[threads].copy(),
                )
        return self.reader(operand, kind), lambda threads: None
