"""Checks what a run of benchmarks/gpu.sh wrote: python tests/gpu_results.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

MOST_FILES, MOST_BYTES = 8, 16 << 20


def main(folder: Path) -> None:
    files = {path.name: path for path in folder.iterdir()}
    assert len(files) <= MOST_FILES, sorted(files)
    assert all(path.stat().st_size <= MOST_BYTES for path in files.values())
    steps = files["steps.txt"].read_text()
    assert steps.count("passed after") >= 7, steps
    for name, least in (("ops.json", 10), ("kmeans.json", 6)):
        benchmarks = json.loads(files[name].read_text())["benchmarks"]
        assert len(benchmarks) >= least, f"{name}: {len(benchmarks)} benchmarks"
        assert all(one["stats"]["median"] > 0 for one in benchmarks)
    parts = json.loads(files["end_to_end.json"].read_text())
    digits, stages, latency = (
        next(part for name, part in parts.items() if kind in name)
        for kind in ("digits", "stages", "latency")
    )
    assert digits["finetuned"] > 0.9 and digits["of the MACs"] <= 0.4
    assert stages["trace"] > 0 and any("dense ms" in str(entry) for entry in latency.values())
    for log in ("tests.log", "bench.log", "build.log"):
        assert files[log].stat().st_size > 0, log
    print(f"{folder}: {len(files)} files, as they should be")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
