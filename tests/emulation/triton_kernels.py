"""Runs what Triton makes of a kernel: its PTX, interpreted, on host memory."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from emulation.ptx import Module
from emulation.ptx_compile import triton_ptx
from torch import Tensor

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


def interpret(
    kernel: Any,
    arguments: Iterable[Tensor | float | int],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    architecture: int,
    programs: int,
    memory: Iterable[Tensor] = (),
) -> None:
    """Compiles a kernel and runs the programs of one launch.

    Args:
        kernel: a function under `triton.jit`.
        arguments: contiguous tensors on the CPU, and numbers.
        constants: its compile-time constants, by name.
        options: for Triton's compiler.
        architecture: 80, 90, ...
        programs: how many.
        memory: contiguous tensors that it may touch beside its arguments.
    """
    arguments = list(arguments)
    signature = dict(zip(kernel.arg_names, map(_kind, arguments), strict=False))
    text, threads, shared = triton_ptx(kernel, signature, constants, options, architecture)
    module = Module(text)
    (name,) = module.kernels
    unused = len(module.program.functions[name].parameters) - len(arguments)
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    module.launch(
        name,
        (programs,),
        (threads,),
        shared,
        [*map(_packed, arguments), *[bytes(8)] * unused],
        [
            (tensor.data_ptr(), tensor.numel() * tensor.element_size())
            for tensor in [*tensors, *memory]
        ],
    )


def _kind(argument: Tensor | float | int) -> str:
    if isinstance(argument, Tensor):
        return POINTERS[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def _packed(argument: Tensor | float | int) -> bytes:
    if isinstance(argument, Tensor):
        return struct.pack("<Q", argument.data_ptr())
    return struct.pack("<f" if isinstance(argument, float) else "<i", argument)
