"""The guard on instruction counts: what it makes of numbers, without valgrind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import instructions
import pytest

RECORDED = {"ward": 1_000_000, "kmeans": 2_000_000}


def line_of(op: str, lines: list[str]) -> str:
    return next(line for line in lines if line.startswith(op))


def test_the_same_counts_pass() -> None:
    result = instructions.compare(RECORDED, RECORDED)
    assert not result.failed and not re.search("FAILED|Renew", "\n".join(result.lines))


@pytest.mark.parametrize(("now", "fails"), [(1_030_000, False), (1_030_001, True)])
def test_it_fails_where_a_count_grew(now: int, fails: bool) -> None:
    result = instructions.compare(RECORDED, RECORDED | {"ward": now})
    assert result.failed is fails
    assert ("FAILED: more than 3% more" in line_of("ward", result.lines)) is fails
    assert "FAILED" not in line_of("kmeans", result.lines)
    assert ("--write" in result.lines[-1]) is fails


def test_it_asks_for_a_new_record_where_a_count_fell() -> None:
    result = instructions.compare(RECORDED, RECORDED | {"ward": 900_000})
    assert not result.failed and result.lines[-1].startswith("Renew the record")
    assert "-10.00%" in line_of("ward", result.lines)


def test_an_op_that_was_never_recorded_fails() -> None:
    result = instructions.compare(RECORDED, RECORDED | {"crowding": 5})
    assert result.failed and "never recorded" in line_of("crowding", result.lines)


def test_an_op_that_is_gone_is_named() -> None:
    result = instructions.compare(RECORDED, {"ward": 1_000_000})
    assert not result.failed and "is gone" in line_of("kmeans", result.lines)


def test_another_compiler_is_skipped_by_name() -> None:
    assert instructions.why_not("g++ 12.2.0", "g++ 12.2.0") is None
    reason = instructions.why_not("g++ 12.2.0", "g++ 14.1.0")
    assert reason and "skipped" in reason and "g++ 12.2.0" in reason and "g++ 14.1.0" in reason


def test_only_own_code_counts_and_no_call_twice() -> None:
    profile = """events: Ir
fl=(unknown)
ob=/build/instructions
fn=measured
0 5
cob=/usr/lib/libm.so.6
cfn=tan
calls=2 0
0 1000
0 7
cfn=other
calls=1 0
0 30
fn=other
0 30
ob=/usr/lib/libm.so.6
fn=tan
0 1000
totals: 1042
"""
    assert instructions.own_instructions(profile, "instructions") == 5 + 7 + 30


def test_the_record_names_its_compiler_and_every_op() -> None:
    recorded = json.loads(instructions.RECORD.read_text())
    source = (instructions.ROOT / "benchmarks" / "speed" / "instructions.cpp").read_text()
    table = source[source.index("const Op kOps[]") :]
    assert "g++" in recorded["compiler"]
    assert list(recorded["instructions"]) == re.findall(r'^    \{"(.+?)",', table, re.MULTILINE)
    assert min(recorded["instructions"].values()) > 10_000


def test_without_its_tools_it_says_so(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, instructions.__file__], env={"PATH": str(tmp_path)}, capture_output=True
    )
    assert result.returncode == 1 and b"expected g++ on the PATH, found none" in result.stderr
