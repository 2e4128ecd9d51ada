"""Ours and its peers timed turn about in one run: what the suites bench_<op>.py share."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from roofline import LANES, Job

PATIENCE = 5.0  # seconds: once a peer took so long in all, its turns are over
TURNS = 2  # but it has at least so many
SHORT = 0.05  # seconds: what takes less feels how the others left the caches
READ = 100_000_000  # bytes, more than caches hold

Run = Callable[[], Any]


def clock(threads: int) -> Callable[[], float]:
    """CPU time at one thread, so that what else the machine does counts little; else wall time."""
    return time.process_time if threads == 1 else time.perf_counter


def seconds_of(run: Run) -> tuple[float, Any]:
    """How long `run` takes, and its result; a short one is run once before, to warm the caches."""
    now = clock(torch.get_num_threads())
    for _ in range(2):
        start = now()
        result = run()
        seconds = now() - start
        if seconds > SHORT:
            break
    return seconds, result


def interleaved(
    benchmark: Any,
    ours: Run,
    peers: Mapping[str, Callable[[], Run]] | None = None,
    *,
    rounds: int = 7,
    jobs: Sequence[Job] = (),
    growth: tuple[str, int, str] | None = None,
) -> dict[str, Any]:
    """Times `ours` by pytest-benchmark, and in each round every peer once before it.

    Args:
        benchmark: The fixture. Its extra_info gets the peers' times, and by name those that are
            missing or failed, with the reason.
        ours: What is timed; checked by the caller before.
        peers: Each imports and prepares what it runs, and returns it.
        rounds: Of ours; slow peers have fewer.
        jobs: What the machine has to do at least, for the share of its limit.
        growth: What grows in a series of cases, its value here, and the name of the series.

    Returns:
        What every peer found, to be checked and compared.
    """
    runs: dict[str, Run] = {}
    times: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    now = clock(torch.get_num_threads())

    def leave_out(name: str, error: Exception) -> None:
        first = (str(error).strip().splitlines() or [""])[0]
        missing[name] = f"{type(error).__name__}: {first}"[:200]
        runs.pop(name, None)
        times.pop(name, None)
        print(f"\nleft out: {name}: {missing[name]}")

    warming = True  # before each round as long as ours is short; before the first in any case

    def turn() -> None:
        nonlocal warming
        for name, run in list(runs.items()):
            if len(times[name]) >= TURNS and sum(times[name]) > PATIENCE:
                continue
            try:
                seconds, found[name] = seconds_of(run)
                times[name].append(seconds)
            except Exception as error:  # whatever a peer raises, the others are measured
                leave_out(name, error)
        if warming:
            start = now()
            ours()
            warming = now() - start < SHORT

    for name, make in (peers or {}).items():
        try:
            runs[name], times[name] = make(), []
        except Exception as error:
            leave_out(name, error)
    benchmark.pedantic(ours, setup=turn, rounds=rounds)
    benchmark.extra_info["peers"] = {name: quantiles(own) for name, own in times.items()}
    benchmark.extra_info["missing"] = missing
    if jobs:
        benchmark.extra_info["floor"] = floor(jobs)
    if growth:
        benchmark.extra_info["growth"] = dict(zip(("of", "at", "series"), growth, strict=True))
    return {name: result for name, result in found.items() if name in runs}


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile in seconds, and the number of times."""
    p20, median, p80 = (float(f"{value:.4g}") for value in np.quantile(times, [0.2, 0.5, 0.8]))
    return {"median": median, "p20": p20, "p80": p80, "rounds": len(times)}


def floor(jobs: Sequence[Job]) -> float:
    """The seconds that the jobs take at the limits of this machine, measured here and now."""
    threads = torch.get_num_threads()
    instructions = sum(job.operations * LANES / job.lanes for job in jobs)
    memory = sum(job.bytes for job in jobs) / bandwidth(threads)
    return max(memory, instructions / instruction_rate(threads))


@functools.cache
def bandwidth(threads: int) -> float:
    """Bytes a second of the fastest plain read; of `threads`, those of this process."""
    source = torch.ones(READ // 4)
    runs = (source.sum, source.amax, lambda: torch.dot(source, source))
    return READ / min(seconds_of(run)[0] for run in runs for _ in range(10))


@functools.cache
def instruction_rate(threads: int) -> float:
    """Instructions of float32 lanes a second: the multiply-adds of a matrix product."""
    size = 1024
    left, right = torch.ones(size, size), torch.ones(size, size)
    return size**3 / min(seconds_of(lambda: left @ right)[0] for _ in range(10))


def peak_bytes(run: Run) -> int | None:
    """How far the resident memory rises above where it was while `run` runs; None if unknown."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kibibytes(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    run()  # what is allocated once and kept is not meant
    try:
        reset.write_text("5")  # the peak starts anew
        before = kibibytes("VmRSS")
        run()
        return 1024 * max(0, kibibytes("VmHWM") - before)
    except OSError:
        return None
