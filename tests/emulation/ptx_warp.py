"""What the lanes of a warp do together: shuffles, votes, matches, reductions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from emulation.ptx_machine import Machine, Step, ThreadSet
from emulation.ptx_memory import Fault
from emulation.ptx_numbers import Array, as_ordered, from_ordered
from emulation.ptx_operands import Operands
from emulation.ptx_parse import Both, Immediate, Instruction, Name

WHOLE_WARP = ("ldmatrix", "stmatrix")  # these name no lanes: all take part
MEETINGS = ("shfl", "vote", "match", "redux", "elect", *WHOLE_WARP)
Meeting = Callable[[ThreadSet], tuple[ThreadSet | None, ThreadSet | None]]


class WarpInstructions:
    """Decodes instructions that name, in a mask, the lanes that take part."""

    def __init__(self, machine: Machine, operands: Operands) -> None:
        self.machine, self.operands = machine, operands

    def meeting(self, instruction: Instruction) -> Meeting:
        """Splits a set into those whose lanes are all here (or have ended), and the others."""
        machine = self.machine
        mask = instruction.operands[-1]
        if instruction.parts[0] in WHOLE_WARP:
            mask = Immediate(0xFFFFFFFF)
        mask_of = self.operands.reader(mask, "u32")
        holds = None
        if instruction.guard is not None:
            holds = self.operands.reader(instruction.guard, "pred")

        def meet(threads: ThreadSet) -> tuple[ThreadSet | None, ThreadSet | None]:
            machine.clock.warp_meeting(machine.numbers[threads])
            if holds is None and threads is machine.all:
                masks = mask_of(threads)
                if np.ndim(masks) == 0 and int(masks) == 0xFFFFFFFF:
                    return threads, None
            here: ThreadSet | None = threads
            passing: ThreadSet | None = None
            if holds is not None:
                taken = holds(threads)
                here = machine.narrowed(threads, taken)
                passing = machine.narrowed(threads, ~taken)
                if here is None:
                    return passing, None
            assert here is not None
            numbers = machine.numbers[here]
            masks = np.broadcast_to(mask_of(here), numbers.shape)
            absent = (masks & machine.lane_bit[numbers]) == 0
            if absent.any():
                raise Fault("a lane that its own mask leaves out", int(numbers[absent][0]))
            group, _ = self.groups(numbers, masks)
            present = np.zeros(group.max() + 1, np.uint32)
            np.bitwise_or.at(present, group, machine.lane_bit[numbers])
            needed = masks & machine.alive[machine.warp_of[numbers]]
            ready = (needed & ~present[group]) == 0
            going, late = machine.narrowed(here, ready), machine.narrowed(here, ~ready)
            if passing is not None:
                going = passing if going is None else machine.union([passing, going])
            return going, late

        return meet

    def groups(self, numbers: Array, masks: Array) -> tuple[Array, int]:
        """Which group of (warp, mask) each thread is in, and how many there are."""
        warp = self.machine.warp_of[numbers]
        if (masks == masks[0]).all():
            new = np.empty(len(warp), bool)
            new[0] = False
            np.not_equal(warp[1:], warp[:-1], out=new[1:])
            group = np.cumsum(new)
            return group, int(group[-1]) + 1
        key = warp.astype(np.uint64) << np.uint64(32) | masks.astype(np.uint64)
        found, group = np.unique(key, return_inverse=True)
        return group, len(found)

    def step(self, instruction: Instruction) -> Step:
        match instruction.parts[0]:
            case "shfl":
                return self.shuffle(instruction)
            case "vote":
                return self.vote(instruction)
            case "match":
                return self.match(instruction)
            case "redux":
                return self.reduce(instruction)
            case "bar" | "barrier":
                return self.synchronise()
        raise NotImplementedError(instruction.opcode)

    def synchronise(self) -> Step:
        machine = self.machine

        def run(threads: ThreadSet) -> None:
            machine.clock.warp_barrier(machine.numbers[threads])

        return run

    def shuffle(self, instruction: Instruction) -> Step:
        to, value, by, clamp, mask = instruction.operands
        mode = instruction.parts[2]
        write, write_inside = self.operands.pair(to, "b32")
        read, known_of = self.operands.unchecked(value, "b32")
        given = to.first if isinstance(to, Both) else to
        assert isinstance(given, Name)
        register = self.machine.registers.get(given.name)
        read_by, read_clamp, read_mask = (
            self.operands.reader(operand, "u32") for operand in (by, clamp, mask)
        )
        machine = self.machine

        def run(threads: ThreadSet) -> None:
            numbers = machine.numbers[threads]
            lane = machine.lane[numbers].astype(np.int64)
            b = np.int64(read_by(threads)) & 31
            c = np.int64(read_clamp(threads))
            segment, bound = c >> 8 & 31, c & 31
            highest = (lane & segment) | (bound & ~segment)
            lowest = lane & segment
            source = {
                "up": lane - b,
                "down": lane + b,
                "bfly": lane ^ b,
                "idx": lowest | (b & ~segment),
            }[mode]
            inside = source >= highest if mode == "up" else source <= highest
            source = np.where(inside, source, lane)
            self.check_sources(numbers, source, read_mask(threads))
            everyone = np.zeros(machine.threads, np.uint32)
            everyone[threads] = read(threads)
            known = known_of(threads)
            write(threads, everyone[machine.warp_start[numbers] + source])
            if known is not None and register is not None:
                # A lane without a value gives none: a fault where one is needed, not here.
                bytes_known = np.zeros(machine.threads, np.uint8)
                bytes_known[threads] = known
                passed = bytes_known[machine.warp_start[numbers] + source]
                register.define(threads, passed, threads is machine.all)
            if write_inside is not None:
                write_inside(threads, inside)

        return run

    def check_sources(self, numbers: Array, source: Array, masks: Array) -> None:
        machine = self.machine
        here = np.zeros(machine.threads + 32, bool)
        here[numbers] = True
        named = (np.asarray(masks).astype(np.int64) >> source) & 1 == 1
        taking_part = (
            named
            & (source < machine.warp_size[numbers])
            & here[machine.warp_start[numbers] + source]
        )
        if not taking_part.all():
            at = int(np.flatnonzero(~taking_part)[0])
            raise Fault(
                f"shuffle from lane {int(source[at])}, which does not take part",
                int(numbers[at]),
            )

    def grouped(self, mask: Callable[[ThreadSet], Array], threads: ThreadSet) -> tuple:
        numbers = self.machine.numbers[threads]
        masks = np.broadcast_to(mask(threads), numbers.shape)
        group, count = self.groups(numbers, masks)
        return numbers, group, count

    def vote(self, instruction: Instruction) -> Step:
        to, value, mask = instruction.operands
        mode = instruction.parts[2]
        write = self.operands.writer(to, instruction.parts[-1])
        read = self.operands.reader(value, "pred")
        read_mask = self.operands.reader(mask, "u32")
        machine = self.machine

        def run(threads: ThreadSet) -> None:
            numbers, group, count = self.grouped(read_mask, threads)
            holds = np.broadcast_to(read(threads), numbers.shape)
            bits = machine.lane_bit[numbers]
            votes, voters = np.zeros(count, np.uint32), np.zeros(count, np.uint32)
            np.bitwise_or.at(votes, group, np.where(holds, bits, np.uint32(0)))
            np.bitwise_or.at(voters, group, bits)
            results = {
                "ballot": votes,
                "any": votes != 0,
                "all": votes == voters,
                "uni": (votes == voters) | (votes == 0),
            }
            write(threads, results[mode][group])

        return run

    def match(self, instruction: Instruction) -> Step:
        to, value, mask = instruction.operands
        mode, kind = instruction.parts[1], instruction.parts[-1]
        write, write_all = self.operands.pair(to, "b32")
        read = self.operands.reader(value, kind)
        read_mask = self.operands.reader(mask, "u32")
        machine = self.machine

        def run(threads: ThreadSet) -> None:
            numbers, group, count = self.grouped(read_mask, threads)
            values = np.broadcast_to(read(threads), numbers.shape)
            pairs = np.stack([group.astype(np.uint64), values.astype(np.uint64)], 1)
            _, alike = np.unique(pairs, axis=0, return_inverse=True)
            alike = alike.reshape(-1)
            bits = machine.lane_bit[numbers]
            same = np.zeros(alike.max() + 1, np.uint32)
            np.bitwise_or.at(same, alike, bits)
            if mode == "any":
                write(threads, same[alike])
                return
            everyone = np.zeros(count, np.uint32)
            np.bitwise_or.at(everyone, group, bits)
            agree = same[alike] == everyone[group]
            write(threads, np.where(agree, everyone[group], np.uint32(0)))
            if write_all is not None:
                write_all(threads, agree)

        return run

    def reduce(self, instruction: Instruction) -> Step:
        to, value, mask = instruction.operands
        name, kind = instruction.parts[2], instruction.parts[-1]
        write, read = self.operands.writer(to, kind), self.operands.reader(value, kind)
        read_mask = self.operands.reader(mask, "u32")
        function = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[name]
        absolute, nan_wins = "abs" in instruction.parts, "NaN" in instruction.parts
        is_float = kind == "f32"

        def run(threads: ThreadSet) -> None:
            numbers, group, count = self.grouped(read_mask, threads)
            values = np.broadcast_to(read(threads), numbers.shape)
            if is_float:
                values = as_ordered(np.abs(values) if absolute else values, name, nan_wins)
            starts = np.zeros(count, values.dtype)
            _, first = np.unique(group, return_index=True)
            starts[:] = values[first]
            rest = np.ones(len(group), bool)
            rest[first] = False
            function.at(starts, group[rest], values[rest])
            write(threads, (from_ordered(starts) if is_float else starts)[group])

        return run

    def active_mask(self, instruction: Instruction) -> Step:
        """The lanes that run it together: here always all that could have met."""
        write = self.operands.writer(instruction.operands[0], "b32")
        machine = self.machine

        def run(threads: ThreadSet) -> None:
            numbers = machine.numbers[threads]
            masks = np.zeros(len(machine.alive), np.uint32)
            np.bitwise_or.at(masks, machine.warp_of[numbers], machine.lane_bit[numbers])
            write(threads, masks[machine.warp_of[numbers]])

        return run
