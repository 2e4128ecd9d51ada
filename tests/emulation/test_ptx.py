"""The PTX interpreter: nvcc's and Triton's PTX against NumPy, torch and the native core."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from emulation.ptx import Module
from emulation.ptx_compile import SAMPLES, launch, nvcc_ptx
from emulation.ptx_values import floats, integers, same

ARCHITECTURES = [75, 90]
_modules: dict[int, Module] = {}


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def samples(request: pytest.FixtureRequest) -> Module:
    """The module of ptx_samples.cu."""
    if request.param not in _modules:
        _modules[request.param] = Module(nvcc_ptx(SAMPLES, request.param))
    return _modules[request.param]


N = 300


def test_integers_of_32_bits(samples: Module) -> None:
    a, b = integers(np.int32, 0), integers(np.int32, 1)
    out = np.zeros((22, N), np.int32)
    launch(samples, "integers32", 3, 128, a, b, out, N)
    x, y = [int(v) for v in a], [int(v) for v in b]
    low = (1 << 32) - 1

    def wrapped(value: int) -> int:
        return (value + 2**31) % 2**32 - 2**31

    def truncated(p: int, q: int) -> int:
        return 0 if q == 0 else wrapped(abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1))

    def reverse(value: int) -> int:
        return int(f"{value & low:032b}"[::-1], 2)

    def permuted(p: int, q: int) -> int:
        pool = (p & low).to_bytes(4, "little") + (q & low).to_bytes(4, "little")
        return int.from_bytes(bytes(pool[i] for i in (5, 1, 7, 3)), "little")

    expected = [
        lambda p, q: p + q * 3,
        lambda p, q: p - q,
        lambda p, q: p * q,
        truncated,
        lambda p, q: 0 if q == 0 else p - truncated(p, q) * q,
        lambda p, q: 0 if q == 0 else (p & low) // (q & low),
        lambda p, q: 0 if q == 0 else (p & low) % (q & low),
        lambda p, q: p * q >> 32,
        lambda p, q: (p & low) * (q & low) >> 32,
        lambda p, q: min(p, q) ^ max(p & low, q & low),
        lambda p, q: p >> (q & 31),
        lambda p, q: p << (q & 31),
        lambda p, q: (p & low).bit_count(),
        lambda p, q: 32 - (p & low).bit_length(),
        lambda p, q: reverse(p),
        lambda p, q: (p & -p & low).bit_length(),
        lambda p, q: (p & q) | (~p & 0x55),
        permuted,
        lambda p, q: ((q & low) << 32 | (p & low)) >> 7,
        lambda p, q: abs(p) + (1 if p > q else 2),
        lambda p, q: (p & low) >> 5 & 255,
        lambda p, q: abs((p & low) - (q & low)) + 3,
    ]
    for row, function in zip(out, expected, strict=True):
        same(row, [wrapped(function(p, q)) for p, q in zip(x, y, strict=True)])


def test_integers_of_64_bits(samples: Module) -> None:
    a, b = integers(np.int64, 2), integers(np.int64, 3)
    out = np.zeros((16, N), np.int64)
    launch(samples, "integers64", 3, 128, a, b, out, N)
    low = (1 << 64) - 1

    def wrapped(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    def truncated(p: int, q: int) -> int:
        return 0 if q == 0 else wrapped(abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1))

    def signed(value: int, bits: int) -> int:
        return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)

    expected = [
        lambda p, q: p * q + 5,
        truncated,
        lambda p, q: 0 if q == 0 else p - truncated(p, q) * q,
        lambda p, q: 0 if q == 0 else (p & low) // (q & low),
        lambda p, q: p * q >> 64,
        lambda p, q: (p & low) * (q & low) >> 64,
        lambda p, q: p >> (q & 63),
        lambda p, q: (p & low) >> (q & 63),
        lambda p, q: p << (q & 63),
        lambda p, q: (p & low).bit_count(),
        lambda p, q: 64 - (p & low).bit_length(),
        lambda p, q: int(f"{p & low:064b}"[::-1], 2),
        min,
        lambda p, q: max(p & low, q & low),
        lambda p, q: signed(p, 32) * signed(q, 32),
        lambda p, q: signed(p, 16) + (q & 255),
    ]
    pairs = [(int(p), int(q)) for p, q in zip(a, b, strict=True)]
    for row, function in zip(out, expected, strict=True):
        same(row, np.array([wrapped(function(p, q)) for p, q in pairs], np.int64))


def exact_fma(dtype: type, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c from fractions, where all are finite; NumPy's own steps elsewhere."""
    result = (a * b + c).astype(dtype)
    for i, (x, y, z) in enumerate(zip(a, b, c, strict=True)):
        if np.isfinite([x, y, z]).all():
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            if exact != 0:
                result[i] = nearest(dtype, exact)
    return result


