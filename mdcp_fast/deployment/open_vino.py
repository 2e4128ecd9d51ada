"""Runs networks in OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.deployment.onnx_bytes import onnx_bytes
from mdcp_fast.deployment.packages import required

OP = "openvino"


class OpenVino:
    """OpenVINO on the CPU, computing in float32 as the other backends do."""

    name = "openvino"
    suffixes = (".xml", ".onnx")

    def prepare(
        self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `Backend`."""
        required(OP, "openvino")  # before the work
        _on_cpu(inputs)
        # By way of ONNX, which takes OpenVINO milliseconds to read; to convert a module, a second.
        return self.load(onnx_bytes(OP, model, inputs), inputs, threads=threads)

    def load(
        self, source: str | os.PathLike[str] | bytes, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `FileBackend`."""
        _on_cpu(inputs)
        compiled = compiled_model(source, inputs, threads=threads)
        request = compiled.create_infer_request()
        runtime = required(OP, "openvino")
        for index, x in enumerate(inputs):
            array = x.detach().contiguous().numpy()
            request.set_input_tensor(index, runtime.Tensor(array, shared_memory=True))

        def run() -> None:
            request.infer()

        return run


def outputs(
    source: str | os.PathLike[str] | bytes, inputs: tuple[Tensor, ...], *, threads: int = 0
) -> list[Tensor]:
    """What a network puts out. No threads: as many as OpenVINO likes."""
    compiled = compiled_model(source, inputs, threads=threads)
    found = compiled([x.detach().contiguous().numpy() for x in inputs])
    return [torch.tensor(found[index]) for index in range(len(compiled.outputs))]


def compiled_model(
    source: str | os.PathLike[str] | bytes, inputs: tuple[Tensor, ...], *, threads: int
) -> Any:
    """An openvino.CompiledModel for the CPU and for inputs of this shape.

    Raises:
        ImportError: There is no openvino.
        ValueError: The network has another number of inputs.
    """
    core = _core()
    model = core.read_model(source if isinstance(source, bytes) else os.fspath(source))
    if len(model.inputs) != len(inputs):
        raise ValueError(f"{OP}: inputs: expected {len(model.inputs)} tensors, got {len(inputs)}")
    if model.is_dynamic():
        model.reshape({entry: list(x.shape) for entry, x in zip(model.inputs, inputs, strict=True)})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return core.compile_model(model, "CPU", settings)


@cache
def _core() -> Any:
    return required(OP, "openvino").Core()


def _on_cpu(inputs: tuple[Tensor, ...]) -> None:
    device = next((x.device for x in inputs if x.device.type != "cpu"), None)
    if device is not None:
        raise ValueError(f"{OP}: inputs: expected tensors on the CPU, got one on {device}")
