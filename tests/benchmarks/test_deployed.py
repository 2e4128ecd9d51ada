"""The table of deployed networks says what its records say."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest


def test_the_report_gives_shares_of_the_dense_networks_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import deployed
    from records import Records

    records = Records(tmp_path / "deployed.json", deployed.KEY, lambda: {"machine": "made up"})
    times = {"dense": 8.0, "any widths": 16.0, "default": 4.0, "latency": 4.4}
    measured = {key: {"milliseconds": time, "macs": 0.5} for key, time in times.items()}
    records.add(("net", "onnxruntime"), measured | {"rival": "why", "errors": [0.01, -0.03, 0.02]})
    deployed.report(argparse.Namespace(results=records.path))
    text = (tmp_path / "deployed.md").read_text()
    assert "| net | 8.00 | 0.50x | 2.00x | fails | 55.0% | 50.0% | 2.0%, 2.0% |" in text
    assert "machine made up" in text
