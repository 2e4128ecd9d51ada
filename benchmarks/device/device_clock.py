"""A timer for pytest-benchmark that reads CUDA events."""

from __future__ import annotations

import time

import torch

FLUSH_BYTES = 256 * 2**20  # more than any L2 cache holds


class EventClock:
    """Two calls are one measurement: the first returns 0, the second the seconds since.

    On CUDA both are events on the current stream. Before the first, caches are filled with other
    data and the device comes to rest, so the time holds what one caller waits for: the launches
    from Python too. For `benchmark.pedantic` with one iteration a round.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._begin: torch.cuda.Event | float | None = None
        self._other: torch.Tensor | None = None

    def reset(self, device: torch.device) -> None:
        """Begins anew on a device, also where a run that raised left a measurement half done."""
        self.device, self._begin = device, None

    def __call__(self) -> float:
        if self._begin is None:
            self._begin = self._start()
            return 0.0
        begin, self._begin = self._begin, None
        if isinstance(begin, float):
            return time.perf_counter() - begin
        end = torch.cuda.Event(enable_timing=True)
        end.record(torch.cuda.current_stream(self.device))
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _start(self) -> torch.cuda.Event | float:
        if self.device.type != "cuda":
            return time.perf_counter()
        if self._other is None:
            self._other = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        self._other.zero_()
        torch.cuda.synchronize(self.device)
        begin = torch.cuda.Event(enable_timing=True)
        begin.record(torch.cuda.current_stream(self.device))
        return begin
