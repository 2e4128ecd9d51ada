"""Where bench_device.py runs."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cuda",
        help="where bench_device.py runs; cpu only checks that the suite is whole",
    )
