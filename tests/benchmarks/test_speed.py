"""The speed benchmark says what it measured: peers that fail, the report, parts of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parts
import pytest
from comparison import interleaved
from records import Records
from speed import KEY
from speed_bars import BARS
from speed_report import MARKS, write_report

ENVIRONMENT = ("machine", "date", "torch", "caches", "simd")


class Clockless:
    """Stands in for pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, run: Callable[[], Any], setup: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            setup()
            run()


def test_a_peer_that_is_missing_or_fails_is_named_and_the_others_are_measured() -> None:
    def missing() -> Callable[[], Any]:
        raise ImportError("No module named 'absent'")

    def failing() -> Callable[[], Any]:
        return lambda: 1 / 0

    benchmark = Clockless()
    peers = {"absent": missing, "broken": failing, "well": lambda: lambda: 3}
    assert interleaved(benchmark, lambda: 2, peers, rounds=4) == {"well": 3}
    assert benchmark.extra_info["peers"].keys() == {"well"}
    assert benchmark.extra_info["peers"]["well"]["rounds"] == 4
    assert benchmark.extra_info["missing"] == {
        "absent": "ImportError: No module named 'absent'",
        "broken": "ZeroDivisionError: division by zero",
    }


def made_records(path: Path) -> Records:
    """k-means, 100 times faster than its peer, and Ward at sizes that double, cost that doubles."""
    records = Records(path, KEY, lambda: dict.fromkeys(ENVIRONMENT, "none"))
    times = {"p20": 0.001, "median": 0.001, "p80": 0.001, "rounds": 3}
    slow = {name: 100 * value for name, value in times.items()}
    peer = "scikit-learn k-means++"
    inertia = {"ours": 9.0, peer: 10.0}
    records.add(
        ("kmeans", "workload[a]", 1),
        {"ours": times, "peers": {peer: slow}, "missing": {"absent": "ImportError: no"}}
        | {"inertia": inertia},
    )
    records.add(
        ("end_to_end", "network[resnet50]", 1),
        {"ours": slow, "peers": {"ours unchecked": times}, "missing": {}},
    )
    for n in (64, 128, 256):
        own = {name: value * n for name, value in times.items()}
        growth = {"of": "n", "at": n, "series": "D = 3"}
        records.add(
            ("ward", f"growth[{n}-3]", 1),
            {"ours": own, "peers": {}, "missing": {}, "growth": growth},
        )
    return records


def test_the_report_is_drawn_from_the_records(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_report(made_records(tmp_path / "results" / "machine.json"), readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| ResNet-50: trace, search, prune | 100 ms |" in text
    assert "| unchecked, 1 thread: 1 ms |" in text
    assert "scikit-learn k-means++ 100" in text and "0.90 of scikit-learn's inertia" in text
    page = (tmp_path / "results" / "machine.md").read_text()
    assert "against scikit-learn's k-means++ | >= 50 times faster | 100 | met |" in page
    assert page.count("not measured") == len(BARS) - 2
    assert "| ward | n, 64 to 256 | D = 3 | 1.00 |" in page
    assert "absent: ImportError: no: kmeans workload[a] (1)" in page
    for name in ("growth", "ratios"):
        assert (tmp_path / "results" / f"machine_{name}.svg").stat().st_size > 0


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(ValueError, match="expected <!-- speed"):
        write_report(made_records(tmp_path / "machine.json"), readme)
    assert readme.read_text() == "nothing here\n"


def test_time_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Work:
        def outer(self) -> None:
            time.sleep(0.02)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.1)

    monkeypatch.setattr(parts, "clock", lambda threads: time.perf_counter)
    with parts.timed([("outer", Work, "outer"), ("inner", Work, "inner")]) as seconds:
        Work().outer()
    assert seconds["inner"] >= 0.1
    assert 0.02 <= seconds["outer"] < seconds["inner"]
