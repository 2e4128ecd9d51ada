"""Measures how long networks take, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import eval_mode


@torch.inference_mode()
def measure_latency(
    models: Sequence[nn.Module], batch: Tensor, *, seconds: float = 2.0, rounds: int = 7
) -> list[float]:
    """Median time of one evaluation of each network on the same batch, on the device where it lies.

    The networks take turns, so that whatever else the machine does meets all of them alike.

    Args:
        models: The networks; evaluated in evaluation mode and put back.
        batch: What each is called with.
        seconds: How long to go on.
        rounds: At least so many turns, however long they take.

    Returns:
        Milliseconds for the whole batch, one number a network.

    Raises:
        ValueError: There is no network, or `rounds` is below 1.
    """
    if not models:
        raise ValueError("measure_latency: models: expected at least one network, got none")
    if rounds < 1:
        raise ValueError(f"measure_latency: rounds: expected at least 1, got {rounds}")
    times: list[list[float]] = [[] for _ in models]

    def timed(model: nn.Module) -> float:
        with eval_mode(model):
            _wait_for(batch.device)
            start = time.perf_counter()
            model(batch)
            _wait_for(batch.device)
            return 1000 * (time.perf_counter() - start)

    for model in models:  # the first evaluation allocates and chooses kernels
        timed(model)
    end = time.perf_counter() + seconds
    while len(times[0]) < rounds or time.perf_counter() < end:
        for model, own in zip(models, times, strict=True):
            own.append(timed(model))
    return [median(own) for own in times]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