def nearest(dtype: type, exact: Fraction) -> Any:
    """The number of the type that is nearest to a fraction, ties to even."""
    info = np.finfo(dtype)
    if abs(exact) >= Fraction(float(info.max)) + Fraction(2) ** (info.maxexp - info.nmant - 2):
        return dtype(np.inf if exact > 0 else -np.inf)
    exact_sign = -1 if exact < 0 else 1
    if abs(exact) > Fraction(float(info.max)):
        return dtype(exact_sign * info.max)
    guess = dtype(float(exact))  # float() of a fraction is rounded once; the second may be wrong
    around = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    bits = f"u{np.dtype(dtype).itemsize}"
    finite = [v for v in around if np.isfinite(v)]
    return min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(bits)) & 1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_floats_of_32_bits(samples: Module) -> None:
    a, b, c = (floats(np.float32, seed) for seed in (4, 5, 6))
    out = np.zeros((16, N), np.float32)
    launch(samples, "floats32", 3, 128, a, b, c, out, N)
    expected = [a + b, a - b, a * b, a / b, np.sqrt(abs(a)), exact_fma(np.float32, a, b, c)]
    expected += [torch.fmin(torch.tensor(a), torch.tensor(b)).numpy()]
    expected += [torch.fmax(torch.tensor(a), torch.tensor(b)).numpy()]
    expected += [np.where(a < b, -a, c), np.rint(a) + np.floor(b) + np.ceil(c), np.trunc(a)]
    for row, values in zip(out, expected, strict=False):
        zeros = (row == 0) & (values == 0)  # of min and max torch leaves the zeros' sign open
        same(np.where(zeros, np.float32(0), row), np.where(zeros, np.float32(0), values))
    same(
        out[6][(a == 0) & (b == 0)],
        np.where(np.signbit(a) | np.signbit(b), np.float32(-0.0), 0)[(a == 0) & (b == 0)],
    )
    wide, other = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    for row, values, directed in (
        (out[11], [Fraction(x) + Fraction(y) for x, y in pairs_of(wide, other, finite)], "rz"),
        (out[12], [Fraction(x) * Fraction(y) for x, y in pairs_of(wide, other, finite)], "rm"),
        (out[13], [Fraction(x) + Fraction(y) for x, y in pairs_of(wide, other, finite)], "rp"),
    ):
        for got, exact in zip(row[finite], values, strict=True):
            check_directed(got, exact, directed)
    same(out[14], np.float32(1) / a)
    same(abs(out[15][~np.isnan(a)]), abs(a[~np.isnan(a)]))
    np.testing.assert_array_equal(np.signbit(out[15]), np.signbit(b))


