"""What cvt does: between floats, between integers, and from one to the other."""

from __future__ import annotations

import numpy as np
from emulation.ptx_numbers import (
    DTYPES,
    Array,
    Function,
    flushed,
    is_float,
    narrowed,
    rounded,
    saturated,
    widened,
)


def conversion(to: str, source: str, modifiers: tuple[str, ...]) -> Function:
    """cvt of one number."""
    rounding = next((m for m in modifiers if m[0] == "r" and m != "relu"), None)
    known = {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "sat", "ftz", "relu"}
    if set(modifiers) - known:
        raise NotImplementedError(".".join(modifiers))
    saturates = "sat" in modifiers
    steps: list[Function] = []
    if "ftz" in modifiers and source == "f32":
        steps.append(flushed)
    if is_float(source) and is_float(to):
        steps += _float_to_float(to, source, rounding, saturates)
        if "ftz" in modifiers and to == "f32":
            steps.append(flushed)
        if "relu" in modifiers:
            zero = 0 if to == "bf16" else DTYPES[to].type(0)
            steps.append(lambda a: np.where(np.signbit(widened(a, to)), a.dtype.type(zero), a))
    elif is_float(source):
        steps.append(_float_to_int(to, source, rounding or "rzi"))
    elif is_float(to):
        steps.append(_int_to_float(to, rounding or "rn"))
        if saturates:
            steps.append(saturated)
    else:
        steps.append(_int_to_int(to, saturates))

    def convert(value: Array) -> Array:
        for step in steps:
            value = step(value)
        return value

    return convert


_TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _float_to_float(to: str, source: str, rounding: str | None, saturates: bool) -> list[Function]:
    steps: list[Function] = []
    if rounding in _TO_WHOLE:
        steps.append(_TO_WHOLE[rounding])
    if to != source:
        mode = rounding if rounding in ("rn", "rz", "rm", "rp") else "rn"
        steps.append(lambda a: narrowed(widened(a, source), to, mode))
    if saturates:
        steps.append(saturated)
    return steps


def _float_to_int(to: str, source: str, rounding: str) -> Function:
    limits = np.iinfo(DTYPES[to])
    whole = _TO_WHOLE[rounding]

    def convert(value: Array) -> Array:
        wide = whole(widened(value, source))
        inside = (wide >= float(limits.min)) & (wide < float(limits.max))
        result = np.where(inside, wide, 0).astype(DTYPES[to])
        result = np.where(wide >= float(limits.max), DTYPES[to].type(limits.max), result)
        return np.where(wide < float(limits.min), DTYPES[to].type(limits.min), result)

    return convert


def _int_to_float(to: str, mode: str) -> Function:
    if to == "bf16":
        return lambda a: narrowed(a.astype(np.float64), to, mode)
    if mode == "rn" and to in ("f32", "f64"):
        return lambda a: a.astype(DTYPES[to])
    return lambda a: rounded(a.astype(np.longdouble), DTYPES[to], mode)


def _int_to_int(to: str, saturates: bool) -> Function:
    dtype = DTYPES[to]
    if not saturates:
        return lambda a: a.astype(dtype)
    limits = np.iinfo(dtype)

    def convert(value: Array) -> Array:
        own = np.iinfo(value.dtype)
        low, high = max(limits.min, own.min), min(limits.max, own.max)
        return np.clip(value, value.dtype.type(low), value.dtype.type(high)).astype(dtype)

    return convert
