"""Parts of the README that reports write."""

from __future__ import annotations

import re
from pathlib import Path


def write_between(readme: Path, marks: tuple[str, str], text: str) -> None:
    """Replaces what stands between two marks of a README.

    Args:
        readme: The file.
        marks: Lines that stay, before and after.
        text: What is to stand between them.

    Raises:
        ValueError: The README lacks the marks.
    """
    before, (begin, end) = readme.read_text(encoding="utf-8"), marks
    if begin not in before or end not in before:
        raise ValueError(f"expected {begin} and {end} in {readme}")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    after = pattern.sub(lambda _: f"{begin}\n{text}\n{end}", before)
    readme.write_text(after, encoding="utf-8")
