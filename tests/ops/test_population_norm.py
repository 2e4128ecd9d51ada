"""population_norm: each candidate's masked BatchNorm, on the CPU and by the Triton kernels.

Triton's interpreter has to be chosen before triton is first imported, so it runs in a process of
its own, once for all cases; results are compared here.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import run_python
from torch import Tensor
from triton_versions import compiled, needs_interpreter

from mdcp_fast.ops import population_norm as op
from mdcp_fast.ops._arguments import triton_kernels
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.ops.reference.population_norm import population_norm_reference

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
# Largest error over max(1, |y|). Half precision is rounded once, at the end.
TOLERANCE = {torch.float64: 1e-12, FLOAT32: 5e-6, FLOAT16: 2**-11 + 1e-5, BFLOAT16: 2**-8 + 1e-5}


@dataclass(frozen=True)
class Case:
    """A population's batch: its sizes, the values' deviation and mean, and what is masked."""

    candidates: int
    samples: int
    channels: int
    places: tuple[int, ...]
    dtype: torch.dtype = FLOAT32
    channels_last: bool = False
    scale: float = 1.0
    mean: float = 0.0
    masked: str = "some"

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, masks, weight and bias."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.candidates * self.samples, self.channels, *self.places)
        x = (torch.randn(shape, generator=generator) + self.mean) * self.scale
        masks = torch.rand(self.candidates, self.channels, generator=generator) < 0.6
        if self.masked != "some":
            masks = torch.full_like(masks, self.masked == "none")
        weight = torch.rand(self.channels, generator=generator) + 0.5
        bias = torch.randn(self.channels, generator=generator)
        if self.channels_last:
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            x = x.contiguous(memory_format=formats[x.dim()])
        return x.to(self.dtype), masks.float(), weight, bias


# Triton's interpreter cuts bfloat16 off where hardware rounds.
INTERPRETED = {**TOLERANCE, BFLOAT16: 2**-7 + 1e-5}
# Sizes beside powers of two; the long ones fill several tiles of 2048 values, and several splits.
CASES = {
    "images": Case(3, 4, 5, (7, 9)),
    "channels last": Case(3, 4, 67, (5, 3), channels_last=True),
    "channels last, long": Case(1, 3, 5, (47, 61), channels_last=True),
    "long": Case(2, 3, 2, (73, 59), mean=10.0),
    "one split's worth and one more": Case(1, 1, 1, (8193,)),
    "one candidate": Case(1, 5, 3, (4, 4)),
    "vectors": Case(4, 6, 33, ()),
    "sequences": Case(2, 3, 6, (11,)),
    "volumes": Case(2, 2, 3, (3, 5, 2)),
    "volumes, channels last": Case(2, 2, 3, (3, 5, 2), channels_last=True),
    "a single value": Case(3, 1, 4, (1, 1)),
    "a single value each, channels last": Case(2, 1, 5, (1, 1), channels_last=True),
    "one channel": Case(2, 3, 1, (3, 3)),
    "all masked": Case(2, 3, 4, (5, 5), masked="all"),
    "none masked": Case(2, 3, 4, (5, 5), masked="none"),
    "half": Case(3, 4, 5, (7, 9), FLOAT16),
    "half, channels last": Case(3, 4, 5, (7, 9), FLOAT16, channels_last=True),
    "half, its largest values": Case(2, 3, 4, (5, 5), FLOAT16, scale=12000.0),
    "bfloat16": Case(3, 4, 5, (7, 9), BFLOAT16),
    "bfloat16, channels last": Case(3, 4, 5, (7, 9), BFLOAT16, channels_last=True),
    "huge": Case(2, 3, 4, (5, 5), scale=1e30),
    "huge, channels last": Case(2, 3, 4, (5, 5), scale=1e30, channels_last=True),
    "near the largest float": Case(2, 3, 4, (5, 5), scale=8e37),
    "tiny": Case(2, 3, 4, (5, 5), scale=1e-30),
    "constant": Case(2, 3, 4, (5, 5), scale=0.0),
}
WORKER = """
import sys, torch
from mdcp_fast.ops.triton.population_norm import launch_population_norm

