"""Finds accesses of memory that no barrier orders.

Two accesses of different threads of one block, one of them a store that changes the value, race
unless a barrier of the block lies between them, or the threads are of one warp and a barrier of
the warp does. What a warp read, any of its shuffles or votes puts before what it then writes.
Atomics do not race with each other; blocks are not compared.
"""

from __future__ import annotations

import numpy as np
from emulation.ptx_numbers import Array

MANY = -1


class Race(Exception):
    """An access, the one at this place among those of an instruction, races."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class Clock:
    """Counts the barriers that blocks and warps have passed."""

    def __init__(self, block_of: Array, warp_of: Array) -> None:
        self.block_of, self.warp_of = block_of, warp_of  # [threads]
        self.block_threads = int(np.count_nonzero(block_of == 0))
        # Epochs never repeat, so granules that another block or launch touched are merely old.
        self.epoch = np.arange(1, int(block_of.max()) + 2)
        self.sync, self.met = np.ones((2, int(warp_of.max()) + 1), np.int64)
        self.next_epoch = len(self.epoch) + 1

    def barrier(self, blocks: Array) -> None:
        self.epoch[blocks] = np.arange(self.next_epoch, self.next_epoch + len(blocks))
        self.next_epoch += len(blocks)

    def warp_barrier(self, threads: Array) -> None:
        self.sync[self.warp_of[threads]] += 1  # once, however many threads of the warp there are

    def warp_meeting(self, threads: Array) -> None:
        self.met[self.warp_of[threads]] += 1

    def start(self) -> None:
        self.barrier(np.arange(len(self.epoch)))


class Accesses:
    """The last access of a kind to each granule: which thread, and when."""

    def __init__(self, what: str, granules: int) -> None:
        self.what = what
        self.thread, self.warp = np.zeros((2, granules), np.int32)  # or MANY
        self.epoch, self.stamp = np.zeros((2, granules), np.int64)

    def racing(self, at: Array, threads: Array, warp: Array, epoch: Array, stamp: Array) -> Array:
        """Which of these threads' accesses nothing puts after those recorded."""
        current = (self.epoch[at] == epoch) & (self.thread[at] != threads)
        if not current.any():
            return current
        return current & ~((self.warp[at] == warp) & (self.stamp[at] < stamp))

    def record(self, at: Array, threads: Array, warp: Array, epoch: Array, stamp: Array) -> None:
        # What a warp did before it synchronised no longer counts.
        old = self.epoch[at] != epoch
        own = self.warp[at] == warp
        alone = old | (self.thread[at] == threads) | (own & (self.stamp[at] < stamp))
        thread = np.where(alone, threads, MANY)
        warp = np.where(old | own, warp, MANY)
        self.thread[at], self.warp[at], self.epoch[at], self.stamp[at] = thread, warp, epoch, stamp
        self.thread[at[self.thread[at] != thread]] = MANY  # several threads at one granule
        self.warp[at[self.warp[at] != warp]] = MANY

    def describe(self, granule: int, block_threads: int) -> str:
        thread = int(self.thread[granule])
        who = "other threads" if thread == MANY else f"thread {thread % block_threads}"
        return f"{who} of the block {self.what} with no barrier in between"


class RaceTracker:
    """The accesses of `size` bytes of memory, by granules of `unit` bytes."""

    def __init__(self, name: str, size: int, unit: int, clock: Clock) -> None:
        self.name, self.unit, self.clock = name, unit, clock
        granules = -(-size // unit)
        self.writes, self.reads = Accesses("wrote", granules), Accesses("read", granules)
        self.atomic = np.zeros(granules, bool)

    def now(self, threads: Array) -> tuple[Array, Array, Array, Array]:
        """Warp, epoch, and stamps of writes and of reads, of each thread."""
        clock = self.clock
        warp = clock.warp_of[threads]
        return warp, clock.epoch[clock.block_of[threads]], clock.sync[warp], clock.met[warp]

    def read(self, first: Array, width: int, threads: Array) -> None:
        """Reads of `width` bytes at the positions `first`."""
        warp, epoch, sync, met = self.now(threads)
        for unit in range(0, width, self.unit):
            at = (first + unit) // self.unit
            racing = self.writes.racing(at, threads, warp, epoch, sync)
            self.report("read", self.writes, at, racing)
            self.reads.record(at, threads, warp, epoch, met)

    def write(
        self, first: Array, width: int, threads: Array, same: Array, atomic: bool = False
    ) -> None:
        """Stores; `same` says which leave the value as it is."""
        warp, epoch, sync, met = self.now(threads)
        for unit in range(0, width, self.unit):
            at = (first + unit) // self.unit
            racing = self.writes.racing(at, threads, warp, epoch, sync) & ~same
            if atomic:
                racing &= ~self.atomic[at]
            self.report("written", self.writes, at, racing)
            racing = self.reads.racing(at, threads, warp, epoch, met) & ~same
            self.report("written", self.reads, at, racing)
            self.writes.record(at, threads, warp, epoch, sync)
            self.atomic[at] = atomic

    def report(self, what: str, earlier: Accesses, at: Array, racing: Array) -> None:
        if racing.any():
            first = int(np.flatnonzero(racing)[0])
            described = earlier.describe(int(at[first]), self.clock.block_threads)
            raise Race(f"race: {self.name} memory is {what} that {described}", first)
