"""What the layers that write an axis put into its channels: their filters, BatchNorm folded in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mdcp_fast.modules.removal import tensor_of
from mdcp_fast.tracing.axes import Axis, ParameterSlice
from mdcp_fast.tracing.graph import ChannelGraph


def folded_weights(graph: ChannelGraph, axis: Axis) -> list[Tensor]:
    """The filters of each channel, one matrix for each layer that writes the axis.

    Where a BatchNorm follows a layer directly, its scale gamma / sqrt(variance + eps) is multiplied
    in: filters that differ only by what BatchNorm undoes become equal.

    Returns:
        float64 [channels, numbers] on the CPU.
    """
    matrices = []
    for place in axis.producers:
        weight = graph.model.get_parameter(place.parameter).detach().to("cpu", torch.float64)
        rows = weight.movedim(place.dimension, 0).flatten(1)
        scale = _scale(graph, place, len(rows))
        if scale is not None:
            rows = rows * scale.unsqueeze(1)
        matrices.append(rows[place.positions].flatten(1))
    return matrices


def weight_gram(graph: ChannelGraph, axis: Axis) -> Tensor:
    """Second moments that an axis's channels would have under white inputs of its layers.

    Layers that add up (a residual stream) add up; a depthwise layer, which continues a channel
    rather than adding to it, multiplies the products of filters with its own.

    Returns:
        float64 [channels, channels].
    """
    added = torch.zeros(axis.channels, axis.channels, dtype=torch.float64)
    continued = torch.zeros_like(added)
    for place, rows in zip(axis.producers, folded_weights(graph, axis), strict=True):
        product = rows @ rows.T
        if _depthwise(graph, place):
            continued += product
        else:
            added += product
    if not added.any():
        return continued
    return added * continued if continued.any() else added


def _scale(graph: ChannelGraph, place: ParameterSlice, outputs: int) -> Tensor | None:
    """The scale that BatchNorm gives each position of the weight's outputs; None for none."""
    mean = graph.normalized_by.get(place.parameter)
    if mean is None:
        return None
    norm: Any = graph.model.get_submodule(mean.rpartition(".")[0])
    if norm.running_var is None:
        return None
    scale = (norm.running_var.detach().to("cpu", torch.float64) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().to("cpu", torch.float64)
    return scale if len(scale) == outputs else None  # a transposed convolution with groups


def _depthwise(graph: ChannelGraph, place: ParameterSlice) -> bool:
    weight = tensor_of(graph.model, place.parameter)
    channels, reads = weight.shape[:2]
    return weight.dim() > 2 and reads == 1 and channels > 1 and place.dimension == 0
