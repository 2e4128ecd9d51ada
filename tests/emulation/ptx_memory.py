"""The memory of a launch, and what is wrong with an access to it.

Global memory is the caller's buffers at their own addresses; shared, local and parameter memory
are arrays. Every access is checked: bounds, alignment, that the bytes read were ever written
(shared and local memory) and that no two threads touch them without a barrier in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from emulation.ptx_numbers import Array

# Where the spaces lie among generic addresses.
WINDOWS = {"shared": 1 << 58, "local": 1 << 59, "param": 1 << 60}
NOBODY, MANY = -1, -2


class Fault(Exception):
    """Something one thread did wrong; the interpreter adds where."""

    def __init__(self, message: str, thread: int | None = None) -> None:
        super().__init__(message)
        self.thread = thread


class Region:
    """Bytes that are addressed together."""

    def __init__(self, name: str, data: Array) -> None:
        self.name = name
        self.views = {np.dtype(np.uint8): data}
        self.written: Array | None = None  # uint8, one for each byte
        self.races: RaceTracker | None = None

    def view(self, dtype: np.dtype) -> Array:
        if dtype not in self.views:
            data = self.views[np.dtype(np.uint8)]
            whole = len(data) // dtype.itemsize * dtype.itemsize
            self.views[dtype] = data[:whole].view(dtype)
        return self.views[dtype]

    def locate(self, addresses: Array, width: int, threads: Array) -> Array:
        """Positions in the data of accesses of `width` bytes, checked."""
        raise NotImplementedError

    def elements(self, addresses: Array, dtype: np.dtype, count: int, threads: Array) -> Array:
        """Positions in view(dtype) of vectors of `count`, checked."""
        width = dtype.itemsize * count
        misaligned = addresses & (width - 1)
        if misaligned.any():
            at = int(np.flatnonzero(misaligned)[0])
            raise Fault(
                f"misaligned access of {width} bytes at {int(addresses[at]):#x}", int(threads[at])
            )
        return self.locate(addresses, width, threads) // dtype.itemsize

    def load(self, addresses: Array, dtype: np.dtype, count: int, threads: Array) -> list[Array]:
        first = self.elements(addresses, dtype, count, threads)
        if self.written is not None:
            written = self.written.view(f"u{dtype.itemsize}")
            ones = int.from_bytes(b"\1" * dtype.itemsize, "little")
            for k in range(count):
                missing = written[first + k] != ones
                if missing.any():
                    at = int(np.flatnonzero(missing)[0])
                    raise Fault(
                        f"read of {self.name} memory that nothing was written to,"
                        f" at {int(addresses[at]) + k * dtype.itemsize:#x}",
                        int(threads[at]),
                    )
        if self.races is not None:
            self.races.read(first * dtype.itemsize, dtype.itemsize * count, threads)
        view = self.view(dtype)
        return [view[first + k] for k in range(count)]

    def store(self, addresses: Array, values: Sequence[Array], threads: Array) -> None:
        dtype = values[0].dtype
        first = self.elements(addresses, dtype, len(values), threads)
        view = self.view(dtype)
        if self.races is not None:
            same = np.ones(len(first), bool)
            for k, value in enumerate(values):
                same &= view[first + k] == value
            self.races.write(first * dtype.itemsize, dtype.itemsize * len(values), threads, same)
        for k, value in enumerate(values):
            view[first + k] = value
            if self.races is not None:
                lost = view[first + k] != value
                if value.dtype.kind == "f":
                    lost &= ~np.isnan(value)
                if lost.any():
                    at = int(np.flatnonzero(lost)[0])
                    raise Fault(
                        f"race: several threads store different values in {self.name} memory"
                        f" at {int(addresses[at]):#x}",
                        int(threads[at]),
                    )
            if self.written is not None:
                written = self.written.view(f"u{dtype.itemsize}")
                written[first + k] = int.from_bytes(b"\1" * dtype.itemsize, "little")

    def atomic(self, addresses: Array, dtype: np.dtype, threads: Array) -> tuple[Array, Array]:
        """The view and the positions that an atomic may work on."""
        first = self.elements(addresses, dtype, 1, threads)
        if self.written is not None:
            ones = int.from_bytes(b"\1" * dtype.itemsize, "little")
            missing = self.written.view(f"u{dtype.itemsize}")[first] != ones
            if missing.any():
                at = int(np.flatnonzero(missing)[0])
                raise Fault(
                    f"atomic on {self.name} memory that nothing was written to",
                    int(threads[at]),
                )
        if self.races is not None:
            same = np.zeros(len(first), bool)
            self.races.write(first * dtype.itemsize, dtype.itemsize, threads, same, atomic=True)
        return self.view(dtype), first


class OwnedRegion(Region):
    """`size` bytes for every owner: a block's shared memory, a thread's local memory."""

    def __init__(self, name: str, owners: int, size: int, owner_of: Array) -> None:
        self.stride = -(-size // 16) * 16
        super().__init__(name, np.full(owners * self.stride, 0xA5, np.uint8))
        self.size = size
        self.base_of = owner_of.astype(np.int64) * self.stride  # [threads]

    def locate(self, addresses: Array, width: int, threads: Array) -> Array:
        if int(addresses.min()) < 0 or int(addresses.max()) + width > self.size:
            outside = (addresses < 0) | (addresses + width > self.size)
            at = int(np.flatnonzero(outside)[0])
            raise Fault(
                f"{self.name} access of {width} bytes at {int(addresses[at])} is out of bounds:"
                f" there are {self.size} bytes",
                int(threads[at]),
            )
        return addresses + self.base_of[threads]

    def forget(self) -> None:
        """As at the start of a launch: nothing written yet."""
        self.views[np.dtype(np.uint8)].fill(0xA5)
        if self.written is not None:
            self.written.fill(0)


class GlobalRegion(Region):
    """The registered buffers, seen through one array that spans them all."""

    def __init__(self, buffers: Sequence[tuple[int, int]]) -> None:
        found: list[tuple[int, int]] = []
        for start, end in sorted((address, address + size) for address, size in buffers if size):
            if found and start < found[-1][1]:  # views of one array: what any of them has
                found[-1] = (found[-1][0], max(found[-1][1], end))
            else:
                found.append((start, end))
        self.starts = np.array([start for start, _ in found], np.int64)
        self.ends = np.array([end for _, end in found], np.int64)
        self.start = found[0][0] // 16 * 16 if found else 0
        self.end = found[-1][1] if found else 0
        self.last = (0, 0)  # the buffer that the last access lay in
        # Only what `locate` has checked is ever touched.
        span = {
            "data": (self.start, False),
            "shape": (self.end - self.start,),
            "typestr": "|u1",
            "version": 3,
        }
        holder = type("Span", (), {"__array_interface__": span})()
        super().__init__("global", np.asarray(holder) if found else np.zeros(0, np.uint8))

    def locate(self, addresses: Array, width: int, threads: Array) -> Array:
        low, high = int(addresses.min()), int(addresses.max()) + width
        if not (self.last[0] <= low and high <= self.last[1]):
            self.find(addresses, width, threads)
        return addresses - self.start

    def find(self, addresses: Array, width: int, threads: Array) -> None:
        which = np.searchsorted(self.starts, addresses, "right") - 1
        if len(self.ends):
            outside = (which < 0) | (addresses + width > self.ends[np.maximum(which, 0)])
        else:
            outside = np.ones(len(addresses), bool)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise Fault(
                f"global access of {width} bytes at {int(addresses[at]):#x} is out of bounds"
                + self.describe(int(addresses[at]), int(which[at])),
                int(threads[at]),
            )
        self.last = (int(self.starts[which[0]]), int(self.ends[which[0]]))

    def describe(self, address: int, which: int) -> str:
        if which < 0:
            return ": before the first buffer"
        size = int(self.ends[which] - self.starts[which])
        return f": {address - int(self.starts[which])} bytes into buffer {which}, of {size} bytes"


class RaceTracker:
    """Who last wrote and read each granule of `unit` bytes since the last barrier.

    Two accesses of different threads of one block, one of them a store that changes the value, race
    unless a barrier of the block lies between them, or the threads are of one warp and a warp-wide
    instruction does. Atomics do not race with each other.
    """

    def __init__(self, name: str, size: int, unit: int, block_of: Array, warp_of: Array) -> None:
        self.name, self.unit = name, unit
        self.block_of, self.warp_of = block_of, warp_of  # [threads]
        units = -(-size // unit)
        self.writer, self.reader = (np.full(units, NOBODY, np.int32) for _ in range(2))
        self.write_warp, self.read_warp = (np.full(units, NOBODY, np.int32) for _ in range(2))
        self.write_epoch, self.read_epoch = (np.zeros(units, np.int64) for _ in range(2))
        self.write_sync, self.read_sync = (np.zeros(units, np.int64) for _ in range(2))
        self.atomic = np.zeros(units, bool)
        # Epochs never repeat, so granules that another block or launch touched are merely old.
        self.epoch = np.arange(1, int(block_of.max()) + 2)
        self.sync = np.ones(int(warp_of.max()) + 1, np.int64)
        self.next_epoch = len(self.epoch) + 1

    def barrier(self, blocks: Array) -> None:
        self.epoch[blocks] = np.arange(self.next_epoch, self.next_epoch + len(blocks))
        self.next_epoch += len(blocks)

    def warp_barrier(self, warps: Array) -> None:
        self.sync[warps] += 1

    def start(self) -> None:
        self.barrier(np.arange(len(self.epoch)))

    def read(self, first: Array, width: int, threads: Array) -> None:
        epoch = self.epoch[self.block_of[threads]]
        warp = self.warp_of[threads]
        sync = self.sync[warp]
        for unit in range(0, width, self.unit):
            at = (first + unit) // self.unit
            self._conflict(
                "read",
                at,
                threads,
                warp,
                sync,
                epoch,
                self.writer,
                self.write_warp,
                self.write_sync,
                self.write_epoch,
            )
            current = self.read_epoch[at] == epoch
            self._record(
                at,
                threads,
                warp,
                sync,
                epoch,
                current,
                self.reader,
                self.read_warp,
                self.read_sync,
                self.read_epoch,
            )

    def write(
        self, first: Array, width: int, threads: Array, same: Array, atomic: bool = False
    ) -> None:
        epoch = self.epoch[self.block_of[threads]]
        warp = self.warp_of[threads]
        sync = self.sync[warp]
        for unit in range(0, width, self.unit):
            at = (first + unit) // self.unit
            harmless = (same | self.atomic[at]) if atomic else same
            self._conflict(
                "written",
                at,
                threads,
                warp,
                sync,
                epoch,
                self.writer,
                self.write_warp,
                self.write_sync,
                self.write_epoch,
                harmless,
            )
            self._conflict(
                "written",
                at,
                threads,
                warp,
                sync,
                epoch,
                self.reader,
                self.read_warp,
                self.read_sync,
                self.read_epoch,
                same,
            )
            current = self.write_epoch[at] == epoch
            self._record(
                at,
                threads,
                warp,
                sync,
                epoch,
                current,
                self.writer,
                self.write_warp,
                self.write_sync,
                self.write_epoch,
            )
            self.atomic[at] = atomic

    def _conflict(
        self, what: str, at: Array, threads: Array, warp: Array, sync: Array, epoch: Array,
        others: Array, other_warps: Array, syncs: Array, epochs: Array,
        harmless: Array | None = None,
    ) -> None:  # fmt: skip
        racing = (epochs[at] == epoch) & (others[at] != threads)
        if not racing.any():
            return
        racing &= ~((other_warps[at] == warp) & (syncs[at] < sync))
        if harmless is not None:
            racing &= ~harmless
        if racing.any():
            i = int(np.flatnonzero(racing)[0])
            other = int(others[at][i])
            who = "other threads" if other == MANY else f"thread {other}"
            did = "read" if others is self.reader else "wrote"
            raise Fault(
                f"race: {self.name} memory is {what} that {who} of the block {did}"
                " with no barrier in between",
                int(threads[i]),
            )

    @staticmethod
    def _record(
        at: Array, threads: Array, warp: Array, sync: Array, epoch: Array, current: Array,
        who: Array, warps: Array, syncs: Array, epochs: Array,
    ) -> None:  # fmt: skip
        # A warp's earlier accesses are ordered before this one once the warp has synchronised.
        alone = ~current | (who[at] == threads) | ((warps[at] == warp) & (syncs[at] < sync))
        new_who = np.where(alone, threads, MANY)
        new_warp = np.where(~current | (warps[at] == warp), warp, MANY)
        who[at], warps[at], syncs[at], epochs[at] = new_who, new_warp, sync, epoch
        who[at[who[at] != new_who]] = MANY  # several threads at one granule
        warps[at[warps[at] != new_warp]] = MANY
