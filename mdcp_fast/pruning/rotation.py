"""Rotates linear streams: gives channels that only add up a basis in which few of them matter.

Where nothing stands between the layers that write an axis and those that read it but what is linear
and treats all channels alike (see `tracing/labels/linearity.py`), the network is the same function
in any basis of these channels: writers put out T x in place of x, readers multiply by W T^-1. To
select channels is to cut off directions of the basis that training happened to leave; here they are
the principal directions of what the readers do with them:

    S = sum over readers of W^T F W,  G = second moments of x,  S^1/2 G S^1/2 = U E U^T,
    T = U^T S^1/2,

F how much the network's answer depends on what a reader puts out. Directions come by falling E, so
that an axis keeps its first ones. A BatchNorm behind a writer is folded into it, and becomes an
identity with true statistics. The change is checked in float64 at full width.

Residual streams of inverted bottlenecks (MobileNetV2 and V3, MNASNet, EfficientNet) and of networks
for super-resolution are such streams. Ashkboos et al., "SliceGPT: Compress large language models by
deleting rows and columns", ICLR 2024, do it for transformers, by G alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import call, map_tensors
from mdcp_fast.modules.hooks import Hook
from mdcp_fast.modules.layer_kinds import Layer
from mdcp_fast.modules.removal import rebuilt, tensor_of
from mdcp_fast.modules.verification import in_float64, relative_difference
from mdcp_fast.pruning.input_moments import Consumer
from mdcp_fast.pruning.reconstruction import ReconstructionError
from mdcp_fast.tracing.axes import Axis, module_of
from mdcp_fast.tracing.graph import ChannelGraph

SMALLEST = 1e-6  # of the largest eigenvalue of S: what readers hardly read is not blown up further
TOLERANCE = 1e-8  # of the outputs, in float64, between the network and the rotated one


class Basis(NamedTuple):
    """A change of basis of an axis's channels.

    Attributes:
        forward: float64 [channels, channels], T: new channels from old ones.
        inverse: float64 [channels, channels], T^-1.
    """

    forward: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class Rotation:
    """A network with its linear streams in other bases: the same function at full width.

    Attributes:
        graph: The traced network with the changed weights.
        bases: By index of the axis.
    """

    graph: ChannelGraph
    bases: Mapping[int, Basis]

    def errors(
        self, errors: Sequence[Sequence[ReconstructionError]]
    ) -> list[list[ReconstructionError]]:
        """Reconstruction errors of all axes, in the new bases."""
        return [
            [_changed_error(error, self.bases[index]) for error in of_axis]
            if index in self.bases
            else list(of_axis)
            for index, of_axis in enumerate(errors)
        ]

    def consumers(self, consumers: Sequence[Consumer]) -> list[Consumer]:
        """What layers read in the new bases."""
        by_weight = {consumer.weight: consumer for consumer in consumers}
        for index, basis in self.bases.items():
            for place in self.graph.axes[index].consumers:
                consumer = by_weight.get(place.parameter)
                if consumer is not None:
                    entries = consumer.entries(place.positions)
                    by_weight[place.parameter] = consumer.in_basis(entries, basis.forward)
        return [by_weight[consumer.weight] for consumer in consumers]


def why_not_rotated(graph: ChannelGraph, axis: Axis) -> str | None:
    """Why an axis keeps its basis; None for a linear stream that can be rotated."""
    if axis.bent is not None:
        return axis.bent
    if not axis.exact:
        return "a normalisation over its channels"
    weights = [place.parameter for place in (*axis.producers, *axis.consumers)]
    places = Counter((place.parameter, place.dimension) for place in axis.places)
    if not axis.producers or not axis.consumers or max(places.values()) > 1:
        return "a weight writes and reads it along one dimension"
    layers = [graph.layers.get(module_of(weight)) for weight in weights]
    if any(layer is None or layer.weight != w for layer, w in zip(layers, weights, strict=True)):
        return "a layer that is not called as a module"
    allowed = set(weights)
    for layer in layers[: len(axis.producers)]:
        assert layer is not None
        if layer.running_mean is not None:
            if not _is_foldable(graph.model, layer):
                return "a BatchNorm without a scale and a shift of its own"
            allowed |= {f"{layer.batch_norm}.{name}" for name in _BATCH_NORM}
        allowed |= {layer.bias} if layer.bias is not None else set()
    foreign = [place.parameter for place in axis.places if place.parameter not in allowed]
    return f"{foreign[0]} lies along its channels" if foreign else None


_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def _is_foldable(model: nn.Module, layer: Layer) -> bool:
    if layer.batch_norm is None:
        return False
    norm: Any = model.get_submodule(layer.batch_norm)
    return norm.weight is not None and norm.bias is not None


class OutputCovariances:
    """Covariances of what the layers put out that write linear streams and have a BatchNorm.

    Args:
        graph: The traced network.

    Attributes:
        hooks: Modules with hooks that are called after they run, which add up what is seen.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._sums: dict[str, list[Any]] = {}
        layers = {
            layer.path: layer
            for axis in graph.axes
            if why_not_rotated(graph, axis) is None
            for layer in (graph.layers[module_of(place.parameter)] for place in axis.producers)
            if layer.batch_norm is not None
        }
        self.hooks = [(graph.model.get_submodule(p), self._see(one)) for p, one in layers.items()]

    def _see(self, layer: Layer) -> Hook:
        @torch.no_grad()
        def hook(module: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
            rows = layer.kind.rows(module, output).float()
            total = self._sums.setdefault(layer.weight, [0.0, 0.0, 0])
            total[0] = total[0] + (rows.T @ rows).double()
            total[1] = total[1] + rows.sum(0).double()
            total[2] += len(rows)

        return hook

    def by_weight(self) -> dict[str, Tensor]:
        """float64 [outputs, outputs] for the weight of each layer that ran."""
        found = {}
        for name, (products, total, count) in self._sums.items():
            mean = total / count
            found[name] = products / count - mean.outer(mean)
        return found


@torch.no_grad()
def rotate_streams(
    graph: ChannelGraph,
    errors: Sequence[Sequence[ReconstructionError]],
    covariances: Mapping[str, Tensor],
    axes: Collection[int] | None = None,
) -> tuple[Rotation, dict[str, str]]:
    """Gives every linear stream the basis of the directions that its readers need most.

    Args:
        graph: The traced network; not changed.
        errors: Of every axis, from calibration batches.
        covariances: Of what writers with a BatchNorm behind them put out (see `OutputCovariances`).
        axes: Which axes are meant, by index; by default all that can be rotated.

    Returns:
        The rotation, and why an axis was not rotated, by its name.
    """
    reasons: dict[str, str] = {}
    bases: dict[int, Basis] = {}
    for index, axis in enumerate(graph.axes):
        reason = why_not_rotated(graph, axis)
        if reason is None and not any(bool(one.effect.any()) for one in errors[index]):
            reason = "what its readers do with it is all zeros"
        if reason is not None:
            reasons[axis.name] = reason
        elif axes is None or index in axes:
            bases[index] = _principal_basis(errors[index], axis.channels)
    if not bases:
        return Rotation(graph, {}), reasons
    changed: dict[str, Tensor] = {}
    for index, basis in bases.items():
        _rotate(graph, graph.axes[index], basis, covariances, changed)
    by_tensor = {id(tensor_of(graph.model, name)): value for name, value in changed.items()}

    def exactly(tensor: Tensor) -> Tensor:
        return in_float64(by_tensor.get(id(tensor), tensor))

    gap = _gap(graph, rebuilt(graph.model, exactly))
    if not gap <= TOLERANCE:
        reason = f"outputs of the network in other bases differ by {gap:.1e}"
        return Rotation(graph, {}), dict.fromkeys((a.name for a in graph.axes), reason) | reasons

    def change(tensor: Tensor) -> Tensor:
        value = by_tensor.get(id(tensor))
        return tensor.clone() if value is None else value.to(tensor.device, tensor.dtype)

    return Rotation(graph.with_model(rebuilt(graph.model, change)), bases), reasons


def _gap(graph: ChannelGraph, exact: nn.Module) -> float:
    """The relative difference of outputs between a network in float64 and the dense one."""
    inputs = map_tensors(graph.example_inputs, in_float64)
    dense = rebuilt(graph.model, in_float64).eval()
    return relative_difference(call(exact.eval(), inputs), call(dense, inputs))


def _principal_basis(errors: Sequence[ReconstructionError], channels: int) -> Basis:
    """Directions by falling share in what the readers need."""
    grams, effects = zip(*(_by_channel(error, channels) for error in errors), strict=True)
    shares = torch.stack([effect.trace() for effect in effects])
    gram = torch.einsum("r,rij->ij", shares / shares.sum(), torch.stack(grams))
    effect = torch.stack(effects).sum(0)
    values, vectors = torch.linalg.eigh(effect)
    values = values.clamp_min(values.max().clamp_min(1e-300) * SMALLEST)
    root, inverse = ((vectors * v) @ vectors.T for v in (values.sqrt(), values.rsqrt()))
    _, directions = torch.linalg.eigh(root @ gram @ root)
    directions = directions.flip(1)
    return Basis(directions.T @ root, inverse @ directions)


def _by_channel(error: ReconstructionError, channels: int) -> tuple[Tensor, Tensor]:
    """Second moments and effect of the channels, summed over each one's positions, on the CPU."""
    size = error.gram.shape[1] // channels
    parts = [
        matrix.sum(0).cpu().unflatten(0, (channels, size)).unflatten(2, (channels, size))
        for matrix in (error.gram, error.effect)
    ]
    gram, effect = (part.diagonal(dim1=1, dim2=3).sum(-1) for part in parts)
    return gram / size, effect


def _changed_error(error: ReconstructionError, basis: Basis) -> ReconstructionError:
    size = error.gram.shape[1] // len(basis.forward)
    one = torch.eye(size, dtype=torch.float64)
    forward, inverse = (torch.kron(matrix, one).to(error.gram.device) for matrix in basis)

    def changed(matrix: Tensor, by: Tensor) -> Tensor:
        product = by @ matrix @ by.T
        return (product + product.mT) / 2

    moments = [
        None if matrix is None else changed(matrix, forward)
        for matrix in (error.gram, error.fitted, error.held_out)
    ]
    assert moments[0] is not None
    return ReconstructionError(moments[0], changed(error.effect, inverse.T), *moments[1:])


def _rotate(
    graph: ChannelGraph,
    axis: Axis,
    basis: Basis,
    covariances: Mapping[str, Tensor],
    changed: dict[str, Tensor],
) -> None:
    """Puts the parameters and buffers that an axis lies in into another basis, in `changed`."""

    def current(name: str) -> Tensor:
        if name not in changed:
            changed[name] = in_float64(tensor_of(graph.model, name))
        return changed[name]

    for place in axis.producers:
        layer = graph.layers[module_of(place.parameter)]
        weight, scale = current(place.parameter), None
        if layer.batch_norm is not None:
            norm: Any = graph.model.get_submodule(layer.batch_norm)
            mean, variance, gamma, beta = (
                current(f"{layer.batch_norm}.{name}")
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            along = _place_of(axis, f"{layer.batch_norm}.weight")
            scale = gamma[along] / (variance[along] + norm.eps).sqrt()  # [channels, multiplicity]
            spread = _spread(covariances[layer.weight], along, variance, scale, basis)
            if layer.bias is not None:
                _transform(current(layer.bias), 0, along, basis.forward, scale)
            _transform(mean, 0, along, basis.forward, scale)
            _transform(beta, 0, along, basis.forward)
            variance[along] = spread
            gamma[along] = (spread + norm.eps).sqrt()
        elif layer.bias is not None:
            _transform(current(layer.bias), 0, _place_of(axis, layer.bias), basis.forward)
        _transform(weight, place.dimension, place.positions, basis.forward, scale)
    for place in axis.consumers:
        _transform(current(place.parameter), place.dimension, place.positions, basis.inverse.T)


def _place_of(axis: Axis, parameter: str) -> Tensor:
    return next(place.positions for place in axis.places if place.parameter == parameter)


def _transform(
    tensor: Tensor,
    dimension: int,
    positions: Tensor,
    matrix: Tensor,
    scale: Tensor | None = None,
) -> None:
    """Multiplies an axis's entries along a dimension by a matrix, in place.

    Args:
        tensor: float64.
        dimension: Where the channels lie.
        positions: int64 [channels, multiplicity].
        matrix: float64 [channels, channels].
        scale: float64 [channels, multiplicity], by which entries are multiplied first.
    """
    rows = tensor.movedim(dimension, 0)
    old = rows[positions]  # [channels, multiplicity, ...]
    if scale is not None:
        old = old * scale.view(*scale.shape, *[1] * (old.dim() - 2))
    rows[positions] = torch.tensordot(matrix.to(old.device), old, 1)


def _spread(
    covariance: Tensor, along: Tensor, variance: Tensor, scale: Tensor, basis: Basis
) -> Tensor:
    """The variances of a BatchNorm's inputs in the new basis: float64 [channels, multiplicity].

    Calibration images say how channels go together, the running variances how far they spread.

    Args:
        covariance: float64 [outputs, outputs], of the layer before it.
        along: int64 [channels, multiplicity], the axis's positions.
        variance: float64 [outputs], the running variance.
        scale: float64 [channels, multiplicity], what channels are multiplied by.
        basis: The new basis.
    """
    columns = []
    for positions, factor in zip(along.T, scale.T, strict=True):
        part = covariance[positions][:, positions]
        found = part.diagonal().clamp_min(1e-30)
        factor = factor * (variance[positions] / found).sqrt()
        part = part * factor.unsqueeze(1) * factor
        forward = basis.forward.to(part.device)
        columns.append(((forward @ part) * forward).sum(1).clamp_min(0))
    return torch.stack(columns, 1)
