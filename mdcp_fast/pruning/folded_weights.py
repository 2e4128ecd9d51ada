"""What the layers that write an axis put into its channels: their filters, BatchNorm folded in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdcp_fast.modules.im2col import rows_along
from mdcp_fast.modules.layer_kinds import BATCH_NORM, batch_norm_of, continues_channels
from mdcp_fast.modules.removal import tensor_of
from mdcp_fast.tracing.axes import Axis, ParameterSlice, module_of
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


def dead_channels(graph: ChannelGraph, axis: Axis) -> Tensor:
    """How dead each channel of an axis is: int64 [channels], 0 for one that is not.

    A channel is dead where all filters that write it are zero, BatchNorm's scale folded in: no
    input makes a difference to it. Such channels may still put out a constant, a bias or what
    BatchNorm adds (1); the others put out nothing at all (2).
    """
    added = torch.zeros(axis.channels, dtype=torch.bool)
    cut_off, constant = torch.zeros_like(added), torch.zeros_like(added)
    adders = 0
    for place, rows in zip(axis.producers, folded_weights(graph, axis), strict=True):
        filters = rows.ne(0).any(1)
        if continues_channels(tensor_of(graph.model, place.parameter), place.dimension):
            cut_off |= ~filters
        else:
            added |= filters
            adders += 1
        constant |= _constants(graph, place).ne(0)
    if adders == 0:
        dead = cut_off
    elif adders == 1:
        dead = ~added | cut_off
    else:  # what a depthwise layer cuts off may come by another way
        dead = ~added
    return dead.long() * (2 - constant.long())


def _constants(graph: ChannelGraph, place: ParameterSlice) -> Tensor:
    """What a layer's filters, were they zero, would leave in each channel: its largest entry."""
    path = batch_norm_of(graph.model, graph.normalized_by.get(place.parameter))
    layer = _module_at(graph.model, module_of(place.parameter))
    outputs = int(place.positions.max()) + 1
    left = torch.zeros(outputs, dtype=torch.float64)
    left = left + _numbers(layer, "bias", outputs)
    if path is not None:
        norm = graph.model.get_submodule(path)
        scale = BATCH_NORM.scale(norm)
        if scale is not None and len(scale) >= outputs:
            mean = _numbers(norm, "running_mean", outputs)
            left = (left - mean) * scale[:outputs] + _numbers(norm, "bias", outputs)
    return left[place.positions].abs().amax(1)


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:  # a parameter of the network itself
        return None


def _numbers(module: nn.Module | None, name: str, count: int) -> Tensor:
    """The first numbers of a tensor of a module, zeros where there is none."""
    found = getattr(module, name, None)
    if not isinstance(found, Tensor) or found.dim() != 1 or len(found) < count:
        return torch.zeros(count, dtype=torch.float64)
    return found[:count].detach().to("cpu", torch.float64)


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
