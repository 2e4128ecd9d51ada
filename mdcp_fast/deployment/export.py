"""Writes networks for other programs, and checks what was written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from mdcp_fast.deployment.capture import (
    capture,
    copy_on_cpu,
    outputs_of,
    with_batch,
)
from mdcp_fast.deployment.formats import FORMATS, versions_of
from mdcp_fast.deployment.graph_edits import fold_batch_norms
from mdcp_fast.deployment.quantize import calibration_batches, quantize
from mdcp_fast.modules.calls import Inputs, as_inputs, map_tensors, samples_in, tensors_in
from mdcp_fast.modules.files import AnyPath, atomic_write
from mdcp_fast.modules.verification import relative_difference

FormatName: TypeAlias = Literal["onnx", "openvino", "exported_program"]
TOLERANCE = 1e-4  # of the largest output; float32 in another order is off by some 1e-6


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote, and how it differs from the module. Print it.

    Attributes:
        path: The file.
        format: "onnx", "openvino" or "exported_program".
        precision: "float32" (or what the module has), "float16" or "int8".
        dynamic_batch: Whether it takes any number of samples.
        bytes: Size of all files of the network.
        input_shapes: Of the example's tensors.
        folded: How many BatchNorms went into the layers before them.
        calibrated_on: Samples that int8 was calibrated on; otherwise 0.
        difference: Largest absolute difference of an output over the largest absolute value of the
            module's, in the worst of all batches.
        agreement: The share of samples, 0 to 1, whose largest logit is the module's; None where the
            first output is no matrix [samples, classes].
        tolerance: What the difference had to stay below; None for float16 and int8, where it is
            reported alone.
        checked_batches: How many samples the batches had that it was checked with.
        versions: Of the packages that took part.
    """

    path: Path
    format: str
    precision: str
    dynamic_batch: bool
    bytes: int
    input_shapes: tuple[tuple[int, ...], ...]
    folded: int
    calibrated_on: int
    difference: float
    agreement: float | None
    tolerance: float | None
    checked_batches: tuple[int, ...]
    versions: dict[str, str]

    def __str__(self) -> str:
        limit = "reported only" if self.tolerance is None else f"allowed: {self.tolerance:.0e}"
        sizes = " and ".join(map(str, self.checked_batches))
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        lines = [
            f"{self.path}: {self.format}, {self.precision}, {self.bytes / 1e6:.1f} MB",
            f"inputs {shapes}{', any batch size' if self.dynamic_batch else ''}",
            f"{self.folded} BatchNorms folded",
            f"largest difference to the module {self.difference:.1e} of its largest output "
            f"({limit}), in batches of {sizes}",
        ]
        if self.calibrated_on:
            lines.insert(3, f"calibrated on {self.calibrated_on} samples")
        if self.agreement is not None:
            lines.append(f"same largest logit in {self.agreement:.1%} of the samples")
        lines.append(", ".join(f"{name} {version}" for name, version in self.versions.items()))
        return "\n".join(lines)

    def to_json(self) -> str:
        """As `export` writes it beside the file."""
        return json.dumps({**asdict(self), "path": self.path.name}, indent=2) + "\n"


def export(
    model: nn.Module,
    path: AnyPath,
    example: Tensor | tuple[Any, ...] | dict[str, Any],
    *,
    format: FormatName | None = None,
    dynamic_batch: bool = False,
    half: bool = False,
    int8: Iterable[Any] | None = None,
) -> ExportReport:
    """Writes a network to a file for ONNX Runtime, OpenVINO or torch, and checks that file.

    A copy is captured by torch.export in evaluation mode on the CPU. Each BatchNorm is multiplied
    into the layer before it, and all other parameters keep names and values. What was written is
    then run, and compared with the module. It and `<path>.check.json`, which holds the report,
    appear when all is done; after an error nothing does.

    Args:
        model: Any network, dense or pruned; not changed. It may lie on any device.
        path: The file; for OpenVINO a .bin goes with the .xml, and beyond 2 GB a .data with the
            .onnx.
        example: What the network is called with: a tensor, a tuple of arguments or a dict of named
            ones, which may be nested tuples, lists and dicts of tensors. The file takes these
            tensors, and gives those of the output, in the order in which they come.
        format: "onnx" (needs onnx, onnxscript, onnxruntime), "openvino" (openvino) or
            "exported_program" (for torch.export.load); None: by the suffix .onnx, .xml or .pt2.
        dynamic_batch: Leave the size of dimension 0 of all inputs open; then also checked with one
            sample, and with one more than the example's.
        half: float16 inside; inputs and outputs stay float32. OpenVINO compresses the weights, and
            computes in what the device does best.
        int8: Calibration batches for static quantisation, for ONNX alone (OpenVINO reads that,
            too): each as `example`, or (inputs, labels), of which labels are not read.

    Returns:
        The report.

    Raises:
        TypeError: An argument is something else.
        ValueError: The format is unknown, or cannot do what is asked; torch.export cannot capture
            the network; int8 holds nothing.
        ImportError: A package is missing; the message says which.
        RuntimeError: The format cannot express the network, or the file's outputs differ from the
            module's by more than 1e-4 of the largest one. float16 and int8 only report.
        OSError: The file cannot be written.
    """
    path = Path(os.fsdecode(path))
    name, precision = _checked(model, path, format, half, int8)
    inputs = _inputs(example, dynamic_batch)
    writer = FORMATS[name]
    versions = versions_of(writer.packages)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: path: expected a folder that exists, got {path.parent}/")

    calibration = None
    if int8 is not None:
        calibration = calibration_batches(
            [int8] if isinstance(int8, Tensor) else int8,
            len(tensors_in(inputs)),
            None if dynamic_batch else samples_in(inputs),
        )
    copy = copy_on_cpu(model)
    batches = [inputs]
    if dynamic_batch:
        sizes = sorted({1, samples_in(inputs) + 1} - {samples_in(inputs)})
        batches += [with_batch(inputs, size) for size in sizes]
    expected = [outputs_of(copy, batch) for batch in batches]  # before folding changes the copy
    folded: list[int] = []
    captured = capture(copy, inputs, dynamic_batch).edited(
        lambda network: folded.append(fold_batch_norms(network))
    )
    with atomic_write(path) as temporary:
        with _named(f"write {name}"):
            writer.write(captured, temporary, half)
        if calibration is not None:
            with _named("quantise it"):
                quantize(temporary, calibration)
        with _named(f"run the {name} that was written"):
            found = [writer.run(temporary, batch) for batch in batches]
        report = ExportReport(
            path,
            name,
            precision,
            dynamic_batch,
            sum(file.stat().st_size for file in temporary.parent.iterdir()),
            tuple(tuple(tensor.shape) for tensor in tensors_in(inputs)),
            folded[0],
            sum(len(part[0]) for part in calibration or ()),
            max(map(relative_difference, found, expected)),
            _agreement(found, expected),
            TOLERANCE if precision in ("float32", "float64") else None,
            tuple(map(samples_in, batches)),
            versions,
        )
        if report.tolerance is not None and not report.difference <= report.tolerance:
            raise RuntimeError(
                f"export: model: expected the {name} that was written to differ from the module by "
                f"at most {report.tolerance:.0e} of the largest output, got "
                f"{report.difference:.1e}; nothing was kept"
            )
        temporary.with_name(f"{path.name}.check.json").write_text(report.to_json(), "utf-8")
    return report


