"""Takes off what wraps a network without changing what it computes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: Any) -> Any:
    """The network inside torch.compile, DataParallel and DistributedDataParallel; else itself."""
    while isinstance(model, nn.Module):
        if isinstance(model, PARALLEL):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's, which has no public class
            model = model._modules["_orig_mod"]
        else:
            break
    return model


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Meanwhile, what torch.compile has wrapped runs as it was written: copies need no compiler."""
    # Where it was not imported, nothing is compiled.
    known = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if known else nullcontext():
        yield
