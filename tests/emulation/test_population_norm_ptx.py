"""population_norm's kernels as Triton compiles them: their PTX, interpreted, against float64.

The interpreter also reports lanes that store different values in one place: with multiply-adds
fused, the sums of squares did.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

import pytest
import torch
from emulation.ptx import Module
from emulation.ptx_compile import triton_ptx
from test_population_norm import CASES, TOLERANCE, error, strange
from torch import Tensor

ARCHITECTURES = [80, 90, 100]  # from 90 on, 16-bit tiles are moved by stmatrix
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


def kind(argument: Tensor | float | int) -> str:
    if isinstance(argument, Tensor):
        return POINTERS[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def packed(argument: Tensor | float | int) -> bytes:
    if isinstance(argument, Tensor):
        return struct.pack("<Q", argument.data_ptr())
    return struct.pack("<f" if isinstance(argument, float) else "<i", argument)


def interpret(
    architecture: int, kernel: Any, *arguments: Any, launch: Any, options: dict[str, Any]
) -> None:
    """Runs a kernel's PTX on host memory; only the tensors among its arguments may be touched."""
    signature = dict(zip(kernel.arg_names, map(kind, arguments), strict=False))
    constants = {"ROWS": launch.rows, "CHANNELS": launch.channels}
    text, threads, shared = triton_ptx(kernel, signature, constants, options, architecture)
    module = Module(text)
    (name,) = module.kernels
    unused = len(module.program.functions[name].parameters) - len(arguments)
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    module.launch(
        name,
        (launch.programs,),
        (threads,),
        shared,
        [*map(packed, arguments), *[bytes(8)] * unused],
        [(tensor.data_ptr(), tensor.numel() * tensor.element_size()) for tensor in tensors],
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [*CASES, "strange"])
def test_compiled_kernels_agree_with_float64(name: str, architecture: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from mdcp_fast.kernels import population_norm as kernels

    x, masks, weight, bias = strange() if name == "strange" else CASES[name].arguments()
    launch, options = kernels.layout(x, len(masks)), kernels.COMPILE_OPTIONS
    means, deviations = torch.full((2, *masks.shape, launch.splits), torch.nan)  # poisoned
    out = torch.full_like(x, torch.nan)
    run = partial(interpret, architecture, launch=launch, options=options)
    run(kernels.moments_kernel, x, masks, means, deviations, *launch.sizes)
    given = x, masks, weight, bias, means, deviations, out, 1e-5**0.5
    run(kernels.normalise_kernel, *given, *launch.sizes)
    assert error(out, x, masks, weight, bias) <= TOLERANCE[x.dtype]
