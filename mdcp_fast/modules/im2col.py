"""Weights as matrices: each output of a layer is a row times the patch of the input that it sees.

Convolutions, transposed or not and of any number of dimensions. Padding is part of the patches, so
what a border hides is hidden in the matrix form too. `layer_kinds` says which layers have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def patches(
    convolution: Any, x: Tensor, rows: Tensor, shape: Sequence[int], transposed: bool
) -> Tensor:
    """The patches of a convolution's input that some of its outputs see.

    Args:
        convolution: The layer.
        x: Its input, [batch, channels, ...].
        rows: int64 [R], indices into the flattened `shape`, on the device of `x`.
        shape: Batch and spatial size of its output.
        transposed: Whether it is a transposed convolution.

    Returns:
        [groups, R, inputs of a group x taps], in the order of `as_matrix`.
    """
    before = [convolution._reversed_padding_repeated_twice[2 * d] for d in range(len(shape) - 1)]
    if convolution.padding_mode != "zeros":
        padding = convolution._reversed_padding_repeated_twice
        x, before = F.pad(x, padding, mode=convolution.padding_mode), [0] * len(before)
    places = math.prod(shape[1:])
    size = x.shape[2:]
    taps, valid = _taps(convolution, shape[1:], size, before[::-1], rows % places, transposed)
    seen = x.flatten(2).transpose(1, 2)[(rows // places).unsqueeze(1), taps]  # [R, taps, channels]
    seen = seen.masked_fill_(~valid.unsqueeze(2), 0)
    return seen.unflatten(2, (convolution.groups, -1)).permute(2, 0, 3, 1).flatten(2)


def _taps(
    convolution: Any,
    outputs: Sequence[int],
    inputs: Sequence[int],
    before: Sequence[int],
    at: Tensor,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """Where each tap of an output reads, and whether that is inside the input.

    Args:
        convolution: The layer.
        outputs: Spatial size of the output.
        inputs: Spatial size of the input.
        before: Zeros in front of each dimension of the input.
        at: int64 [R], outputs as flat indices.
        transposed: Whether it is a transposed convolution.

    Returns:
        int64 [R, taps], flat indices (0 where outside), and bool [R, taps].
    """
    places = torch.unravel_index(at, tuple(outputs))
    where = torch.zeros(len(at), 1, dtype=torch.int64, device=at.device)
    valid = torch.ones_like(where, dtype=torch.bool)
    for d, place in enumerate(places):
        stride, size = convolution.stride[d], inputs[d]
        tap = torch.arange(convolution.kernel_size[d], device=at.device) * convolution.dilation[d]
        if transposed:  # output o takes from input i by the tap t with o = i * stride - padding + t
            steps = place.unsqueeze(1) + convolution.padding[d] - tap
            index, inside = steps.div(stride, rounding_mode="floor"), steps % stride == 0
        else:
            index = place.unsqueeze(1) * stride - before[d] + tap
            inside = torch.ones_like(index, dtype=torch.bool)
        inside = inside & (index >= 0) & (index < size)
        where = (where.unsqueeze(2) * size + index.clamp(0, size - 1).unsqueeze(1)).flatten(1)
        valid = (valid.unsqueeze(2) & inside.unsqueeze(1)).flatten(1)
    return where, valid


def as_matrix(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """A convolution's weight as [groups, outputs of a group, inputs of a group x taps]."""
    grouped = weight.unflatten(0, (groups, -1))
    if transposed:
        grouped = grouped.transpose(1, 2)
    return grouped.flatten(2)


def as_weight(matrix: Tensor, kernel_size: Sequence[int], transposed: bool) -> Tensor:
    """The weight that `as_matrix` makes `matrix` of."""
    grouped = matrix.unflatten(2, (-1, *kernel_size))
    if transposed:
        grouped = grouped.transpose(1, 2)
    return grouped.flatten(0, 1)


def taps(weight: Tensor) -> int:
    """At how many places a weight reads each of its inputs."""
    return math.prod(weight.shape[2:])


def rows_along(weight: Tensor, dimension: int) -> Tensor:
    """Everything at each position of a dimension as a row: [positions, numbers]."""
    return weight.movedim(dimension, 0).flatten(1)


def input_columns(weight: Tensor, dimension: int, groups: int, inputs: int) -> Tensor:
    """A weight by what it reads: [groups, outputs of a group, taps, inputs].

    Args:
        weight: [outputs, inputs of a group, ...], or the first two exchanged and a single group.
        dimension: Where inputs lie.
        groups: Of the layer.
        inputs: How many channels a group reads; if fewer than the weight's dimension has, that
            holds a block of as many for each position of a channel, and these count as taps.
    """
    last = weight.movedim(dimension, -1)
    return last.reshape(groups, last.shape[0] // groups, -1, inputs)


def from_input_columns(columns: Tensor, weight: Tensor, dimension: int) -> Tensor:
    """The weight of which `input_columns` makes `columns`, with as many inputs as these have.

    Args:
        columns: [groups, outputs of a group, taps, inputs].
        weight: Of the same shape but for the number of inputs.
        dimension: Where inputs lie.
    """
    others = [size for d, size in enumerate(weight.shape) if d != dimension]
    return columns.reshape(*others, columns.shape[-1]).movedim(-1, dimension)
