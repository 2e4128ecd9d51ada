"""The README's examples run as they stand, but for a download and the size of network and data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from timed import time_by_macs
from torch.utils.data import TensorDataset

README = Path(__file__).parent.parent / "README.md"
SMALLER = {
    'weights="DEFAULT"': "weights=None",
    "resnet50": "resnet18",
    "224, 224": "64, 64",
    "epochs=30": "epochs=1, progress=False",
}


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    text = README.read_text(encoding="utf-8")
    code, method, latency = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 20
    for full, small in SMALLER.items():
        assert full in code
        code = code.replace(full, small)
    monkeypatch.chdir(tmp_path)
    images = torch.randn(16, 3, 64, 64)
    data = TensorDataset(images, torch.arange(16))
    names = {"images": images, "train": data, "validation": data}
    exec(compile(code, str(README), "exec"), names)
    assert names["plan"].macs <= 0.5 * names["graph"].macs
    assert (tmp_path / "small.safetensors").stat().st_size > 0
    dense = sum(parameter.numel() for parameter in names["model"].parameters())
    assert sum(parameter.numel() for parameter in names["small"].parameters()) < dense

    time_by_macs(monkeypatch)
    exec(compile(latency, str(README), "exec"), names)
    assert names["plan"].costs["latency"] <= 0.5 * names["plan"].dense_costs["latency"]

    exec(compile(method, str(README), "exec"), names)
    assert names["plan"].settings["selection"] == "Magnitude"
    norms = names["graph"].weights(names["graph"].axes[1])[0].norm(dim=1)
    first = names["plan"].axes[1]
    assert first.kept == tuple(norms.topk(first.width).indices.sort().values.tolist())
