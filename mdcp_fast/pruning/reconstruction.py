"""What the layers that read an axis would lose with its channels: two matrices for each.

A layer with weights W and inputs x suffers, from an error e in its inputs, tr(S E[e e^T]): S = sum
over taps of W^T W for the energy of the error in its outputs, or of W^T F W where F says how much
each output matters. It is counted as a share of tr(S E[x x^T]), so that layers are comparable. If
the channels K of an axis stay and predict the others D by ridge regression, that is

    tr(S_DD (G_DD - G_DK (G_KK + lam I)^-1 G_KD)),

G the second moments of x, lam a share of G's mean diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdcp_fast.modules.im2col import rows_along
from mdcp_fast.modules.removal import tensor_of
from mdcp_fast.pruning.folded_weights import weight_gram
from mdcp_fast.pruning.input_moments import Consumer, absorbs_mean
from mdcp_fast.pruning.ridge import (
    TINY,
    damping,
    mispredicted,
    nested_mispredicted,
    nested_unpredicted,
    unpredicted,
)
from mdcp_fast.tracing.axes import Axis, ParameterSlice
from mdcp_fast.tracing.graph import ChannelGraph

AMPLE = 16  # samples for each channel, from which on held-out ones say nothing new
STRONGER = (1.0, 100.0)  # ridges that are tried where images were held out: the fit chooses, too


class ReconstructionError(NamedTuple):
    """What one layer loses with the channels of an axis that it reads, as two matrices.

    Entries go channel by channel, a channel's positions side by side.

    Attributes:
        gram: float64 [groups, entries, entries], G.
        effect: float64 [groups, entries, entries], S.
        fitted: The second moments that ridge regression is made from when it is tried on others;
            None where nothing was held out.
        held_out: Those of images that were held out, about the same point.
    """

    gram: Tensor
    effect: Tensor
    fitted: Tensor | None = None
    held_out: Tensor | None = None

    @property
    def kernel(self) -> Tensor:
        """Inner products of what the entries add to the outputs: float64 [entries, entries].

        The Hadamard product of positive semidefinite matrices is positive semidefinite.
        """
        return (self.gram * self.effect).sum(0)


def errors_from_inputs(
    graph: ChannelGraph,
    consumers: Sequence[Consumer],
    fisher: Mapping[str, Tensor] | None = None,
    parts: Mapping[str, tuple[Consumer, Consumer]] | None = None,
) -> list[list[ReconstructionError]]:
    """The errors of every axis from calibration batches.

    Args:
        graph: The traced network.
        consumers: From `collect_grams`.
        fisher: From `output_fisher`: how much each output matters. Without it, and for
            layers on which no answer depends, all matter alike.
        parts: By weight, the consumers of most of the images and of those that were held out; for
            layers that see few samples.

    Returns:
        For each axis, its errors, in shares of the layers' effects, times a weight of the layer
        that is 1 on average; where no layer that reads the axis could be seen, those of
        `errors_from_weights`.

        A layer's weight grows with the square root of its whole effect on the answer. Effects
        themselves (divergences, in nats) would leave some layers next to nothing under small
        budgets, where errors are far too large to add up; shares alone would treat a block that
        hardly matters as the classifier. Chosen on validation data: ResNet-20 and a VGG on
        Fashion-MNIST.
    """
    seen = [_effect(graph, consumer, fisher or {}) for consumer in consumers if consumer.usable]
    roots = [layer.total**0.5 for layer in seen if layer.weighted]
    average = sum(roots) / max(len(roots), 1)
    known = {layer.consumer.weight: layer for layer in seen}
    from_weights: list[list[ReconstructionError]] | None = None
    errors = []
    for index, axis in enumerate(graph.axes):
        places = [place for place in axis.consumers if place.parameter in known]
        if not places:
            from_weights = from_weights or errors_from_weights(graph)
            errors.append(from_weights[index])
            continue
        errors.append(
            [
                _of_place(
                    known[place.parameter], place, average, (parts or {}).get(place.parameter)
                )
                for place in places
            ]
        )
    return errors


def _of_place(
    layer: _Effect,
    place: ParameterSlice,
    average: float,
    parts: tuple[Consumer, Consumer] | None,
) -> ReconstructionError:
    """What a layer loses with the channels of one of the axes that it reads.

    Args:
        layer: What its inputs do.
        place: Where the axis's channels lie in its weight.
        average: Square root of a layer's whole effect on the answer.
        parts: Consumers of most of the images and of those that were held out.
    """
    scale = layer.total**0.5 * average if layer.weighted else layer.total
    entries = layer.consumer.entries(place.positions).flatten().to(layer.gram.device)
    matrices = [layer.gram, layer.effect / max(scale, TINY)]
    if parts is not None and parts[0].samples < AMPLE * layer.gram.shape[1]:
        centred = absorbs_mean(layer.consumer)
        gram, mean = parts[0].moments(centred)
        matrices += [gram, parts[1].moments_about(mean if centred else torch.zeros_like(mean))]
    return ReconstructionError(*(matrix[:, entries][:, :, entries] for matrix in matrices))


class _Effect(NamedTuple):
    """What a consumer's inputs do to its outputs."""

    consumer: Consumer
    gram: Tensor  # float64 [groups, channels, channels]
    effect: Tensor  # float64 [groups, channels, channels], not yet comparable between layers
    weighted: bool  # by how much each output matters

    @property
    def total(self) -> float:
        return float((self.gram * self.effect).sum())


