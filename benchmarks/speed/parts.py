"""Where the time of a call goes: the seconds in functions that it calls, without those below."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from comparison import clock

Part = tuple[str, Any, str]  # its name, and the module or class that has the function


@contextmanager
def timed(parts: Sequence[Part]) -> Iterator[Counter[str]]:
    """Gathers the seconds spent in each part; inside another one, they count for the inner."""
    now = clock(torch.get_num_threads())
    seconds: Counter[str] = Counter()
    inside = [0.0]  # of each open call, the seconds of the parts that it called

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timing(*args: Any, **kwargs: Any) -> Any:
            inside.append(0.0)
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                taken = now() - start
                seconds[name] += taken - inside.pop()
                inside[-1] += taken

        return timing

    with ExitStack() as stack:
        for name, owner, function in parts:
            original = getattr(owner, function)
            stack.enter_context(patch.object(owner, function, wrapped(name, original)))
        yield seconds
