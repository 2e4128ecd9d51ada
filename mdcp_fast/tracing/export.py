"""Captures a network with torch.export, as it runs in evaluation and in training mode."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, eval_mode, map_tensors, tensors_in
from mdcp_fast.modules.defaults import default_device_of
from mdcp_fast.modules.locks import ONE_AT_A_TIME
from mdcp_fast.modules.state import unchanged

# Beginnings of the names of operations that are given sizes, widths or places.
SIZED = (
    "view", "_unsafe_view", "reshape", "unflatten", "expand", "broadcast_to", "repeat", "tile",
    "narrow", "slice", "select", "split", "tensor_split", "chunk", "unbind", "as_strided", "pad",
    "constant_pad", "roll", "new_", "zeros", "ones", "full", "empty", "rand", "arange", "eye",
    "linspace", "unfold", "im2col", "col2im", "index", "gather", "scatter", "wrap_with",
    "layer_norm", "rms_norm",
)  # fmt: skip


def export(
    model: nn.Module, inputs: Inputs, training: bool = False
) -> torch.export.ExportedProgram:
    """The network captured by torch.export, in evaluation mode or in training mode.

    Raises:
        ValueError: It cannot be captured; the message says what torch.export said.
    """
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with (
        ONE_AT_A_TIME, unchanged(model), eval_mode(model, training), torch.no_grad(),
    ):  # fmt: skip
        try:
            with default_device_of(tensors_in(inputs)), _no_graphs_on_stderr():
                return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                "trace: model: expected a network that torch.export can capture with these example "
                f"inputs, got {type(error).__name__}: {said} (torch.export.export(model, inputs) "
                f"shows where){_other_ways(model)}"
            ) from error


def _other_ways(model: nn.Module) -> str:
    """What else can be traced, where a network has parts."""
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    largest = max(sizes, key=lambda name: (name == "backbone", sizes[name]), default="")
    if len(sizes) < 2:
        return ""
    return (
        f"; where what the network does depends on its data, trace a part that does not, such as "
        f"model.{largest}"
    )


@contextmanager
def _no_graphs_on_stderr() -> Iterator[None]:
    """Meanwhile, stderr is held back, and dropped where the block fails.

    torch prints the whole graph of what it cannot capture there, and logs why; an error follows.
    """

    def nothing(_: logging.LogRecord) -> bool:
        return False

    handlers = [*logging.getLogger("torch").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(nothing)
    held = io.StringIO()
    try:
        with redirect_stderr(held):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(nothing)
    sys.stderr.write(held.getvalue())


def drops_sizes_of_one(program: torch.export.ExportedProgram) -> bool:
    """Whether a dimension goes where it has one entry: a network that may not become so narrow."""
    return any("aten.squeeze" in str(node.target) for node in program.graph.nodes)


def writes_sizes(program: torch.export.ExportedProgram) -> bool:
    """Whether an operation is told sizes, which may be those of another tensor."""
    targets = (str(node.target) for node in program.graph.nodes if node.op == "call_function")
    return any(target.removeprefix("aten.").startswith(SIZED) for target in targets)


def export_training(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The network as it runs in training mode, with a batch of two in place of a batch of one.

    BatchNorm in training mode refuses a single value per channel.

    Raises:
        ValueError: As `export`.
    """

    def twice(x: Tensor) -> Tensor:
        return torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x

    return export(model, map_tensors(inputs, twice), training=True)
