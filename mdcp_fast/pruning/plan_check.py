"""The one place that says what a pruning plan may hold; errors name the key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**63 - 1


def check_plan(plan: Any) -> None:
    """Finds a plan's values of the right kinds, in their ranges and in agreement, or raises.

    Args:
        plan: A PruningPlan, which calls this itself.

    Raises:
        ValueError: They are not; the message names the key and says what came.
    """
    for index, axis in enumerate(plan.axes):
        _check_axis(f"axes[{index}]", axis)
    names = [axis.name for axis in plan.axes]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise _wrong("axes", "different names", f"{twice!r} twice")
    for index, fixed in enumerate(plan.fixed):
        _check_text(f"fixed[{index}].name", fixed.name)
        _check_text(f"fixed[{index}].reason", fixed.reason)
        _check_whole(f"fixed[{index}].channels", fixed.channels, 0)
    _check_costs(plan)
    for name, fraction in plan.budget.items():
        _check_number(f"budget.{name}", fraction)
    for index, fitness in enumerate(plan.history):
        _check_number(f"history[{index}]", fitness)
    _check_positions(plan)
    for name in ("multiple", "multiples"):  # which printing counts on
        if name in plan.settings or plan.settings.get("multiple", 1) != 1:
            _check_whole(f"settings.{name}", plan.settings.get(name), 0)


def _wrong(key: str, expected: str, got: object) -> ValueError:
    return ValueError(f"PruningPlan: {key}: expected {expected}, got {got}")


def _check_axis(key: str, axis: Any) -> None:
    _check_text(f"{key}.name", axis.name)
    _check_whole(f"{key}.channels", axis.channels, 1)
    check_rising(f"{key}.kept", axis.kept, axis.channels)
    if axis.clusters is not None:
        for index, label in enumerate(axis.clusters):
            _check_whole(f"{key}.clusters[{index}]", label, 0, axis.channels)
        if len(axis.clusters) != axis.channels:
            expected = f"{axis.channels} numbers, one for each channel"
            raise _wrong(f"{key}.clusters", expected, len(axis.clusters))
    if axis.reason is not None:
        _check_text(f"{key}.reason", axis.reason)
    if not isinstance(axis.rotated, bool):
        raise _wrong(f"{key}.rotated", "true or false", repr(axis.rotated))
    if axis.rotated and axis.kept[-1] != len(axis.kept) - 1:
        raise _wrong(f"{key}.kept", "the first channels of a rotated axis", _some(axis.kept))


def _check_costs(plan: Any) -> None:
    for key, costs in (("costs", plan.costs), ("dense_costs", plan.dense_costs)):
        for name, cost in costs.items():
            _check_whole(f"{key}.{name}", cost, 0, LARGEST + 1)
    if plan.costs.keys() != plan.dense_costs.keys() or not {"macs", "params"} <= {*plan.costs}:
        expected = "macs, params and the names of dense_costs"
        raise _wrong("costs", expected, ", ".join(plan.costs))
    for name in ("macs", "params"):  # measured times may rise where channels go
        if plan.costs[name] > plan.dense_costs[name]:
            expected = f"at most the dense network's {plan.dense_costs[name]}"
            raise _wrong(f"costs.{name}", expected, plan.costs[name])


def _check_positions(plan: Any) -> None:
    for name, dimensions in plan.positions.items():
        shape = plan.shapes.get(name)
        for index, size in enumerate(shape or ()):
            _check_whole(f"shapes.{name}[{index}]", size, 0)
        for dimension, kept in dimensions.items():
            key = f"positions.{name}.{dimension}"
            _check_whole(key, dimension, 0, None if shape is None else len(shape))
            if not isinstance(kept, Tensor) or kept.dtype != torch.int64 or kept.dim() != 1:
                raise _wrong(key, "an int64 tensor of one dimension", type(kept).__name__)
            check_rising(key, kept.tolist(), LARGEST if shape is None else shape[dimension])
    if plan.shapes and plan.shapes.keys() != plan.positions.keys():
        listed = ", ".join(sorted(plan.shapes.keys() ^ plan.positions.keys())[:3])
        raise _wrong("shapes", "the shape of each tensor in positions", f"a difference in {listed}")


def check_rising(key: str, kept: Sequence[Any], bound: int) -> None:
    """Finds positions that rise from 0 to `bound` - 1, at least one, or raises ValueError."""
    for index, position in enumerate(kept):
        _check_whole(f"{key}[{index}]", position, 0, bound)
    if not kept or any(b <= a for a, b in zip(kept, kept[1:], strict=False)):
        raise _wrong(key, "at least one position, in rising order", _some(kept))


def _check_whole(key: str, value: Any, least: int, bound: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(key, "a whole number", repr(value)[:40])
    if value < least or (bound is not None and value >= bound):
        upper = "" if bound is None else f" to {bound - 1}"
        raise _wrong(key, f"a number from {least}{upper}", value)


def _check_number(key: str, value: Any) -> None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not known or not math.isfinite(value):
        raise _wrong(key, "a finite number", repr(value)[:40])


def _check_text(key: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _wrong(key, "text", repr(value)[:40])


def _some(kept: Iterable[Any]) -> str:
    listed = list(kept)
    return f"{listed[:8]}{'...' if len(listed) > 8 else ''}"


def member(key: str, data: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """What a JSON object holds under a name, found of a kind.

    Args:
        key: Where the object is, for the message.
        data: The object.
        name: The name.
        kind: What is wanted.

    Raises:
        ValueError: It is no object, does not have the name, or holds something else there.
    """
    where = f"{key}.{name}" if key else name
    if not isinstance(data, Mapping):
        raise _wrong(key or "text", "an object", type(data).__name__)
    if name not in data:
        raise _wrong(where, "a value", "none")
    value = data[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:  # not isinstance: true is no number
        names = {list: "a list", dict: "an object", str: "text", int: "a whole number"}
        expected = " or ".join(names.get(k, "null or true or false") for k in kinds)
        raise _wrong(where, expected, repr(value)[:40])
    return value