def pairs_of(a: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> list[tuple[float, float]]:
    return list(zip(a[chosen].tolist(), b[chosen].tolist(), strict=True))


def check_directed(got: np.floating, exact: Fraction, mode: str) -> None:
    """`got` is the last number before `exact` in the direction of the rounding."""
    if np.isinf(got):
        limit = Fraction(float(np.finfo(got.dtype).max))
        assert abs(exact) > limit and mode != "rz"
        return
    value = Fraction(float(got))
    upwards = mode == "rp" or (mode == "rz" and exact < 0)
    assert value >= exact if upwards else value <= exact
    step = np.nextafter(got, got.dtype.type(-np.inf if upwards else np.inf))
    if np.isfinite(step):
        beyond = Fraction(float(step))
        assert beyond < exact if upwards else beyond > exact


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_floats_of_64_bits(samples: Module) -> None:
    a, b, c = (floats(np.float64, seed) for seed in (7, 8, 9))
    out = np.zeros((12, N), np.float64)
    launch(samples, "floats64", 3, 128, a, b, c, out, N)
    expected = [a + b, a - b, a * b, a / b, np.sqrt(abs(a)), exact_fma(np.float64, a, b, c)]
    expected += [np.fmin(a, b) + 0.0, np.fmax(a, b) + 0.0, np.where(a >= b, c, -c), np.rint(a)]
    expected += [np.floor(b), 1 / a]
    for i, (row, values) in enumerate(zip(out, expected, strict=True)):
        same(row + 0.0 if i in (6, 7) else row, values)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conversions(samples: Module) -> None:
    a, b = floats(np.float64, 10), integers(np.int64, 11)
    fractions, wholes = np.zeros((6, N), np.float32), np.zeros((7, N), np.int64)
    launch(samples, "conversions", 3, 128, a, b, fractions, wholes, N)
    same(fractions[0], a.astype(np.float32))
    same(fractions[1], [nearest(np.float32, Fraction(int(k))) for k in b])
    same(fractions[2], [nearest(np.float32, Fraction(int(k) % 2**64)) for k in b])
    same(fractions[3], [nearest(np.float32, Fraction(int(k))) for k in b.astype(np.int32)])
    for i, number in enumerate(a):
        if np.isfinite(number):
            check_directed(fractions[4, i], Fraction(float(number)), "rm")
        check_directed(fractions[5, i], Fraction(int(b[i])), "rz")

    def whole(value: float, rounding: Any, bits: int) -> int:
        if np.isnan(value):
            return 0
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        return (
            (low if value < 0 else high)
            if np.isinf(value)
            else min(max(int(rounding(value)), low), high)
        )

    expected = [
        [whole(v, np.trunc, 64) for v in a],
        [whole(v, np.trunc, 32) for v in a],
        [whole(v, np.rint, 64) for v in a],
        [whole(v, np.ceil, 32) for v in a],
        b.astype(np.float64).view(np.int64),
        b.view(np.uint64).astype(np.float64).view(np.int64),
        b.astype(np.uint8).astype(np.int64) - b.astype(np.int8),
    ]
    for row, values in zip(wholes, expected, strict=True):
        same(row, np.array(values, np.int64))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_halves(samples: Module) -> None:
    a, b = floats(np.float16, 12), floats(np.float16, 13)
    c, d = (torch.tensor(floats(np.float32, seed)).bfloat16() for seed in (14, 15))
    half, wide = np.zeros((5, N), np.float16), np.zeros((2, N), np.float32)
    brain = np.zeros((3, N), np.uint16)
    bits = [value.view(torch.int16).numpy() for value in (c, d)]
    launch(samples, "halves", 3, 128, a, b, *bits, half, brain, wide, N)
    for row, values in zip(
        half,
        [a + b, a * b, exact_fma(np.float16, a, b, a), a * np.float32(1.2345678), np.fmax(a, b)],
        strict=True,
    ):
        same(row + np.float16(0), values.astype(np.float16) + np.float16(0))
    results = torch.tensor(brain.view(np.int16)).view(torch.bfloat16).float().numpy()
    same(results[0], (c.float() * np.float32(1.2345678)).bfloat16().float().numpy())
    same(results[1], (c * d).float().numpy())
    same(results[2], (c + d).float().numpy())
    same(wide[0], a.astype(np.float32))
    same(wide[1], c.float().numpy())


def test_divergent_control_flow(samples: Module) -> None:
    a = np.arange(N, dtype=np.int32)
    out = np.zeros(N, np.int32)
    launch(samples, "control", 5, 64, a, out, N)

    def steps_of(x: int) -> int:
        steps = 0
        while x > 1 and steps < 1000:
            x, steps = 3 * x + 1 if x & 1 else x // 2, steps + 1
        return steps

    for value, got in zip(a.tolist(), out.tolist(), strict=True):
        steps = steps_of(value)
        cases = [steps, steps * 3 + value, -steps, steps ^ value, (steps - 1) ** 2, 55]
        expected = [*cases, value - steps][steps % 7]
        assert got == expected + (steps % 2 if steps % 7 else 0), value


def test_blocks_meet_at_barriers(samples: Module) -> None:
    a = np.arange(1000, dtype=np.int32) ** 2
    out = np.zeros(8, np.int32)
    launch(samples, "block_sum", 8, 128, a, out, 1000)
    same(out, [a[128 * i : 128 * (i + 1)].sum() for i in range(8)])
    rows, mirrored = (
        np.random.default_rng(0).random((3, 100), np.float32),
        np.zeros((3, 100), np.float32),
    )
    launch(samples, "mirror", 3, 100, rows, mirrored, shared=400)
    same(mirrored, np.roll(rows[:, ::-1], -1, axis=1))


def test_warps(samples: Module) -> None:
    block = 64
    a = np.random.default_rng(1).integers(0, 50, 4 * block).astype(np.int32)
    out = np.zeros((13, len(a)), np.int32)
    launch(samples, "warps", 4, block, a, out, len(a))
    warps = a.reshape(-1, 32)
    lanes = np.arange(32)
    same(out[0].reshape(-1, 32), warps[:, lanes // 8 * 8 + 3])
    same(out[1].reshape(-1, 32), warps[:, np.where(lanes >= 2, lanes - 2, lanes)])
    same(out[2].reshape(-1, 32), warps[:, np.where(lanes % 16 < 11, lanes + 5, lanes)])
    odd = warps % 2 == 1
    ballot = (odd * (np.uint32(1) << lanes.astype(np.uint32))).sum(1, dtype=np.uint32)
    same(out[3].reshape(-1, 32), ballot.view(np.int32)[:, None])
    same(out[4].reshape(-1, 32), ((warps == 7).any(1) + 2)[:, None])
    blocks = a.reshape(-1, block)
    same(out[5].reshape(-1, block), (blocks % 2).sum(1)[:, None])
    same(out[6].reshape(-1, block), ((blocks == 7).any(1) + 2)[:, None])
    same(out[7].reshape(-1, 32), warps[:, lanes ^ 9])
    if out[8].any():  # sm_80 and newer
        same(out[8].reshape(-1, 32), warps.sum(1)[:, None])
        same(out[9].reshape(-1, 32), warps.max(1)[:, None])
    alike = warps[:, :, None] % 4 == warps[:, None, :] % 4
    same(
        out[10].reshape(-1, 32),
        (alike * (np.uint32(1) << lanes.astype(np.uint32))).sum(2, dtype=np.uint32).view(np.int32),
    )
    same(out[11].reshape(-1, 32), np.where(odd, odd.sum(1)[:, None], 0))
    same(out[12].reshape(-1, 32), np.where(odd, warps[np.arange(8), odd.argmax(1)][:, None], 0))


def test_matrices_of_a_warp(samples: Module) -> None:
    """The PTX ISA: lane i's register m holds numbers 2 (i % 4) and the next of row i / 4."""
    if ".target sm_90" not in samples.program.lines:
        pytest.skip("stmatrix came with sm_90")
    random = np.random.default_rng(3)
    held = random.integers(0, 2**32, (4, 32), np.uint32)
    place = random.permutation(32).astype(np.int32)
    stored, loaded = np.zeros((6, 32), np.uint32), np.zeros((3, 32), np.uint32)
    launch(samples, "matrices", 1, 32, held, place, stored, loaded)

    def number(register: np.ndarray, row: int, column: int) -> int:
        return int(register[4 * row + column // 2]) >> 16 * (column % 2) & 0xFFFF

    rows = stored[:4].reshape(-1).view(np.uint16).reshape(32, 8)
    upright = stored[4:].reshape(-1).view(np.uint16).reshape(2, 8, 8)
    for row, column in np.ndindex(8, 8):
        for matrix in range(4):
            value = number(held[matrix], row, column)
            assert rows[place[8 * matrix + row], column] == value
        for matrix in range(2):
            assert number(loaded[1 + matrix], column, row) == number(held[matrix], row, column)
            assert upright[matrix, column, row] == number(held[2 + matrix], row, column)
    same(loaded[0], held[0])


def test_atomics(samples: Module) -> None:
    a = np.random.default_rng(2).integers(0, 1000, 300).astype(np.int32)
    ints = np.zeros(16 + 300, np.uint32)
    ints[10] = 2**32 - 1
    longs, sums = np.zeros(1, np.uint64), np.zeros(1, np.float32)
    launch(samples, "atomics", 3, 128, a, ints, longs, sums, 300)
    same(ints[:8], np.bincount(a & 7, minlength=8))
    same(ints[8:11], [300, a.max(), a.min()])
    assert ints[11] == np.bitwise_or.reduce(np.uint32(1) << (a & 31).astype(np.uint32))
    assert ints[12] == 300 and ints[13] == a[0] + 1
    same(np.sort(ints[16:]), np.sort(a))
    assert longs[0] == int(a.sum()) << 20 and sums[0] == 75


def test_spaces_and_calls(samples: Module) -> None:
    values = np.random.default_rng(3).random((70, 4), np.float32)
    out, called = np.zeros(70, np.float32), np.zeros(70, np.int32)
    four = struct.pack("<Qif", values.ctypes.data, 70, 0.5)
    given = [four, *(struct.pack("<Q", each.ctypes.data) for each in (out, called))]
    memory = [(each.ctypes.data, each.nbytes) for each in (values, out, called)]
    samples.launch("spaces", (2,), (64,), 0, [*given, struct.pack("<i", 3)], memory)
    own = np.float32(0.5) * (np.arange(70) % 8).astype(np.float32)
    x, y, z, w = values.T
    same(out, x + y * np.float32(2) + z * np.float32(3) + w * np.float32(4) + own)
    table = [5, 4, 3, 2, 1, 0]
    result = [table[i % 6] if i % 3 == 0 else 2 * i for i in range(71)]
    same(called, [result[i] + result[i + 1] for i in range(70)])


# Arithmetic that nvcc makes no use of here