results = {}
for name, (x, masks, weight, bias) in torch.load(sys.argv[1]).items():
    out = torch.full_like(x, torch.nan)  # poisoned
    launch_population_norm(x, masks, weight, bias, 1e-5, out)
    results[name] = out
torch.save(results, sys.argv[2])
"""


def strange() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A channel that holds NaN and infinities, and is masked."""
    x, masks, weight, bias = CASES["images"].arguments()
    masks[:, 1] = 0
    x[0, 1], x[1, 1], x[2, 1] = torch.nan, torch.inf, -torch.inf
    return x, masks, weight, bias


def gates() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks that are neither 0 nor 1."""
    x, masks, weight, bias = CASES["images"].arguments()
    return x, masks * torch.linspace(0.1, 2, masks.numel()).view(masks.shape), weight, bias


def error(result: Tensor, x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor) -> float:
    exact = population_norm_reference(x, masks, weight, bias)
    assert result.shape == x.shape and result.dtype == x.dtype and result.stride() == x.stride()
    gap = (result.double() - exact).abs() / exact.abs().clamp_min(1)
    return gap.max().item()


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the interpreted kernels give for every case."""
    needs_interpreter()
    folder = tmp_path_factory.mktemp("interpreter")
    given = {name: case.arguments() for name, case in CASES.items()}
    torch.save(given | {"strange": strange(), "gates": gates()}, folder / "given.pt")
    arguments = (folder / "given.pt", folder / "results.pt")
    run_python(WORKER, *arguments, folder=folder, TRITON_INTERPRET="1")
    results: dict[str, Tensor] = torch.load(folder / "results.pt")
    return results


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_float64(name: str) -> None:
    arguments = CASES[name].arguments()
    assert error(population_norm(*arguments), *arguments) <= TOLERANCE[CASES[name].dtype]


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_agree_with_float64(interpreted: dict[str, Tensor], name: str) -> None:
    assert error(interpreted[name], *CASES[name].arguments()) <= INTERPRETED[CASES[name].dtype]


@pytest.mark.parametrize("name", ["strange", "gates"])
def test_masked_channels_are_zero_and_other_masks_are_factors(
    interpreted: dict[str, Tensor], name: str
) -> None:
    arguments = {"strange": strange, "gates": gates}[name]()
    masks = arguments[1]
    for result in (population_norm(*arguments), interpreted[name]):
        assert error(result, *arguments) <= TOLERANCE[FLOAT32]
        parts = result.unflatten(0, (len(masks), -1)).movedim(2, 1)  # [P, C, B, ...]
        assert torch.equal(parts[masks == 0], torch.zeros_like(parts[masks == 0]))


def test_float64_stays_float64() -> None:
    x, masks, weight, bias = CASES["images"].arguments()
    arguments = x.double(), masks, weight.double(), bias.double()
    assert error(population_norm(*arguments), *arguments) <= TOLERANCE[torch.float64]


def test_large_means_are_accurate_on_the_cpu() -> None:
    x, masks, weight, bias = CASES["images"].arguments()
    assert error(population_norm(x + 1e4, masks, weight, bias), x + 1e4, masks, weight, bias) < 5e-6


def test_is_torchs_batch_norm_for_each_candidate() -> None:
    x, masks, weight, bias = CASES["none masked"].arguments()
    expected = torch.cat(
        [F.batch_norm(part, None, None, weight, bias, training=True) for part in x.chunk(2)]
    )
    result = population_norm(x, masks, weight, bias)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    plain = population_norm(x, masks.bool())  # no weight is 1, no bias is 0
    torch.testing.assert_close(plain, population_norm(x, masks, torch.ones(4), torch.zeros(4)))


def test_a_candidate_does_not_depend_on_the_others() -> None:
    x, masks, weight, bias = CASES["images"].arguments()
    together = population_norm(x, masks, weight, bias)
    for part, result, mask in zip(x.chunk(3), together.chunk(3), masks, strict=True):
        assert torch.equal(population_norm(part, mask[None], weight, bias), result)


