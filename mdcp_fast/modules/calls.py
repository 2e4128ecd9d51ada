"""Runs and captures a network: its inputs, its mode, its exported graph, its MACs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = tuple[Any, ...] | dict[str, Any]  # a network's arguments, by place or by name


def as_inputs(op: str, example_inputs: Any) -> Inputs:
    """A network's arguments from a tensor, a tuple of arguments, or a mapping of named arguments.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, Mapping):
        return dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    raise TypeError(
        f"{op}: example_inputs: expected a tensor, a tuple of the model's arguments or a dict of "
        f"named ones, got {type(example_inputs).__name__}"
    )


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The network's output for these arguments."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def mapped(inputs: Any, change: Any) -> Any:
    """`inputs` with `change` applied to every tensor in them."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: mapped(value, change) for name, value in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(mapped(item, change) for item in inputs)
    return inputs


@contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[nn.Module]:
    """`model` in evaluation (or training) mode; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.train(training)
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts the values of all buffers back afterwards: some networks count their calls."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                if not buffer.is_inference():  # which nothing can have changed
                    buffer.copy_(value)


@torch.no_grad()
def count_macs(model: nn.Module, example_inputs: Tensor | Inputs) -> int:
    """Multiply-accumulates of one run of `model`: convolutions, linear layers and matrix products.

    Args:
        model: Any module; run in evaluation mode and put back.
        example_inputs: A tensor, a tuple of arguments, or a dict of named ones.

    Returns:
        Half of what torch.utils.flop_counter counts (it counts a multiply-add as two).
    """
    from torch.utils.flop_counter import FlopCounterMode

    inputs = as_inputs("count_macs", example_inputs)
    with FlopCounterMode(display=False) as counter, evaluating(model), buffers_kept(model):
        call(model, inputs)
    return int(counter.get_total_flops()) // 2


def export(
    model: nn.Module, inputs: Inputs, training: bool = False
) -> torch.export.ExportedProgram:
    """The network captured by torch.export, in evaluation mode or in training mode.

    Raises:
        ValueError: It cannot be captured; the message says what torch.export said.
    """
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with evaluating(model, training), buffers_kept(model), torch.no_grad():
        try:
            return torch.export.export(model, args, kwargs)
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                "trace: model: expected a network that torch.export can capture with these example "
                f"inputs, got {type(error).__name__}: {said} (torch.export.export(model, inputs) "
                "shows where)"
            ) from error


def export_training(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The network as it runs in training mode, with a batch of two in place of a batch of one.

    BatchNorm in training mode refuses a single value per channel.

    Raises:
        ValueError: As `export`.
    """

    def twice(x: Tensor) -> Tensor:
        return torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x

    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True  # a failure here is reported in the graph
    try:
        return export(model, mapped(inputs, twice), training=True)
    finally:
        log.disabled = disabled
