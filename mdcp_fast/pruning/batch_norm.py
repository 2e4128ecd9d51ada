"""Statistics of BatchNorm, estimated anew on calibration batches."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call, eval_mode
from mdcp_fast.modules.layer_kinds import batch_norms


@torch.no_grad()
def recalibrate(model: nn.Module, batches: list[Inputs], without: Collection[str] = ()) -> None:
    """Re-estimates the statistics of every BatchNorm as the cumulative average over `batches`.

    In place. Everything but BatchNorm runs in evaluation mode; modes, momenta and weights stay as
    they were, and so do the statistics if a batch fails.

    Args:
        model: The network.
        batches: The model's arguments; each batch needs more than one value per channel.
        without: Names of BatchNorms to leave as they are.

    Raises:
        ValueError: A batch has a single value per channel.
    """
    norms = [module for path, module in batch_norms(model).items() if path not in without]
    if not norms:
        return
    statistics = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    before = [[tensor.clone() for tensor in tensors] for tensors in statistics]
    momenta = [module.momentum for module in norms]
    try:
        with eval_mode(model):
            for module in norms:
                module.train()
                module.reset_running_stats()
                module.momentum = None  # the cumulative average
            for batch in batches:
                call(model, batch)
    except BaseException:
        for tensors, values in zip(statistics, before, strict=True):
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        raise
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum


def check_several_values(x: Tensor, candidates: int = 1) -> None:
    """A variance takes two values of a channel.

    Args:
        x: What a BatchNorm reads, [batch, channels, ...].
        candidates: How many networks share the batch, each with statistics of its part.

    Raises:
        ValueError: There is a single value.
    """
    if x.numel() == candidates * x.shape[1]:
        raise ValueError(
            "calibration: expected batches with more than one value per channel for BatchNorm, got "
            f"an input of shape {[x.shape[0] // candidates, *x.shape[1:]]}"
        )


def set_statistics(norm: Any, x: Tensor, batches: int) -> None:
    """Gives a BatchNorm the mean and the unbiased variance of what it is about to read.

    Args:
        norm: With statistics; they change.
        x: Its input, [batch, channels, ...].
        batches: How many batches it counts as having seen.

    Raises:
        ValueError: `x` has a single value per channel.
    """
    check_several_values(x)
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(exact, [d for d in range(x.dim()) if d != 1])
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.num_batches_tracked.fill_(batches)
