"""How much memory a network's tensors take while it runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mdcp_fast.modules.calls import tensors_in


class PeakMemory(TorchDispatchMode):
    """While entered, measures the most bytes of tensors that are alive at one time.

    Only tensors made inside count; scratch space inside an op does not.

    Attributes:
        peak: Bytes.
        now: Bytes of what was made inside and is alive.
    """

    def __init__(self, ignore: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                free = weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
                free.atexit = False
        return output

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@torch.no_grad()
def peak_memory(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of the tensors that are alive at one time, at most, while `run` runs `model`."""
    with PeakMemory([*model.parameters(), *model.buffers()]) as memory:
        run()
    return memory.peak
