"""Float instructions, halves of packed ones, and checked division as functions of arrays."""

from __future__ import annotations

import numpy as np
from emulation import ptx_numbers as numbers
from emulation.ptx_memory import Fault
from emulation.ptx_numbers import DTYPES, Array

PACKED = ("f16x2", "bf16x2", "f32x2")


TESTS: dict[str, numbers.Function] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
}


def flushing(function: numbers.Function, result: bool) -> numbers.Function:
    def flush(*inputs: Array) -> Array:
        value = function(*(numbers.flushed(each) for each in inputs))
        return numbers.flushed(value) if result else value

    return flush


def float_arithmetic(
    name: str, modifiers: list[str], kind: str, given: int
) -> tuple[tuple[str, ...], numbers.Function]:
    """Of `given` inputs."""
    mode = next((m for m in modifiers if m in ("rn", "rz", "rm", "rp")), "rn")
    known = {"rn", "rz", "rm", "rp", "ftz", "sat", "approx", "full", "NaN"}
    if set(modifiers) - known:
        raise NotImplementedError(".".join(modifiers))
    count = {"fma": 3, "mad": 3, "add": 2, "sub": 2, "mul": 2, "div": 2, "min": 2, "max": 2}
    count["copysign"] = 2
    inputs = count.get(name, 1)
    if name in ("min", "max"):
        function = numbers.extremum(name, kind, "NaN" in modifiers)
        if given == 3:  # sm_100 and newer
            inputs, of_two = 3, function
            function = lambda a, b, c: of_two(of_two(a, b), c)  # noqa: E731
    elif name in ("neg", "abs"):
        function = sign(name, kind)
    elif name == "copysign":
        function = lambda a, b: np.copysign(b, a)  # noqa: E731
    elif name in ("ex2", "lg2", "tanh", "sin", "cos"):
        if kind != "f32":
            raise NotImplementedError(kind)
        function = numbers.transcendental(name)
    else:
        function = numbers.float_function("fma" if name == "mad" else name, kind, mode)
    if "ftz" in modifiers and kind == "f32":
        function = flushing(function, True)
    if "sat" in modifiers:
        unclipped = function
        function = lambda *values: numbers.saturated(unclipped(*values))  # noqa: E731
    return (kind,) * (1 + inputs), function


def sign(name: str, kind: str) -> numbers.Function:
    if kind != "bf16":
        return np.negative if name == "neg" else np.abs
    if name == "neg":
        return lambda a: a ^ np.uint16(0x8000)
    return lambda a: a & np.uint16(0x7FFF)


def of_halves(
    name: str, modifiers: list[str], kind: str, given: int
) -> tuple[tuple[str, ...], numbers.Function]:
    """Arithmetic on two numbers in one register."""
    kinds, function = float_arithmetic(name, modifiers, kind[:-2], given)
    half = DTYPES[kind[:-2]]
    bits = np.dtype(f"u{half.itemsize}")
    whole = DTYPES[kind]
    shift = whole.type(8 * half.itemsize)

    def run(*inputs: Array) -> Array:
        low = [np.asarray(a).astype(bits).view(half) for a in inputs]
        high = [np.asarray(a >> shift).astype(bits).view(half) for a in inputs]
        results = [np.asarray(function(*each)).view(bits).astype(whole) for each in (low, high)]
        return results[0] | results[1] << shift

    return (kind,) * len(kinds), run


def checked_division(name: str) -> numbers.Function:
    function = numbers.quotient if name == "div" else numbers.remainder

    def divide(a: Array, b: Array) -> Array:
        if np.any(b == 0):
            raise Fault("division of an integer by zero")
        return function(a, b)

    return divide
