"""Recovers accuracy without labels: consumers absorb what removed channels carried; BatchNorm is re-estimated.

Ridge compensation: on calibration batches the dense network's inputs x of a layer that lost input channels give their
Gram matrix G. The lost channels D are predicted from the kept ones K by ridge regression, x_D = B x_K with
B = G_DK (G_KK + lam I)^-1, and the layer's weight takes that over: W_K + W_D B. Where the layer has a bias or a BatchNorm
right behind it, the regression is centred and the mean goes there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.graph import ChannelGraph, Place, evaluating

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix of the kept channels
LARGEST_GRAM = 8192  # input channels; beyond that a float64 Gram matrix takes over half a gigabyte


def calibration_batches(graph: ChannelGraph, calibration: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Calibration data as a list of the model's argument tuples, on the model's device.

    Args:
        graph: The traced network; batches may differ from its example inputs in the batch size only.
        calibration: An iterable of tensors, of (input, label) pairs, or of tuples of the model's arguments.

    Raises:
        TypeError: It is not an iterable of tensors or tuples of tensors.
        ValueError: It is empty, or a batch has another shape than the example inputs.
    """
    if isinstance(calibration, Tensor):
        calibration = [calibration]
    try:
        items = iter(calibration)
    except TypeError:
        kind = type(calibration).__name__
        raise TypeError(f"calibration should be an iterable of batches, got {kind}") from None
    device = next(graph.model.parameters()).device
    batches = [_arguments(graph.example_inputs, batch, device) for batch in items]
    if not batches:
        raise ValueError(
            "calibration should hold at least one batch, got none (an iterator that was used up?)"
        )
    return batches


def _arguments(example: tuple[Any, ...], batch: Any, device: torch.device) -> tuple[Any, ...]:
    values = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(values) < len(example):
        raise ValueError(
            f"calibration batches should hold {len(example)} inputs, got {len(values)}"
        )
    arguments = []
    for wanted, got in zip(
        example, values, strict=False
    ):  # what follows the arguments (labels) is not needed
        if isinstance(wanted, Tensor):
            if not isinstance(got, Tensor):
                raise TypeError(
                    f"calibration batches should hold tensors, got {type(got).__name__}"
                )
            if got.dim() != wanted.dim() or got.shape[1:] != wanted.shape[1:]:
                raise ValueError(
                    f"calibration batches should have shape [batch, {', '.join(map(str, wanted.shape[1:]))}] "
                    f"as the example inputs have, got {list(got.shape)}"
                )
            got = got.to(device, wanted.dtype)
        arguments.append(got)
    return tuple(arguments)


