"""Axes: classes of labels that sit in the same places, gathered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mdcp_fast.tracing.labels import COMPUTED, INPUT, OUTPUT, REPEATED, Resolved, Use


@dataclass(frozen=True)
class ParameterSlice:
    """Where an axis's channels sit in one parameter or buffer.

    Attributes:
        parameter: Fully qualified name, e.g. "layer1.0.conv1.weight".
        dimension: The dimension of that tensor.
        positions: int64 [channels, multiplicity], the positions of each channel along it.
        role: "output" (a weight's producing dimension), "input" (a weight's consuming dimension) or
            "along" (a bias, a normalisation's weights and statistics, a parameter that is
            multiplied in).
    """

    parameter: str
    dimension: int
    positions: Tensor
    role: str

    @property
    def multiplicity(self) -> int:
        return int(self.positions.shape[1])


@dataclass(frozen=True)
class Axis:
    """Channels that are removed one by one, each from all of its places at once.

    Attributes:
        name: The module that first produces them, e.g. "layer1.0.conv1".
        channels: How many removable channels there are; width w in 1..channels keeps w of them.
        places: Everywhere they sit.
        exact: Removing a channel equals zeroing it. False behind LayerNorm, GroupNorm or softmax
            over channels.
        bent: What keeps the channels from being rotated: an op on the way from the layers that
            write them to those that read them that is not linear, or tells channels apart; None for
            a linear stream.
        computed: Where they sit in weights that the network computes, which cost MACs.
        repeated: Widths that layers repeat without having a tensor of them ("norm.num_features").
        doubt: An op whose sizes may be written in the source, or follow the channels.
        least: The smallest width at which the network runs.
    """

    name: str
    channels: int
    places: tuple[ParameterSlice, ...]
    exact: bool = True
    bent: str | None = None
    computed: tuple[ParameterSlice, ...] = ()
    repeated: tuple[ParameterSlice, ...] = ()
    doubt: str | None = None
    least: int = 1

    @property
    def producers(self) -> tuple[ParameterSlice, ...]:
        return tuple(place for place in self.places if place.role == OUTPUT)

    @property
    def consumers(self) -> tuple[ParameterSlice, ...]:
        return tuple(place for place in self.places if place.role == INPUT)


@dataclass(frozen=True)
class FixedAxis:
    """Channels that stay, and why."""

    name: str
    channels: int
    reason: str


def module_of(parameter: str) -> str:
    """The module that a parameter belongs to, or the parameter itself where that is the network."""
    return parameter.rpartition(".")[0] or parameter


def gather(
    uses: Iterable[Use], resolved: Resolved, allow_inexact: bool
) -> tuple[list[Axis], list[FixedAxis]]:
    """Puts classes that sit in the same places equally often, and share one fate, into one axis.

    Args:
        uses: Where labels sit.
        resolved: The classes of the labels.
        allow_inexact: Whether classes that a normalisation mixes may be pruned.

    Returns:
        What may be pruned and what may not, in order of execution.
    """
    uses = list(uses)
    fate, fates = _fates(resolved)
    known: dict[tuple[int, ...], Tensor] = {}  # a layer and its BatchNorm have the same roots
    along = [resolved.roots[use.labels] for use in uses]
    along = [known.setdefault(tuple(roots.tolist()), roots) for roots in along]
    group = _group(known.values(), fate)
    places = _places(uses, along, group)

    axes: list[Axis] = []
    fixed: list[FixedAxis] = []
    unwritten: list[tuple[ParameterSlice, str]] = []
    for number, found in sorted(places.items(), key=lambda item: item[1][0]):
        members = (group == number).nonzero().flatten()
        reason, mixed = fates[int(fate[members[0]])]
        if mixed is not None:  # what mixes these, not what mixed the first of that fate
            mixed = _first_reason(resolved.mixed, members)
        computed, repeated = (
            tuple(place for _, place in found if place.role == role)
            for role in (COMPUTED, REPEATED)
        )
        axis_places = tuple(place for _, place in found if place.role not in (COMPUTED, REPEATED))
        writers = [place for place in axis_places if place.role == OUTPUT]
        if not writers:
            if reason is not None:
                unwritten += [(place, reason) for place in axis_places]
            continue
        name, positions = module_of(writers[0].parameter), writers[0].positions.numel()
        if reason is None and mixed is not None and not allow_inexact:
            reason = f"{mixed}: pass allow_inexact=True to prune them all the same"
        if reason is None and len(members) == 1:
            tied = positions > 1
            reason = "all of its channels are tied together" if tied else "it has a single channel"
        if reason is None and not any(uses[index].read for (index, _), _ in found):
            reason = "no layer reads these channels"
        if reason is None:
            bent = _first_reason(resolved.bent, members)
            doubt = _first_reason(resolved.doubts, members)
            elsewhere = (computed, repeated)
            axes.append(
                Axis(name, len(members), axis_places, mixed is None, bent, *elsewhere, doubt)
            )
        else:
            fixed.append(FixedAxis(name, positions, reason))
    return _unique_names(axes), merged(fixed + _computed_layers(uses, unwritten))


def _first_reason(reasons: dict[int, str], members: Tensor) -> str | None:
    """What was noted of some of these classes, int64 [roots]; None for nothing."""
    return next((reasons[m] for m in members.tolist() if m in reasons), None)


def _computed_layers(
    uses: list[Use], unwritten: list[tuple[ParameterSlice, str]]
) -> list[FixedAxis]:
    """Weights that no layer uses as they are (normalised in the forward pass, say), by name."""
    dimensions = Counter(use.parameter for use in uses)
    layers: dict[str, FixedAxis] = {}  # weight normalisation keeps a layer's weight in two parts
    for place, reason in unwritten:
        name = module_of(place.parameter)
        if place.dimension == 0 and dimensions[place.parameter] > 1:
            layers.setdefault(name, FixedAxis(name, place.positions.numel(), reason))
    return list(layers.values())


def _fates(resolved: Resolved) -> tuple[Tensor, list[tuple[str | None, str | None]]]:
    """Numbers each pair of reasons (fixed, mixed): int64 [labels], and what the numbers mean.

    Classes that are mixed by different ops share a fate: the first one is named.
    """
    numbers: dict[tuple[str | None, bool], int] = {(None, False): 0}
    fates: list[tuple[str | None, str | None]] = [(None, None)]
    fate = torch.zeros(len(resolved.roots), dtype=torch.int64)
    for root in sorted({*resolved.fixed, *resolved.mixed}):
        reason, mixed = resolved.fixed.get(root), resolved.mixed.get(root)
        key = (reason, mixed is not None)
        if key not in numbers:
            numbers[key] = len(fates)
            fates.append((reason, mixed))
        fate[root] = numbers[key]
    return fate, fates


def _group(along: Iterable[Tensor], fate: Tensor) -> Tensor:
    """The group of every root, int64 [labels], refined by the roots along each use."""
    group = fate.clone()
    following = int(group.max()) + 1
    for roots in along:
        present, counts = torch.unique(roots, return_counts=True)
        # Pairs (group, count) as single numbers: unique rows take far longer.
        keys = group[present] * (len(roots) + 1) + counts
        distinct, refined = torch.unique(keys, return_inverse=True)
        group[present] = refined + following
        following += len(distinct)
    group[0] = -1  # label 0 is no channel
    return group


def _places(
    uses: list[Use], along: list[Tensor], group: Tensor
) -> dict[int, list[tuple[tuple[int, int], ParameterSlice]]]:
    """For each group its places, each with (use, first root), which orders the groups.

    Args:
        uses: Where labels sit.
        along: The roots there; one tensor for all uses where they are the same.
        group: The group of every root.
    """
    split: dict[int, list[tuple[int, int, Tensor]]] = {}
    places: dict[int, list[tuple[tuple[int, int], ParameterSlice]]] = {}
    for index, (use, roots) in enumerate(zip(uses, along, strict=True)):
        if id(roots) not in split:
            split[id(roots)] = _split(roots, group)
        for number, first, positions in split[id(roots)]:
            place = ParameterSlice(use.parameter, use.dimension, positions, use.role)
            places.setdefault(number, []).append(((index, first), place))
    return places


def _split(roots: Tensor, group: Tensor) -> list[tuple[int, int, Tensor]]:
    """The groups that sit along a dimension: number, first root, positions.

    Args:
        roots: int64 [size of the dimension].
        group: The group of every root.

    Returns:
        Positions are int64 [channels, multiplicity], by increasing root, so that the rows of all
        places agree on the channel.
    """
    order = torch.argsort(roots, stable=True)
    order = order[torch.argsort(group[roots[order]], stable=True)]
    numbers, counts = torch.unique_consecutive(group[roots[order]], return_counts=True)
    found = []
    for number, positions in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
        if number >= 0:
            own = roots[positions]
            multiplicity = int((own == own[0]).sum())  # that of all channels of a group
            found.append((number, int(own[0]), positions.view(-1, multiplicity)))
    return found


def _unique_names(axes: list[Axis]) -> list[Axis]:
    """Two axes written by one layer (it serves several purposes) are told apart by a number."""
    seen: dict[str, int] = {}
    named = []
    for axis in axes:
        seen[axis.name] = seen.get(axis.name, 0) + 1
        suffix = f"#{seen[axis.name]}" if seen[axis.name] > 1 else ""
        named.append(replace(axis, name=axis.name + suffix))
    return named


def merged(fixed: Iterable[FixedAxis]) -> list[FixedAxis]:
    """Channels of one module that stay for one reason, counted together."""
    total: dict[tuple[str, str], int] = {}
    for one in fixed:
        total[one.name, one.reason] = total.get((one.name, one.reason), 0) + one.channels
    return [FixedAxis(name, channels, reason) for (name, reason), channels in total.items()]
