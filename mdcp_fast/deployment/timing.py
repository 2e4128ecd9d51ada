"""Measures how long things take that are called in turns."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Protocol, runtime_checkable

NOISY = 1.3  # p90 over median: one and the same network takes turns of 1.05 on an idle machine


@dataclass(frozen=True)
class Timing:
    """How long one thing took.

    Attributes:
        median: Milliseconds.
        p90: Milliseconds in which nine of ten runs were done.
        runs: How many were measured.
        fastest: Milliseconds of the fastest one, which other work of the machine disturbs least;
            of CPU time, if that was asked for.
    """

    median: float
    p90: float
    runs: int
    fastest: float

    @property
    def noisy(self) -> bool:
        """Whether the runs differ so much that the machine must have had other work."""
        return self.p90 > NOISY * self.median


@runtime_checkable
class SelfTimed(Protocol):
    """A call that runs elsewhere, as in a process of its own, and knows better how long it took."""

    def __call__(self) -> None: ...

    def milliseconds(self) -> float:
        """Runs it, and says how long one run took."""


def measure_in_turns(
    calls: Sequence[Callable[[], None]], *, seconds: float, rounds: int, cpu: bool = False
) -> list[Timing]:
    """Times calls side by side, so that whatever else the machine does meets all of them alike.

    In its turn each is called twice, and the second call counts: the first finds its data in no
    cache, and may find the threads of the one before still waiting for work.

    Args:
        calls: Each runs something once and returns when that is done. What is `SelfTimed` is asked.
        seconds: How long to go on, all together; turns are not broken off.
        rounds: At least so many turns, however long they take.
        cpu: Whether the fastest run is that of the least CPU time of this process. For calls of a
            single thread that is the same on an idle machine, and on others it leaves out the
            turns of other programs.

    Returns:
        One for each call.

    Raises:
        ValueError: There is nothing to call, `rounds` is below 1 or `seconds` is negative.
    """
    if not calls:
        raise ValueError("measure_in_turns: calls: expected at least one, got none")
    if rounds < 1:
        raise ValueError(f"measure_in_turns: rounds: expected at least 1, got {rounds}")
    if not 0 <= seconds < math.inf:
        raise ValueError(
            f"measure_in_turns: seconds: expected a finite number of at least 0, got {seconds}"
        )
    times: list[list[tuple[float, float]]] = [[] for _ in calls]
    with _no_garbage_collection():
        for call in calls:  # the first runs allocate and choose kernels
            call()
        end = time.perf_counter() + seconds
        while len(times[0]) < rounds or time.perf_counter() < end:
            for call, own in zip(calls, times, strict=True):
                own.append(_milliseconds(call))
    timings = []
    for own in times:
        passed, spent = zip(*own, strict=True)
        fastest = min(spent if cpu else passed)
        timings.append(Timing(median(passed), percentile(passed, 0.9), len(own), fastest))
    return timings


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that is at least as large as that share of them, 0 to 1."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _milliseconds(call: Callable[[], None]) -> tuple[float, float]:
    """How long a call took, and how much CPU time the process spent on it."""
    if isinstance(call, SelfTimed):
        return (call.milliseconds(),) * 2
    call()
    start, spent = time.perf_counter(), time.process_time()
    call()
    return 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - spent)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
