"""Numbers that the interpreter's tests compute with, and how they compare results."""

from __future__ import annotations

from typing import Any

import numpy as np


def same(result: np.ndarray, expected: Any) -> None:
    """Bit for bit, but for what NaNs carry."""
    expected = np.broadcast_to(np.asarray(expected), result.shape).astype(result.dtype)
    if result.dtype.kind == "f":
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(result), nan)
        bits = f"u{result.dtype.itemsize}"
        np.testing.assert_array_equal(result.view(bits)[~nan], expected.view(bits)[~nan])
    else:
        np.testing.assert_array_equal(result, expected)


def integers(dtype: type, seed: int) -> np.ndarray:
    """The edges of a type, small numbers and random bits."""
    info, random = np.iinfo(dtype), np.random.default_rng(seed)
    edges = [0, 1, -1, 2, 7, -7, 31, 33, info.min, info.max, info.min + 1, info.max - 1]
    edges = [random.choice(edges) for _ in range(100)]
    small = random.integers(-100, 100, 100)
    return np.concatenate([edges, small, random.integers(info.min, info.max, 100)]).astype(dtype)


def floats(dtype: type, seed: int) -> np.ndarray:
    """Zeros, infinities, NaN, denormals, halves, and random numbers of all sizes."""
    info, random = np.finfo(dtype), np.random.default_rng(seed)
    edges = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, info.tiny, info.smallest_subnormal]
    edges += [info.max, -info.max, 0.5, 1.5, 2.5, -2.5]
    picked = random.choice(np.array(edges, dtype), 100)
    with np.errstate(over="ignore"):
        spread = (random.normal(size=200) * 2.0 ** random.integers(-30, 30, 200)).astype(dtype)
    return np.concatenate([picked, spread])
