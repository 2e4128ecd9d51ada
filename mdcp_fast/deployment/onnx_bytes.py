"""A network as an ONNX model in memory, quickly."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from mdcp_fast.deployment.packages import required


def onnx_bytes(op: str, model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The network in evaluation mode for inputs of this shape, to be run and thrown away.

    Torch's older exporter takes milliseconds for a layer where the newer one takes a second, and
    both come to the same kernels. What it cannot export, or a torch that no longer has it, goes to
    the newer one.

    Args:
        op: Who asks, for messages.
        model: Not changed.
        inputs: Its arguments.

    Returns:
        A serialised onnx.ModelProto with static shapes.

    Raises:
        ImportError: The newer exporter is needed, and lacks onnx or onnxscript.
        RuntimeError: Neither can export it.
    """
    model = copy.deepcopy(model).eval()
    with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(model, inputs, str(path), dynamo=False)
            return path.read_bytes()
        except Exception:  # whatever the network, or the exporter, raises
            pass
        for module in ("onnx", "onnxscript"):
            required(op, module)
        try:
            program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0]
            raise RuntimeError(
                f"{op}: model: expected a network that torch.onnx.export can write, got "
                f"{type(error).__name__}: {said}"
            ) from error
        assert program is not None
        program.save(str(path), external_data=False)
        return path.read_bytes()