def test_uneven_strides_are_copied() -> None:
    x, masks, weight, bias = CASES["images"].arguments()
    uneven = x.transpose(2, 3)
    result = population_norm(uneven, masks, weight, bias)
    assert torch.equal(result, population_norm(uneven.contiguous(), masks, weight, bias))


def test_an_empty_batch() -> None:
    assert population_norm(torch.empty(0, 3, 2, 2), torch.ones(2, 3)).shape == (0, 3, 2, 2)


def test_opcheck() -> None:
    x, masks, weight, bias = CASES["channels last"].arguments()
    tests = ("test_schema", "test_faketensor")
    packet = torch.ops.mdcp_fast.population_norm.default
    torch.library.opcheck(packet, (x, masks, weight, bias, 1e-5), test_utils=tests)
    torch.library.opcheck(packet, (x, masks, None, None, 1e-5), test_utils=tests)


def test_gradients_do_not_flow() -> None:
    x, masks, weight, bias = CASES["images"].arguments()
    assert not population_norm(x.requires_grad_(), masks, weight.requires_grad_()).requires_grad


X, MASKS = torch.zeros(6, 3, 2, 2), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([1.0], MASKS), TypeError, "x: expected a torch.Tensor, got list"),
        ((X.long(), MASKS), TypeError, "x: expected dtype .*float64, got torch.int64"),
        ((X[0, 0, 0], MASKS), ValueError, r"x: expected shape \[candidates \* samples, channels"),
        ((X, torch.ones(3)), ValueError, r"masks: expected shape \[any, 3\], got \[3\]"),
        ((X, torch.ones(2, 4)), ValueError, r"masks: expected shape \[any, 3\], got \[2, 4\]"),
        ((X, torch.ones(4, 3)), ValueError, "masks: expected a row .* 6 rows of x .*got 4 rows"),
        ((X, torch.ones(0, 3)), ValueError, "masks: expected a row for each candidate"),
        ((X, MASKS.long()), TypeError, "masks: expected dtype torch.bool or"),
        ((X, MASKS, torch.ones(2)), ValueError, r"weight: expected shape \[3\], got \[2\]"),
        ((X, MASKS, None, torch.ones(3, 1)), ValueError, r"bias: expected shape \[3\]"),
        ((X, MASKS, None, None, 0.0), ValueError, "eps: expected a positive number, got 0"),
        ((X, MASKS, None, None, float("nan")), ValueError, "eps: expected a positive number"),
        ((X, MASKS.to("meta")), ValueError, "masks: expected a tensor on cpu, got one on meta"),
    ],
)
def test_bad_arguments_are_named(
    arguments: tuple[object, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"population_norm: {message}"):
        population_norm(*arguments)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET is set")
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_a_gpu(
    capability: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kernels give a cubin, with channels apart and side by side, nothing spilled or fused."""
    pytest.importorskip("triton", reason="triton is not installed")
    from mdcp_fast.ops.triton import population_norm as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    values = {FLOAT32: "*fp32", FLOAT16: "*fp16", BFLOAT16: "*bf16"}[dtype]
    pointers = {"x": values, "out": values, "root_eps": "fp32"} | dict.fromkeys(
        ("masks", "weight", "bias", "means", "deviations"), "*fp32"
    )
    for kernel in (kernels.moments_kernel, kernels.normalise_kernel):
        for channels in (1, kernels.CHANNELS):
            constants = {"ROWS": kernels.TILE // channels, "CHANNELS": channels}
            signature = {
                name: pointers.get(name, "i32")
                for name in kernel.arg_names
                if name not in constants
            }
            asm = compiled(kernel, signature, constants, kernels.COMPILE_OPTIONS, capability).asm
            assert asm["cubin"][:4] == b"\x7fELF"
            assert f".target sm_{capability}" in asm["ptx"]
            assert not re.search(r"\.local|\bfma\.", asm["ptx"])


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "mdcp_fast.ops.triton.population_norm", raising=False)
    with pytest.raises(ImportError, match=r"population_norm: .*`pip install triton`"):
        triton_kernels(op._OP, "population_norm", "x")
