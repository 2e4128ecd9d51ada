"""How much of the machine's memory something takes, the libraries that do it included."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def peak_resident(run: Callable[[], T]) -> tuple[T, int | None]:
    """What `run` gives, and by how many bytes this process had grown at most meanwhile.

    Read from Linux's resident set; None elsewhere, or where it is not to be had.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else it may grow into what was freed before
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
        before = _status("VmRSS")
    except (AttributeError, OSError, ValueError, TypeError):
        return run(), None
    result = run()
    return result, max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise ValueError(f"peak_resident: expected {key} in /proc/self/status, got none")
    return 1024 * int(found[1])
