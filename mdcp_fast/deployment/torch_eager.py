"""Runs a network in PyTorch, as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.threads import torch_threads


class TorchEager:
    """PyTorch, op by op, on the CPU or a CUDA device."""

    name = "torch"

    def prepare(
        self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `Backend`."""
        return torch_call(copy.deepcopy(model).eval(), inputs, threads)


def torch_call(
    run: Callable[..., Any], inputs: tuple[Tensor, ...], threads: int
) -> Callable[[], None]:
    """A call that runs a network in PyTorch and waits for it.

    Threads are a setting of the whole process: other ones are put back after each call, which costs
    the call some time; a caller who wants none of that sets them before.
    """
    devices = {x.device for x in inputs if x.is_cuda}

    def call() -> None:
        with torch_threads(threads):
            with torch.inference_mode():
                run(*inputs)
            for device in devices:
                torch.cuda.synchronize(device)

    return call
