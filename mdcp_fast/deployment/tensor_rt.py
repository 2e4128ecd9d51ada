"""Runs networks in TensorRT, through its command line tool trtexec."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from mdcp_fast.deployment.onnx_bytes import onnx_bytes

OP = "tensorrt"
MEDIAN = re.compile(r"GPU Compute Time:.*?median = ([0-9.eE+-]+) ms")


class TensorRt:
    """TensorRT on the first CUDA device, by trtexec, which must be on the PATH.

    Only ever run against a stand-in that prints what trtexec is known to print, never on hardware.
    """

    name = "tensorrt"
    suffixes = (".onnx",)

    def prepare(
        self, model: nn.Module, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `Backend`. The call is `SelfTimed`; `threads` does not matter."""
        _program()  # before the work
        return self.load(onnx_bytes(OP, model, inputs), inputs, threads=threads)

    def load(
        self, source: str | os.PathLike[str] | bytes, inputs: tuple[Tensor, ...], *, threads: int
    ) -> Callable[[], None]:
        """See `FileBackend`. Shapes must be static."""
        return Engine(source if isinstance(source, bytes) else Path(source).read_bytes())


class Engine:
    """A network that trtexec has built; each call runs it in a process of its own."""

    def __init__(self, model: bytes) -> None:
        self.folder = TemporaryDirectory(prefix="mdcp_fast_tensorrt_")  # goes when this goes
        self.engine = Path(self.folder.name) / "model.engine"
        onnx = Path(self.folder.name) / "model.onnx"
        onnx.write_bytes(model)
        _trtexec(f"--onnx={onnx}", f"--saveEngine={self.engine}", "--skipInference")
        onnx.unlink()

    def __call__(self) -> None:
        self.milliseconds()

    def milliseconds(self) -> float:
        """The median time on the GPU of twenty runs, without the copies to and from it."""
        said = _trtexec(
            f"--loadEngine={self.engine}",
            "--iterations=20",
            "--duration=0",
            "--warmUp=200",
            "--noDataTransfers",
            "--useSpinWait",
        )
        found = MEDIAN.search(said)
        if found is None:
            raise RuntimeError(
                f"{OP}: expected a line 'GPU Compute Time: ... median = ... ms' of trtexec, got "
                f"{said[-300:]!r}"
            )
        return float(found[1])


def _program() -> str:
    program = shutil.which("trtexec")
    if program is None:
        raise ImportError(
            f"{OP}: expected trtexec on the PATH, got none: install TensorRT from NVIDIA (the "
            "package tensorrt of pip comes without trtexec)"
        )
    return program


def _trtexec(*options: str) -> str:
    ended = subprocess.run([_program(), *options], capture_output=True, text=True)
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["nothing"]
        raise RuntimeError(f"{OP}: trtexec {' '.join(options)} failed, and said: {said[-1]}")
    return ended.stdout
