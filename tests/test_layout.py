"""Data flows one way: no module imports a later stage; and what is public is documented."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import mdcp_fast

PACKAGE = Path(mdcp_fast.__file__).parent
# Each stage may import those before it, and itself.
STAGES = [
    ["files", "ops", "kernels"],
    ["labels", "removal", "patches"],
    ["axes", "capture", "cost", "verification"],
    ["graph"],
    ["calibration", "folding", "grams", "producers"],
    ["sensitivity", "readings"],
    ["descriptors", "greedy"],
    ["selection"],
    ["compensation", "refit"],
    ["budgets", "evolution", "relaxation", "evaluators", "fitted", "presets"],
    ["search", "plan"],
    ["surgery"],
    ["artifacts"],
    ["evaluation", "objective", "progress", "resume", "recipe", "striding", "finetune"],
    ["models", "data"],
    ["latency", "report", "demo", "cli"],
]
STAGE = {name: number for number, names in enumerate(STAGES) for name in names}


def top(name: str) -> str:
    """The stage's module of a dotted name: mdcp_fast.ops.ward -> ops."""
    return name.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_no_module_imports_a_later_stage(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = (
                [f"{base}.{alias.name}" for alias in node.names] if base == "mdcp_fast" else [base]
            )
        else:
            continue
        for name in names:
            if name.startswith("mdcp_fast.") and not name.startswith("mdcp_fast.__"):
                assert STAGE[top(name)] <= STAGE[own], f"{own} imports {name}"


@pytest.mark.parametrize("name", mdcp_fast.__all__)
def test_public_names_are_documented(name: str) -> None:
    item = getattr(mdcp_fast, name)
    documentation = inspect.getdoc(item) or ""
    assert len(documentation.splitlines()) > 1
    if inspect.isfunction(item):
        assert "Args:" in documentation
        assert "Returns:" in documentation or inspect.signature(item).return_annotation == "None"
