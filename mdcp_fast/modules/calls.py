"""Calls a network: its arguments and outputs, its mode, its buffers, its MACs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mdcp_fast.modules.defaults import default_device_of
from mdcp_fast.modules.mac_formulas import flop_formulas
from mdcp_fast.modules.state import unchanged

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
    with default_device_of(tensors_in(inputs)):
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def map_tensors(inputs: Any, change: Any) -> Any:
    """`inputs` with `change` applied to every tensor in them, however they are nested."""
    return tree_map(lambda value: change(value) if isinstance(value, Tensor) else value, inputs)


def samples_in(batch: Inputs) -> int:
    """How many samples a batch has: the length of its first tensor with any dimensions."""
    return next((len(x) for x in tensors_in(batch) if x.dim()), 1)


def even_parts(size: int, count: int) -> list[slice]:
    """`size` samples in `count` parts that differ by at most one."""
    return [slice(*ends) for ends in pairwise(size * part // count for part in range(count + 1))]


@contextmanager
def eval_mode(model: nn.Module, training: bool = False) -> Iterator[nn.Module]:
    """`model` in evaluation (or training) mode; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.train(training)
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def preserve_buffers(model: nn.Module) -> Iterator[None]:
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
    """Multiply-accumulates of one run of `model`: of its layers, recurrent ones and attention too.

    Args:
        model: Any module; run in evaluation mode and put back.
        example_inputs: A tensor, a tuple of arguments, or a dict of named ones.

    Returns:
        Half of what torch.utils.flop_counter counts (it counts a multiply-add as two), with the
        formulas of `mac_formulas` for what it does not know.
    """
    from torch.utils.flop_counter import FlopCounterMode

    inputs = as_inputs("count_macs", example_inputs)
    counting = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    with counting as counter, eval_mode(model), unchanged(model):
        call(model, inputs)
    return int(counter.get_total_flops()) // 2


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a network's output: a tensor, or mappings, sequences, dataclasses of such."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_in(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in tensors_in(value)]
    if is_dataclass(output):
        return tensors_in([getattr(output, field.name) for field in fields(output)])
    return []
