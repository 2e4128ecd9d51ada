"""What the layers that write an axis put into its channels: their filters, BatchNorm folded in."""

from __future__ import annotations

import torch
from torch import Tensor

from mdcp_fast.modules.im2col import rows_along
from mdcp_fast.modules.layer_kinds import BATCH_NORM, batch_norm_of, continues_channels
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
        weight = tensor_of(graph.model, place.parameter).detach().to("cpu", torch.float64)
        rows = rows_along(weight, place.dimension)
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
        weight = tensor_of(graph.model, place.parameter)
        if continues_channels(weight, place.dimension):
            continued += product
        else:
            added += product
    if not added.any():
        return continued
    return added * continued if continued.any() else added


def _scale(graph: ChannelGraph, place: ParameterSlice, outputs: int) -> Tensor | None:
    """The scale that BatchNorm gives each position of the weight's outputs; None for none."""
    path = batch_norm_of(graph.model, graph.normalized_by.get(place.parameter))
    scale = None if path is None else BATCH_NORM.scale(graph.model.get_submodule(path))
    # A transposed convolution with groups has several outputs at a position.
    return scale if scale is not None and len(scale) == outputs else None
