"""Options of the suites: where bench_device.py runs, threads of the others, what is left out."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import clock, interleaved
from threadpoolctl import threadpool_limits


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cuda",
        help="where bench_device.py runs; cpu only checks that the suite is whole",
    )
    parser.addoption("--threads", type=int, default=1, help="of ours and of all peers")
    parser.addoption("--quick", action="store_true", help="one round, no slow cases")
    parser.addoption("--measured", type=Path, help="a JSON list of cases that are left out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    measured = config.getoption("--measured")
    known = set(json.loads(measured.read_text())) if measured else set()
    quick = config.getoption("--quick")
    left_out = [
        item
        for item in items
        if item.name in known or (quick and item.get_closest_marker("slow") is not None)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Any:
    """Leaves out what was stopped before its first round, which costs pytest-benchmark its file."""
    benchmarks = getattr(session.config, "_benchmarksession", None)
    if benchmarks is not None:
        benchmarks.benchmarks[:] = [one for one in benchmarks.benchmarks if one.stats.data]
    return (yield)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sets the number of threads, and the clock of the benchmark: see `clock`."""
    count = request.config.getoption("--threads")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    request.node.add_marker(pytest.mark.benchmark(timer=clock(count)))
    with threadpool_limits(count):
        yield count
    torch.set_num_threads(before)


@pytest.fixture
def compare(
    threads: int, benchmark: Any, request: pytest.FixtureRequest
) -> Callable[..., dict[str, Any]]:
    """`interleaved` with this test's benchmark."""
    if request.config.getoption("--quick"):
        return lambda *args, **kwargs: interleaved(benchmark, *args, **kwargs | {"rounds": 1})
    return functools.partial(interleaved, benchmark)
