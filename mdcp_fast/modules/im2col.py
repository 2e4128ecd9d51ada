"""Layers as matrices: each output is a weight matrix times the patch of the input that it sees.

A convolution, transposed or not and of any number of dimensions, and a linear layer alike. Padding
is part of the patches, so what a border hides is hidden in the matrix form too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VERIFIED = 64  # outputs of a layer that are computed anew, to see whether its matrix form is right


def is_matrix(layer: nn.Module) -> bool:
    """Whether a layer is of a kind that `patches` knows."""
    return isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))


def output_shape(layer: nn.Module, output: Tensor) -> tuple[int, ...]:
    """The positions at which a layer has outputs, sample first: output's shape but its channels."""
    return (
        tuple(output.shape[:-1])
        if isinstance(layer, nn.Linear)
        else (output.shape[0], *output.shape[2:])
    )


def output_rows(layer: nn.Module, output: Tensor, rows: Tensor) -> Tensor:
    """What a layer put out at some positions.

    Args:
        layer: A convolution or a linear layer.
        output: Its output.
        rows: int64 [R], indices into the flattened `output_shape`.

    Returns:
        [R, outputs].
    """
    if isinstance(layer, nn.Linear):
        return output.reshape(-1, output.shape[-1])[rows]
    places = output[0, 0].numel()
    return output.flatten(2)[rows // places, :, rows % places]


def patches(layer: nn.Module, x: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The patches of a layer's input that some of its outputs see.

    Args:
        layer: A convolution or a linear layer.
        x: Its input; convolutions take it with a batch dimension.
        rows: int64 [R], indices into the flattened `shape`, on the device of `x`.
        shape: The layer's `output_shape`.

    Returns:
        [groups, R, inputs of a group x taps], in the order of `as_matrix`.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])[rows].unsqueeze(0)
    convolution: Any = layer
    before = [convolution._reversed_padding_repeated_twice[2 * d] for d in range(len(shape) - 1)]
    if convolution.padding_mode != "zeros":
        padding = convolution._reversed_padding_repeated_twice
        x, before = F.pad(x, padding, mode=convolution.padding_mode), [0] * len(before)
    places = math.prod(shape[1:])
    taps, valid = _taps(convolution, shape[1:], x.shape[2:], before[::-1], rows % places)
    seen = x.flatten(2).transpose(1, 2)[(rows // places).unsqueeze(1), taps]  # [R, taps, channels]
    seen = seen.masked_fill_(~valid.unsqueeze(2), 0)
    return seen.unflatten(2, (convolution.groups, -1)).permute(2, 0, 3, 1).flatten(2)


def _taps(
    convolution: Any,
    outputs: Sequence[int],
    inputs: Sequence[int],
    before: Sequence[int],
    at: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where each tap of an output reads, and whether that is inside the input.

    Args:
        convolution: The layer.
        outputs: Spatial size of the output.
        inputs: Spatial size of the input.
        before: Zeros in front of each dimension of the input.
        at: int64 [R], outputs as flat indices.

    Returns:
        int64 [R, taps], flat indices (0 where outside), and bool [R, taps].
    """
    transposed = isinstance(convolution, nn.modules.conv._ConvTransposeNd)
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


def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as [groups, outputs of a group, inputs of a group x taps]."""
    if isinstance(layer, nn.Linear):
        return weight.unsqueeze(0)
    grouped = weight.unflatten(0, (layer.groups, -1))
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        grouped = grouped.transpose(1, 2)
    return grouped.flatten(2)


def as_weight(layer: nn.Module, matrix: Tensor) -> Tensor:
    """The weight that `as_matrix` makes `matrix` of."""
    if isinstance(layer, nn.Linear):
        return matrix.squeeze(0)
    convolution: Any = layer
    grouped = matrix.unflatten(2, (-1, *convolution.kernel_size))
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        grouped = grouped.transpose(1, 2)
    return grouped.flatten(0, 1)


def is_its_matrix(layer: nn.Module, x: Tensor, output: Tensor) -> bool:
    """Whether the matrix form gives the outputs that the layer gave, at a few places.

    Subclasses may pad in their own way, and hooks may change what comes out.

    Args:
        layer: A convolution or a linear layer.
        x: Its input.
        output: Its output.
    """
    weight: Any = layer.weight
    dimensions = x.dim() if isinstance(layer, nn.Linear) else weight.dim()
    if not x.dim() == output.dim() == dimensions or not output.numel():
        return False
    shape = output_shape(layer, output)
    rows = torch.linspace(0, math.prod(shape) - 1, VERIFIED, device=x.device).long()
    got = output_rows(layer, output, rows).float()
    seen, matrix = patches(layer, x, rows, shape).float(), as_matrix(layer, weight).float()
    expected = (seen @ matrix.transpose(1, 2)).transpose(0, 1).flatten(1)
    if layer.bias is not None:
        expected = expected + layer.bias.float()  # type: ignore[operator]
    if expected.shape != got.shape:
        return False
    # Half precision rounds to a hundredth; a wrong position is off by as much as the outputs.
    smallest = torch.finfo(torch.float32).tiny
    return bool((expected - got).abs().max() <= 0.05 * got.abs().max().clamp_min(smallest))
