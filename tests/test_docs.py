"""The tutorial runs as it stands, and the reference names everything that is public."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import mdcp_fast

PAGES = Path(__file__).parents[1] / "docs"


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (PAGES / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "tutorial.md", "exec"), names)
    assert names["after"] <= 0.4 * names["before"]
    assert names["history"].best_accuracy > 0.9
    assert mdcp_fast.evaluate(names["loaded"], names["test"]) > 0.9


def test_the_reference_names_all_that_is_public() -> None:
    text = (PAGES / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(mdcp_fast.__all__)
