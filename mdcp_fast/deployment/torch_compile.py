"""Runs a network in PyTorch, compiled by torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mdcp_fast.deployment.torch_eager import torch_call


class TorchCompile:
    """torch.compile with its default backend, which needs a C++ compiler, or on a GPU Triton."""

    name = "torch-compile"

    def prepare(
        self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `Backend`. Compiles at once, in seconds to minutes."""
        call = torch_call(
            torch.compile(copy.deepcopy(model).eval(), dynamic=False), inputs, threads
        )
        call()
        return call
