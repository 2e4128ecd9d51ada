"""What comes out of Triton and nvcc, and names in it."""

from __future__ import annotations

import struct

import pytest
import torch
from emulation.ptx import Module
from emulation.ptx_compile import same_name, triton_ptx

from mdcp_fast.ops.channel_statistics import channel_statistics


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_triton_statistics_have_the_bits_of_the_native_core(
    dtype: torch.dtype, architecture: int
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from mdcp_fast.ops.triton import channel_statistics as kernels

    constants = {
        "WEIGHT": kernels.TRITON_DTYPES[dtype],
        "TABLE": 32,
        "LANES": kernels.LANES,
        "LONG_ROWS": kernels.LONG_ROWS,
        "SHORT_ROWS": kernels.SHORT_ROWS,
        "UNROLL": kernels.UNROLL,
    }
    signature = {"table": "*i64", "tensors": "i32", "out": "*fp32"}
    text, threads, shared = triton_ptx(
        kernels.channel_statistics_kernel,
        signature,
        constants,
        kernels.COMPILE_OPTIONS,
        architecture,
    )
    module = Module(text)
    (name,) = module.kernels
    assert not module.approximations(name)
    generator = torch.Generator().manual_seed(0)
    shapes = [(0, 7), (1, 27), (31, 27), (32, 27), (33, 9), (0, 3)]
    shapes += [(rows, n) for rows in (7, 8, 9) for n in (1, 32, 33, 127, 129, 400)] + [(0, 50)]
    weights = [(torch.randn(s, generator=generator) * 0.1 + 0.02).to(dtype) for s in shapes]
    out = torch.full((sum(rows for rows, _ in shapes), 3), torch.nan)
    table, programs, row = [], 0, 0
    for weight, (rows, n) in zip(weights, shapes, strict=True):
        table.append((weight.data_ptr(), programs, rows, n, row))
        programs += -(-rows // (kernels.SHORT_ROWS if n <= kernels.LANES else kernels.LONG_ROWS))
        row += rows
    columns = torch.tensor(table, dtype=torch.int64).T.contiguous()
    memory = [(t.data_ptr(), t.numel() * t.element_size()) for t in (columns, out, *weights)]
    arguments = [
        struct.pack("<Q", columns.data_ptr()),
        struct.pack("<i", len(table)),
        struct.pack("<Q", out.data_ptr()),
        *[bytes(8)] * (len(module.program.functions[name].parameters) - 3),
    ]
    module.launch(name, (programs,), (threads,), shared, arguments, memory)
    assert torch.equal(out, torch.cat(channel_statistics(weights)))


def test_names_of_anonymous_namespaces() -> None:
    nvcc = "_ZN40_GLOBAL__N__0fdb3e45_4_k_cu_8aba7f48_123412addKernel_1Ev"
    assert same_name("_ZN12_GLOBAL__N_15innerEv") == "_ZN11_anonymous_5innerEv"
    assert same_name(nvcc).startswith("_ZN11_anonymous_")
