"""Captures a network with torch.export, as it runs in evaluation and in training mode."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, eval_mode, map_tensors, tensors_in
from mdcp_fast.modules.defaults import default_device_of
from mdcp_fast.modules.locks import ONE_AT_A_TIME
from mdcp_fast.modules.state import unchanged


def export(
    model: nn.Module, inputs: Inputs, training: bool = False
) -> torch.export.ExportedProgram:
    """The network captured by torch.export, in evaluation mode or in training mode.

    Raises:
        ValueError: It cannot be captured; the message says what torch.export said.
    """
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with ONE_AT_A_TIME, unchanged(model), eval_mode(model, training), torch.no_grad():
        try:
            with default_device_of(tensors_in(inputs)):
                return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                "trace: model: expected a network that torch.export can capture with these example "
                f"inputs, got {type(error).__name__}: {said} (torch.export.export(model, inputs) "
                "shows where)"
            ) from error


def drops_sizes_of_one(program: torch.export.ExportedProgram) -> bool:
    """Whether a dimension goes where it has one entry: a network that may not become so narrow."""
    return any("aten.squeeze" in str(node.target) for node in program.graph.nodes)


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
        return export(model, map_tensors(inputs, twice), training=True)
    finally:
        log.disabled = disabled
