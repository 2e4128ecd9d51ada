"""Names of parameters and buffers, of which one tensor may have several."""

from __future__ import annotations

from torch import nn


def shared_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}
