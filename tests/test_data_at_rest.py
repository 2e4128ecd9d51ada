"""Files that were cut, changed or made by others: a clear error, nothing written, nothing run."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mdcp_fast.app.models import load_weights
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.serialization import load, save
from mdcp_fast.tracing.trace import trace
from mdcp_fast.training.finetune import finetune


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10))


IMAGES, LABELS = torch.randn(8, 3, 3, 3), torch.arange(8) % 10
LOADER: DataLoader[Any] = DataLoader(list(zip(IMAGES, LABELS, strict=True)), 4)


def train(model: nn.Module, folder: Path) -> None:
    finetune(model, LOADER, LOADER, epochs=1, checkpoint=folder, progress=False)


class Disk:
    """One file of each kind, with its content and what reads it."""

    def __init__(self, folder: Path) -> None:
        graph = trace(make(), IMAGES[:1], check=False)
        self.plan = PruningPlan.build(graph, [range(0, 24, 2)])
        small = prune(graph, self.plan, check=False)
        save(folder / "small", small, self.plan)
        (folder / "plan.json").write_text(self.plan.to_json())
        torch.save(make().state_dict(), folder / "weights.pt")
        self.trained = make()
        train(self.trained, folder / "run")
        self.paths = [folder / name for name in ("small", "plan.json", "weights.pt")]
        self.paths.append(folder / "run" / "finetune.pt")
        self.whole = {path: path.read_bytes() for path in self.paths}
        self.small = small.eval()

    def read(self, path: Path) -> None:
        """Reads a file; whatever is accepted has to be what was written."""
        if path.name == "small":
            loaded = load(path, make)
            assert torch.equal(loaded(IMAGES), self.small(IMAGES))
        elif path.name == "plan.json":
            PruningPlan.from_json(path.read_bytes().decode(errors="surrogateescape"))
        elif path.name == "weights.pt":
            model = make()
            load_weights(model, path)
            assert all(map(torch.equal, model.state_dict().values(), make().state_dict().values()))
        else:
            model = make()
            train(model, path.parent)
            assert all(map(torch.equal, model.parameters(), self.trained.parameters()))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return Disk(tmp_path_factory.mktemp("disk"))


def refused(disk: Disk, path: Path, content: bytes, known: set[str]) -> None:
    """Either what was written is read, or a ValueError says why not; nothing is left behind."""
    path.write_bytes(content)
    try:
        disk.read(path)
    except ValueError as error:
        assert "expected" in str(error)
    finally:
        assert set(os.listdir(path.parent)) == known
        path.write_bytes(disk.whole[path])


@pytest.mark.parametrize("index", range(4), ids=["network", "plan", "weights", "checkpoint"])
def test_cut_and_changed_files(disk: Disk, index: int) -> None:
    path = disk.paths[index]
    whole, known = disk.whole[path], set(os.listdir(path.parent))
    for end in {0, 1, 7, 8, 9, *range(0, len(whole), max(1024, len(whole) // 8)), len(whole) - 1}:
        refused(disk, path, whole[:end], known)
    generator = random.Random(index)
    for _ in range(25):
        changed = bytearray(whole)
        for _ in range(generator.choice([1, 1, 3])):
            changed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        refused(disk, path, bytes(changed), known)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("index", range(4), ids=["network", "plan", "weights", "checkpoint"])
def test_nothing_in_a_file_is_run(
    disk: Disk, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = disk.paths[index]
    torch.save({"model": Bomb(), "identity": {}, "state": {}, "format": 1}, tmp_path / "bomb")
    for content in (pickle.dumps(Bomb()), (tmp_path / "bomb").read_bytes()):
        refused(disk, path, content, set(os.listdir(path.parent)))
    assert os.listdir(tmp_path) == ["bomb"]


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"../../a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"mdcp_fast.plan": "[" * 10_000}},
        {"__metadata__": {"mdcp_fast.plan": 3}},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        [],
    ],
    ids=str,
)
def test_headers_that_promise_what_is_not_there(disk: Disk, header: Any) -> None:
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + b"\0\0\0\0"
    path = disk.paths[0]
    refused(disk, path, content, set(os.listdir(path.parent)))
    with pytest.raises(ValueError, match="expected"):
        path.write_bytes(content)
        try:
            load(path, make)
        finally:
            path.write_bytes(disk.whole[path])


KILLED = """
import sys, torch
from safetensors.torch import save_model
from torch import nn
from mdcp_fast.modules.files import atomic_write
model = nn.Linear(300, 300)
print("ready", flush=True)
while True:
    with atomic_write(sys.argv[1]) as temporary:
        save_model(model, str(temporary))
"""


def test_kills_leave_whole_files_and_no_parts(tmp_path: Path) -> None:
    """kill -9 at random moments of one write after another."""
    from safetensors.torch import load_file

    path, generator = tmp_path / "net", random.Random(0)
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    killed = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            cwd=tmp_path,
        )
        for _ in range(2)
    ]
    for process in killed:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in killed:
        time.sleep(0.05 + generator.random() / 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert load_file(path)["weight"].shape == (300, 300)
    graph = trace(make(), IMAGES[:1], check=False)
    plan = PruningPlan.build(graph, [range(5)])
    save(path, prune(graph, plan, check=False), plan)
    assert os.listdir(tmp_path) == ["net"]