def _effect(graph: ChannelGraph, consumer: Consumer, fisher: Mapping[str, Tensor]) -> _Effect:
    gram, _ = consumer.moments(absorbs_mean(consumer))
    groups, channels, _ = gram.shape
    weight = tensor_of(graph.model, consumer.weight)
    every = torch.arange(channels)
    columns = consumer.columns(weight, every, groups).to(gram)  # [groups, outputs, taps, channels]
    inner = fisher.get(consumer.weight)
    if inner is None or not bool(inner.any()):
        return _Effect(consumer, gram, torch.einsum("gotc,gotd->gcd", columns, columns), False)
    inner = inner.to(gram).unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
    inner = inner.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # [groups, outputs, outputs]
    mattering = torch.einsum("gop,gptc->gotc", inner, columns)
    effect = torch.einsum("gotc,gotd->gcd", columns, mattering)
    return _Effect(consumer, gram, effect, True)


def errors_from_weights(graph: ChannelGraph) -> list[list[ReconstructionError]]:
    """The errors of every axis from weights alone: as if its producers' inputs were white noise.

    Returns:
        For each axis, one error for each weight that reads it, in shares of that layer's energy.
    """
    unscaled: list[list[ReconstructionError]] = []
    energy: dict[str, float] = {}
    for axis in graph.axes:
        gram = weight_gram(graph, axis)
        of_axis = []
        for place in _readers(axis):
            weight = tensor_of(graph.model, place.parameter).detach().to("cpu", torch.float64)
            columns = rows_along(weight, place.dimension)[place.positions].flatten(1)
            effect = columns @ columns.T
            total = energy.get(place.parameter, 0.0) + float((gram * effect).sum())
            energy[place.parameter] = total
            of_axis.append(ReconstructionError(gram.unsqueeze(0), effect.unsqueeze(0)))
        unscaled.append(of_axis)
    return [
        [
            ReconstructionError(error.gram, error.effect / max(energy[place.parameter], TINY))
            for error, place in zip(of_axis, _readers(axis), strict=True)
        ]
        for of_axis, axis in zip(unscaled, graph.axes, strict=True)
    ]


def _readers(axis: Axis) -> tuple[ParameterSlice, ...]:
    """What reads an axis: where that is the weight that also writes it (tied), its rows."""
    return axis.consumers or axis.producers


def ridge_losses(errors: Sequence[ReconstructionError], kept: Tensor) -> Tensor:
    """What the layers that read an axis cannot predict of the channels that go.

    On images that were held out, where there are such: a layer that sees fewer samples than it has
    channels (one behind global pooling) predicts those that it was fitted to from any of them.

    Args:
        errors: Of the axis.
        kept: bool [jobs, channels], at least one in each job.

    Returns:
        float64 [jobs], summed over the errors; 0 where all channels stay.
    """
    losses = torch.zeros(len(kept), dtype=torch.float64)
    for error in errors:
        gram, effect = error.gram, error.effect
        size, lam = gram.shape[1] // kept.shape[1], damping(gram)
        for job, mask in enumerate(kept):
            stays = mask.repeat_interleave(size).to(gram.device)
            if bool(stays.all()):
                continue
            if error.fitted is None or error.held_out is None:
                losses[job] += unpredicted(gram, effect, stays, lam)
                continue
            losses[job] += min(
                mispredicted(error.fitted, error.held_out, effect, stays, lam * stronger)
                for stronger in STRONGER
            )
    return losses.clamp_min(0)


def nested_ridge_losses(errors: Sequence[ReconstructionError], order: Tensor) -> Tensor:
    """`ridge_losses` where the first 1, 2, ... channels of an order stay.

    Args:
        errors: Of the axis.
        order: int64 [channels], each once.

    Returns:
        float64 [channels], at the widths from 1.
    """
    losses = torch.zeros(len(order), dtype=torch.float64)
    for error in errors:
        size, lam = error.gram.shape[1] // len(order), damping(error.gram)
        entries = (order.unsqueeze(1) * size + torch.arange(size)).flatten().to(lam.device)
        gram, effect, fitted, held_out = (
            None if matrix is None else matrix[:, entries][:, :, entries] for matrix in error
        )
        assert gram is not None and effect is not None
        if fitted is None or held_out is None:
            found = nested_unpredicted(gram, effect, lam)
        else:
            each = [nested_mispredicted(fitted, held_out, effect, lam * one) for one in STRONGER]
            found = torch.stack(each).amin(0)
        losses += found[size::size].cpu()
    return losses.clamp_min(0)
