"""What `export` writes computes what the module computes, and nothing else is left or changed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast import ExportReport, export
from mdcp_fast.deployment import open_vino
from mdcp_fast.deployment.capture import outputs_of
from mdcp_fast.deployment.formats import FORMATS, Program
from mdcp_fast.modules.verification import relative_difference

SUFFIXES = [".onnx", ".xml", ".pt2"]
PACKAGES = {".onnx": ("onnxscript", "onnxruntime"), ".xml": ("openvino",), ".pt2": ()}


def needs(suffix: str) -> None:
    for package in PACKAGES[suffix]:
        pytest.importorskip(package)


def small() -> nn.Sequential:
    """In training mode, with BatchNorms before and behind a convolution."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
        )  # fmt: skip
        for _ in range(20):
            model(torch.randn(16, 3, 8, 8))
    model[3].eval()
    return model


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(path: Path, *inputs: Tensor) -> list[Tensor]:
    (written,) = (each for each in FORMATS.values() if each.suffix == path.suffix)
    return written.run(path, inputs)


class Nested(nn.Module):
    """Takes nested named arguments, gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, pair: Any, extra: Any = None) -> dict[str, Tensor]:
        left = self.layer(pair[0]) - self.layer(pair[1])
        return {"left": left, "sum": left + extra["shift"]}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_computes_the_same_and_says_so(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    model, path = small(), tmp_path / f"net{suffix}"
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = export(model, path, images(), dynamic_batch=True)
    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    model.eval()
    for count in (1, 5):
        expected = outputs_of(model, (images(count),))
        assert relative_difference(outputs(path, images(count)), expected) < 1e-5
    assert isinstance(report, ExportReport) and report.difference < 1e-5
    assert (report.folded, report.agreement, report.checked_batches) == (1, 1.0, (2, 1, 3))
    assert report.precision == "float32" and report.tolerance == 1e-4
    files = {path.name, f"{path.name}.check.json", *(["net.bin"] if suffix == ".xml" else [])}
    assert set(os.listdir(tmp_path)) == files
    written = json.loads((tmp_path / f"{path.name}.check.json").read_text())
    assert written == {**json.loads(report.to_json())} and written["input_shapes"] == [[2, 3, 8, 8]]
    assert set(written["versions"]) == {"torch", *FORMATS[report.format].packages}
    assert report.bytes == sum(
        (tmp_path / name).stat().st_size for name in files if not name.endswith(".json")
    )
    if suffix != ".xml":  # what nothing is folded into keeps name and values
        found = parameters(path)
        assert torch.equal(found["6.weight"], before["6.weight"])
        assert "1.weight" in found and "2.weight" not in found
    for word in ("float32", "any batch size", "1 BatchNorms folded", "allowed: 1e-04", "100.0%"):
        assert word in str(report)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_is_smaller_and_takes_float32(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 5))
    half = export(model, tmp_path / f"half{suffix}", images(), half=True)
    assert half.precision == "float16" and half.tolerance is None
    assert 0 < half.difference < 1e-2 and "reported only" in str(half)
    assert half.bytes < 0.75 * sum(4 * parameter.numel() for parameter in model.parameters())
    (found,) = outputs(half.path, images())
    assert found.dtype is torch.float32


def test_int8_is_calibrated_without_labels(tmp_path: Path) -> None:
    needs(".onnx")
    model, path = small(), tmp_path / "net.onnx"
    batches = [(images(7), torch.zeros(7)), (images(4), torch.zeros(4))]
    report = export(model, path, images(), int8=batches)
    assert report.precision == "int8" and report.tolerance is None
    assert report.calibrated_on == 10  # the file takes two at a time: one is left
    assert 1e-5 < report.difference < 0.1 and "calibrated on 10 samples" in str(report)
    assert set(os.listdir(tmp_path)) == {"net.onnx", "net.onnx.check.json"}
    expected = outputs_of(model.eval(), (images(),))
    assert relative_difference(outputs(path, images()), expected) < 0.1
    content = path.read_bytes()
    assert b"QuantizeLinear" in content and b"DequantizeLinear" in content
    pytest.importorskip("openvino")
    assert relative_difference(open_vino.outputs(path, (images(),)), expected) < 0.1


def parameters(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pt2":
        return torch.export.load(path).state_dict
    from onnx import load, numpy_helper

    written = load(str(path)).graph.initializer
    return {entry.name: torch.tensor(numpy_helper.to_array(entry)) for entry in written}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nested_inputs_and_outputs_come_in_their_order(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    left, right, shift = images(9).view(3, 3, -1, 3)[:, :, 0]
    example = {"pair": (left, right), "extra": {"shift": torch.ones(4) + shift[:, :1]}}
    path = tmp_path / f"nested{suffix}"
    report = export(Nested(), path, example)
    assert report.input_shapes == ((3, 3), (3, 3), (3, 4)) and report.agreement == 1.0


def test_a_module_is_exported_from_anywhere_with_any_dtype(tmp_path: Path) -> None:
    """Frozen, made in inference mode, in float64 and bfloat16."""
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, None)):
        x = torch.ones(2, 3, dtype=dtype)
        report = export(model.to(dtype), tmp_path / "net.pt2", x)
        assert report.precision == str(dtype).removeprefix("torch.")
        assert report.tolerance == tolerance


def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("the older one")

    def wrong(self: Any, path: Path, inputs: Any) -> list[Tensor]:
        return [torch.full((2, 5), float("nan"))]

    monkeypatch.setattr(Program, "run", wrong)
    with pytest.raises(RuntimeError, match="at most 1e-04 of the largest output, got inf"):
        export(small(), path, images())
    assert os.listdir(tmp_path) == ["net.pt2"] and path.read_text() == "the older one"

    def broken(self: Any, *arguments: Any) -> None:
        raise KeyError("no such operator")

    monkeypatch.setattr(Program, "write", broken)
    with pytest.raises(RuntimeError, match="could not write exported_program .*no such operator"):
        export(small(), path, images())
    assert os.listdir(tmp_path) == ["net.pt2"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime", "openvino"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix = ".xml" if package == "openvino" else ".onnx"
    for other in PACKAGES[suffix]:
        if other != package:
            pytest.importorskip(other)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"export: expected the package {package}.*pip install"):
        export(small(), tmp_path / f"net{suffix}", images())
    assert not os.listdir(tmp_path)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "model: expected a torch.nn.Module, got dict", {"model": {}}),
        (TypeError, "example: expected tensors, .* got a int", {"example": (images(), 3)}),
        (TypeError, "example_inputs: expected a tensor.* got str", {"example": "x"}),
        (TypeError, "example: expected at least one tensor", {"example": ()}),
        (ValueError, "path: expected one that ends in .onnx, .xml, .pt2", {"path": "net.pt"}),
        (ValueError, "ends in .onnx for onnx, got 'net.pt2'", {"format": "onnx"}),
        (ValueError, "format: expected one of onnx, .* got 'tflite'", {"format": "tflite"}),
        (ValueError, "int8: expected None for exported_program", {"int8": [images()]}),
        (TypeError, "int8: expected an iterable of batches", {"int8": 8, "path": "net.onnx"}),
        (ValueError, "half: expected False together", {"int8": [images()], "half": True}),
        (
            ValueError,
            r"samples along dimension 0, got shapes \[2, 3, 8, 8\], \[3\]",
            {"example": (images(), torch.ones(3)), "dynamic_batch": True},
        ),
        (ValueError, "model: expected a network that torch.export can", {"model": Branching()}),
        (FileNotFoundError, "path: expected a folder that exists", {"path": "none/net.pt2"}),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    error: type[Exception],
    message: str,
    change: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"model": small(), "path": "net.pt2", "example": images(), **change}
    with pytest.raises(error, match=message):
        export(**arguments)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "expected batches of at least 2 samples to calibrate on, got none"),
        ([images(1)], "expected batches of at least 2 samples to calibrate on, got none"),
        ([(images(), images(), images())], "expected batches of 1 tensors, got one of 3"),
    ],
)
def test_int8_needs_samples(batches: Any, message: str, tmp_path: Path) -> None:
    needs(".onnx")
    with pytest.raises(ValueError, match=message):
        export(nn.Conv2d(3, 2, 1), tmp_path / "net.onnx", images(), int8=batches)
    assert not os.listdir(tmp_path)
