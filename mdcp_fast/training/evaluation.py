"""Reads batches, and scores a network on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mdcp_fast.modules.calls import eval_mode

Metric = Callable[[Any, Any], Tensor]


def evaluate(
    model: nn.Module,
    data: DataLoader[Any] | Dataset[Any],
    *,
    metric: Metric | None = None,
    batch_size: int = 256,
) -> float:
    """Share of the samples that a network classifies right, in evaluation mode.

    Args:
        model: The network; its modes are put back.
        data: A DataLoader of (inputs, targets), or a Dataset of such pairs.
        metric: Another score, see `finetune`.
        batch_size: For a dataset.

    Returns:
        The mean score over all samples; with the default metric, accuracy from 0 to 1.

    Raises:
        TypeError: `data` is neither a DataLoader nor a Dataset.
        ValueError: It is empty.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"evaluate: model: expected a torch.nn.Module, got {type(model).__name__}")
    loader = as_loader("data", data, batch_size, shuffle=False, op="evaluate")
    with eval_mode(model):
        return score(model, loader, metric or correct, device_of("model", model, "evaluate"))


def correct(outputs: Any, targets: Tensor) -> Tensor:
    """For each sample, the share of its positions where the largest logit is the target.

    A plain classifier has one position, a segmentation network many.

    Args:
        outputs: [batch, classes, ...] logits, or a tuple or dict whose first entry they are.
        targets: int64 [batch, ...] classes, or probabilities of the logits' shape.

    Returns:
        float32 [batch], from 0 to 1.
    """
    logits = tensors_of(outputs)[0]
    if targets.shape == logits.shape:
        targets = targets.argmax(1)
    return (
        (logits.argmax(1) == targets).float().flatten(1).mean(1)
        if targets.dim() > 1
        else (logits.argmax(1) == targets).float()
    )


@torch.no_grad()
def score(
    net: nn.Module,
    loader: Iterable[Any],
    metric: Metric,
    device: torch.device,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> float:
    total, samples = 0.0, 0
    for batch in loader:
        inputs, targets = batch_on("data", batch, net, device)
        scores = metric(net(*inputs), targets)
        if not isinstance(scores, Tensor) or scores.dim() != 1:
            got = (
                f"shape {list(scores.shape)}"
                if isinstance(scores, Tensor)
                else type(scores).__name__
            )
            raise TypeError(f"metric: expected it to return a tensor of shape [batch], got {got}")
        if gather is not None:
            scores = gather(scores)
        total += float(scores.double().sum())
        samples += len(scores)
    return total / samples


def batch_on(
    name: str, batch: Any, model: nn.Module, device: torch.device
) -> tuple[tuple[Any, ...], Any]:
    """(arguments of the model, targets), on its device, floating-point inputs in its dtype."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(
            f"{name}: expected batches of (inputs, targets), got {type(batch).__name__}{size}"
        )
    inputs, targets = batch
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def placed(value: Any, dtype: torch.dtype | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        cast = dtype if value.is_floating_point() else None
        return value.to(device, cast, non_blocking=True)

    arguments = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return tuple(placed(value, dtype) for value in arguments), placed(targets, None)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The logits among a network's outputs, main ones first; what is not a tensor is left out."""
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    found = (
        [value for value in values if isinstance(value, Tensor)]
        if isinstance(values, Iterable)
        else []
    )
    if not found:
        raise TypeError(
            "finetune: model: expected outputs that are a tensor, or a tuple or dict of tensors, "
            f"got {type(outputs).__name__}; with other outputs give your own loss and metric"
        )
    return found


def as_loader(
    name: str, data: Any, batch_size: int, *, shuffle: bool, op: str = "finetune"
) -> DataLoader[Any]:
    if not isinstance(data, (DataLoader, Dataset)):
        raise TypeError(
            f"{op}: {name}: expected a torch DataLoader or Dataset, got {type(data).__name__}"
        )
    try:
        size = len(data)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            f"{op}: {name}: expected data with a length (the schedule needs it), got none"
        ) from None
    if size == 0:
        raise ValueError(f"{op}: {name}: expected at least one batch, got none")
    if isinstance(data, DataLoader):
        return data
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle)


def device_of(name: str, model: nn.Module, op: str = "finetune") -> torch.device:
    for tensor in model.parameters():
        return tensor.device
    raise ValueError(f"{op}: {name}: expected a model with parameters, got none")
