"""The cost of a network as a function of its axis widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import CostModel
from mdcp_fast.tracing.axes import Axis
from mdcp_fast.tracing.labels import Multiplication

ONE = 0  # the count that is always 1


def macs_by_weight(multiplications: Iterable[Multiplication]) -> dict[str, int]:
    """How often each entry of a weight is multiplied, over all the layers that use it."""
    positions: dict[str, int] = {}
    for one in multiplications:
        positions[one.weight] = positions.get(one.weight, 0) + one.positions
    return positions


def cost_model(
    parameters: Mapping[str, Tensor],
    axes: Sequence[Axis],
    multiplications: Iterable[Multiplication],
    macs: int,
) -> CostModel:
    """MACs and parameters as sums of products of two position counts (see CostModel).

    Every pruned (parameter, dimension) has a count: its positions outside any axis plus
    multiplicity times width for each axis that sits there. A parameter's size is the product of its
    counts, of which there are at most two (a weight's outputs and inputs), times what no axis
    touches.

    Args:
        parameters: The network's, by name, shared ones once.
        axes: What may be pruned.
        multiplications: What each layer costs.
        macs: Counted MACs of the dense network; what layers do not explain (products of
            activations) is a constant.
    """
    members: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, axis in enumerate(axes):
        for place in axis.places:
            if place.parameter in parameters:  # a buffer costs nothing
                where = (place.parameter, place.dimension)
                members.setdefault(where, []).append((index, place.multiplicity))

    constant, offsets, axis_of, factor = [1], [0, 0], [], []
    counts: dict[str, dict[int, int]] = {}  # parameter -> dimension -> count
    known: dict[tuple[int, ...], int] = {}  # a layer, its bias and its BatchNorm share a count
    for (name, dimension), entries in members.items():
        touched = sum(multiplicity * axes[index].channels for index, multiplicity in entries)
        rest = parameters[name].shape[dimension] - touched
        key = (rest, *(number for entry in sorted(entries) for number in entry))
        if key not in known:
            known[key] = len(constant)
            constant.append(rest)
            axis_of += [index for index, _ in entries]
            factor += [multiplicity for _, multiplicity in entries]
            offsets.append(len(axis_of))
        counts.setdefault(name, {})[dimension] = known[key]

    terms: dict[tuple[int, int], list[int]] = {(ONE, ONE): [0, 0]}
    times = macs_by_weight(multiplications)
    for name, tensor in parameters.items():
        own = counts.get(name, {})
        untouched = 1
        for dimension, size in enumerate(tensor.shape):
            untouched *= 1 if dimension in own else size
        first, second = [ONE] * (2 - len(own)) + list(own.values())
        term = terms.setdefault((first, second), [0, 0])
        term[0] += untouched * times.get(name, 0)
        term[1] += untouched
    layers = sum(times.get(name, 0) * tensor.numel() for name, tensor in parameters.items())
    terms[ONE, ONE][0] += macs - layers

    def integers(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    return CostModel(
        constant=integers(constant),
        offsets=integers(offsets),
        axis=integers(axis_of),
        factor=integers(factor),
        terms=integers(list(terms)).view(-1, 2),
        coefficients=integers(list(terms.values())).view(-1, 2).T.contiguous(),
    )
