"""What runs networks, under one interface."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from mdcp_fast.deployment.onnx_runtime import OnnxRuntime
from mdcp_fast.deployment.open_vino import OpenVino
from mdcp_fast.deployment.tensor_rt import TensorRt
from mdcp_fast.deployment.torch_compile import TorchCompile
from mdcp_fast.deployment.torch_eager import TorchEager

BackendName = Literal["torch", "torch-compile", "onnxruntime", "openvino", "tensorrt"]


class Backend(Protocol):
    """Something that runs networks.

    Attributes:
        name: For `backend`.
    """

    name: str

    def prepare(
        self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """Makes a call that runs the network once, and returns when that is done.

        Args:
            model: On the device of the inputs. It is copied, or exported, in evaluation mode, and
                not changed.
            inputs: Its arguments. They are read with every call, and not copied where they are
                contiguous.
            threads: How many threads compute, on the CPU.

        Returns:
            The call. Its first run may take longer.

        Raises:
            ImportError: A package is not installed; the message says which.
            ValueError: The backend does not run on that device.
            RuntimeError: It cannot run this network.
        """


@runtime_checkable
class FileBackend(Backend, Protocol):
    """A backend that reads files.

    Attributes:
        suffixes: Of the files that it reads.
    """

    suffixes: tuple[str, ...]

    def load(
        self, source: str | os.PathLike[str] | bytes, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """As `prepare`, for a network in a file, or for an ONNX model in memory.

        Args:
            source: The file, or its bytes.
            inputs: All tensors that it takes, in the order in which it names them.
            threads: How many threads compute, on the CPU.
        """


BACKENDS: dict[str, Callable[[], Backend]] = {
    "torch": TorchEager,
    "torch-compile": TorchCompile,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "tensorrt": TensorRt,
}


def backend(name: str) -> Backend:
    """The backend of that name: "torch", "torch-compile", "onnxruntime", "openvino" or "tensorrt".

    Raises:
        TypeError: `name` is not a string.
        ValueError: There is none of that name.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend: name: expected a string, got {type(name).__name__}")
    if name not in BACKENDS:
        raise ValueError(f"backend: name: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return BACKENDS[name]()
