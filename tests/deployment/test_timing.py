"""Calls are timed in turns, and what a Timing says is true of them."""

from __future__ import annotations

import gc
import time

import pytest

from mdcp_fast.deployment import timing
from mdcp_fast.deployment.timing import Timing, measure_in_turns, percentile


def test_calls_take_turns_and_every_second_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def call(name: str, *milliseconds: float):
        left = list(milliseconds)

        def run() -> None:
            order.append(name)
            assert not gc.isenabled()
            clock[0] += left.pop(0) / 1000

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    calls = [call("a", 90, 50, 1, 50, 3, 50, 2), call("b", 90, 50, 7, 50, 7, 50, 7)]
    first, second = measure_in_turns(calls, seconds=0, rounds=3)
    assert order == ["a", "b", *["a", "a", "b", "b"] * 3]
    assert (first.runs, second.runs) == (3, 3) and gc.isenabled()
    assert [first.median, first.p90] == pytest.approx([2, 3])
    assert [second.median, second.p90] == pytest.approx([7, 7])
    assert first.noisy and not second.noisy


def test_it_goes_on_for_the_seconds_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def tenth() -> None:
        clock[0] += 0.1

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    (found,) = measure_in_turns([tenth], seconds=1.5, rounds=1)
    assert found.runs == 8 and found.median == pytest.approx(100)


def test_garbage_collection_is_put_back_when_a_call_fails() -> None:
    def fails() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        measure_in_turns([fails], seconds=0, rounds=1)
    assert gc.isenabled()


def test_a_call_that_times_itself_is_asked() -> None:
    class Elsewhere:
        def __call__(self) -> None:
            pass

        def milliseconds(self) -> float:
            return 4.5

    assert measure_in_turns([Elsewhere()], seconds=0, rounds=2) == [Timing(4.5, 4.5, 2, 4.5)]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.9, 5.0),
        (list(range(1, 11)), 0.9, 9),
        (list(range(1, 12)), 0.9, 10),
        ([2, 1], 0, 1),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="calls: expected at least one, got none"):
        measure_in_turns([], seconds=0, rounds=1)
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        measure_in_turns([lambda: None], seconds=0, rounds=0)
    with pytest.raises(ValueError, match="seconds: expected a finite number .* got -1"):
        measure_in_turns([lambda: None], seconds=-1, rounds=1)
    assert timing.NOISY > 1
