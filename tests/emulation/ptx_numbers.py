"""The arithmetic of PTX on NumPy arrays: integers wrap, floats round as IEEE 754 says.

bfloat16 has no NumPy type: its arrays are the uint16 of its bits. NaNs that arithmetic makes carry
the payload NumPy gives them, not the GPU's.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Function = Callable[..., Array]

DTYPES: dict[str, np.dtype] = {
    "pred": np.dtype(np.bool_),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16x2": np.dtype(np.uint32),
    "bf16x2": np.dtype(np.uint32),
    "f32x2": np.dtype(np.uint64),
}
for _size in (1, 2, 4, 8):
    DTYPES[f"b{8 * _size}"] = DTYPES[f"u{8 * _size}"] = np.dtype(f"u{_size}")
    DTYPES[f"s{8 * _size}"] = np.dtype(f"i{_size}")

FLOATS = ("f16", "bf16", "f32", "f64")
# Results of these may differ on a GPU, by up to this many units in the last place (or this absolute
# error) according to the PTX manual; here they are rounded correctly.
APPROXIMATE = {
    "div.approx": 2.0,
    "div.full": 2.0,
    "rcp.approx": 1.0,
    "sqrt.approx": 3.0,
    "rsqrt.approx": 4.0,
    "ex2.approx": 4.0,
    "lg2.approx": 4.0,
    "tanh.approx": 5600.0,
    "sin.approx": 2.0**-20,
    "cos.approx": 2.0**-20,
}


def is_float(kind: str) -> bool:
    return kind in FLOATS


# Rounding


def rounded(exact: Array, dtype: np.dtype, mode: str) -> Array:
    """`exact`, of a wider type, to `dtype`: to nearest even (rn), zero (rz), down (rm), up (rp)."""
    nearest = exact.astype(dtype)
    if mode == "rn":
        return nearest
    back = nearest.astype(exact.dtype)
    if mode == "rz":
        return np.where(abs(back) > abs(exact), np.nextafter(nearest, dtype.type(0)), nearest)
    if mode == "rm":
        return np.where(back > exact, np.nextafter(nearest, dtype.type(-np.inf)), nearest)
    return np.where(back < exact, np.nextafter(nearest, dtype.type(np.inf)), nearest)


def _with_odd_bit(truncated: Array, inexact: Array) -> Array:
    bits = truncated.view(f"u{truncated.dtype.itemsize}")
    return (bits | inexact.astype(bits.dtype)).view(truncated.dtype)


def bf16_to_f32(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(value: Array) -> Array:
    """To nearest even."""
    bits = value.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    result = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), result).astype(np.uint16)


def f64_to_bf16(value: Array) -> Array:
    """Through float32 rounded to odd, so that the second rounding cannot err."""
    truncated = np.asarray(rounded(value, DTYPES["f32"], "rz"))
    inexact = (truncated.astype(np.float64) != value) & ~np.isnan(value)
    return f32_to_bf16(_with_odd_bit(truncated, inexact))


def widened(value: Array, kind: str) -> Array:
    """As float64, exactly."""
    return (bf16_to_f32(value) if kind == "bf16" else value).astype(np.float64)


def narrowed(exact: Array, kind: str, mode: str) -> Array:
    """float64 to `kind`, rounded once."""
    exact = np.asarray(exact)
    if kind == "bf16":
        if mode != "rn":
            raise NotImplementedError(f"rounding {mode} to bf16")
        return f64_to_bf16(exact)
    return exact if kind == "f64" else rounded(exact, DTYPES[kind], mode)


def flushed(value: Array) -> Array:
    """float32 denormals to zeros of their sign (.ftz)."""
    tiny = abs(value) < np.float32(2.0**-126)
    return np.where(tiny, np.copysign(np.float32(0), value), value)


def saturated(value: Array) -> Array:
    """Into [0, 1], NaN to 0 (.sat of floats)."""
    clipped = np.clip(value, value.dtype.type(0), value.dtype.type(1))
    return np.where(np.isnan(value), value.dtype.type(0), clipped)


# Float arithmetic


def _sum_to_odd(a: Array, b: Array) -> Array:
    """a + b in float64, rounded to odd: what is rounded again to a narrower type rounds once."""
    total = np.asarray(a + b)
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    inexact = (error != 0) & np.isfinite(total)
    away = inexact & ((error < 0) == (total > 0))
    return _with_odd_bit(np.where(away, np.nextafter(total, 0.0), total), inexact)


_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3
_fma_f64 = np.vectorize(_libm.fma, otypes=[np.float64])


def float_function(name: str, kind: str, mode: str) -> Function:
    """add, sub, mul, fma, div, sqrt, rcp or rsqrt of a float type, in one rounding."""
    if kind in ("f32", "f64") and mode == "rn":
        native = {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "div": np.divide,
            "sqrt": np.sqrt,
            "rcp": lambda a: DTYPES[kind].type(1) / a,
        }
        if name in native:
            return native[name]
    if kind == "f64":
        exact: dict[str, Function] = {
            "fma": _fma_f64,
            "rsqrt": lambda a: (1 / np.sqrt(a.astype(np.longdouble))).astype(np.float64),
        }
        if mode != "rn" or name not in exact:
            raise NotImplementedError(f"{name}.{mode}.f64")
        return exact[name]
    if name in ("div", "sqrt", "rcp", "rsqrt") and mode != "rn":
        raise NotImplementedError(f"{name}.{mode}.{kind}")
    # float64 has more than twice the digits, so division and square root round right twice over.
    of_wide: dict[str, Function] = {
        "add": _sum_to_odd,
        "sub": lambda a, b: _sum_to_odd(a, -b),
        "mul": np.multiply,
        "fma": lambda a, b, c: _sum_to_odd(np.asarray(a * b), c),
        "div": np.divide,
        "sqrt": np.sqrt,
        "rcp": lambda a: 1 / a,
        "rsqrt": lambda a: 1 / np.sqrt(a),
    }
    function = of_wide[name]
    return lambda *inputs: narrowed(
        function(*(widened(value, kind) for value in inputs)), kind, mode
    )


def transcendental(name: str) -> Function:
    """The correctly rounded float32 of an approximate instruction."""
    functions = {"ex2": np.exp2, "lg2": np.log2, "tanh": np.tanh, "sin": np.sin, "cos": np.cos}
    function = functions[name]
    return lambda a: function(a.astype(np.float64)).astype(np.float32)


def extremum(name: str, kind: str, propagate_nan: bool) -> Function:
    """min or max of floats: -0 is below 0; a NaN gives way to a number unless it propagates."""
    pick = {
        ("min", 0): np.fmin,
        ("max", 0): np.fmax,
        ("min", 1): np.minimum,
        ("max", 1): np.maximum,
    }
    function = pick[name, int(propagate_nan)]

    def of_floats(a: Array, b: Array) -> Array:
        result = function(a, b)
        zeros = (a == 0) & (b == 0)
        negative = (
            (np.signbit(a) | np.signbit(b)) if name == "min" else (np.signbit(a) & np.signbit(b))
        )
        zero = np.where(negative, result.dtype.type(-0.0), result.dtype.type(0.0))
        return np.where(zeros, zero, result)

    if kind != "bf16":
        return of_floats
    return lambda a, b: f32_to_bf16(np.asarray(of_floats(bf16_to_f32(a), bf16_to_f32(b))))


def as_ordered(value: Array, name: str, nan_wins: bool) -> Array:
    """float32 to int64 in the same order, -0 below 0; NaN where it wins, or loses, min or max."""
    bits = np.ascontiguousarray(value).view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, ~bits - 2**31, bits)
    extreme = -(2**40) if (name == "min") == nan_wins else 2**40
    return np.where(np.isnan(value), extreme, ordered)


def from_ordered(ordered: Array) -> Array:
    """Back to float32; NaN is the canonical one."""
    bits = np.where(ordered < 0, ~(ordered + 2**31), ordered)
    nan = abs(ordered) == 2**40
    return np.where(nan, 0x7FFFFFFF, bits).astype(np.int32).view(np.float32)


COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def comparison(name: str, kind: str) -> Function:
    """What setp computes. Of floats, eq ... ge are false of NaN and equ ... geu are true of it."""
    if not is_float(kind):
        return COMPARISONS[name]

    def nan(a: Array, b: Array) -> Array:
        return np.isnan(a) | np.isnan(b)

    if name == "nan":
        function: Function = nan
    elif name == "num":
        function = lambda a, b: ~nan(a, b)  # noqa: E731
    elif name.endswith("u"):
        compare = COMPARISONS[name[:-1]]
        function = lambda a, b: compare(a, b) | nan(a, b)  # noqa: E731
    elif name == "ne":
        function = lambda a, b: (a != b) & ~nan(a, b)  # noqa: E731
    else:
        function = COMPARISONS[name]
    if kind != "bf16":
        return function
    return lambda a, b: function(bf16_to_f32(a), bf16_to_f32(b))


# Integers


def multiply_wide(a: Array, b: Array) -> Array:
    """The full product, of twice the width."""
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return np.asarray(a).astype(wide) * np.asarray(b).astype(wide)


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the full product."""
    a, b = np.asarray(a), np.asarray(b)
    dtype, bits = a.dtype, 8 * a.dtype.itemsize
    if bits < 64:
        wide = multiply_wide(a, b)
        return (wide >> wide.dtype.type(bits)).astype(dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    x, y = a.astype(np.uint64), b.astype(np.uint64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.astype(dtype)


def quotient(a: Array, b: Array) -> Array:
    """Truncated towards zero."""
    down = a // b
    if np.asarray(a).dtype.kind == "u":
        return down
    return down + ((down * b != a) & ((a < 0) != (b < 0))).astype(down.dtype)


def remainder(a: Array, b: Array) -> Array:
    return a - quotient(a, b) * b


def shift_left(a: Array, count: Array) -> Array:
    a, bits = np.asarray(a), 8 * np.asarray(a).dtype.itemsize
    shifted = a << np.minimum(count, np.uint32(bits - 1)).astype(a.dtype)
    return np.where(count < bits, shifted, a.dtype.type(0))


def shift_right(a: Array, count: Array) -> Array:
    a, bits = np.asarray(a), 8 * np.asarray(a).dtype.itemsize
    shifted = a >> np.minimum(count, np.uint32(bits - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count < bits, shifted, a.dtype.type(0))


def population_count(a: Array) -> Array:
    return np.bitwise_count(a).astype(np.uint32)


def leading_zeros(a: Array) -> Array:
    a = np.asarray(a)
    bits = 8 * a.dtype.itemsize
    for step in (1, 2, 4, 8, 16, 32):
        if step < bits:
            a = a | (a >> a.dtype.type(step))
    return np.uint32(bits) - np.bitwise_count(a).astype(np.uint32)


def find_highest(a: Array) -> Array:
    """bfind: the position of the highest bit that differs from the sign, or 2^32 - 1."""
    a = np.asarray(a)
    magnitude = np.where(a < 0, ~a, a).astype(f"u{a.dtype.itemsize}")
    return np.uint32(8 * a.dtype.itemsize - 1) - leading_zeros(magnitude)


def reverse_bits(a: Array) -> Array:
    a = np.asarray(a)
    as_bytes = np.ascontiguousarray(a.byteswap()).view(np.uint8)
    reversed_bytes = np.packbits(np.unpackbits(as_bytes), bitorder="little")
    return reversed_bytes.view(a.dtype).reshape(a.shape)


def extract_field(a: Array, position: Array, length: Array) -> Array:
    """bfe: zero- or sign-extended; bits beyond the register are zeros, or its sign."""
    a, bits = np.asarray(a), 8 * np.asarray(a).dtype.itemsize
    position, length = position & np.uint32(255), length & np.uint32(255)
    spare = np.uint32(bits) - np.minimum(length, np.uint32(bits))
    field = shift_right(shift_left(shift_right(a, position), spare), spare)
    return np.where(length == 0, a.dtype.type(0), field)


def insert_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """bfi: the low `length` bits of a put into b at `position`."""
    a = np.asarray(a)
    position, length = position & np.uint32(255), length & np.uint32(255)
    ones = np.full(np.broadcast(a, length).shape, ~a.dtype.type(0))
    mask = shift_left(~shift_left(ones, length), position)
    return (b & ~mask) | (shift_left(a, position) & mask)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes picked from {b, a}, each whole or as its sign."""
    pool = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.uint32(0)
    for i in range(4):
        pick = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = (pool >> ((pick & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint8)
        sign = np.where(byte >= 128, np.uint8(255), np.uint8(0))
        byte = np.where(pick & np.uint32(8) != 0, sign, byte).astype(np.uint32)
        result = result | byte << np.uint32(8 * i)
    return result


def look_up(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: the bit of `table` that the bits of a, b and c number."""
    result = a & ~a
    for i in range(8):
        if table >> i & 1:
            result = result | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return result


def funnel_shift(direction: str, wraps: bool) -> Function:
    """shf: the upper (l) or lower (r) word of {b, a} shifted."""

    def shift(a: Array, b: Array, count: Array) -> Array:
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        by = (count & np.uint32(31)) if wraps else np.minimum(count, np.uint32(32))
        if direction == "r":
            return (both >> by.astype(np.uint64)).astype(np.uint32)
        return (both << by.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)

    return shift
