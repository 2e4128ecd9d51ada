"""The threads of some blocks of a launch: registers, memory, and which thread runs what.

Threads run in sets: a set is a slice or a sorted array of thread numbers, all at the same
instruction. Of the sets that can run, the one at the smallest place in the code goes next, so that
the sides of a branch meet again; threads that wait for others are set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from emulation.ptx_memory import Fault, GlobalRegion, OwnedRegion, Region
from emulation.ptx_numbers import DTYPES, Array
from emulation.ptx_parse import TYPE_BYTES, Function, Instruction, PtxError, lay_out
from emulation.ptx_races import Clock, RaceTracker

WARP = 32
ThreadSet = slice | Array
Step = Callable[[ThreadSet], None]
Moves = list[tuple[int, ThreadSet]]  # (block of code, the threads that go there)


@dataclass
class CodeBlock:
    """Instructions that a set of threads runs through without a branch."""

    steps: list[tuple[Step, Instruction]] = field(default_factory=list)
    # An instruction that a whole warp waits for: gives the threads that may run it, and the others.
    meeting: Callable[[ThreadSet], tuple[ThreadSet | None, ThreadSet | None]] | None = None
    meeting_instruction: Instruction | None = None
    leave: Callable[[ThreadSet], Moves] = lambda threads: []
    last: Instruction | None = None
    barrier_result: Step | None = None  # what bar.red gives, when the barrier opens


class Register:
    """One register of every thread."""

    def __init__(self, name: str, kind: str, threads: int) -> None:
        self.name, self.kind = name, kind
        self.bytes = TYPE_BYTES[kind]
        dtype = np.dtype(np.bool_) if kind == "pred" else np.dtype(f"u{self.bytes}")
        self.bits = np.zeros(threads, dtype)
        self.every_byte = np.uint8((1 << self.bytes) - 1)
        self.defined = np.zeros(threads, np.uint8)  # a bit for each byte
        self.whole = False  # defined in all threads

    def forget(self) -> None:
        self.whole = False
        self.defined.fill(0)

    def define(self, threads: ThreadSet, known: Array, everyone: bool) -> None:
        """Notes which bytes hold something from now on; whether the threads are all there are."""
        if np.all(known == self.every_byte):
            if not self.whole:
                self.defined[threads] = self.every_byte
                self.whole = everyone
            return
        if self.whole:
            self.whole = False
            self.defined.fill(self.every_byte)
        self.defined[threads] = known

    def check(self, threads: ThreadSet) -> None:
        defined = self.defined[threads] == self.every_byte
        if not defined.all():
            numbers = np.arange(len(self.defined))[threads]
            raise Fault(f"register {self.name} was never written", int(numbers[~defined][0]))


class Machine:
    """`blocks` blocks of `shape` threads that run a kernel together."""

    def __init__(
        self,
        kernel: Function,
        lines: Sequence[str],
        shape: tuple[int, int, int],
        blocks: int,
        shared_bytes: int,
        global_addresses: dict[str, int],
        max_steps: int,
    ) -> None:
        self.kernel, self.lines, self.shape = kernel, lines, shape
        self.block_threads = shape[0] * shape[1] * shape[2]
        self.blocks, self.max_steps = blocks, max_steps
        self.threads = blocks * self.block_threads
        self.all = slice(0, self.threads)
        self.numbers = np.arange(self.threads)
        inside = self.numbers % self.block_threads
        self.block_of = self.numbers // self.block_threads
        self.lane = (inside % WARP).astype(np.uint32)
        self.lane_bit = np.uint32(1) << self.lane
        block_warps = -(-self.block_threads // WARP)
        self.warp_of = self.block_of * block_warps + inside // WARP
        self.warp_start = self.numbers - self.lane  # the warp's first thread
        self.warp_size = np.minimum(WARP, self.block_threads - inside // WARP * WARP)
        self.special = self._special_registers(inside)
        self.registers: dict[str, Register] = {}
        self.clock = Clock(self.block_of, self.warp_of)
        self.regions = self._regions(shared_bytes)
        self.addresses = global_addresses | {
            name: variable.offset for name, variable in kernel.variables.items()
        }
        self.exited = np.zeros(self.threads, bool)
        self.alive = np.zeros(blocks * block_warps, np.uint32)  # lanes of each warp
        self.at_barrier = np.full(self.threads, -1)  # the block of code to go on with
        self.barrier_count = np.zeros(self.threads, np.int64)  # 0: every thread of the block
        self.barrier_id = np.zeros(self.threads, np.int64)
        self.code: list[CodeBlock] = []  # the decoder's

    def _special_registers(self, inside: Array) -> dict[str, Array]:
        x, y, z = self.shape
        ones = np.ones(self.threads, np.uint32)
        lane = self.lane
        special = {
            "%tid.x": inside % x,
            "%tid.y": inside // x % y,
            "%tid.z": inside // (x * y),
            "%ntid.x": x * ones,
            "%ntid.y": y * ones,
            "%ntid.z": z * ones,
            "%laneid": lane,
            "%warpid": inside // WARP,
            "%nwarpid": -(-self.block_threads // WARP) * ones,
            "%lanemask_eq": self.lane_bit,
            "%lanemask_lt": self.lane_bit - np.uint32(1),
            "%lanemask_le": self.lane_bit * np.uint32(2) - np.uint32(1),
            "%lanemask_gt": ~(self.lane_bit * np.uint32(2) - np.uint32(1)),
            "%lanemask_ge": ~(self.lane_bit - np.uint32(1)),
            "%clock": 0 * ones,
            "%smid": 0 * ones,
            "%nsmid": ones,
        }
        for axis in "xyz":
            special[f"%ctaid.{axis}"] = np.zeros(self.threads)
            special[f"%nctaid.{axis}"] = np.zeros(self.threads)
        return {name: values.astype(np.uint32) for name, values in special.items()}

    def _regions(self, shared_bytes: int) -> dict[str, Region]:
        kernel = self.kernel
        own = list(kernel.variables.values())
        parameters = {id(item) for item in kernel.parameters}
        parameter_bytes = kernel.parameter_layout()
        shared = [v for v in own if v.space == "shared" and not v.unsized]
        static_bytes = lay_out(shared)
        dynamic = [v for v in own if v.space == "shared" and v.unsized]
        for variable in dynamic:
            lay_out([variable], -(-static_bytes // 16) * 16)
            static_bytes = max(static_bytes, variable.offset)
        # What a call passes lies in the thread's own memory.
        local = [v for v in own if v.space in ("local", "param") and id(v) not in parameters]
        local_bytes = lay_out(local)
        nobody = np.zeros(self.threads, np.int64)
        regions: dict[str, Region] = {
            "shared": OwnedRegion(
                "shared", self.blocks, static_bytes + shared_bytes, self.block_of
            ),
            "local": OwnedRegion("local", self.threads, local_bytes, self.numbers),
            "param": OwnedRegion("param", 1, parameter_bytes, nobody),
        }
        for name in ("shared", "local"):
            regions[name].written = np.zeros(len(regions[name].view(DTYPES["u8"])), np.uint8)
        self.granule = self._smallest_access()
        size = len(regions["shared"].view(DTYPES["u8"]))
        regions["shared"].races = RaceTracker("shared", size, self.granule, self.clock)
        self.local_variables = {v.name for v in local}
        return regions

    def _smallest_access(self) -> int:
        sizes = [8]
        for instruction in self.kernel.instructions:
            if instruction.parts[0] in ("ld", "st", "atom", "red", "cp"):
                sizes.append(TYPE_BYTES.get(instruction.parts[-1], 8))
        return min(sizes)

    # Sets of threads

    def register(self, name: str) -> Register:
        if name not in self.registers:
            kind = self.kernel.registers[name]
            self.registers[name] = Register(name, kind, self.threads)
        return self.registers[name]

    def compact(self, numbers: Array) -> ThreadSet:
        """Sorted thread numbers as a set: a slice where they are consecutive."""
        count = len(numbers)
        if count == self.threads:
            return self.all
        first, last = int(numbers[0]), int(numbers[-1])
        return slice(first, last + 1) if last - first == count - 1 else numbers

    def narrowed(self, threads: ThreadSet, chosen: Array) -> ThreadSet | None:
        """Those of a set that are chosen."""
        count = np.count_nonzero(chosen)
        if count == len(chosen):
            return threads
        return self.compact(self.numbers[threads][chosen]) if count else None

    def union(self, sets: Sequence[ThreadSet]) -> ThreadSet:
        if len(sets) == 1:
            return sets[0]
        return self.compact(np.sort(np.concatenate([self.numbers[item] for item in sets])))

    # Running

    def run(
        self,
        first_block: int,
        blocks: int,
        grid: tuple[int, int, int],
        parameters: Array,
        memory: GlobalRegion,
    ) -> None:
        """Runs blocks first_block, ... of a grid to their end."""
        for register in self.registers.values():
            register.forget()
        for name in ("shared", "local"):
            region = self.regions[name]
            assert isinstance(region, OwnedRegion)
            region.forget()
        self.clock.start()
        self.regions["param"].view(DTYPES["u8"])[: len(parameters)] = parameters
        self.regions["global"] = memory
        memory.races = RaceTracker("global", memory.packed_bytes, self.granule, self.clock)
        block = (first_block + self.block_of) % (grid[0] * grid[1] * grid[2])
        for axis, index in zip(
            "xyz",
            (block % grid[0], block // grid[0] % grid[1], block // (grid[0] * grid[1])),
            strict=True,
        ):
            self.special[f"%ctaid.{axis}"][:] = index
            self.special[f"%nctaid.{axis}"][:] = grid["xyz".index(axis)]
        self.exited.fill(False)
        self.alive.fill(0)
        np.bitwise_or.at(self.alive, self.warp_of, self.lane_bit)
        self.at_barrier.fill(-1)
        start = self.compact(self.numbers[: blocks * self.block_threads])
        self.exited[blocks * self.block_threads :] = True
        with np.errstate(all="ignore"):
            self._schedule(start)

    def _schedule(self, start: ThreadSet) -> None:
        pending: dict[int, list[ThreadSet]] = {0: [start]}
        self.meeting: dict[int, ThreadSet] = {}  # threads that wait for their warp
        steps = 0
        while True:
            if not pending:
                pending = self._release()
                if not pending:
                    return
            number = min(pending)
            sets = pending.pop(number)
            if number in self.meeting:
                sets.append(self.meeting.pop(number))
            threads: ThreadSet | None = self.union(sets)
            block = self.code[number]
            instruction = block.meeting_instruction
            try:
                if block.meeting is not None:
                    threads, late = block.meeting(threads)
                    if late is not None:
                        self.meeting[number] = late
                    if threads is None:
                        continue
                for step, instruction in block.steps:  # noqa: B007
                    step(threads)
                instruction = block.last
                for target, chosen in block.leave(threads):
                    pending.setdefault(target, []).append(chosen)
            except Fault as fault:
                raise self.error(str(fault), instruction, fault.thread) from None
            steps += 1
            if steps > self.max_steps:
                raise self.error(f"no end after {steps} pieces of code", instruction, None)

    def _release(self) -> dict[int, list[ThreadSet]]:
        """What can go on when every thread has ended or waits."""
        waiting = self.at_barrier >= 0
        if waiting.any():
            released = self._released(waiting)
            if released:
                return released
        pending: dict[int, list[ThreadSet]] = {}
        for number, threads in self.meeting.items():
            if self.code[number].meeting(threads)[0] is not None:  # others have ended
                pending[number] = []
        if pending:
            return pending
        for number, threads in self.meeting.items():
            thread = int(self.numbers[threads][0])
            raise self.error(
                "a lane that the mask names never comes here",
                self.code[number].meeting_instruction,
                thread,
            )
        if waiting.any():
            thread = int(np.flatnonzero(waiting)[0])
            raise self.error(
                "barrier divergence: threads of the block wait here, others elsewhere",
                self._barrier_at(thread),
                thread,
            )
        return {}

    def _barrier_at(self, thread: int) -> Instruction | None:
        return self.code[int(self.at_barrier[thread]) - 1].last

    def _released(self, waiting: Array) -> dict[int, list[ThreadSet]]:
        arrived = np.bincount(self.block_of[waiting], minlength=self.blocks)
        ended = np.bincount(self.block_of[self.exited], minlength=self.blocks)
        pending: dict[int, list[ThreadSet]] = {}
        for key in np.unique(
            np.stack([self.block_of, self.barrier_id, self.barrier_count], 1)[waiting], axis=0
        ):
            block, identity, count = (int(each) for each in key)
            members = waiting & (self.block_of == block) & (self.barrier_id == identity)
            if count == 0 and arrived[block] + ended[block] < self.block_threads:
                continue
            if count and np.count_nonzero(members) < count:
                continue
            places = np.unique(self.at_barrier[members])
            thread = int(np.flatnonzero(members)[0])
            if len(places) > 1:
                lines = ", ".join(str(self.code[int(at) - 1].last.line) for at in places)
                raise self.error(
                    f"barrier divergence: threads of the block wait at lines {lines}",
                    self._barrier_at(thread),
                    thread,
                )
            if count == 0 and ended[block]:
                raise self.error(
                    f"barrier divergence: {ended[block]} threads of the block have ended",
                    self._barrier_at(thread),
                    thread,
                )
            pending.setdefault(int(places[0]), []).append(self.compact(np.flatnonzero(members)))
        for sets in pending.values():
            for threads in sets:
                members_numbers = self.numbers[threads]
                self._finish_barrier(members_numbers)
        return pending

    def _finish_barrier(self, members: Array) -> None:
        place = int(self.at_barrier[members[0]])
        reduce = self.code[place - 1].barrier_result
        if reduce is not None:
            reduce(self.compact(members))
        self.clock.barrier(np.unique(self.block_of[members]))
        self.at_barrier[members] = -1

    def end(self, threads: ThreadSet) -> None:
        """The threads have returned."""
        self.exited[threads] = True
        numbers = self.numbers[threads]
        np.bitwise_and.at(self.alive, self.warp_of[numbers], ~self.lane_bit[numbers])

    def error(self, message: str, instruction: Instruction | None, thread: int | None) -> PtxError:
        where = self.kernel.name
        if instruction is not None:
            where += f": line {instruction.line}: `{self.lines[instruction.line - 1].strip()}`"
        if thread is not None:
            block = tuple(int(self.special[f"%ctaid.{axis}"][thread]) for axis in "xyz")
            own = tuple(int(self.special[f"%tid.{axis}"][thread]) for axis in "xyz")
            where += f": thread {own} of block {block}"
        return PtxError(f"{where}: {message}")
