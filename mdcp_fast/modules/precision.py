"""Float32 arithmetic without TF32: differences of a pruned network must not drown in rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    noise. `torch.set_float32_matmul_precision` does the same to Gram matrices. All settings are
    afterwards as they were.
    """
    settings = _settings()
    precisions = [setting.fp32_precision for setting in settings]
    matmul = _readable(torch.get_float32_matmul_precision)
    cudnn = _readable(lambda: torch.backends.cudnn.allow_tf32)
    try:
        # The flags first: they write to the settings, too.
        if matmul is not None:
            torch.set_float32_matmul_precision("highest")
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = False
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for setting, precision in zip(settings, precisions, strict=True):
            setting.fp32_precision = "none"  # which inherits the setting of all operators
            if setting.fp32_precision != precision:
                setting.fp32_precision = precision


def _settings() -> list[Any]:
    operators = (
        getattr(getattr(torch.backends, backend), operator, None) for backend, operator in OPERATORS
    )
    return [operator for operator in operators if hasattr(operator, "fp32_precision")]


def _readable(read: Any) -> Any:
    """A flag's value, or None where the settings contradict it: torch then refuses to say."""
    try:
        return read()
    except RuntimeError:
        return None
