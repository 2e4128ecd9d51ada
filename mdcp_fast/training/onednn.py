"""Keeps training on the CPU away from an error of oneDNN that small pruned layers run into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mdcp_fast.modules.hooks import forward_hooks, layer_input

FEWEST = 8  # input channels that are safe


@contextmanager
def strided_by_slices(model: nn.Module) -> Iterator[None]:
    """Meanwhile, strided 1x1 convolutions of few channels slice their inputs and have no stride.

    The outputs are the same. The backward pass of such a convolution writes past its memory on CPUs
    with AVX2, in channels_last and with fewer than eight input channels:
    https://github.com/uxlfoundation/oneDNN/issues/6035. Inputs of one channel, or layers before,
    may have made the memory format channels_last without anybody asking for it.

    Args:
        model: Its convolutions' `stride` changes, and is put back afterwards.

    Returns:
        A context manager, for training steps of `model` inside.
    """
    strides = {
        module: module.stride
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.in_channels < FEWEST
    }
    hooks = [(module, _slicing(*stride)) for module, stride in strides.items()]
    with forward_hooks(hooks, before=True):
        for module in strides:
            module.stride = (1, 1)
        try:
            yield
        finally:
            for module, stride in strides.items():
                module.stride = stride


def _slicing(rows: int, columns: int) -> Any:
    def hook(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        sliced = layer_input(arguments, named)[..., ::rows, ::columns]
        return (sliced, *arguments[1:]), {k: v for k, v in named.items() if k != "input"}

    return hook
