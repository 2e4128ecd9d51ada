"""Callables that users name as "module:function"."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def imported(op: str, name: str) -> Callable[..., Any]:
    """The callable that "module:function" names.

    Raises:
        ValueError: There is no such module, or nothing callable of that name in it.
    """
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports itself is not
        raise ValueError(
            f"{op}: name: expected module:function with a module that can be imported, "
            f"got {name!r} ({error})"
        ) from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(
            f"{op}: name: expected a callable {attribute!r} in {module_name}, "
            f"got {'none' if found is None else type(found).__name__}"
        )
    return found
