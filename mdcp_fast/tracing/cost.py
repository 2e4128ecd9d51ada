"""What a network costs, as a function of its axis widths.

Costs go by name. What an entry of a parameter costs is one function, and everything else follows
from it: the traced network's cost model, budgets of that name in `search`, and the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdcp_fast.ops.evaluate_population import CostModel
from mdcp_fast.tracing.axes import Axis
from mdcp_fast.tracing.labels import Multiplication

ONE = 0  # the count that is always 1


@dataclass(frozen=True)
class ParameterUse:
    """A parameter and how often it is used: what a cost is a function of.

    A buffer that a layer multiplies by (a fixed filter) is one, too, and so is a weight that the
    network computes.

    Attributes:
        name: Its fully qualified name.
        tensor: The dense network's, of any dtype; a `torch.nn.Parameter` or a buffer; one without
            values (on the meta device) where the network computes it.
        multiplications: How often each of its entries is multiplied, over all the layers that use
            it: positions of their outputs, for the example inputs.
    """

    name: str
    tensor: Tensor
    multiplications: int


Cost = Callable[[ParameterUse], int]
COSTS: dict[str, Cost] = {}  # by name, in the order of cost models


def register_cost(cost: Cost) -> Cost:
    """Makes a function a quantity that can be budgeted, under the function's name.

    Networks that are traced afterwards have it in `graph.costs`, their plans in `plan.costs`, and
    `search` takes budgets of that name, as it does of "macs" and "params"::

        @mdcp_fast.register_cost
        def weight_bytes(use):
            return use.tensor.element_size()

        plan = mdcp_fast.search(mdcp_fast.trace(model, inputs), weight_bytes=0.5)

    Args:
        cost: What each entry of a parameter costs, a whole number from 0: a function of its
            `ParameterUse`.

    Returns:
        The function.

    Raises:
        ValueError: There is another one of that name.
    """
    name = cost.__name__
    if name in COSTS:
        raise ValueError(f"register_cost: cost: expected a new name, got {name!r}")
    COSTS[name] = cost
    return cost


@register_cost
def macs(use: ParameterUse) -> int:
    """Multiply-accumulates."""
    return use.multiplications


@register_cost
def params(use: ParameterUse) -> int:
    """Parameters."""
    return int(isinstance(use.tensor, nn.Parameter))


def macs_by_weight(multiplications: Iterable[Multiplication]) -> dict[str, int]:
    """How often each entry of a weight is multiplied, over all the layers that use it."""
    positions: dict[str, int] = {}
    for one in multiplications:
        positions[one.weight] = positions.get(one.weight, 0) + one.positions
    return positions


def parameter_costs(
    parameters: Mapping[str, Tensor], multiplications: Iterable[Multiplication]
) -> dict[str, dict[str, int]]:
    """What each entry of each parameter costs: cost by cost, parameter by parameter.

    Raises:
        ValueError: A registered cost is no whole number from 0.
    """
    times = macs_by_weight(multiplications)
    uses = [ParameterUse(name, one, times.get(name, 0)) for name, one in parameters.items()]
    return {
        name: {use.name: _of_entry(name, cost, use) for use in uses} for name, cost in COSTS.items()
    }


def _of_entry(name: str, cost: Cost, use: ParameterUse) -> int:
    found = cost(use)
    if not (found >= 0 and found % 1 == 0):
        raise ValueError(
            f"register_cost: {name}: expected a whole number from 0 for each entry of "
            f"{use.name}, got {found}"
        )
    return int(found)


@dataclass(frozen=True)
class PositionCounts:
    """How many positions stay along the dimensions of parameters, as in a CostModel.

    Attributes:
        constant, offsets, axis, factor: See there.
        of: The count of each pruned dimension of each parameter.
    """

    constant: list[int]
    offsets: list[int]
    axis: list[int]
    factor: list[int]
    of: dict[str, dict[int, int]]


class WeightTable(NamedTuple):
    """What a weight costs, by its sizes.

    Attributes:
        first: int64 [rows], sizes of dimension 0, increasing; the last is the dense one.
        second: int64 [columns], sizes of dimension 1 likewise.
        values: int64 [rows, columns]. What lies between two sizes costs what the larger one does.
    """

    first: Tensor
    second: Tensor
    values: Tensor


def position_counts(parameters: Mapping[str, Tensor], axes: Sequence[Axis]) -> PositionCounts:
    """Counts of what stays of each pruned dimension of each parameter.

    A count is the positions outside any axis plus multiplicity times width for each axis there.

    Args:
        parameters: The network's, and buffers that multiply, by name, shared ones once.
        axes: What may be pruned.
    """
    members: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, axis in enumerate(axes):
        for place in (*axis.places, *axis.computed):
            if place.parameter in parameters:  # statistics cost nothing
                where = (place.parameter, place.dimension)
                members.setdefault(where, []).append((index, place.multiplicity))

    made = PositionCounts([1], [0, 0], [], [], {})
    known: dict[tuple[int, ...], int] = {}  # a layer, its bias and its BatchNorm share a count
    for (name, dimension), entries in members.items():
        touched = sum(multiplicity * axes[index].channels for index, multiplicity in entries)
        rest = parameters[name].shape[dimension] - touched
        key = (rest, *(number for entry in sorted(entries) for number in entry))
        if key not in known:
            known[key] = len(made.constant)
            made.constant.append(rest)
            made.axis.extend(index for index, _ in entries)
            made.factor.extend(multiplicity for _, multiplicity in entries)
            made.offsets.append(len(made.axis))
        made.of.setdefault(name, {})[dimension] = known[key]
    return made


def cost_model(
    parameters: Mapping[str, Tensor],
    counts: PositionCounts,
    costs: Mapping[str, Mapping[str, int]],
    constants: Mapping[str, int],
) -> CostModel:
    """Costs as sums of products of two position counts (see CostModel).

    A parameter's size is the product of its counts, of which there are at most two (a weight's
    outputs and inputs), times what no axis touches.

    Args:
        parameters: The network's, and buffers that multiply, by name, shared ones once.
        counts: Of what stays of them.
        costs: What each entry of each parameter costs, by cost and parameter.
        constants: What the network costs beside its parameters, by cost.

    Returns:
        The model, whose costs are in the order of `costs`.

    Raises:
        ValueError: A parameter may be pruned along more than two dimensions, or the dense network
            costs 2^63 or more.
    """
    for cost, by_parameter in costs.items():
        dense = sum(by_parameter[name] * one.numel() for name, one in parameters.items())
        if abs(dense) + abs(constants[cost]) >= 2**63:
            raise ValueError(
                f"cost_model: costs: expected the dense network's {cost} below 2^63, got {dense:,}"
            )
    terms: dict[tuple[int, int], list[int]] = {(ONE, ONE): [constants[name] for name in costs]}
    for name, tensor in parameters.items():
        own = counts.of.get(name, {})
        if len(own) > 2:
            raise ValueError(
                f"cost_model: axes: expected axes along two dimensions of {name} at most, since "
                f"costs are products of two widths, got dimensions {', '.join(map(str, own))}"
            )
        untouched = 1
        for dimension, size in enumerate(tensor.shape):
            untouched *= 1 if dimension in own else size
        first, second = [ONE] * (2 - len(own)) + list(own.values())
        term = terms.setdefault((first, second), [0] * len(costs))
        for row, by_parameter in enumerate(costs.values()):
            term[row] += untouched * by_parameter[name]
    return CostModel(
        constant=_integers(counts.constant),
        offsets=_integers(counts.offsets),
        axis=_integers(counts.axis),
        factor=_integers(counts.factor),
        terms=_integers(list(terms)).view(-1, 2),
        coefficients=_integers(list(terms.values())).view(-1, len(costs)).T.contiguous(),
    )


def with_table_cost(
    cost: CostModel, counts: PositionCounts, constant: int, tables: Mapping[str, WeightTable]
) -> CostModel:
    """The model with one more cost, the last: what tables say of weights, and a constant.

    Args:
        cost: Without tables.
        counts: What it was made of.
        constant: What the network costs beside these weights.
        tables: By weight.
    """
    where, edges, values = [], [], []
    for name, table in tables.items():
        own = counts.of.get(name, {})
        picked = table.values
        for dimension, sizes in enumerate((table.first, table.second)):
            if dimension not in own:  # it has its dense size for ever
                picked = picked.narrow(dimension, len(sizes) - 1, 1)
            edges.append(sizes if dimension in own else sizes[-1:])
        where.append([own.get(dimension, ONE) for dimension in (0, 1)])
        values.append(picked.flatten())
    row = torch.zeros_like(cost.coefficients[:1])
    row[0, 0] = constant  # the first term is that of the constants
    nothing = torch.zeros(0, dtype=torch.int64)
    return replace(
        cost,
        coefficients=torch.cat([cost.coefficients, row]),
        tables=_integers(where).view(-1, 2),
        table_offsets=_integers([0] * (len(cost.coefficients) + 1) + [len(tables)]),
        edges=torch.cat([nothing, *edges]),
        edge_offsets=_integers(list(accumulate(map(len, edges), initial=0))),
        values=torch.cat([nothing, *values]),
        value_offsets=_integers(list(accumulate(map(len, values), initial=0))),
    )


def _integers(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
