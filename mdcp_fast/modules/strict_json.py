"""JSON that says one thing only, read without what `json.loads` lets pass."""

from __future__ import annotations

import json
import math
from typing import Any

LARGEST = 2**63


def parse(text: str) -> Any:
    """Reads JSON.

    Raises:
        ValueError: It is no JSON; or a key comes twice in an object, a number is NaN, infinite or a
            whole one beyond int64, or objects are nested too deeply.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise ValueError("objects nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} twice in an object")
            seen.add(key)
    return found


def _constant(text: str) -> float:
    raise ValueError(f"the number {text}, which is not finite")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]}, which is not finite")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or not -LARGEST <= int(text) < LARGEST:
        raise ValueError(f"the number {text[:20]}, which is beyond int64")
    return int(text)
