"""What is public is documented."""

from __future__ import annotations

import inspect

import pytest

import mdcp_fast


@pytest.mark.parametrize("name", mdcp_fast.__all__)
def test_public_names_are_documented(name: str) -> None:
    item = getattr(mdcp_fast, name)
    documentation = inspect.getdoc(item) or ""
    assert len(documentation.splitlines()) > 1
    if inspect.isfunction(item):
        assert "Args:" in documentation
        assert "Returns:" in documentation or inspect.signature(item).return_annotation == "None"
