"""Loads the native core, `mdcp_fast._native`, and says what to do where that fails."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType


def _load() -> ModuleType:
    try:
        return import_module("mdcp_fast._native")
    except ImportError as error:
        folder = Path(__file__).resolve().parent.parent
        built = sorted(file.name for file in folder.glob("_native.*") if file.suffix != ".pyi")
        python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        if not built:
            cause = f"it was never built: {folder} has no _native module (a source checkout?)"
            cure = "`pip install .` in the checkout, or `python setup.py build_ext --inplace` there"
        elif isinstance(error, ModuleNotFoundError):
            cause = f"it was built for another Python than this {python}: found {', '.join(built)}"
            cure = "install mdcp-fast again with this Python: `pip install --force-reinstall .`"
        else:
            cause = f"{built[0]} does not load on this system: {error}"
            cure = "build it here from source: `pip install --no-binary mdcp-fast mdcp-fast`"
        raise ImportError(
            f"mdcp_fast could not load its native core, because {cause}. To mend it: {cure}."
        ) from error


native = _load()
