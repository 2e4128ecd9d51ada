"""Second moments of what layers read: one pass of the dense network over calibration batches.

For every weight that reads an axis's channels: the Gram matrix of its layer's inputs, their mean
and their number. From these follow how well kept channels predict dropped ones, which describes
channels, scores widths and compensates what was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call, eval_mode, preserve_buffers
from mdcp_fast.modules.hooks import Hook, forward_hooks, layer_input
from mdcp_fast.modules.im2col import input_columns
from mdcp_fast.modules.layer_kinds import Layer, MatrixKind
from mdcp_fast.modules.removal import tensor_of
from mdcp_fast.pruning.calibration import in_parts
from mdcp_fast.pruning.ridge import gram_of
from mdcp_fast.tracing.axes import ParameterSlice
from mdcp_fast.tracing.graph import ChannelGraph

LARGEST_GRAM = 8192  # input channels; beyond that a float64 Gram matrix takes over half a gigabyte
POSITIONS = 3136  # of each sample, at most: those of 56 x 56
ROWS = 1 << 22  # numbers of an input that are copied at once: 16 MB in float32


@dataclass
class Consumer:
    """A weight that reads channels of axes, and the running sums over its layer's dense inputs.

    Inputs are seen as [samples, groups, channels]: `channels` is what one group reads, and where a
    flattened input holds each channel at several positions, these count as samples.

    Attributes:
        weight: Name of the parameter.
        layers: Those that use it.
        dimension: Of the weight: where input channels sit.
        blocks: int64 [channels, multiplicity], the positions of each channel of a flattened input;
            None where a channel is one position.
        pivot: float32 or float64 [groups, 1, channels], near the mean, so that sums stay small.
        gram: float64 [groups, channels, channels], summed products of inputs less the pivot.
        total: float64 [groups, channels], summed inputs less the pivot.
        samples: How many were summed.
    """

    weight: str
    layers: list[Layer]
    dimension: int
    blocks: Tensor | None
    pivot: Tensor | None = None
    gram: Tensor | None = None
    total: Tensor | None = None
    samples: int = 0

    @property
    def usable(self) -> bool:
        """Whether inputs were seen, and all of them finite."""
        return self.gram is not None and bool(torch.isfinite(self.gram).all())

    def seeing(self, kind: MatrixKind) -> Callable[..., None]:
        """A forward pre-hook of a layer: adds a batch of its inputs to the sums."""

        @torch.no_grad()
        def see(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows = kind.rows(layer, layer_input(arguments, named), POSITIONS)
            for part in rows.split(max(1, ROWS // rows.shape[1])):
                self._add(part, kind.groups(layer))

        return see

    def _add(self, rows: Tensor, groups: int) -> None:
        if self.blocks is not None:
            rows = rows[:, self.blocks.T.to(rows.device)].flatten(0, 1)  # multiplicity as samples
        grouped = rows.to(torch.promote_types(rows.dtype, torch.float32))
        grouped = grouped.unflatten(1, (groups, -1)).transpose(0, 1)  # [groups, samples, channels]
        if self.pivot is None:
            self.pivot = grouped.mean(1, keepdim=True)
        grouped = grouped - self.pivot
        # What is summed before it is float64 lies about zero and is one block of `ROWS` numbers.
        gram, total = gram_of(grouped).double(), grouped.sum(1).double()
        self.gram = gram if self.gram is None else self.gram + gram
        self.total = total if self.total is None else self.total + total
        self.samples += grouped.shape[1]

    def moments(self, centred: bool) -> tuple[Tensor, Tensor]:
        """The Gram matrix per sample, about the mean or about zero, and the mean.

        Returns:
            float64 [groups, channels, channels] and [groups, channels].
        """
        assert self.pivot is not None and self.gram is not None and self.total is not None
        gram, offset = self.gram / self.samples, self.total / self.samples
        mean = self.pivot.squeeze(1).double() + offset
        gram = gram - offset.unsqueeze(2) * offset.unsqueeze(1)
        return gram if centred else gram + mean.unsqueeze(2) * mean.unsqueeze(1), mean

    def __add__(self, other: Consumer) -> Consumer:
        """The sums over the inputs of both, which have the same pivot."""
        if self.gram is None or other.gram is None:
            return other if self.gram is None else self
        assert self.total is not None and other.total is not None
        return replace(
            self,
            gram=self.gram + other.gram,
            total=self.total + other.total,
            samples=self.samples + other.samples,
        )

    def in_basis(self, entries: Tensor, forward: Tensor) -> Consumer:
        """The same sums after some of the inputs were changed for combinations of them.

        Args:
            entries: int64 [channels of an axis, multiplicity], where they sit among the inputs.
            forward: float64 [channels, channels], new channels from old ones.
        """
        if self.gram is None:
            return self
        assert self.pivot is not None and self.total is not None
        entries, forward = entries.to(self.gram.device), forward.to(self.gram.device)

        def changed(inputs: Tensor, dimension: int) -> Tensor:
            rows = inputs.double().movedim(dimension, 0).clone()
            rows[entries] = torch.tensordot(forward, rows[entries], 1)
            return rows.movedim(0, dimension)

        gram = changed(changed(self.gram, 1), 2)
        return replace(
            self,
            gram=(gram + gram.mT) / 2,
            total=changed(self.total, 1),
            pivot=changed(self.pivot, 2),
        )

    def moments_about(self, center: Tensor) -> Tensor:
        """The Gram matrix per sample about a point.

        Args:
            center: float64 [groups, channels].

        Returns:
            float64 [groups, channels, channels].
        """
        assert self.pivot is not None and self.gram is not None and self.total is not None
        away = self.pivot.squeeze(1).double() - center
        mixed = (self.total / self.samples).unsqueeze(2) * away.unsqueeze(1)
        return self.gram / self.samples + mixed + mixed.mT + away.unsqueeze(2) * away.unsqueeze(1)

    def channels(self, positions: Tensor) -> Tensor:
        """The channels of a group that sit at these positions along the weight's dimension.

        Args:
            positions: int64 [n], all of those of each channel.

        Returns:
            int64, increasing.
        """
        if self.blocks is None:
            return positions.sort().values
        return torch.isin(self.blocks[:, 0], positions).nonzero().flatten()

    def entries(self, positions: Tensor) -> Tensor:
        """Where an axis's channels sit among those that the Gram matrix knows.

        Args:
            positions: int64 [channels, multiplicity], along the weight's dimension.

        Returns:
            int64 [channels, multiplicity], or [channels, 1] where positions count as samples.
        """
        if self.blocks is None:
            return positions
        first = {int(p): c for c, p in enumerate(self.blocks[:, 0])}
        return torch.tensor([[first[int(p)]] for p in positions[:, 0]])

    def columns(self, weight: Tensor, channels: Tensor, groups: int) -> Tensor:
        """The weights that read these channels.

        Args:
            weight: Of this consumer's layer, possibly with fewer outputs.
            channels: int64 [n].
            groups: Of the layer.

        Returns:
            [groups, outputs of a group, taps, n]; positions of a flattened input count as taps.
        """
        chosen = channels
        if self.blocks is not None:
            chosen = self.blocks[channels.cpu()].T.flatten().to(weight.device)
        part = weight.detach().index_select(self.dimension, chosen.to(weight.device))
        return input_columns(part, self.dimension, groups, len(channels))


def absorbs_mean(consumer: Consumer) -> bool:
    """Whether what dropped channels add on average can go to a bias or a BatchNorm right behind.

    With several layers on one weight there is no one place for it.
    """
    return len(consumer.layers) == 1 and consumer.layers[0].absorbs_mean


@torch.no_grad()
def collect_grams(
    graph: ChannelGraph,
    batches: Iterable[Inputs],
    weights: Collection[str] | None = None,
    like: Sequence[Consumer] = (),
    watched: Sequence[tuple[nn.Module, Hook]] = (),
) -> tuple[list[Consumer], list[str]]:
    """Runs the dense network on calibration batches and sums up what its layers read.

    Nothing is kept but sums: memory grows by one float64 matrix a consumer.

    Args:
        graph: The traced network; not changed.
        batches: The model's arguments (see `calibration_batches`).
        weights: Names of the weights that are wanted; by default all that read an axis.
        like: Consumers of other batches, whose pivots these sums are to have, so that both can be
            added.
        watched: Modules with hooks that are called after they run, for what else is to be seen of
            the same pass.

    Returns:
        The consumers, in the order of the graph's axes, and the names of the weights that are left
        out: of layers that are not called as modules, or too wide for a Gram matrix.
    """
    consumers, skipped = _consumers(graph, weights)
    pivots = {consumer.weight: consumer.pivot for consumer in like}
    for consumer in consumers:
        consumer.pivot = pivots.get(consumer.weight)
    model = graph.model
    hooks = [
        (model.get_submodule(layer.path), consumer.seeing(layer.kind))
        for consumer in consumers
        for layer in consumer.layers
    ]
    seeing = forward_hooks(hooks, before=True), forward_hooks(watched, before=False)
    with seeing[0], seeing[1], eval_mode(model), preserve_buffers(model):
        for batch in in_parts(batches):
            call(model, batch)
    return consumers, skipped


def _consumers(
    graph: ChannelGraph, weights: Collection[str] | None
) -> tuple[list[Consumer], list[str]]:
    places: dict[tuple[str, int], list[ParameterSlice]] = {}
    for axis in graph.axes:
        for place in axis.consumers:
            places.setdefault((place.parameter, place.dimension), []).append(place)
    consumers, skipped = [], []
    for (name, dimension), members in places.items():
        if weights is not None and name not in weights:
            continue
        weight = tensor_of(graph.model, name)
        layers = _users(graph, weight)
        flat = all(layer.kind.reads_flattened for layer in layers)
        blocks = _blocks(members, weight.shape[dimension]) if flat else None
        width = weight.shape[dimension] if blocks is None else len(blocks)
        if not layers or width > LARGEST_GRAM:
            skipped.append(name)
        else:
            consumers.append(Consumer(name, layers, dimension, blocks))
    return consumers, skipped


def _users(graph: ChannelGraph, weight: Tensor) -> list[Layer]:
    """The layers with a weight; none if a Gram matrix does not say what one of them does with it.

    Modules of other kinds (embeddings) do something else with a weight that they share.
    """
    model = graph.model
    users = {p: m for p, m in model.named_modules() if getattr(m, "weight", None) is weight}
    layers = [graph.layers[path] for path in users if path in graph.layers]
    described = all(layer.kind.inputs_by_group(users[layer.path]) for layer in layers)
    return layers if described and len(layers) == len(users) else []


def _blocks(members: list[ParameterSlice], size: int) -> Tensor | None:
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
