"""One at a time: networks are hooked and switched to evaluation mode in place."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch import nn

from mdcp_fast.modules.defaults import cpu_by_default
from mdcp_fast.modules.state import unchanged

P = ParamSpec("P")
R = TypeVar("R")

# One for all networks: while torch.export captures one of them, other threads compute another way,
# and their sums round differently.
ONE_AT_A_TIME = threading.RLock()


def alone_with_its_network(function: Callable[P, R]) -> Callable[P, R]:
    """Makes threads that call such functions wait for each other, and leaves networks as they were.

    Args:
        function: Its first argument, "model" or "graph", is a network or has one as `model`.
    """

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else kwargs.get("model", kwargs.get("graph"))
        model = first if isinstance(first, nn.Module) else getattr(first, "model", None)
        if not isinstance(model, nn.Module):  # which the function will say itself
            return function(*args, **kwargs)
        with cpu_by_default(), ONE_AT_A_TIME, unchanged(model):
            return function(*args, **kwargs)

    return held
