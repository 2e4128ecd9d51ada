"""Calls ops as they are, but on emulated CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest import mock

from emulation.build import EmulatedCore
from replay import assert_same_bits
from torch import Tensor

from mdcp_fast.ops._arguments import runs_on_cuda


def _as_if_on_cuda(op: str, name: str, value: Tensor) -> bool:
    return runs_on_cuda(op, name, value) or True


class Emulation:
    """Stands in for a device: what `elsewhere` of a replay calls.

    Args:
        modules: the modules of ops whose native core is replaced.
        schedules: seeds; the op runs on each, and has to give the same bits.
    """

    def __init__(self, modules: Iterable[ModuleType], schedules: Iterable[int]) -> None:
        self.modules = tuple(modules)
        self.schedules = tuple(schedules)
        self.core: EmulatedCore | None = None  # set by a fixture, once it is built

    def __call__(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert self.core is not None
        replaced = {"native": self.core, "runs_on_cuda": _as_if_on_cuda}
        results = []
        with ExitStack() as patches:
            for module in self.modules:
                patches.enter_context(mock.patch.multiple(module, **replaced))
            for seed in self.schedules:
                self.core.set_schedule(seed)
                results.append(op(*args, **kwargs))
        for result in results[1:]:
            assert_same_bits(result, results[0])
        return results[0]
