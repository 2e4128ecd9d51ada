"""A backend whose times are known: what tests of latencies run on."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

import mdcp_fast.planning.latency
from mdcp_fast.deployment.timing import measure_in_turns
from mdcp_fast.modules.calls import count_macs


class Known:
    """A call that knows how many milliseconds it takes."""

    def __init__(self, time: float) -> None:
        self.time = time

    def __call__(self) -> None:
        pass

    def milliseconds(self) -> float:
        return self.time


class ByMacs:
    """A network takes a millisecond for a million MACs."""

    def prepare(self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int) -> Known:
        return Known(count_macs(model, inputs) / 1e6)


def time_by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are those of `ByMacs`, and no time is spent on measuring them."""

    def briefly(calls, *, seconds, rounds, cpu):  # type: ignore[no-untyped-def]
        return measure_in_turns(calls, seconds=0, rounds=1, cpu=cpu)

    monkeypatch.setattr(mdcp_fast.planning.latency, "backend", lambda name: ByMacs())
    monkeypatch.setattr(mdcp_fast.planning.latency, "measure_in_turns", briefly)
