"""Accelerate, without what it keeps between runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mdcp_fast.training.config import Recipe


@contextmanager
def fresh_accelerator(device: torch.device, recipe: Recipe) -> Iterator[Any]:
    """An Accelerator of our own.

    Accelerate keeps its settings in class attributes: the caller's are put back.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(values) for values in shared]
    for values in shared:
        values.clear()
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            device_placement=False,
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.accumulate),
        )
    finally:
        for values, old in zip(shared, before, strict=True):
            values.clear()
            values.update(old)
