"""What all ops share: checks whose errors name op, argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from math import isfinite
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mdcp_fast.ops._native import native

SIMD_LEVELS = ("baseline", "avx2", "avx512")
MAX_DIMENSIONS = 16  # of the points that the native core takes
_PLAIN = {Tensor, torch.nn.Parameter}


def runs_eagerly(tensors: Iterable[Tensor]) -> bool:
    """Whether nobody but the op itself must see its call: no compiler, no mode, no subclass.

    Torch's dispatcher takes longer than an op on little data does. Who calls the op's code past it
    must detach what it returns.
    """
    return (
        not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is None
        and _PLAIN.issuperset(map(type, tensors))
    )


def simd_levels() -> tuple[str, ...]:
    """The instruction sets that this processor can run, lowest first."""
    return SIMD_LEVELS[: native.simd_best() + 1]


def simd_level(op: str, simd: str | None) -> int:
    """The native core's number of an instruction set; None is the best there is."""
    levels = simd_levels()
    if simd is None:
        return len(levels) - 1
    if simd not in levels:
        raise ValueError(
            f"{op}: simd: expected None or one of {', '.join(levels)} (what this processor runs), "
            f"got {simd!r}"
        )
    return levels.index(simd)


def check_kind(
    op: str,
    name: str,
    value: Any,
    dtype: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
    *,
    device: torch.device | None = None,
) -> None:
    """Finds a tensor's type, dtype, shape and device right, or raises; copies nothing.

    Args:
        op: name of the op, for the message.
        name: name of the argument, for the message.
        value: what the caller gave.
        dtype: the dtype wanted, or several that will do.
        shape: the size wanted of each dimension, None where any size will do.
        device: the device wanted, or None for any.

    Raises:
        TypeError: not a tensor, or of another dtype.
        ValueError: another shape, device or layout.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: expected a torch.Tensor, got {type(value).__name__}")
    wanted = dtype if isinstance(dtype, tuple) else (dtype,)
    if value.dtype not in wanted:
        names = " or ".join(str(one) for one in wanted)
        raise TypeError(f"{op}: {name}: expected dtype {names}, got {value.dtype}")
    if value.layout is not torch.strided:
        raise ValueError(f"{op}: {name}: expected a strided tensor, got layout {value.layout}")
    fits = value.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{op}: {name}: expected shape [{sizes}], got {list(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name}: expected a tensor on {device}, got one on {value.device}")


def check_tensor(
    op: str,
    name: str,
    value: Any,
    dtype: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int | None, ...],
    *,
    device: torch.device | None = None,
) -> Tensor:
    """The tensor as its memory is to be read, contiguous, after `check_kind` found it right."""
    check_kind(op, name, value, dtype, shape, device=device)
    contiguous: Tensor = value.detach().resolve_neg().contiguous()
    return contiguous


def check_points(op: str, points: Tensor) -> Tensor:
    """The points made contiguous, after their dtype, shape and device were found right.

    Args:
        op: name of the op, for the message.
        points: what the caller gave; wanted: float32 [N, 1 to 16].

    Raises:
        TypeError: of another dtype.
        ValueError: another shape or device.
    """
    points = check_tensor(op, "points", points, torch.float32, (None, None))
    if not 1 <= points.shape[1] <= MAX_DIMENSIONS:
        raise ValueError(
            f"{op}: points: expected 1 to {MAX_DIMENSIONS} dimensions, "
            f"got shape {list(points.shape)}"
        )
    if points.device.type != "cuda":  # a fake tensor may be there without CUDA in the build
        runs_on_cuda(op, "points", points)
    return points


def check_finite(op: str, name: str, value: Tensor) -> None:
    """Raises ValueError if a NaN or an infinity is in the tensor, naming the first place."""
    if value.device.type == "cpu":
        # Not by torch: its worker threads spin for a while after their work, beside the op's own.
        finite = bool(numpy.isfinite(value.numpy()).all())
    else:
        # A sum is finite only if all its terms are; it costs one pass and no memory.
        finite = isfinite(value.sum(dtype=torch.float64).item())
    if finite:
        return
    bad = (~torch.isfinite(value)).nonzero()
    if len(bad):
        place = bad[0].tolist()
        raise ValueError(
            f"{op}: {name}: expected finite numbers, got {value[tuple(place)].item()} at {place}"
        )


def check_offsets(op: str, name: str, offsets: Any, total: int, of: str) -> Tensor:
    """The bounds of ragged segments, found to start at 0, never fall, and end at `total`.

    Args:
        op: name of the op, for the message.
        name: name of the argument, for the message.
        offsets: int64 [segments + 1], on any device; returned on the CPU.
        total: where the last segment must end.
        of: what `total` counts, for the message ("rows of points").

    Raises:
        TypeError: not a tensor, or not int64.
        ValueError: empty, not starting at 0, decreasing, or not ending at `total`.
    """
    offsets = check_tensor(op, name, offsets, torch.int64, (None,)).cpu()
    if len(offsets) == 0:
        raise ValueError(f"{op}: {name}: expected at least one number, 0, got none")
    values = offsets.numpy()  # scans a few numbers in far less time than a tensor does
    if values[0] != 0:
        raise ValueError(f"{op}: {name}: expected to start at 0, got {values[0]}")
    falls = values[1:] < values[:-1]
    if falls.any():
        at = int(falls.argmax())
        raise ValueError(
            f"{op}: {name}: expected numbers that never decrease, got {values[at]} "
            f"then {values[at + 1]} at {at + 1}"
        )
    if values[-1] != total:
        raise ValueError(
            f"{op}: {name}: expected to end at {total}, the number of {of}, got {values[-1]}"
        )
    return offsets


def runs_on_cuda(op: str, name: str, value: Tensor) -> bool:
    """Whether the op's CUDA kernels are to run, True, or its CPU code.

    Args:
        op: name of the op, for the message.
        name: name of the argument that decides, for the message.
        value: the argument.

    Raises:
        ValueError: a tensor on a device that is neither.
        RuntimeError: a CUDA tensor, where the native core was built without CUDA.
    """
    if value.device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"{op}: {name}: expected a tensor on cpu or cuda, got one on {value.device}"
        )
    if value.device.type == "cuda" and not native.with_cuda:
        raise RuntimeError(
            f"{op}: {name}: got a tensor on {value.device}, but mdcp_fast was built without CUDA. "
            "To mend it: build it again where nvcc is on the PATH, by `MDCP_CUDA=1 pip install "
            "--force-reinstall --no-deps .` in the source tree, or pass the tensors on the CPU."
        )
    return value.device.type == "cuda"


def cuda_tables(write: Callable[[Any, int], int], problem: Any, device: torch.device) -> Tensor:
    """The tables of an op's CUDA kernels, on the device.

    Args:
        write: The native core's function that writes them.
        problem: What it writes them of.
        device: Where the kernels run.

    Returns:
        int64 [numbers].
    """
    tables = torch.empty(write(problem, 0), dtype=torch.int64, device="cpu")
    write(problem, tables.data_ptr())
    return tables.to(device)


def cuda_execution(core: Any, workspace: Tensor, tables: Tensor | None = None) -> Any:
    """How an op's CUDA kernels are run: on the workspace's device, on the current stream there.

    On a CPU tensor the device and the stream are 0: emulated kernels run on those.
    """
    device, stream = 0, 0
    if workspace.device.type == "cuda":
        current = torch.cuda.current_stream(workspace.device)
        device, stream = current.device_index, current.cuda_stream
    return core.CudaExecution(
        tables=0 if tables is None else tables.data_ptr(),
        workspace=workspace.data_ptr(),
        device=device,
        stream=stream,
    )


def triton_kernels(op: str, module: str, argument: str) -> ModuleType:
    """A module of Triton kernels, imported at its first use: CPU tensors do without Triton.

    Args:
        op: name of the op, for the message.
        module: name of the module below mdcp_fast.ops.triton.
        argument: what may be passed on the CPU instead, for the message.

    Raises:
        ImportError: Triton is not installed.
    """
    try:
        return import_module(f"mdcp_fast.ops.triton.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "triton":
            raise
        raise ImportError(
            f"{op}: CUDA tensors need triton, which is not installed. To mend it: "
            f"`pip install triton` (PyTorch's CUDA builds for Linux bring it along), or pass "
            f"{argument} on the CPU."
        ) from error
