"""The numbers that decide a training run, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """What decides a run's result besides model and data; a checkpoint belongs to one recipe."""

    epochs: int
    batch_size: int
    lr: float
    warmup: float
    weight_decay: float
    label_smoothing: float
    distillation: float
    temperature: float
    accumulate: int
    mixed_precision: str
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("accumulate", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(
                    f"finetune: {name}: expected an integer, got {type(value).__name__}"
                )
            if value < least:
                raise ValueError(
                    f"finetune: {name}: expected an integer of at least {least}, got {value}"
                )
        ranges = {
            "lr": (0.0, math.inf),
            "warmup": (0.0, 1.0),
            "weight_decay": (0.0, math.inf),
            "label_smoothing": (0.0, 1.0),
            "distillation": (0.0, 1.0),
            "temperature": (0.0, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"finetune: {name}: expected a number, got {type(value).__name__}")
            positive = name in ("lr", "temperature")
            if (
                not (low < value if positive else low <= value)
                or not value <= high
                or value == math.inf
            ):
                wanted = "above 0" if positive else f"from {low:g} to {high:g}"
                raise ValueError(f"finetune: {name}: expected a number {wanted}, got {value}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(
                f"finetune: mixed_precision: expected one of {', '.join(PRECISIONS)}, "
                f"got {self.mixed_precision!r}"
            )
