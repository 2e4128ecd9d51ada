"""Runs networks in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.deployment.onnx_bytes import onnx_bytes
from mdcp_fast.deployment.packages import required

OP = "onnxruntime"


class OnnxRuntime:
    """ONNX Runtime on the CPU, or with its CUDA provider if the inputs lie on a CUDA device."""

    name = "onnxruntime"
    suffixes = (".onnx",)

    def prepare(
        self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `Backend`."""
        required(OP, "onnxruntime")  # before the work
        return self.load(onnx_bytes(OP, model, inputs), inputs, threads=threads)

    def load(
        self, source: str | os.PathLike[str] | bytes, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `FileBackend`."""
        on_cuda = next((x.device for x in inputs if x.is_cuda), None)
        session = onnx_session(source, threads=threads, cuda=on_cuda is not None)
        feeds = feeds_of(session, inputs)
        if on_cuda is None:
            arrays = {name: x.detach().contiguous().numpy() for name, x in feeds.items()}

            def run() -> None:
                session.run(None, arrays)

            return run
        tensors = {name: x.detach().contiguous() for name, x in feeds.items()}
        binding = session.io_binding()
        for name, x in tensors.items():
            kind = x.new_empty(0).cpu().numpy().dtype.type
            binding.bind_input(name, "cuda", x.device.index, kind, tuple(x.shape), x.data_ptr())
        for output in session.get_outputs():
            binding.bind_output(output.name, "cuda", on_cuda.index)

        def run_on_cuda(keep_alive: Any = tensors) -> None:
            session.run_with_iobinding(binding)  # which waits for the device

        return run_on_cuda


def outputs(
    source: str | os.PathLike[str] | bytes, inputs: tuple[Tensor, ...], *, threads: int = 0
) -> list[Tensor]:
    """What an ONNX model puts out, on the CPU. No threads: as many as ONNX Runtime likes."""
    session = onnx_session(source, threads=threads)
    feeds = {name: x.contiguous().numpy() for name, x in feeds_of(session, inputs).items()}
    return [torch.as_tensor(array) for array in session.run(None, feeds)]


def onnx_session(
    source: str | os.PathLike[str] | bytes, *, threads: int, cuda: bool = False
) -> Any:
    """An onnxruntime.InferenceSession whose threads do not spin while they wait.

    Raises:
        ImportError: There is no onnxruntime, or with `cuda` none that has the provider for it.
    """
    runtime = required(OP, "onnxruntime")
    provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
    if provider not in runtime.get_available_providers():
        raise ImportError(
            f"{OP}: expected a build with {provider}, as inputs lie on a CUDA device, got "
            f"{runtime.get_available_providers()}: pip install onnxruntime-gpu"
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = source if isinstance(source, bytes) else os.fspath(source)
    return runtime.InferenceSession(content, options, providers=[provider])


def feeds_of(session: Any, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """A session's inputs by name, from tensors in their order."""
    names = [entry.name for entry in session.get_inputs()]
    if len(names) != len(inputs):
        raise ValueError(
            f"{OP}: inputs: expected {len(names)} tensors ({', '.join(names)}), got {len(inputs)}"
        )
    return dict(zip(names, inputs, strict=True))
