"""The command line's table of networks over backends."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

import mdcp_fast
from mdcp_fast.app import bench
from mdcp_fast.app.bench import BenchRow, run_bench
from mdcp_fast.app.cli import app
from mdcp_fast.deployment import resident_memory
from mdcp_fast.deployment.onnx_bytes import onnx_bytes
from mdcp_fast.deployment.resident_memory import peak_resident
from mdcp_fast.deployment.timing import Timing

QUICK: dict[str, Any] = {"input": "1x8x8", "seconds": 0, "threads": 1}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def measured(*models: str, console: Console | None = None, **options: Any) -> list[BenchRow]:
    console = console or Console(file=open("/dev/null", "w"))  # noqa: SIM115
    return run_bench(models, console=console, **{**QUICK, **options})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of digits-resnet, as `save` writes it."""
    path = tmp_path_factory.mktemp("pruned") / "small.safetensors"
    graph = mdcp_fast.trace(mdcp_fast.make_model("digits-resnet"), torch.zeros(1, 1, 8, 8))
    plan = mdcp_fast.search(graph, macs=0.5, preset="quick")
    mdcp_fast.save(path, mdcp_fast.prune(graph, plan), plan)
    return path


def test_dense_and_pruned_networks_over_backends(pruned: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    written = tmp_path / "net.onnx"
    model = mdcp_fast.make_model("digits-resnet")
    written.write_bytes(onnx_bytes("test", model, (torch.zeros(1, 1, 8, 8),)))
    names = ["digits-resnet", f"{pruned}@digits-resnet", str(written)]
    ended = run(*names, "--input", "1x8x8", "--seconds", 0, "--threads", 1)
    assert ended.exit_code == 0, ended.output
    for word in ("Input 1x1x8x8 on the CPU, 1 thread", "MB on disk", "peak MB", "1.00x"):
        assert word in ended.output
    assert ended.output.count("│ openvino ") == 3 and ended.output.count("│ torch ") == 2

    rows = measured(*names)
    over = [(row.network, row.backend) for row in rows]
    backends = ["torch", "onnxruntime", "openvino"]
    assert over == [(name, each) for name in names for each in backends][:6] + [
        (names[2], "onnxruntime"),
        (names[2], "openvino"),
    ]
    assert all(row.timing.runs >= 5 and row.timing.median > 0 for row in rows)
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert rows[0].disk == dense and rows[3].disk == pruned.stat().st_size < dense
    assert rows[6].disk == written.stat().st_size
    assert all(row.memory is None or row.memory >= 0 for row in rows)


def test_a_backend_that_computes_something_else_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.setitem(bench.OUTPUTS, "onnxruntime", lambda *_: [torch.ones(1, 10)])
    with pytest.raises(RuntimeError, match="that onnxruntime can run .* outputs that differ from"):
        measured("digits-resnet", backends="onnxruntime")


def test_what_is_not_installed_is_left_out_unless_it_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    ended = run("digits-resnet", "--input", "1x8x8", "--seconds", 0)
    assert ended.exit_code == 0 and ended.output.count("Left out: ") == 2
    assert "pip install onnxruntime" in " ".join(ended.output.split())
    ended = run("digits-resnet", "--input", "1x8x8", "--backends", "torch,openvino")
    assert ended.exit_code == 2 and "expected the package openvino" in ended.stderr


@pytest.mark.parametrize("noisy", [True, False])
def test_a_noisy_machine_is_named(noisy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    timings = [Timing(2.0, 5.0 if noisy else 2.2, 9, 1.9)]
    monkeypatch.setattr(bench, "measure_in_turns", lambda calls, **_: timings)
    ended = run("digits-resnet", "--input", "1x8x8", "--backends", "torch", "--threads", 2)
    assert ended.exit_code == 0 and "2 threads" in ended.output
    said = " ".join(ended.output.split())
    assert ("took 2.5 times the median or longer" in said) == noisy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits-resnet", "--input", "8"), "bench: digits-resnet: expected a network that torch"),
        (("digits-resnet", "--input", "1x-8"), "input: expected one sample's sizes .* got '1x-8'"),
        (("digits-resnet", "--batch", 0), "batch: expected at least 1, got 0"),
        (("digits-resnet", "--threads", 0), "threads: expected at least 1, got 0"),
        (("digits-resnet", "--seconds", "inf"), "seconds: expected a finite number"),
        (("digits-resnet", "--backends", "tvm"), "backends: expected some of torch, .* got 'tvm'"),
        (("no-such-net",), "expected one of digits-resnet"),
        (("nowhere.onnx",), "model: expected a file, got 'nowhere.onnx'"),
        (("small.safetensors",), "expected small.safetensors@MODEL, with the network that it was"),
        (("nowhere.safetensors@digits-resnet",), "expected a file written by save"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(
    arguments: tuple[object, ...], message: str
) -> None:
    backends = () if "--backends" in arguments else ("--backends", "torch")
    ended = run(*arguments, *backends)
    assert ended.exit_code == 2
    assert ended.stderr.startswith("mdcp-fast: ") and re.search(message, ended.stderr)
    assert ended.stderr.count("\n") == 1 and "Traceback" not in ended.output


def test_a_file_needs_a_backend_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "net.xml").write_text("")
    with pytest.raises(ValueError, match="backends: expected one that runs .*net.xml, got torch"):
        measured(str(tmp_path / "net.xml"), backends="torch,onnxruntime")


def test_weights_beside_a_file_count(tmp_path: Path) -> None:
    for name in ("a.xml", "a.bin", "b.onnx", "b.onnx.data", "c.onnx"):
        (tmp_path / name).write_text("x")
    found = {n: [p.name for p in bench._with_weights(tmp_path / n)] for n in ("a.xml", "b.onnx")}
    assert found == {"a.xml": ["a.xml", "a.bin"], "b.onnx": ["b.onnx", "b.onnx.data"]}
    assert bench._with_weights(tmp_path / "c.onnx") == [tmp_path / "c.onnx"]


def test_memory_grows_by_what_is_held_or_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 * 2**20
    kept, grown = peak_resident(lambda: torch.ones(size // 4))
    assert grown is None or 0.9 * size < grown < 2 * size
    assert kept.sum() == size // 4

    def unreadable(key: str) -> int:
        raise ValueError(key)

    monkeypatch.setattr(resident_memory, "_status", unreadable)
    assert peak_resident(lambda: 3) == (3, None)
