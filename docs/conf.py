"""The site: `sphinx-build -W docs build/site`. Needs the package and its extra `docs` installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mdcp_fast

HERE = Path(__file__).parent
PAGES = ("*.md", "*.svg")  # of the committed results of the benchmarks

project = "mdcp_fast"
author = "The mdcp_fast developers"
release = version = mdcp_fast.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
suppress_warnings = ["myst.header"]


def copy_results() -> None:
    """Pages and figures of benchmarks/results, as they are, below benchmarks/."""
    folder = HERE / "benchmarks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for pattern in PAGES:
        for path in (HERE.parent / "benchmarks/results").glob(pattern):
            shutil.copy(path, folder)


def keep_formulas(
    app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]
) -> None:
    """Bars in docstrings are norms and absolute values, not markup."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Any) -> None:
    copy_results()
    app.connect("autodoc-process-docstring", keep_formulas)
