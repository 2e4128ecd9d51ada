"""Instructions of a kernel to Python closures, each over a set of threads of one Machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from emulation import ptx_numbers as numbers
from emulation.ptx_access import MemoryInstructions
from emulation.ptx_arithmetic import (
    PACKED,
    TESTS,
    checked_division,
    float_arithmetic,
    flushing,
    of_halves,
)
from emulation.ptx_conversions import conversion
from emulation.ptx_machine import CodeBlock, Machine, Moves, Step, ThreadSet
from emulation.ptx_matrix import MatrixInstructions
from emulation.ptx_memory import Fault
from emulation.ptx_numbers import DTYPES, Array
from emulation.ptx_operands import Operands
from emulation.ptx_parse import Instruction, Name
from emulation.ptx_warp import MEETINGS, WarpInstructions

NOTHING = {"membar", "fence", "nanosleep", "prefetch", "prefetchu", "discard", "griddepcontrol"}
ENDS = {"bra", "brx", "ret", "exit", "bar", "barrier", "trap"}
BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
ONE_INTEGER: dict[str, numbers.Function] = {
    "not": np.invert,
    "cnot": lambda a: (a == 0).astype(a.dtype),
    "neg": np.negative,
    "abs": np.abs,
    "popc": numbers.population_count,
    "clz": numbers.leading_zeros,
    "bfind": numbers.find_highest,
    "brev": numbers.reverse_bits,
}


def is_meeting(instruction: Instruction) -> bool:
    parts = instruction.parts
    return parts[0] in MEETINGS or parts[:2] in (("bar", "warp"), ("barrier", "warp"))


class Decoder:
    """Decodes the kernel of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.operands = Operands(machine)
        self.memory = MemoryInstructions(machine, self.operands)
        self.warp = WarpInstructions(machine, self.operands)
        self.matrix = MatrixInstructions(machine, self.operands)

    def code(self) -> list[CodeBlock]:
        """The kernel cut into pieces of straight code; a branch, a label, a barrier end a piece."""
        kernel = self.machine.kernel
        starts = {0, *kernel.labels.values()}
        for at, instruction in enumerate(kernel.instructions):
            if instruction.parts[0] in ENDS and not is_meeting(instruction):
                starts.add(at + 1)
            if is_meeting(instruction):
                starts.add(at)
        ordered = sorted(at for at in starts if at < len(kernel.instructions))
        self.block_at = {at: number for number, at in enumerate(ordered)}
        self.block_at[len(kernel.instructions)] = len(ordered)
        ends = [*ordered[1:], len(kernel.instructions)]
        blocks = [
            self.block(kernel.instructions[start:end], number + 1)
            for number, (start, end) in enumerate(zip(ordered, ends, strict=True))
        ]
        blocks.append(CodeBlock(leave=self.returns()))  # the end of the body is a return
        return blocks

    def block(self, instructions: Sequence[Instruction], following: int) -> CodeBlock:
        block = CodeBlock(leave=lambda threads: [(following, threads)])
        for instruction in instructions:
            try:
                self.add(block, instruction, following)
            except (NotImplementedError, KeyError, StopIteration, IndexError) as error:
                raise self.machine.error(
                    f"not an instruction that the interpreter knows: {instruction.opcode}"
                    f" ({type(error).__name__} {error})",
                    instruction,
                    None,
                ) from error
        return block

    def add(self, block: CodeBlock, instruction: Instruction, following: int) -> None:
        name = instruction.parts[0]
        if is_meeting(instruction):
            block.meeting_instruction = instruction
            block.meeting = self.warp.meeting(instruction)
            matrix = name in self.matrix.NAMES
            step = self.matrix.step(instruction) if matrix else self.warp.step(instruction)
            block.steps.append((self.guarded(step, instruction), instruction))
        elif name in ENDS:
            block.last = instruction
            if name in ("bar", "barrier"):
                block.leave, block.barrier_result = self.barrier(instruction, following)
            else:
                block.leave = self.jump(instruction, following)
        elif name not in NOTHING:
            block.steps.append((self.guarded(self.step(instruction), instruction), instruction))

    def guarded(self, step: Step, instruction: Instruction) -> Step:
        if instruction.guard is None:
            return step
        holds = self.operands.reader(instruction.guard, "pred")
        machine = self.machine

        def run(threads: ThreadSet) -> None:
            chosen = machine.narrowed(threads, holds(threads))
            if chosen is not None:
                step(chosen)

        return run

    # Control

    def returns(self) -> Callable[[ThreadSet], Moves]:
        def leave(threads: ThreadSet) -> Moves:
            self.machine.end(threads)
            return []

        return leave

    def jump(self, instruction: Instruction, following: int) -> Callable[[ThreadSet], Moves]:
        kernel, machine = self.machine.kernel, self.machine
        name = instruction.parts[0]
        go: Callable[[ThreadSet], Moves]
        if name == "bra":
            target = self.target(instruction.operands[0])
            go = lambda threads: [(target, threads)]  # noqa: E731
        elif name == "brx":
            index = self.operands.reader(instruction.operands[0], "u32")
            table = instruction.operands[1]
            assert isinstance(table, Name)
            targets = [self.target(Name(label)) for label in kernel.tables[table.name]]

            def go(threads: ThreadSet) -> Moves:
                which = index(threads)
                if int(which.max()) >= len(targets):
                    raise Fault("a branch beyond its table")
                sets = [(t, machine.narrowed(threads, which == i)) for i, t in enumerate(targets)]
                return [(target, chosen) for target, chosen in sets if chosen is not None]
        elif name == "trap":

            def go(threads: ThreadSet) -> Moves:
                raise Fault("trap", int(machine.numbers[threads][0]))
        else:
            go = self.returns()
        if instruction.guard is None:
            return go
        holds = self.operands.reader(instruction.guard, "pred")

        def leave(threads: ThreadSet) -> Moves:
            taken = holds(threads)
            going, staying = machine.narrowed(threads, taken), machine.narrowed(threads, ~taken)
            moves = go(going) if going is not None else []
            return moves if staying is None else [*moves, (following, staying)]

        return leave

    def target(self, operand: object) -> int:
        assert isinstance(operand, Name)
        return self.block_at[self.machine.kernel.labels[operand.name]]

    def barrier(
        self, instruction: Instruction, following: int
    ) -> tuple[Callable[[ThreadSet], Moves], Step | None]:
        """bar.sync, bar.red and their other spellings."""
        machine, operands = self.machine, list(instruction.operands)
        parts = [part for part in instruction.parts if part not in ("cta", "aligned")]
        result: Step | None = None
        if parts[1] == "red":
            write = self.operands.writer(operands.pop(0), parts[-1])
            value = self.operands.reader(operands.pop(), "pred")
            result = self.barrier_reduction(parts[2], write, value)
        elif parts[1] != "sync":
            raise NotImplementedError(parts[1])
        identity = self.operands.reader(operands[0], "u32")
        count = self.operands.reader(operands[1], "u32") if len(operands) > 1 else None
        holds = (
            self.operands.reader(instruction.guard, "pred")
            if instruction.guard is not None
            else None
        )

        def leave(threads: ThreadSet) -> Moves:
            moves: Moves = []
            arriving: ThreadSet | None = threads
            if holds is not None:
                here = holds(threads)
                passing = machine.narrowed(threads, ~here)
                moves = [(following, passing)] if passing is not None else []
                arriving = machine.narrowed(threads, here)
            if arriving is not None:
                machine.at_barrier[arriving] = following
                machine.barrier_id[arriving] = identity(arriving)
                machine.barrier_count[arriving] = count(arriving) if count else 0
            return moves

        return leave, result

    def barrier_reduction(
        self, name: str, write: Callable[[ThreadSet, Array], None], value: Callable
    ) -> Step:
        machine = self.machine

        def finish(threads: ThreadSet) -> None:
            block = machine.block_of[threads]
            held = value(threads)
            trues = np.bincount(block[held], minlength=machine.blocks)
            all_of = np.bincount(block, minlength=machine.blocks)
            results = {"popc": trues, "or": trues > 0, "and": trues == all_of}
            dtype = np.uint32 if name == "popc" else np.bool_
            write(threads, results[name].astype(dtype)[block])

        return finish

    # Everything else

    def step(self, instruction: Instruction) -> Step:
        name = instruction.parts[0]
        if name in self.memory.NAMES:
            return self.memory.step(instruction)
        if name == "mov":
            return self.operands.move(instruction)
        if name == "activemask":
            return self.warp.active_mask(instruction)
        if name == "call":
            return self.unknown_call(instruction)
        if name == "setp":
            return self.set_predicate(instruction)
        kinds, function = self.arithmetic(instruction)
        to, inputs = instruction.operands[0], instruction.operands[1 : len(kinds)]
        write = self.operands.writer(to, kinds[0])
        if len(instruction.operands) != len(kinds) + (name == "lop3"):  # its table comes last
            raise NotImplementedError(f"{len(instruction.operands)} operands")
        if kinds[0] == "pred":  # which decides, so it has to come from something
            read = [self.operands.reader(o, k) for o, k in zip(inputs, kinds[1:], strict=True)]
            return lambda threads: write(threads, function(*(each(threads) for each in read)))
        # Lanes without work compute along with the others, from registers that nothing was written
        # to. That is a fault once a branch, an address or memory depends on the result.
        sources = [self.operands.unchecked(o, k) for o, k in zip(inputs, kinds[1:], strict=True)]
        whole = [np.uint8((1 << DTYPES[kind].itemsize) - 1) for kind in kinds[1:]]
        assert isinstance(to, Name)
        register = self.machine.registers.get(to.name)
        everyone = self.machine.all

        def run(threads: ThreadSet) -> None:
            values = [read(threads) for read, _ in sources]
            known = [known_of(threads) for _, known_of in sources]
            write(threads, function(*values))
            if register is None or all(each is None for each in known):
                return
            sound = [
                np.True_ if each is None else each == every_byte
                for each, every_byte in zip(known, whole, strict=True)
            ]
            if name == "selp":  # what is not chosen may be anything
                both = np.where(values[2], *sound[:2])
            else:
                both = functools.reduce(np.logical_and, sound)
            register.define(threads, both * register.every_byte, threads is everyone)

        return run

    def unknown_call(self, instruction: Instruction) -> Step:
        name = next(item.name for item in instruction.operands if isinstance(item, Name))

        def run(threads: ThreadSet) -> None:
            raise Fault(f"call of {name}, which this module does not define")

        return run

    def set_predicate(self, instruction: Instruction) -> Step:
        """setp: one result or a pair p|q, perhaps combined with a third predicate."""
        parts, operands = instruction.parts, instruction.operands
        kind = parts[-1]
        compare = numbers.comparison(parts[1], kind)
        if "ftz" in parts:
            compare = flushing(compare, False)
        a, b = (self.operands.reader(operand, kind) for operand in operands[1:3])
        yes, no = self.operands.pair(operands[0])
        combine = next((BITWISE[part] for part in parts[2:-1] if part in BITWISE), None)
        third = self.operands.reader(operands[3], "pred") if combine else None

        def run(threads: ThreadSet) -> None:
            result = compare(a(threads), b(threads))
            other = ~result if no else None
            if combine is not None and third is not None:
                given = third(threads)
                result = combine(result, given)
                other = combine(other, given) if no else None
            yes(threads, result)
            if no:
                no(threads, other)

        return run

    def arithmetic(self, instruction: Instruction) -> tuple[tuple[str, ...], numbers.Function]:
        """Types of the result and the inputs, and the function between them."""
        name, *modifiers, kind = instruction.parts
        given = len(instruction.operands) - 1
        if name == "cvt":
            return self.convert(instruction)
        if kind in PACKED:
            return of_halves(name, modifiers, kind, given)
        if name == "selp":
            return (kind, kind, kind, "pred"), lambda a, b, p: np.where(p, a, b)
        if name == "slct":
            source = kind
            kind = modifiers[-1]
            return (kind, kind, kind, source), lambda a, b, c: np.where(c >= 0, a, b)
        if name == "set":
            to = modifiers[-1]
            compare = numbers.comparison(modifiers[0], kind)
            true = DTYPES[to].type(1 if numbers.is_float(to) else -1 % 2**32)
            return (to, kind, kind), lambda a, b: np.where(compare(a, b), true, true * 0)
        if name == "testp":
            return ("pred", kind), TESTS[modifiers[0]]
        if numbers.is_float(kind):
            return float_arithmetic(name, modifiers, kind, given)
        return self.integer_arithmetic(name, modifiers, kind, instruction)

    def convert(self, instruction: Instruction) -> tuple[tuple[str, ...], numbers.Function]:
        *modifiers, to, source = instruction.parts[1:]
        if to in ("f16x2", "bf16x2") and source == "f32":
            half = conversion(to[:-2], source, tuple(modifiers))

            def both(upper: Array, lower: Array) -> Array:
                bits = [half(each).view(np.uint16).astype(np.uint32) for each in (upper, lower)]
                return bits[0] << np.uint32(16) | bits[1]

            return (to, source, source), both
        return (to, source), conversion(to, source, tuple(modifiers))

    def integer_arithmetic(
        self, name: str, modifiers: list[str], kind: str, instruction: Instruction
    ) -> tuple[tuple[str, ...], numbers.Function]:
        same2, same3 = (kind,) * 3, (kind,) * 4
        wide = f"{kind[0]}{2 * int(kind[1:])}" if kind[1:] in ("16", "32") else ""
        allowed = {"lo", "hi", "wide", "sat", "l", "r", "wrap", "clamp", "shiftamt", "b32"}
        if set(modifiers) - allowed:
            raise NotImplementedError(".".join(modifiers))
        simple = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}
        if name in simple and modifiers:
            raise NotImplementedError(".".join(modifiers))
        if name in simple or name in BITWISE:
            return same2, {**simple, **BITWISE}[name]
        if name == "mul":
            if modifiers == ["wide"]:
                return (wide, kind, kind), numbers.multiply_wide
            return same2, np.multiply if modifiers == ["lo"] else numbers.multiply_high
        if name == "mad":
            if modifiers == ["wide"]:
                return (wide, kind, kind, wide), lambda a, b, c: numbers.multiply_wide(a, b) + c
            if modifiers == ["lo"]:
                return same3, lambda a, b, c: a * b + c
            return same3, lambda a, b, c: numbers.multiply_high(a, b) + c
        if name in ("div", "rem"):
            return same2, checked_division(name)
        if name in ("shl", "shr"):
            function = numbers.shift_left if name == "shl" else numbers.shift_right
            return (kind, kind, "u32"), self.constant_shift(name, kind, instruction) or function
        if modifiers == ["shiftamt"]:  # of bfind: the shift that brings the bit to the top
            top = np.uint32(8 * DTYPES[kind].itemsize - 1)
            none = np.uint32(0xFFFFFFFF)
            find = numbers.find_highest
            return ("u32", kind), lambda a: np.where(find(a) == none, none, top - find(a))
        if name in ("popc", "clz", "bfind"):
            return ("u32", kind), ONE_INTEGER[name]
        if name in ONE_INTEGER:
            return (kind, kind), ONE_INTEGER[name]
        if name == "bfe":
            return (kind, kind, "u32", "u32"), numbers.extract_field
        if name == "bfi":
            return (kind, kind, kind, "u32", "u32"), numbers.insert_field
        if name == "prmt" and not modifiers:
            return same3, numbers.permute_bytes
        if name == "lop3":
            table = instruction.operands[4].value  # type: ignore[union-attr]
            return same3, lambda a, b, c: numbers.look_up(a, b, c, table)
        if name == "shf":
            return same3, numbers.funnel_shift(modifiers[0], modifiers[1] == "wrap")
        if name == "sad":
            return same3, lambda a, b, c: c + np.where(a < b, b - a, a - b)
        raise NotImplementedError(name)

    def constant_shift(
        self, name: str, kind: str, instruction: Instruction
    ) -> numbers.Function | None:
        """A shift by a number of bits that is known and fits needs no clamping."""
        count = getattr(instruction.operands[2], "value", None)
        if count is None or not 0 <= count < 8 * DTYPES[kind].itemsize:
            return None
        by = DTYPES[kind].type(count)
        return (lambda a, _: a << by) if name == "shl" else (lambda a, _: a >> by)
