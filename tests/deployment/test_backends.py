"""Every backend runs a network once per call, with the network's own outputs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.deployment import onnx_bytes, onnx_runtime, open_vino
from mdcp_fast.deployment.backends import BACKENDS, FileBackend, backend
from mdcp_fast.deployment.timing import measure_in_turns

BASH = shutil.which("bash")
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)
        )
        model[1].running_mean.normal_()
    return model.train()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_a_call_runs_and_leaves_the_network_alone(name: str) -> None:
    pytest.importorskip(PACKAGES.get(name, "torch"))
    model, x = small(), images().to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert backend(name).name == name
    call = backend(name).prepare(model, (x,), threads=1)
    (found,) = measure_in_turns([call], seconds=0, rounds=2)
    assert found.runs == 2 and found.median > 0
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert call() is None


def test_torch_runs_in_evaluation_mode_with_the_threads_asked_for() -> None:
    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.get_num_threads(), torch.is_grad_enabled()))
            return x

    seen: list[Any] = []
    before = torch.get_num_threads()
    backend("torch").prepare(Spy(), (images(),), threads=before + 1)()
    assert seen == [(False, before + 1, False)] and torch.get_num_threads() == before


def test_torch_compile_compiles_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = small(), []

    def compile(copy: nn.Module, *, dynamic: bool) -> nn.Module:
        compiled.append(copy)
        return copy

    monkeypatch.setattr(torch, "compile", compile)
    backend("torch-compile").prepare(model, (images(),), threads=1)()
    assert len(compiled) == 1 and compiled[0] is not model and not compiled[0].training


def test_onnx_runtime_computes_the_same_from_either_exporter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), images()
    expected = model(x)
    older = onnx_bytes.onnx_bytes("test", model, (x,))
    export = torch.onnx.export

    def newer_only(*arguments: Any, dynamo: bool, **options: Any) -> Any:
        if not dynamo:
            raise TypeError("there is no older exporter")
        return export(*arguments, dynamo=True, **options)

    monkeypatch.setattr(torch.onnx, "export", newer_only)
    for content in (older, onnx_bytes.onnx_bytes("test", model, (x,))):
        session = onnx_runtime.onnx_session(content, threads=1)
        feeds = {k: v.numpy() for k, v in onnx_runtime.feeds_of(session, (x,)).items()}
        assert torch.allclose(torch.from_numpy(session.run(None, feeds)[0]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="inputs: expected 1 tensors .* got 2"):
        onnx_runtime.feeds_of(session, (x, x))


def test_openvino_computes_the_same() -> None:
    pytest.importorskip("openvino")
    model, x = small(), images()
    content = onnx_bytes.onnx_bytes("test", model, (x,))
    compiled = open_vino.compiled_model(content, (x,), threads=1)
    found = torch.from_numpy(compiled([x.numpy()])[0])
    assert torch.allclose(found, model.eval()(x), atol=1e-5)
    with pytest.raises(ValueError, match="inputs: expected 1 tensors, got 2"):
        open_vino.compiled_model(content, (x, x), threads=1)
    with pytest.raises(ValueError, match="expected tensors on the CPU, got one on meta"):
        backend("openvino").prepare(model, (x.to("meta"),), threads=1)


def test_a_network_that_cannot_be_exported_is_named() -> None:
    pytest.importorskip("onnxscript")

    class Whimsical(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("no")

    with pytest.raises(RuntimeError, match="test: model: expected a network that torch.onnx"):
        onnx_bytes.onnx_bytes("test", Whimsical(), (images(),))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"{name}: expected the package {name}.*pip install"):
        backend(name).prepare(small(), (images(),), threads=1)


def test_names() -> None:
    assert [backend(name).name for name in BACKENDS] == list(BACKENDS)
    assert isinstance(backend("openvino"), FileBackend)
    assert not isinstance(backend("torch"), FileBackend)
    with pytest.raises(ValueError, match="backend: name: expected one of torch, .* got 'tvm'"):
        backend("tvm")
    with pytest.raises(TypeError, match="backend: name: expected a string, got int"):
        backend(1)  # type: ignore[arg-type]


# What trtexec 10 prints at the end, shortened.
SAID = """[I] === Performance summary ===
[I] Throughput: 1534.2 qps
[I] Latency: min = 0.641 ms, max = 0.9 ms, mean = 0.65 ms, median = 0.648 ms, percentile(90%) = 0.7
[I] Enqueue Time: min = 0.001 ms, max = 0.01 ms, mean = 0.002 ms, median = 0.002 ms
[I] H2D Latency: min = 0 ms, max = 0 ms, mean = 0 ms, median = 0 ms, percentile(90%) = 0 ms
[I] GPU Compute Time: min = 0.5 ms, max = 0.9 ms, mean = 0.53 ms, median = 0.525 ms, percentile(90%)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "trtexec"
    program.write_text(f"#!{BASH}\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_trtexec_builds_once_and_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "said").write_text(SAID)
    stand_in(
        tmp_path,
        monkeypatch,
        f'echo "$@" >> {tmp_path}/calls; while read -r l; do echo "$l"; done < {tmp_path}/said',
    )
    call = backend("tensorrt").load(b"not really onnx", (), threads=1)
    folder = Path(call.folder.name)
    (found,) = measure_in_turns([call], seconds=0, rounds=2)
    assert (found.median, found.p90, found.runs) == (0.525, 0.525, 2)
    build, *runs = (tmp_path / "calls").read_text().splitlines()
    assert build == (
        f"--onnx={folder}/model.onnx --saveEngine={folder}/model.engine --skipInference"
    )
    assert len(runs) == 3 and all(f"--loadEngine={folder}/model.engine" in run for run in runs)
    del call
    assert not folder.exists()


def test_trtexec_that_is_missing_fails_or_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match="expected trtexec on the PATH"):
        backend("tensorrt").prepare(small(), (images(),), threads=1)
    stand_in(tmp_path, monkeypatch, "echo first; echo no GPU here >&2; exit 3")
    with pytest.raises(RuntimeError, match="failed, and said: no GPU here"):
        backend("tensorrt").load(b"", (), threads=1)
    stand_in(tmp_path, monkeypatch, "echo hello")
    with pytest.raises(RuntimeError, match="expected a line 'GPU Compute Time"):
        backend("tensorrt").load(b"", (), threads=1)()
