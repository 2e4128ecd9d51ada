"""Float32 arithmetic without TF32: differences of a pruned network must not drown in rounding."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

# What torch has a setting of its own for (since 2.9); older versions have the two flags alone.
OPERATORS = (
    ("cuda", "matmul"),
    ("cudnn", "conv"),
    ("cudnn", "rnn"),
    ("mkldnn", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)


@contextmanager
def full_float32() -> Iterator[None]:
    """Meanwhile, float32 convolutions and matrix products round to float32, on every device.

    On GPUs since Ampere cuDNN's default is TF32, whose products have 10 bits: a layer that nothing
    has changed then differs from run to run by some 1e-7 of its energy, and a fit would follow that
    noise. `torch.set_float32_matmul_precision` does the same to Gram matrices.

    All settings are afterwards as they were. They are the process's: other threads compute without
    TF32 meanwhile, too, and of several threads in here the last to leave puts the settings back.
    """
    _FULL.enter()
    try:
        yield
    finally:
        _FULL.leave()


class _Saved(NamedTuple):
    """Torch's settings; a flag that the settings contradict is None."""

    matmul: str | None
    cudnn: bool | None
    precisions: list[str]

    @classmethod
    def now(cls) -> _Saved:
        return cls(
            _readable(torch.get_float32_matmul_precision),
            _readable(lambda: torch.backends.cudnn.allow_tf32),
            [setting.fp32_precision for setting in _settings()],
        )

    def set_full(self) -> None:
        # The flags first: they write to the settings, too.
        if self.matmul is not None:
            torch.set_float32_matmul_precision("highest")
        if self.cudnn is not None:
            torch.backends.cudnn.allow_tf32 = False
        for setting in _settings():
            setting.fp32_precision = "ieee"

    def restore(self) -> None:
        if self.matmul is not None:
            torch.set_float32_matmul_precision(self.matmul)
        if self.cudnn is not None:
            torch.backends.cudnn.allow_tf32 = self.cudnn
        for setting, precision in zip(_settings(), self.precisions, strict=True):
            # "none" inherits the setting of all operators; one that says the same goes on to.
            setting.fp32_precision = "none"
            if setting.fp32_precision != precision:
                setting.fp32_precision = precision


class _Full:
    """Counts who wants full float32: the first saves the settings, the last puts them back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._saved: _Saved | None = None

    def enter(self) -> None:
        with self._lock:
            if self._count == 0:
                self._saved = _Saved.now()
                self._saved.set_full()
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._saved is not None:
                self._saved.restore()
                self._saved = None


_FULL = _Full()


def _settings() -> list[Any]:
    operators = (
        getattr(getattr(torch.backends, backend), operator, None) for backend, operator in OPERATORS
    )
    return [operator for operator in operators if hasattr(operator, "fp32_precision")]


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # torch refuses to say where its settings contradict the flag
        return None
