"""The file formats of `export`: how each is written, and run to see whether it is right."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mdcp_fast.deployment import onnx_runtime, open_vino
from mdcp_fast.deployment.capture import Captured, outputs_of
from mdcp_fast.deployment.graph_edits import expand_batch_norms, to_half
from mdcp_fast.deployment.packages import required
from mdcp_fast.modules.calls import Inputs, tensors_in

LARGEST = 2**31 - 2**20  # bytes of an ONNX model in one file, some of which names and graph take


class Format(Protocol):
    """A file format.

    Attributes:
        suffix: Of its files.
        packages: That it needs, as pip knows them, without torch.
    """

    suffix: str
    packages: tuple[str, ...]

    def write(self, captured: Captured, path: Path, half: bool) -> None:
        """Writes the network, and files that go with it beside."""

    def run(self, path: Path, inputs: Inputs) -> list[Tensor]:
        """The outputs of what was written."""


class Onnx:
    suffix = ".onnx"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")

    def write(self, captured: Captured, path: Path, half: bool) -> None:
        if half:
            captured = captured.edited(to_half)
        if torch.__version__.startswith("2.6."):  # its exporter does not get along with BatchNorm
            captured = captured.edited(expand_batch_norms)
        size = sum(tensor.nbytes for tensor in captured.program.state_dict.values())
        with _quiet():
            program = torch.onnx.export(captured.program, dynamo=True, verbose=False)
            assert program is not None
            program.save(str(path), external_data=size > LARGEST)

    def run(self, path: Path, inputs: Inputs) -> list[Tensor]:
        return onnx_runtime.outputs(path, tuple(tensors_in(inputs)))


class OpenVinoIr:
    suffix = ".xml"
    packages: tuple[str, ...] = ("openvino",)

    def write(self, captured: Captured, path: Path, half: bool) -> None:
        openvino = required("export", "openvino")
        with _quiet():
            model = openvino.convert_model(captured.program)
        openvino.save_model(model, str(path), compress_to_fp16=half)

    def run(self, path: Path, inputs: Inputs) -> list[Tensor]:
        return open_vino.outputs(path, tuple(tensors_in(inputs)))


class Program:
    suffix = ".pt2"
    packages: tuple[str, ...] = ()

    def write(self, captured: Captured, path: Path, half: bool) -> None:
        if half:
            captured = captured.edited(to_half)
        torch.export.save(captured.program, path)

    def run(self, path: Path, inputs: Inputs) -> list[Tensor]:
        return outputs_of(torch.export.load(path).module(), inputs)


FORMATS: dict[str, Format] = {
    "onnx": Onnx(),
    "openvino": OpenVinoIr(),
    "exported_program": Program(),
}


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of torch and of those packages, which must all be there.

    Raises:
        ImportError: One is not installed; the message says which.
    """
    for package in packages:
        required("export", package)
    return {package: version(package) for package in ("torch", *packages)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of exporters, which concern their own code."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
