"""What differs between the versions of Triton that the tests meet, from 3.2 on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest


def compiled(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    architecture: int,
) -> Any:
    """A kernel compiled without a device.

    Args:
        kernel: A function under `triton.jit`.
        signature: The types of its arguments, by name.
        constants: Its compile-time constants, by name.
        options: For the compiler.
        architecture: 80, 90, ...
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if architecture >= 100 and version(triton) < (3, 3):
        pytest.skip(f"triton {triton.__version__} does not know sm_{architecture}")
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    named = inspect.signature(ASTSource.__init__).parameters
    keyword = "constexprs" if "constexprs" in named else "constants"  # before 3.3
    source = ASTSource(fn=kernel, signature=types, **{keyword: dict(constants)})
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=dict(options))


def needs_interpreter() -> None:
    """Skips where there is no Triton, or its interpreter does not run.

    Before 3.7 it makes numbers of arrays of one element, which NumPy 2.4 refuses.
    """
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if version(triton) < (3, 7) and version(np) >= (2, 4):
        pytest.skip(f"the interpreter of triton {triton.__version__} needs a NumPy below 2.4")


def version(package: Any) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(part) for part in package.__version__.split(".")[:2])
