"""The learning rate by step: linear warm-up, one cosine.

Source: Loshchilov, Hutter, "SGDR", ICLR 2017 (no restarts).
"""

from __future__ import annotations

import math


class WarmupCosine:
    """Factor of the learning rate at a step: linear up to 1, then half a cosine down to 0."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        share = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
