"""Static quantisation of an ONNX model to int8, by ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from mdcp_fast.deployment.onnx_runtime import feeds_of, onnx_session
from mdcp_fast.deployment.packages import required
from mdcp_fast.modules.calls import as_inputs, tensors_in


def calibration_batches(
    given: Iterable[Any], count: int, batch: int | None
) -> list[tuple[Tensor, ...]]:
    """The tensors of calibration batches, in pieces that the network takes.

    Args:
        given: Batches, as the network takes them; in a pair with labels those are not read.
        count: How many tensors it takes.
        batch: How many samples it takes at a time, where what does not fill that falls off; None:
            any number.

    Raises:
        TypeError, ValueError: These are no such batches, or no sample is left.
    """
    parts = [part for each in given for part in _parts(each, count, batch)]
    if not parts:
        wanted = "some batches" if batch is None else f"batches of at least {batch} samples"
        raise ValueError(f"export: int8: expected {wanted} to calibrate on, got none")
    return parts


def quantize(path: Path, batches: list[tuple[Tensor, ...]]) -> None:
    """Replaces an ONNX model by one whose weights and activations are int8.

    Weights have a scale for each output channel, activations one for each tensor, which the
    smallest and the largest values on the calibration batches give (QDQ, signed, which computes
    without saturation on CPUs with and without VNNI).

    Args:
        path: The model in float32; replaced.
        batches: To calibrate on.
    """
    quantization = required("export", "onnxruntime.quantization", "onnxruntime")
    shapes = required("export", "onnxruntime.quantization.shape_inference", "onnxruntime")
    session = onnx_session(path, threads=0)
    feeds = (
        {name: x.contiguous().numpy() for name, x in feeds_of(session, batch).items()}
        for batch in batches
    )

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    log = logging.getLogger()
    level, prepared = log.level, path.with_name("prepared.onnx")
    log.setLevel(logging.ERROR)  # else advice to do what was just done
    try:
        shapes.quant_pre_process(
            str(path), str(prepared), skip_optimization=True, skip_symbolic_shape=True
        )
        quantization.quantize_static(str(prepared), str(path), Reader(), per_channel=True)
    finally:
        log.setLevel(level)
        prepared.unlink(missing_ok=True)


def _parts(given: Any, count: int, batch: int | None) -> Iterator[tuple[Tensor, ...]]:
    tensors = tensors_in(as_inputs("export: int8", given))
    if len(tensors) == count + 1:
        tensors = tensors[:count]  # labels
    if len(tensors) != count:
        raise ValueError(
            f"export: int8: expected batches of {count} tensors, got one of {len(tensors)}"
        )
    tensors = [tensor.detach().cpu() for tensor in tensors]
    size = batch or max(1, len(tensors[0]))
    for start in range(0, len(tensors[0]) - size + 1, size):
        yield tuple(tensor[start : start + size] for tensor in tensors)
