"""The Triton kernel of channel_statistics: run by Triton's interpreter, and compiled for GPUs.

The interpreter has to be chosen before triton is first imported, so it runs in a process of its
own, once for all cases; results are compared here.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from processes import run_python
from torch import Tensor
from triton_versions import compiled, needs_interpreter

from mdcp_fast.ops import channel_statistics as op
from mdcp_fast.ops._arguments import triton_kernels
from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.reference.channel_statistics import channel_statistics_reference

pytest.importorskip("triton", reason="triton is not installed")

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
# (unit, tensors). Row counts beside the kernel's 8 and 32 rows a program, row lengths beside its 32
# lanes and its 128 weights a step; a tensor without rows in first, middle and last place.
CASES: dict[str, tuple[str, list[tuple[tuple[int, ...], torch.dtype]]]] = {
    "filter_float32": (
        "filter",
        [((0, 7), FLOAT32)]
        + [((rows, 3, 3, 3), FLOAT32) for rows in (1, 31, 32, 33)]
        + [((0, 3), FLOAT32)]
        + [((rows, n), FLOAT32) for rows in (7, 8, 9) for n in (1, 32, 33, 127, 129, 400)]
        + [((0, 50), FLOAT32)],
    ),
    "filter_float16": ("filter", [((9, 5, 3, 3), FLOAT16), ((3, 300), FLOAT16)]),
    "filter_bfloat16": ("filter", [((9, 5, 3, 3), BFLOAT16), ((3, 300), BFLOAT16)]),
    "kernel": (
        "kernel",
        [((4, 9, 3, 3), FLOAT32), ((5, 7, 1, 1), FLOAT32), ((3, 2, 7, 7), FLOAT32)],
    ),
    "kernel_float16": ("kernel", [((4, 9, 3, 3), FLOAT16)]),
    "kernel_bfloat16": ("kernel", [((4, 9, 3, 3), BFLOAT16)]),
    "mixed": (
        "filter",
        [((5, 40), FLOAT32), ((6, 9), FLOAT16), ((3, 41), FLOAT32), ((2, 8), BFLOAT16)],
    ),
    "nothing": ("filter", [((0, 4), FLOAT32)]),
}
WORKER = """
import sys, torch
from mdcp_fast.ops.triton.channel_statistics import launch_channel_statistics

results = {}
for name, (weights, shapes) in torch.load(sys.argv[1]).items():
    out = torch.full((sum(rows for rows, _ in shapes), 3), torch.nan)  # poisoned
    launch_channel_statistics(weights, shapes, out)
    results[name] = out
torch.save(results, sys.argv[2])
"""


def weights_of(case: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=generator) * 0.1 + 0.02).to(dtype)
        for shape, dtype in CASES[case][1]
    ]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the interpreted kernel gives for every case: [rows of all tensors, 3]."""
    needs_interpreter()
    folder = tmp_path_factory.mktemp("interpreter")
    given = {}
    for case, (unit, _) in CASES.items():
        weights = weights_of(case)
        given[case] = (weights, op._row_shapes(weights, unit))
    special = torch.stack([torch.zeros(40), torch.full((40,), 0.1), torch.full((40,), -0.1)])
    given["special"] = ([special], [(3, 40)])
    given["single"] = ([torch.tensor([3.0, -1e-30, 0.0, -0.0, 1e-45, -2e38])], [(6, 1)])
    torch.save(given, folder / "given.pt")
    arguments = (folder / "given.pt", folder / "results.pt")
    run_python(WORKER, *arguments, folder=folder, TRITON_INTERPRET="1")
    results: dict[str, Tensor] = torch.load(folder / "results.pt")
    return results


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_float64(interpreted: dict[str, Tensor], case: str) -> None:
    unit, weights = CASES[case][0], weights_of(case)
    expected = torch.cat(channel_statistics_reference(weights, unit=unit))
    torch.testing.assert_close(interpreted[case].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_the_native_core(interpreted: dict[str, Tensor], case: str) -> None:
    expected = torch.cat(channel_statistics(weights_of(case), unit=CASES[case][0]))
    assert torch.equal(interpreted[case], expected)


def test_special_rows(interpreted: dict[str, Tensor]) -> None:
    tenth = torch.tensor(0.1).item()
    expected = torch.tensor([[0, 0, 1], [tenth, 0, 0], [-tenth, 0, 2]])
    assert torch.equal(interpreted["special"], expected)
    assert interpreted["single"][:, 2].tolist() == [0.0, 2.0, 1.0, 1.0, 0.0, 2.0]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set")
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_a_gpu(
    capability: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cubin comes out, and the PTX rounds as the native core does: the bits depend on it."""
    from mdcp_fast.ops.triton import channel_statistics as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {
        "WEIGHT": kernels.TRITON_DTYPES[dtype],
        "TABLE": 64,
        "LANES": kernels.LANES,
        "LONG_ROWS": kernels.LONG_ROWS,
        "SHORT_ROWS": kernels.SHORT_ROWS,
        "UNROLL": kernels.UNROLL,
    }
    signature = {"table": "*i64", "tensors": "i32", "out": "*fp32"}
    kernel, options = kernels.channel_statistics_kernel, kernels.COMPILE_OPTIONS
    asm = compiled(kernel, signature, constants, options, capability).asm
    assert asm["cubin"][:4] == b"\x7fELF"
    code = asm["ptx"]
    assert f".target sm_{capability}" in code
    assert "sqrt.rn.f64" in code and "div.rn.f64" in code
    assert not re.search(r"\bfma\.|\.approx|\.ftz", code)


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "mdcp_fast.ops.triton.channel_statistics", raising=False)
    with pytest.raises(ImportError, match=r"channel_statistics: .*`pip install triton`"):
        triton_kernels(op._OP, "channel_statistics", "the weights")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_same_bits_on_the_gpu(case: str) -> None:
    weights = weights_of(case)
    expected = channel_statistics(weights, unit=CASES[case][0])
    results = channel_statistics([weight.cuda() for weight in weights], unit=CASES[case][0])
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result.cpu(), wanted)
