"""The memory of a launch, and what is wrong with an access to it.

Global memory is the caller's buffers at their own addresses; shared, local and parameter memory
are arrays. Every access is checked: bounds, alignment, that the bytes read were ever written
(shared and local memory) and that no two threads touch them without a barrier in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from emulation.ptx_numbers import Array
from emulation.ptx_races import Race, RaceTracker

# Where the spaces lie among generic addresses.
WINDOWS = {"shared": 1 << 58, "local": 1 << 59, "param": 1 << 60}


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

    def packed(self, positions: Array) -> Array:
        """Where the race tracker has what lies at these positions."""
        return positions

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
        self.check_written("read", first, dtype, count, threads)
        if self.races is not None:
            positions = self.packed(first * dtype.itemsize)
            try:
                self.races.read(positions, dtype.itemsize * count, threads)
            except Race as race:
                raise Fault(str(race), int(threads[race.at])) from None
        view = self.view(dtype)
        return [view[first + k] for k in range(count)]

    def store(self, addresses: Array, values: Sequence[Array], threads: Array) -> None:
        dtype = values[0].dtype
        first = self.elements(addresses, dtype, len(values), threads)
        bits = np.dtype(f"u{dtype.itemsize}")
        view = self.view(bits)
        values = [value.view(bits) for value in values]
        if self.races is not None:
            same = np.ones(len(first), bool)
            for k, value in enumerate(values):
                same &= view[first + k] == value
            self.note_write(first, bits, len(values), threads, same)
        for k, value in enumerate(values):
            view[first + k] = value
            lost = view[first + k] != value
            if lost.any():
                raise Fault(
                    f"race: several threads store different values in {self.name} memory",
                    int(threads[lost][0]),
                )
            if self.written is not None:
                self.written.view(bits)[first + k] = _ones(bits)

    def atomic(self, addresses: Array, dtype: np.dtype, threads: Array) -> tuple[Array, Array]:
        """The view and the positions that an atomic may work on."""
        first = self.elements(addresses, dtype, 1, threads)
        self.check_written("change", first, dtype, 1, threads)
        self.note_write(first, dtype, 1, threads, np.zeros(len(first), bool), atomic=True)
        return self.view(dtype), first

    def check_written(
        self, what: str, first: Array, dtype: np.dtype, count: int, threads: Array
    ) -> None:
        if self.written is None:
            return
        written = self.written.view(f"u{dtype.itemsize}")
        for k in range(count):
            missing = written[first + k] != _ones(dtype)
            if missing.any():
                raise Fault(
                    f"{what} of {self.name} memory that nothing was written to",
                    int(threads[missing][0]),
                )

    def note_write(
        self,
        first: Array,
        dtype: np.dtype,
        count: int,
        threads: Array,
        same: Array,
        atomic: bool = False,
    ) -> None:
        if self.races is None:
            return
        positions = self.packed(first * dtype.itemsize)
        try:
            self.races.write(positions, dtype.itemsize * count, threads, same, atomic)
        except Race as race:
            raise Fault(str(race), int(threads[race.at])) from None


def _ones(dtype: np.dtype) -> int:
    """A 1 in every byte: all of them written."""
    return int.from_bytes(b"\1" * dtype.itemsize, "little")


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
        sizes = (self.ends - self.starts + 31) // 16 * 16
        self.packed_bytes = int(sizes.sum())
        # Packed, the buffers follow each other, each as far from a multiple of 16 as it is.
        self.moved = np.cumsum(sizes) - sizes + self.starts % 16 - self.starts
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

    def packed(self, positions: Array) -> Array:
        addresses = positions + self.start
        low, high = int(addresses.min()), int(addresses.max())
        if self.last[0] <= low and high < self.last[1]:
            return addresses + self.moved[np.searchsorted(self.starts, low, "right") - 1]
        return addresses + self.moved[np.searchsorted(self.starts, addresses, "right") - 1]

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
