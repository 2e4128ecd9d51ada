"""ChannelGraph: the axes along which a network can be pruned, and what each costs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.modules.im2col import rows_along
from mdcp_fast.modules.layer_kinds import Layer, layers_of
from mdcp_fast.modules.names import shared_names
from mdcp_fast.modules.removal import tensor_of
from mdcp_fast.tracing.axes import Axis, FixedAxis, module_of
from mdcp_fast.tracing.cost import (
    WeightTable,
    cost_model,
    macs_by_weight,
    parameter_costs,
    position_counts,
    with_table_cost,
)
from mdcp_fast.tracing.labels import Multiplication


class ChannelGraph:
    """What `trace` found out about a network. Print it to see every axis, its layers and its MACs.

    Attributes:
        model: The dense network, untouched.
        example_inputs: The inputs it was traced with: a tuple of arguments, or a dict of named
            ones.
        axes: What may be pruned, in order of execution.
        fixed: What may not, with reasons.
        costs: What the dense network costs by name, in whole numbers: "macs", its
            multiply-accumulates for `example_inputs`; "params", its parameters; and what else was
            registered when it was traced (`register_cost`).
        cost: The same costs, in the same order, as a function of the axis widths, exact.
        counts: What the costs are products of.
        normalized_by: For each weight whose layer a BatchNorm follows directly, the name of that
            running mean.
        uncounted: Ops that multiply and for which there is no formula: not in the MACs.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        axes: Sequence[Axis],
        fixed: Sequence[FixedAxis],
        multiplications: Sequence[Multiplication],
        macs: int,
        normalized_by: Mapping[str, str] | None = None,
        uncounted: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.axes = tuple(axes)
        self.fixed = tuple(fixed)
        self.multiplications = tuple(multiplications)
        self.normalized_by = dict(normalized_by or {})
        self.uncounted = tuple(uncounted)
        parameters: dict[str, Tensor] = dict(model.named_parameters())
        for one in self.multiplications:  # a fixed filter may be a buffer
            if one.weight not in parameters:
                parameters[one.weight] = multiplied(model, one)
        each = parameter_costs(parameters, self.multiplications)
        self.costs = {
            cost: sum(by_parameter[name] * one.numel() for name, one in parameters.items())
            for cost, by_parameter in each.items()
        }
        # What layers do not explain (products of activations) is a constant.
        constants = {cost: 0 for cost in each} | {"macs": macs - self.costs["macs"]}
        self.costs["macs"] = macs
        self.counts = position_counts(parameters, self.axes)
        self.cost = cost_model(parameters, self.counts, each, constants)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense network for `example_inputs`."""
        return self.costs["macs"]

    @property
    def params(self) -> int:
        """Number of parameters of the dense network."""
        return self.costs["params"]

    def costs_at(self, widths: Tensor) -> dict[str, int]:
        """What the network costs, by name, at `widths` (int64 [axes])."""
        return dict(zip(self.costs, self.cost.evaluate(widths).tolist(), strict=True))

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers whose weights are parameters that multiply their inputs, by path."""
        return layers_of(self.model, self.normalized_by)

    def with_model(self, model: nn.Module) -> ChannelGraph:
        """The same graph for a network of the same structure with other weights."""
        other = copy.copy(self)
        other.model = model
        return other

    def with_table_cost(
        self, name: str, constant: int, tables: Mapping[str, WeightTable]
    ) -> ChannelGraph:
        """The same graph with one more cost: what tables say of weights, and a constant.

        Args:
            name: Of the cost.
            constant: What the network costs beside these weights.
            tables: By weight.

        Raises:
            ValueError: There is a cost of that name, or one of tables, already.
        """
        if name in self.costs or len(self.cost.tables):
            raise ValueError(f"with_table_cost: name: expected no cost before {name}, got another")
        other = copy.copy(self)
        other.cost = with_table_cost(self.cost, self.counts, constant, tables)
        dense = other.cost.evaluate(self.widths).tolist()
        other.costs = dict(zip((*self.costs, name), dense, strict=True))
        return other

    @property
    def widths(self) -> Tensor:
        """Dense width of every axis, int64 [axes]."""
        return torch.tensor([axis.channels for axis in self.axes], dtype=torch.int64)

    def weights(self, axis: Axis) -> list[Tensor]:
        """The weights that make each channel of `axis`, one matrix for each producing layer.

        Returns:
            float32 [channels, numbers] on the CPU.
        """
        matrices = []
        for place in axis.producers:
            weight = tensor_of(self.model, place.parameter).detach()
            rows = rows_along(weight, place.dimension)
            picked = rows[place.positions.to(rows.device)]  # [channels, multiplicity, numbers]
            matrices.append(picked.flatten(1).to("cpu", torch.float32))
        return matrices

    def positions(self, kept: Sequence[Sequence[int]]) -> dict[str, dict[int, Tensor]]:
        """Positions that stay, {parameter: {dimension: positions}}, if axis i keeps `kept[i]`.

        Only parameters and dimensions that lose something are in it, shared ones by all their
        names.
        """
        gone = torch.ones(int(self.widths.sum()), dtype=torch.bool)
        start, positions = 0, dict[str, dict[int, Tensor]]()
        for axis, chosen in zip(self.axes, kept, strict=True):
            gone[[start + channel for channel in chosen]] = False
            start += axis.channels
        sizes, channel, position = self._packed
        stays = torch.ones(sum(sizes.values()), dtype=torch.bool)
        stays[position[gone[channel]]] = False
        for (parameter, dimension), mask in zip(
            sizes, stays.split(list(sizes.values())), strict=True
        ):
            if not mask.all():
                positions.setdefault(parameter, {})[dimension] = mask.nonzero().flatten()
        for name, first in shared_names(self.model).items():
            if first in positions:
                positions[name] = positions[first]
        return positions

    @cached_property
    def _packed(self) -> tuple[dict[tuple[str, int], int], Tensor, Tensor]:
        """All places as one: sizes by parameter and dimension, which lie one behind the other.

        And two int64 [positions in places]: a channel, counted over all axes, and its position.
        """
        sizes = {
            (place.parameter, place.dimension): tensor_of(self.model, place.parameter).shape[
                place.dimension
            ]
            for axis in self.axes
            for place in (*axis.places, *axis.repeated)
        }
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        channels, positions, start = [], [], 0
        for axis in self.axes:
            own = torch.arange(start, start + axis.channels)
            start += axis.channels
            for place in (*axis.places, *axis.repeated):
                channels.append(own.repeat_interleave(place.multiplicity))
                positions.append(
                    place.positions.flatten() + starts[place.parameter, place.dimension]
                )
        nothing = torch.zeros(0, dtype=torch.int64)
        return sizes, torch.cat([nothing, *channels]), torch.cat([nothing, *positions])

    def shares(self) -> list[float]:
        """For each axis, the share of the MACs spent in layers that write or read its channels."""
        times = macs_by_weight(self.multiplications)
        sizes = {one.weight: multiplied(self.model, one) for one in self.multiplications}
        spent = {name: count * sizes[name].numel() for name, count in times.items()}
        touched = [{p.parameter for p in (*axis.places, *axis.computed)} for axis in self.axes]
        return [sum(spent.get(name, 0) for name in names) / max(self.macs, 1) for names in touched]

    def __str__(self) -> str:
        lines = [
            f"ChannelGraph: {self.macs:,} MACs, {self.params:,} parameters, "
            f"{len(self.axes)} prunable axes"
        ]
        for axis, share in zip(self.axes, self.shares(), strict=True):
            writers, readers = (
                ", ".join(dict.fromkeys(module_of(place.parameter) for place in places))
                for places in (axis.producers, axis.consumers)
            )
            mixed = "" if axis.exact else "  (normalised over: removing is not zeroing)"
            lines += [
                f"  {axis.name}: {axis.channels} channels, in {share:.1%} of the MACs{mixed}",
                f"    written by {writers}",
                f"    read by {readers}",
            ]
        return "\n".join(lines + not_counted(self.uncounted) + left_whole(self.fixed))

    __repr__ = __str__


def multiplied(model: nn.Module, one: Multiplication) -> Tensor:
    """What a layer multiplies by: a tensor of the network, or one of the shape that it computes."""
    if one.shape is None:
        return tensor_of(model, one.weight)
    return torch.empty(one.shape, device="meta")


def not_counted(uncounted: Sequence[str]) -> list[str]:
    """A line that names what multiplies and is not in the MACs; none where all is."""
    return [f"Not counted in the MACs: {', '.join(uncounted)}"] if uncounted else []


def left_whole(fixed: Iterable[FixedAxis]) -> list[str]:
    """Lines that name what may not be pruned, and why; none where there is nothing to name."""
    lines = [f"  {one.name}: {one.channels} channels: {one.reason}" for one in fixed]
    return ["Left whole:", *lines] if lines else []
