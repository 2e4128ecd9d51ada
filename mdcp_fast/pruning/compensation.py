"""Recovers accuracy without labels, layer by layer: ridge compensation.

Every layer is looked at as in the dense network, as if nothing had changed before it; `refit` takes
account of that.

Ridge compensation: on calibration batches the dense network's inputs x of a layer that lost input
channels give their Gram matrix G. The lost channels D are predicted from the kept ones K by ridge
regression, x_D = B x_K with B = G_DK (G_KK + lam I)^-1, and the layer's weight takes that over:
W_K + W_D B. Where the layer has a bias or a BatchNorm right behind it, the regression is centred
and the mean goes there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.modules.im2col import from_input_columns
from mdcp_fast.modules.removal import Positions, kept_tensor, tensor_of
from mdcp_fast.pruning.input_moments import Consumer, absorbs_mean, collect_grams
from mdcp_fast.pruning.ridge import predictors
from mdcp_fast.tracing.graph import ChannelGraph


def _absorbed(
    consumer: Consumer, kept: Tensor, weight: Tensor, centred: bool
) -> tuple[Tensor, Tensor]:
    """The compensated weight, and what it lacks on average, summed over its taps.

    Args:
        consumer: What its layer reads.
        kept: int64, positions that stay along its input dimension.
        weight: The dense weight of the outputs that stay.
        centred: Whether its mean can be added behind the layer.

    Returns:
        `weight` with only the kept input positions; float64 [outputs].
    """
    gram, mean = consumer.moments(centred)
    groups, channels, _ = gram.shape
    kept = consumer.channels(kept).to(gram.device)
    gone = torch.ones(channels, dtype=torch.bool, device=gram.device)
    gone[kept] = False
    lost = gone.nonzero().flatten()
    predict = predictors(gram, kept, lost)  # [groups, lost, kept]

    dtype = torch.promote_types(weight.dtype, torch.float32)
    from_lost = consumer.columns(weight, lost, groups).to(dtype)
    adapted = consumer.columns(weight, kept, groups).to(dtype)
    adapted = adapted + from_lost @ predict.to(dtype).unsqueeze(1)
    residual = mean[:, lost] - (predict @ mean[:, kept].unsqueeze(2)).squeeze(2)
    shift = torch.einsum("gol,gl->go", from_lost.sum(2).double(), residual).flatten()
    if consumer.blocks is not None:
        order = consumer.blocks[kept.cpu()].T.flatten().argsort()
        matrix = adapted.flatten(0, 1).flatten(1)  # [outputs, positions of kept channels]
        return matrix.index_select(1, order.to(adapted.device)), shift
    return from_input_columns(adapted, weight, consumer.dimension), shift


def lost_inputs(graph: ChannelGraph, positions: Positions) -> set[str]:
    """Names of the weights whose layers lost input channels."""
    return {
        place.parameter
        for axis in graph.axes
        for place in axis.consumers
        if place.dimension in positions.get(place.parameter, {})
    }


def taking_up(graph: ChannelGraph, positions: Positions) -> set[str]:
    """Names of the biases and running means that may take up what layers lack that lost inputs."""
    lost = lost_inputs(graph, positions)
    layers = [layer for layer in graph.layers.values() if layer.weight in lost]
    return {name for one in layers for name in (one.bias, one.running_mean) if name is not None}


@torch.no_grad()
def compensate(
    graph: ChannelGraph,
    small: nn.Module,
    positions: Positions,
    batches: list[Inputs],
    weights: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Lets every layer that lost input channels absorb what they carried, in place in `small`.

    Args:
        graph: The traced dense network.
        small: The pruned network, with the dense network's remaining weights.
        positions: Kept positions by parameter and dimension.
        batches: Calibration batches (see `calibration_batches`).
        weights: Names of the weights that are meant, of those that lost inputs; by default all.

    Returns:
        Names of the weights that lost inputs and could not be compensated (layers that are not
        called as modules, or too wide for a Gram matrix).
    """
    wanted = lost_inputs(graph, positions)
    if weights is not None:
        wanted &= set(weights)
    consumers, _ = collect_grams(graph, batches, wanted)
    return tuple(sorted(wanted - absorb_lost_inputs(graph, small, positions, consumers)))


@torch.no_grad()
def absorb_lost_inputs(
    graph: ChannelGraph, small: nn.Module, positions: Positions, consumers: Iterable[Consumer]
) -> set[str]:
    """Compensates those of the given layers that lost inputs, in place in `small`.

    Args:
        graph, small, positions: As `compensate` takes them.
        consumers: What layers of the dense network read; others are left as they are.

    Returns:
        Names of the weights that were compensated.
    """
    wanted, done = lost_inputs(graph, positions), set()
    for consumer in consumers:
        if consumer.weight in wanted and consumer.usable:
            _absorb(graph, small, positions, consumer)
            done.add(consumer.weight)
    return done


def _absorb(
    graph: ChannelGraph, small: nn.Module, positions: Positions, consumer: Consumer
) -> None:
    centred, layer = absorbs_mean(consumer), consumer.layers[0]
    outputs = dict(positions[consumer.weight])
    kept = outputs.pop(consumer.dimension)
    dense = kept_tensor(graph.model.get_parameter(consumer.weight), outputs)
    weight, shift = _absorbed(consumer, kept, dense, centred)
    small.get_parameter(consumer.weight).copy_(weight)
    if not centred:
        return
    shift /= layer.kind.taps_per_seen(graph.model.get_submodule(layer.path))
    if layer.bias is not None:
        bias = small.get_parameter(layer.bias)
        bias.add_(shift.to(bias.dtype))
    else:  # the BatchNorm behind subtracts its running mean: lowering it adds the shift
        statistic = tensor_of(small, str(layer.running_mean))
        statistic.sub_(shift.to(statistic.dtype))
