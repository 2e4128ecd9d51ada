"""A network as a graph, captured by torch.export: what all formats are written from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from mdcp_fast.modules.calls import Inputs, call, map_tensors, samples_in, tensors_in
from mdcp_fast.modules.locks import ONE_AT_A_TIME
from mdcp_fast.modules.removal import rebuilt


@dataclass(frozen=True)
class Captured:
    """A network that torch.export has captured.

    Attributes:
        program: For float tensors on the CPU.
        inputs: The arguments that it was captured with.
        dynamic_batch: Whether it takes any number of samples.
    """

    program: torch.export.ExportedProgram
    inputs: Inputs
    dynamic_batch: bool

    def edited(self, *edits: Callable[[GraphModule], Any]) -> Captured:
        """Captured anew after changes to its graph, and to its tensors, which are not copied."""
        network = module_of(self.program)
        for edit in edits:
            edit(network)
        return capture(network, self.inputs, self.dynamic_batch)


def copy_on_cpu(model: nn.Module) -> nn.Module:
    """A copy of a network on the CPU, in evaluation mode."""
    return rebuilt(model, lambda tensor: tensor.detach().to("cpu", copy=True)).eval()


def capture(model: nn.Module, inputs: Inputs, dynamic_batch: bool) -> Captured:
    """A network as torch.export sees it.

    Args:
        model: On the CPU, in evaluation mode.
        inputs: Tensors in any nesting.
        dynamic_batch: Leave the size of dimension 0 of all inputs open.

    Raises:
        ValueError: It cannot be captured; the message says what torch.export said.
    """
    shapes: Any = None
    if dynamic_batch:  # torch.export takes a size of one for a constant
        inputs = with_batch(inputs, max(2, samples_in(inputs)))
        batch = torch.export.Dim("batch")
        shapes = map_tensors(inputs, lambda tensor: {0: batch})
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    try:
        with ONE_AT_A_TIME, torch.no_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            "export: model: expected a network that torch.export can capture with this example"
            f"{' and with any batch size' if dynamic_batch else ''}, got "
            f"{type(error).__name__}: {said}"
        ) from error
    return Captured(program, inputs, dynamic_batch)


def module_of(program: torch.export.ExportedProgram) -> GraphModule:
    """The program as a module whose graph may be changed."""
    try:
        module = program.module(check_guards=False)
    except TypeError:  # torch before 2.9 has no guards there
        module = program.module()
    assert isinstance(module, GraphModule)
    return module


def with_batch(inputs: Inputs, size: int) -> Inputs:
    """So many samples: the first ones, over and over if there are fewer."""

    def resized(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(size) % len(tensor)]

    return map_tensors(inputs, resized)


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a network puts out."""
    return [tensor.detach().clone() for tensor in tensors_in(call(model, inputs))]
