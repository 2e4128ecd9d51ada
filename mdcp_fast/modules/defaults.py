"""What torch.set_default_device asks for is for the user's code, not for bookkeeping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

_OVERRIDDEN: ContextVar[bool] = ContextVar("overridden", default=False)


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Meanwhile, new tensors are on the CPU unless a device is named."""
    if torch.get_default_device().type == "cpu":
        yield
        return
    token = _OVERRIDDEN.set(True)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _OVERRIDDEN.reset(token)


@contextmanager
def default_device_of(tensors: list[Tensor]) -> Iterator[None]:
    """For a network's own code within `cpu_by_default`: new tensors are where its inputs are."""
    device = tensors[0].device if tensors and _OVERRIDDEN.get() else None
    with nullcontext() if device is None else device:
        yield
