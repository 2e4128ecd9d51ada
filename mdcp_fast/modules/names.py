"""Names of parameters, buffers and plain tensors, of which one tensor may have several."""

from __future__ import annotations

from torch import Tensor, nn


def shared_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter, buffer or plain tensor, the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
        *plain_tensors(model).items(),
    ]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules hold as plain attributes (a fixed filter, say), by their full names.

    Those that a hook computes of others are not among them.
    """
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_leaf
    }
