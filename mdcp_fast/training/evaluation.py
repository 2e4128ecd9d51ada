"""Reads batches, and scores a network on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mdcp_fast.modules.calls import Inputs, call, eval_mode, map_tensors

Metric = Callable[[Any, Any], Tensor]
TARGETS = ("targets", "target", "labels", "label")  # in a dict that holds inputs, too


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
        data: A DataLoader of (inputs, targets), or a Dataset of such pairs. Inputs are a tensor, a
            tuple of the model's arguments or a dict of named ones; a dict may hold the targets,
            too, as "targets", "target", "labels" or "label".
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

    Raises:
        ValueError: The targets are something else.
    """
    logits = tensors_of(outputs)[0]
    kind = kind_of(targets, logits)
    if kind is None:
        raise ValueError(
            "metric: expected one of your own, since the default one counts classes, and the "
            f"targets are neither classes nor probabilities of {list(logits.shape)} outputs: "
            f"{described(targets)}"
        )
    if kind == "probabilities":
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
    inner: nn.Module | None = None,
) -> float:
    """The mean score over all samples.

    Args:
        net: The network as it is to be called.
        loader, metric, device: Of the batches, see `evaluate`.
        gather: Joins the scores of all processes.
        inner: The network itself where `net` is something around it.
    """
    total, samples = 0.0, 0
    for batch in loader:
        inputs, targets = batch_on("data", batch, inner or net, device)
        scores = metric(call(net, inputs), targets)
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


def batch_on(name: str, batch: Any, model: nn.Module, device: torch.device) -> tuple[Inputs, Any]:
    """(arguments of the model, targets), on its device, floating-point inputs in its dtype.

    Args:
        name: Of the data, for messages.
        batch: (inputs, targets), where inputs are a tensor, a tuple of arguments or a dict of named
            ones; (argument, ..., targets); or a dict of named arguments and targets. Of a dict,
            what the model does not take is left out.
        model, device: Whose arguments they are, and where it is.

    Raises:
        TypeError: It is something else.
    """
    inputs: Any
    if isinstance(batch, Mapping):
        inputs, targets = _named(name, batch)
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, targets = batch
    elif isinstance(batch, (tuple, list)) and len(batch) > 2:
        inputs, targets = tuple(batch[:-1]), batch[-1]
    else:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(
            f"{name}: expected batches of (inputs, targets), got {type(batch).__name__}{size}"
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def placed(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)

    arguments: Inputs
    if isinstance(inputs, Mapping):
        accepted = _accepted(model)
        arguments = {
            key: value for key, value in inputs.items() if accepted is None or key in accepted
        }
    elif isinstance(inputs, (tuple, list)):
        arguments = tuple(inputs)
    else:
        arguments = (inputs,)
    moved = map_tensors(targets, lambda value: value.to(device, non_blocking=True))
    return map_tensors(arguments, placed), moved


def _named(name: str, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The arguments and the targets of a dict that holds both."""
    found = [key for key in TARGETS if key in batch]
    if len(found) != 1:
        raise TypeError(
            f"{name}: expected batches of (inputs, targets), or dicts of named inputs with one of "
            f"{', '.join(TARGETS)}, got a dict of {', '.join(map(str, batch))}"
        )
    return {key: value for key, value in batch.items() if key != found[0]}, batch[found[0]]


def _accepted(model: nn.Module) -> set[str] | None:
    """The names of the arguments of a network; None where it takes any."""
    parameters = inspect.signature(model.forward).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return None
    return set(parameters)


def kind_of(targets: Any, logits: Tensor) -> str | None:
    """What targets are to logits [batch, classes, ...]: "classes", "probabilities", or neither.

    Classes are integers of the logits' shape without its second dimension; probabilities are of the
    logits' shape, not negative, and sum to 1 over that dimension, of which there are two or more.
    """
    if not isinstance(targets, Tensor) or logits.dim() < 2:
        return None
    if not targets.is_floating_point():
        whole = not targets.is_complex() and targets.dtype != torch.bool
        fits = targets.shape == logits.shape[:1] + logits.shape[2:]
        return "classes" if whole and fits else None
    if targets.shape != logits.shape or logits.shape[1] < 2:
        return None
    exact = torch.finfo(targets.dtype).bits >= 32
    near = (targets.double().sum(1) - 1).abs() <= (1e-3 if exact else 2e-2)
    return "probabilities" if bool(near.all() & (targets >= 0).all()) else None


def described(targets: Any) -> str:
    """What came as targets, for messages."""
    if not isinstance(targets, Tensor):
        return type(targets).__name__
    return f"{targets.dtype} of shape {list(targets.shape)}"


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
