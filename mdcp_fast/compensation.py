"""Recovers accuracy without labels: ridge compensation and re-estimation of BatchNorm.

Ridge compensation: on calibration batches the dense network's inputs x of a layer that lost input
channels give their Gram matrix G. The lost channels D are predicted from the kept ones K by ridge
regression, x_D = B x_K with B = G_DK (G_KK + lam I)^-1, and the layer's weight takes that over:
W_K + W_D B. Where the layer has a bias or a BatchNorm right behind it, the regression is centred
and the mean goes there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.capture import Inputs, buffers_kept, call, evaluating
from mdcp_fast.graph import ChannelGraph, Place
from mdcp_fast.removal import Positions, kept_tensor, tensor_of

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix of the kept channels
LARGEST_GRAM = 8192  # input channels; beyond that a float64 Gram matrix takes over half a gigabyte
ROWS = 1 << 22  # numbers of an input that are copied at once: 16 MB in float32


@dataclass
class _Consumer:
    """A layer that lost input channels, and the running sums over its dense inputs.

    Inputs are seen as [samples, groups, channels]: `channels` is what one group reads, and where a
    flattened input holds each channel at several positions, these count as samples.
    """

    weight: str
    modules: list[nn.Module]  # those with this weight
    dimension: int  # of the weight: where input channels sit
    kept: Tensor  # positions along that dimension
    blocks: Tensor | None  # [channels, multiplicity] positions of a flattened input
    pivot: Tensor | None = None  # [groups, 1, channels], near the mean: sums stay small
    gram: Tensor | None = None  # float64 [groups, channels, channels], of inputs less the pivot
    total: Tensor | None = None  # float64 [groups, channels]
    samples: int = 0

    @torch.no_grad()
    def see(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A forward pre-hook: adds a batch of the layer's inputs to the sums."""
        x = arguments[0] if arguments else named["input"]
        if isinstance(module, nn.modules.conv._ConvNd):
            if x.dim() == module.weight.dim() - 1:  # without a batch dimension
                x = x.unsqueeze(0)
            x = x.movedim(1, -1)
        rows = x.reshape(-1, x.shape[-1])  # [samples, channels of all groups]
        for part in rows.split(max(1, ROWS // rows.shape[1])):
            self._add(part, 1 if self.blocks is not None else getattr(module, "groups", 1))

    def _add(self, rows: Tensor, groups: int) -> None:
        if self.blocks is not None:
            rows = rows[:, self.blocks.T.to(rows.device)].flatten(0, 1)  # multiplicity as samples
        grouped = rows.to(torch.promote_types(rows.dtype, torch.float32))
        grouped = grouped.unflatten(1, (groups, -1)).transpose(0, 1)  # [groups, samples, channels]
        if self.pivot is None:
            self.pivot = grouped.mean(1, keepdim=True)
        grouped = grouped - self.pivot
        gram, total = (grouped.transpose(1, 2) @ grouped).double(), grouped.double().sum(1)
        self.gram = gram if self.gram is None else self.gram + gram
        self.total = total if self.total is None else self.total + total
        self.samples += grouped.shape[1]

    def moments(self, centred: bool) -> tuple[Tensor, Tensor]:
        """The Gram matrix per sample, about the mean or about zero, and the mean."""
        assert self.pivot is not None and self.gram is not None and self.total is not None
        gram, offset = self.gram / self.samples, self.total / self.samples
        mean = self.pivot.squeeze(1).double() + offset
        gram = gram - offset.unsqueeze(2) * offset.unsqueeze(1)
        return gram if centred else gram + mean.unsqueeze(2) * mean.unsqueeze(1), mean

    def absorbed(self, weight: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
        """The compensated weight, and what the layer's output then lacks on average.

        Args:
            weight: The dense weight of the outputs that stay.
            centred: Whether that mean can be added behind the layer.

        Returns:
            `weight` with only the kept input positions; float64 [outputs].
        """
        gram, mean = self.moments(centred)
        groups, channels, _ = gram.shape
        lost, kept = self._split(channels, gram.device)
        predict = _ridge(gram, kept, lost)  # [groups, lost, kept]

        dtype = torch.promote_types(weight.dtype, torch.float32)
        from_lost = self._columns(weight, lost, groups).to(dtype)
        adapted = self._columns(weight, kept, groups).to(dtype)
        adapted = adapted + from_lost @ predict.to(dtype).unsqueeze(1)
        residual = mean[:, lost] - (predict @ mean[:, kept].unsqueeze(2)).squeeze(2)
        shift = torch.einsum("gol,gl->go", from_lost.sum(2).double(), residual).flatten()
        if isinstance(self.modules[0], nn.modules.conv._ConvTransposeNd):
            shift /= math.prod(self.modules[0].stride)  # an output sees one in so many taps

        adapted = adapted.flatten(0, 1)  # [outputs, taps, kept channels]
        if self.blocks is not None:
            order = self.blocks[kept.cpu()].T.flatten().argsort()
            return adapted.flatten(1).index_select(1, order.to(adapted.device)), shift
        others = [size for d, size in enumerate(weight.shape) if d != self.dimension]
        return adapted.reshape(*others, len(kept)).movedim(-1, self.dimension), shift

    def _columns(self, weight: Tensor, channels: Tensor, groups: int) -> Tensor:
        """The weights that read these channels: [groups, outputs of a group, taps, channels]."""
        chosen = channels
        if self.blocks is not None:
            chosen = self.blocks[channels.cpu()].T.flatten().to(weight.device)
        part = weight.detach().index_select(self.dimension, chosen).movedim(self.dimension, -1)
        return part.reshape(groups, part.shape[0] // groups, -1, len(channels))

    def _split(self, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which channels were lost and which were kept."""
        kept = self.kept
        if self.blocks is not None:
            kept = torch.isin(self.blocks[:, 0], kept).nonzero().flatten()
        gone = torch.ones(channels, dtype=torch.bool)
        gone[kept] = False
        return gone.nonzero().flatten().to(device), kept.to(device)


def _ridge(gram: Tensor, kept: Tensor, lost: Tensor) -> Tensor:
    """Coefficients that predict lost channels from kept ones: [groups, lost, kept]."""
    inner = gram[:, kept][:, :, kept]
    scale = inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
    identity = torch.eye(len(kept), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(inner + RIDGE * scale[:, None, None] * identity)
    return torch.cholesky_solve(gram[:, kept][:, :, lost], factor).transpose(1, 2)


@torch.no_grad()
def compensate(
    graph: ChannelGraph, small: nn.Module, positions: Positions, batches: list[Inputs]
) -> tuple[str, ...]:
    """Lets every layer that lost input channels absorb what they carried, in place in `small`.

    Args:
        graph: The traced dense network.
        small: The pruned network, with the dense network's remaining weights.
        positions: Kept positions by parameter and dimension.
        batches: Calibration batches (see `calibration_batches`).

    Returns:
        Names of the weights that lost inputs and could not be compensated (layers that are not
        called as modules, or too wide for a Gram matrix).
    """
    consumers, skipped = _consumers(graph, positions)
    handles = [
        module.register_forward_pre_hook(consumer.see, with_kwargs=True)
        for consumer in consumers
        for module in consumer.modules
    ]
    try:
        with evaluating(graph.model), buffers_kept(graph.model):
            for batch in batches:
                call(graph.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for consumer in consumers:
        if consumer.gram is None or not bool(torch.isfinite(consumer.gram).all()):
            skipped.append(consumer.weight)
        else:
            _absorb(graph, small, positions, consumer)
    return tuple(skipped)


def _consumers(graph: ChannelGraph, positions: Positions) -> tuple[list[_Consumer], list[str]]:
    places: dict[tuple[str, int], list[Place]] = {}
    for axis in graph.axes:
        for place in axis.consumers:
            places.setdefault((place.parameter, place.dimension), []).append(place)
    consumers, skipped = [], []
    for (name, dimension), members in places.items():
        kept = positions.get(name, {}).get(dimension)
        if kept is None:
            continue
        weight = graph.model.get_parameter(name)
        modules = [m for m in graph.model.modules() if getattr(m, "weight", None) is weight]
        linear = all(isinstance(module, nn.Linear) for module in modules)
        blocks = _blocks(members, weight.shape[dimension]) if linear else None
        width = weight.shape[dimension] if blocks is None else len(blocks)
        if not modules or width > LARGEST_GRAM or not all(_is_layer(m) for m in modules):
            skipped.append(name)
        else:
            consumers.append(_Consumer(name, modules, dimension, kept, blocks))
    return consumers, skipped


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return module.groups == 1
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


def _blocks(members: list[Place], size: int) -> Tensor | None:
    """Positions of each channel of a flattened input, [channels, multiplicity], in order.

    None where the input is not flattened, or its channels do not all have as many positions.
    """
    multiplicity = members[0].multiplicity
    if multiplicity == 1 or any(place.multiplicity != multiplicity for place in members):
        return None
    blocks = torch.cat([place.positions for place in members])
    if blocks.numel() != size:
        return None
    return blocks[blocks[:, 0].argsort()]


def _absorb(
    graph: ChannelGraph, small: nn.Module, positions: Positions, consumer: _Consumer
) -> None:
    path = consumer.weight.rpartition(".")[0]
    layer: Any = small.get_submodule(path)
    running_mean = graph.normalized_by.get(consumer.weight)
    alone = len(consumer.modules) == 1  # else there is no one place for the mean
    centred = alone and (layer.bias is not None or running_mean is not None)
    outputs = {d: p for d, p in positions[consumer.weight].items() if d != consumer.dimension}
    dense = kept_tensor(graph.model.get_parameter(consumer.weight), outputs)
    weight, shift = consumer.absorbed(dense, centred)
    layer.weight.copy_(weight)
    if not centred:
        return
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias.dtype))
    else:  # the BatchNorm behind subtracts its running mean: lowering it adds the shift
        statistic = tensor_of(small, str(running_mean))
        statistic.sub_(shift.to(statistic.dtype))


@torch.no_grad()
def recalibrate(model: nn.Module, batches: list[Inputs]) -> None:
    """Re-estimates the statistics of every BatchNorm as the cumulative average over `batches`.

    In place. Everything but BatchNorm runs in evaluation mode; modes, momenta and weights stay as
    they were, and so do the statistics if a batch fails.

    Args:
        model: The network.
        batches: The model's arguments; each batch needs more than one value per channel.

    Raises:
        ValueError: A batch has a single value per channel.
    """
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    statistics = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    before = [[tensor.clone() for tensor in tensors] for tensors in statistics]
    momenta = [module.momentum for module in norms]
    try:
        with evaluating(model):
            for module in norms:
                module.train()
                module.reset_running_stats()
                module.momentum = None  # the cumulative average
            for batch in batches:
                call(model, batch)
    except BaseException:
        for tensors, values in zip(statistics, before, strict=True):
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        raise
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
