"""Packages that are needed only for what they do here."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def required(op: str, module: str, package: str | None = None) -> Any:
    """The module, imported.

    Args:
        op: Who asks, for the message.
        module: Its name.
        package: What pip installs it from, where that has another name.

    Raises:
        ImportError: It is not installed; the message says how to change that.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{op}: expected the package {module}, got none that can be imported ({error}): "
            f"pip install {package or module}"
        ) from error