@dataclass
class _Consumer:
    """A layer that lost input channels, and the running sums over its dense inputs.

    Inputs are seen as [samples, groups, channels]: `channels` is what one group reads, and where a flattened input holds
    each channel at several positions these count as samples.
    """

    weight: str
    module: nn.Module
    dimension: int  # of the weight: where input channels sit
    kept: Tensor  # positions along that dimension
    blocks: Tensor | None  # [channels, multiplicity] positions of a flattened input
    gram: Tensor | None = None  # float64 [groups, channels, channels]
    total: Tensor | None = None  # float64 [groups, channels]
    samples: int = 0

    @torch.no_grad()
    def see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        if isinstance(module, nn.Linear):
            rows = x.flatten(0, -2)  # [samples, features]
        else:
            spatial = module.weight.dim() - 2
            rows = x.movedim(x.dim() - 1 - spatial, -1).flatten(0, -2)
        if self.blocks is not None:
            rows = rows[:, self.blocks.T.to(rows.device)].flatten(
                0, 1
            )  # [samples * multiplicity, channels]
        groups = 1 if self.blocks is not None else getattr(module, "groups", 1)
        grouped = (
            rows.float().unflatten(1, (groups, -1)).transpose(0, 1)
        )  # [groups, samples, channels]
        gram = (grouped.transpose(1, 2) @ grouped).double()
        total = grouped.double().sum(1)
        self.gram = gram if self.gram is None else self.gram + gram
        self.total = total if self.total is None else self.total + total
        self.samples += rows.shape[0]

    def weight_and_shift(self, weight: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
        """The compensated dense-output weight, and what its output lacks on average.

        Args:
            weight: The dense weight.
            centred: Whether the mean is taken care of elsewhere.

        Returns:
            The weight with only the kept input positions; float64 [output channels] to add to the output.
        """
        assert self.gram is not None and self.total is not None
        groups, channels, _ = self.gram.shape
        gram, mean = self.gram / self.samples, self.total / self.samples
        if centred:
            gram = gram - mean.unsqueeze(2) * mean.unsqueeze(1)
        kept = self.kept if self.blocks is None else _kept_channels(self.blocks, self.kept)
        kept = kept.to(gram.device)
        gone = torch.ones(channels, dtype=torch.bool, device=gram.device)
        gone[kept] = False
        lost = gone.nonzero().flatten()
        inner = gram[:, kept][:, :, kept]
        ridge = RIDGE * inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(
            torch.finfo(torch.float32).tiny
        )
        inner = inner + ridge[:, None, None] * torch.eye(
            len(kept), dtype=torch.float64, device=gram.device
        )
        predict = torch.linalg.solve(inner, gram[:, kept][:, :, lost]).transpose(
            1, 2
        )  # [groups, lost, kept]

        w = weight.detach().double().movedim(self.dimension, -1)  # [outputs, ..., inputs]
        if self.blocks is not None:
            w = w[..., self.blocks.to(w.device)].transpose(
                -1, -2
            )  # [outputs, multiplicity, channels]
        shape = w.shape
        w = w.reshape(groups, shape[0] // groups, -1, channels)
        adapted = w[..., kept] + torch.einsum("gonl,glk->gonk", w[..., lost], predict)
        residual = mean[:, lost] - torch.einsum("glk,gk->gl", predict, mean[:, kept])
        shift = torch.einsum("gonl,gl->go", w[..., lost], residual).flatten()
        adapted = adapted.reshape(*shape[:-1], len(kept))
        if self.blocks is not None:
            flat = torch.empty(shape[0], len(self.kept), dtype=adapted.dtype, device=adapted.device)
            where = torch.searchsorted(
                self.kept, self.blocks[kept.cpu()].contiguous()
            )  # [kept, multiplicity]
            flat[:, where.T.flatten()] = adapted.flatten(1)
            adapted = flat
        return adapted.movedim(-1, self.dimension), shift


def _kept_channels(blocks: Tensor, kept: Tensor) -> Tensor:
    return torch.isin(blocks[:, 0], kept).nonzero().flatten()


@torch.no_grad()
def compensate(
    graph: ChannelGraph,
    small: nn.Module,
    positions: Mapping[str, Mapping[int, Tensor]],
    batches: list[tuple[Any, ...]],
) -> tuple[str, ...]:
    """Lets every layer that lost input channels absorb what they carried, in place in `small`.

    Args:
        graph: The traced dense network.
        small: The pruned network, with the dense network's remaining weights.
        positions: Kept positions by parameter and dimension.
        batches: Calibration batches (see `calibration_batches`).

    Returns:
        Names of the weights that lost inputs and could not be compensated (layers that are not called as modules, or too
        wide for a Gram matrix).
    """
    consumers, skipped = _consumers(graph, positions)
    handles = [consumer.module.register_forward_pre_hook(consumer.see) for consumer in consumers]
    try:
        with evaluating(graph.model):
            for batch in batches:
                graph.model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    for consumer in consumers:
        if consumer.gram is None or not bool(torch.isfinite(consumer.gram).all()):
            skipped.append(consumer.weight)
            continue
        _absorb(graph, small, positions, consumer)
    return tuple(skipped)


def _consumers(
    graph: ChannelGraph, positions: Mapping[str, Mapping[int, Tensor]]
) -> tuple[list[_Consumer], list[str]]:
    places: dict[tuple[str, int], list[Place]] = {}
    for axis in graph.axes:
        for place in axis.consumers:
            places.setdefault((place.parameter, place.dimension), []).append(place)
    consumers, skipped = [], []
    for (name, dimension), members in places.items():
        kept = positions.get(name, {}).get(dimension)
        if kept is None:
            continue
        module = graph.model.get_submodule(name.rpartition(".")[0])
        size = graph.model.get_parameter(name).shape[dimension]
        blocks = members[0].positions
        flattened = isinstance(module, nn.Linear) and blocks.shape[1] > 1 and blocks.numel() == size
        plain = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and name.endswith(
            ".weight"
        )
        transposed_groups = (
            isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1
        )
        if not plain or transposed_groups or (not flattened and size > LARGEST_GRAM):
            skipped.append(name)
            continue
        consumers.append(_Consumer(name, module, dimension, kept, blocks if flattened else None))
    return consumers, skipped


def _absorb(
    graph: ChannelGraph,
    small: nn.Module,
    positions: Mapping[str, Mapping[int, Tensor]],
    consumer: _Consumer,
) -> None:
    path = consumer.weight.rpartition(".")[0]
    layer: Any = small.get_submodule(path)
    running_mean = graph.normalized_by.get(consumer.weight)
    centred = layer.bias is not None or running_mean is not None
    weight, shift = consumer.weight_and_shift(graph.model.get_parameter(consumer.weight), centred)
    for dimension, kept in positions[consumer.weight].items():
        if dimension != consumer.dimension:
            weight = weight.index_select(dimension, kept.to(weight.device))
    layer.weight.copy_(weight)
    target = f"{path}.bias" if layer.bias is not None else running_mean
    if target is None:
        return
    outputs = positions.get(target, {}).get(0)
    if outputs is not None:
        shift = shift[outputs.to(shift.device)]
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias.dtype))
    else:  # the BatchNorm behind subtracts its running mean: lowering it adds the shift
        module, _, leaf = target.rpartition(".")
        statistic = getattr(small.get_submodule(module), leaf)
        statistic.sub_(shift.to(statistic.dtype))


@torch.no_grad()
def recalibrate(model: nn.Module, batches: list[tuple[Any, ...]]) -> None:
    """Re-estimates the running statistics of every BatchNorm as the cumulative average over `batches`, in place.

    Everything but BatchNorm runs in evaluation mode; modes, momenta and weights stay as they were.

    Args:
        model: The network.
        batches: Argument tuples; each batch needs more than one value per channel.

    Raises:
        ValueError: A batch has a single value per channel.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    before = [
        (m.momentum, m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone())
        for m in norms
    ]
    try:
        with evaluating(model):
            for module in norms:
                module.train()
                module.reset_running_stats()
                module.momentum = None
            for batch in batches:
                model(*batch)
    except BaseException:
        for module, (_, mean, var, count) in zip(norms, before, strict=True):
            module.running_mean.copy_(mean)
            module.running_var.copy_(var)
            module.num_batches_tracked.copy_(count)
        raise
    finally:
        for module, (momentum, *_) in zip(norms, before, strict=True):
            module.momentum = momentum
