"""Runs the test files of the CPU ops again, with every call of the op made elsewhere as well.

So kernels meet every case of the CPU's tests, without a second list of cases: a call has to give
the same bits there, or raise the same kind of error.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ORACLES = ("scipy", "sklearn")  # of the CPU's tests; a replay does without them

# op -> the file of its tests. Left out: what looks into the op by torch.compile and opcheck.
FILES = {
    "channel_statistics": "test_channel_statistics",
    "crowding_distance": "test_crowding_distance",
    "evaluate_population": "test_evaluate_population",
    "kmeans": "test_kmeans",
    "ward": "test_ward",
}
LEFT_OUT = ("test_opcheck_and_compile", "test_registered_with_torch")

Op = Callable[..., Any]


class NoOracle(Exception):
    """A test came to an oracle that is not installed."""


class StandIn(ModuleType):
    """Takes the place of an oracle that is not installed; using it ends a replay."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise NoOracle(f"{self.__name__}.{name}")

        return missing


def import_tests(name: str) -> ModuleType:
    """A test file as a module, with stand-ins for the oracles that are not installed."""
    placed = []
    for oracle in ORACLES:
        if importlib.util.find_spec(oracle) is None:
            for part in (
                oracle,
                *(f"{oracle}.{rest}" for rest in ("cluster", "cluster.hierarchy")),
            ):
                sys.modules[part] = StandIn(part)
                placed.append(part)
    try:
        return importlib.import_module(name)
    finally:
        for part in placed:
            del sys.modules[part]


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor on the CPU in it changed."""
    if isinstance(value, Tensor):
        return change(value) if value.device.type == "cpu" else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: map_tensors(item, change) for name, item in vars(value).items()}
        return type(value)(**fields)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors_of(item)]


def assert_same_bits(there: Any, here: Any) -> None:
    for result, expected in zip(tensors_of(there), tensors_of(here), strict=True):
        assert result.dtype == expected.dtype and result.shape == expected.shape
        # As bytes: 0 and -0 are equal numbers, not equal bits.
        found, wanted = (one.cpu().reshape(-1).view(torch.uint8) for one in (result, expected))
        assert torch.equal(found, wanted)


class Both:
    """An op that answers as on the CPU, after it was compared with the same op elsewhere."""

    def __init__(self, op: Op, elsewhere: Op) -> None:
        self.op = op
        self.elsewhere = elsewhere
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            expected = self.op(*args, **kwargs)
        except Exception as error:
            with pytest.raises(type(error)):
                self.elsewhere(*args, **kwargs)
            self.calls += 1
            raise
        assert_same_bits(self.elsewhere(*args, **kwargs), expected)
        self.calls += 1
        return expected


def replays(name: str, elsewhere: Op) -> Iterator[tuple[str, Callable[..., None]]]:
    """The tests of an op, each under a name of its own, for a module that pytest collects.

    Args:
        name: of the op, one of FILES.
        elsewhere: called with the op and its arguments; returns the answer from elsewhere.
    """
    module = import_tests(FILES[name])

    def replay(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**given: Any) -> None:
            op = getattr(module, name)
            both = Both(op, functools.partial(elsewhere, op))
            try:
                setattr(module, name, both)
                test(**given)
            except NoOracle as missing:
                if both.calls == 0:
                    pytest.skip(f"needs {missing}")
            finally:
                setattr(module, name, op)

        return run

    for label, test in list(vars(module).items()):
        if label.startswith("test_") and callable(test) and label not in LEFT_OUT:
            yield f"test_{name}_{label.removeprefix('test_')}", replay(test)
