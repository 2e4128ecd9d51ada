"""Widths that modules of the user's own classes keep as numbers, beside their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mdcp_fast.modules.layer_kinds import MatrixKind, kind_of

# Numbers of this name are what the first layer within reads, or what the last one writes; but for a
# whole network's number of features, which is what its last layer reads.
READ = ("in_channels", "in_features", "in_chs", "in_dim", "input_dim")
WRITTEN = ("out_channels", "out_features", "out_chs", "out_dim", "output_dim")
FEATURES = ("num_features", "head_hidden_size", "feature_dim", "embed_dim", "num_channels")
Kept = Mapping[str, Mapping[int, Tensor]]


def follow_widths(small: nn.Module, dense: nn.Module, kept: Kept) -> None:
    """Sets the numbers of known names that repeat a width to what is left of it."""
    for path, name, width in _shrinking(dense, kept):
        if width is not None:
            setattr(small.get_submodule(path), name, width)


def dense_widths(model: nn.Module, kept: Kept) -> list[str]:
    """Names of the numbers that repeat a width that shrinks, and that do not follow it.

    Args:
        model: The dense network.
        kept: Positions that stay of its parameters and buffers, by dimension.
    """
    found = _shrinking(model, kept)
    return [f"{path}.{name}" if path else name for path, name, width in found if width is None]


def _shrinking(model: nn.Module, kept: Kept) -> Iterator[tuple[str, str, int | None]]:
    """Modules, their numbers that are a width that shrinks, and the new width, where it is sure."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    gone = {tensors[name].shape[d] for name, by in kept.items() if name in tensors for d in by}
    if not gone:
        return
    for path, module in model.named_modules():
        if kind_of(module) is not None:
            continue
        for name, value in vars(module).items():
            if type(value) is not int or value not in gone or name.startswith("_"):
                continue
            prefix = f"{path}." if path else ""
            left = {
                len(kept.get(full, {}).get(d, range(size)))
                for full, tensor in tensors.items()
                if full.startswith(prefix)
                for d, size in enumerate(tensor.shape)
                if size == value
            }
            if left - {value}:
                yield path, name, _known(module, name, value, left, prefix, kept)


def _known(
    module: nn.Module, name: str, value: int, left: set[int], prefix: str, kept: Kept
) -> int | None:
    """The new width of a number of a known name."""
    if name not in (*READ, *WRITTEN, *FEATURES):
        return None
    if len(left) == 1:
        return next(iter(left))
    layers: list[tuple[str, Any, MatrixKind]] = [
        (path, layer, kind)
        for path, layer in module.named_modules()
        if isinstance(kind := kind_of(layer), MatrixKind) and isinstance(layer.weight, Tensor)
    ]
    path, layer, kind = layers[0 if name in READ else -1]
    by = kept.get(f"{prefix}{path}.weight" if path else f"{prefix}weight", {})
    ends = {"read": (kind.input_dimension, kind.inputs(layer))}
    ends["written"] = (kind.output_dimension, layer.weight.shape[kind.output_dimension])
    for end in ("read",) if name in READ else ("written",) if name in WRITTEN else (*ends,):
        dimension, size = ends[end]
        if size == value:
            return len(by.get(dimension, range(size)))
    return None
