"""How many threads torch computes with, for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads; it is a setting of the whole process, put back after."""
    before = torch.get_num_threads()
    if before != count:  # setting it costs time
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)