def _checked(
    model: nn.Module, path: Path, format: str | None, half: bool, int8: Any
) -> tuple[str, str]:
    """The format and the precision."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model: expected a torch.nn.Module, got {type(model).__name__}")
    suffixes = {writer.suffix: name for name, writer in FORMATS.items()}
    if format is None and path.suffix not in suffixes:
        raise ValueError(
            f"export: path: expected one that ends in {', '.join(suffixes)}, or a format, got "
            f"{os.fspath(path)!r}"
        )
    name = suffixes[path.suffix] if format is None else format
    if name not in FORMATS:
        raise ValueError(f"export: format: expected one of {', '.join(FORMATS)}, got {name!r}")
    if path.suffix != FORMATS[name].suffix:
        raise ValueError(
            f"export: path: expected one that ends in {FORMATS[name].suffix} for {name}, got "
            f"{os.fspath(path)!r}"
        )
    if int8 is None:
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return name, "float16" if half else str(own).removeprefix("torch.")
    if half:
        raise ValueError("export: half: expected False together with int8, got True")
    if name != "onnx":
        raise ValueError(
            f"export: int8: expected None for {name}, got batches: export to .onnx, which ONNX "
            "Runtime quantises, and OpenVINO reads as well"
        )
    if isinstance(int8, (str, dict)) or not isinstance(int8, Iterable):
        raise TypeError(f"export: int8: expected an iterable of batches, got {type(int8).__name__}")
    return name, "int8"


def _inputs(example: Any, dynamic_batch: bool) -> Inputs:
    """The example's tensors on the CPU.

    Raises:
        TypeError: There is something else in it.
        ValueError: With a dynamic batch, they have no common number of samples.
    """
    inputs: Inputs = map_tensors(_only_tensors(as_inputs("export", example)), _on_cpu)
    shapes = [list(tensor.shape) for tensor in tensors_in(inputs)]
    if not shapes:
        raise TypeError("export: example: expected at least one tensor, got none")
    if dynamic_batch and len({tuple(shape[:1]) for shape in shapes} | {()}) != 2:
        raise ValueError(
            "export: dynamic_batch: expected an example whose tensors all have the samples along "
            f"dimension 0, got shapes {', '.join(map(str, shapes))}"
        )
    return inputs


def _only_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _only_tensors(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_only_tensors(item) for item in value)
    if isinstance(value, Tensor) or value is None:
        return value
    raise TypeError(
        "export: example: expected tensors, or tuples, lists and dicts of them, got a "
        f"{type(value).__name__}: fix such arguments in a module around the network"
    )


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _agreement(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float | None:
    """The share of samples with the same largest logit."""
    if not all(a and a[0].shape == b[0].shape for a, b in zip(found, expected, strict=True)):
        return None
    ours, theirs = (torch.cat([outputs[0] for outputs in each]) for each in (found, expected))
    if theirs.dim() != 2 or theirs.shape[1] < 2:
        return None
    return float((ours.argmax(1) == theirs.argmax(1)).double().mean())


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors of other libraries, with what was wanted of them."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise RuntimeError(
            f"export: model: expected a network that this format can express, but could not "
            f"{what} ({type(error).__name__}: {said[:500]})"
        ) from error
