"""What a network costs, as a function of its axis widths.

Costs go by name. What an entry of a parameter costs is one function, and everything else follows
from it: the traced network's cost model, budgets of that name in `search`, and the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdcp_fast.ops.evaluate_population import CostModel
from mdcp_fast.tracing.axes import Axis
from mdcp_fast.tracing.labels import Multiplication

ONE = 0  # the count that is always 1


@dataclass(frozen=True)
class ParameterUse:
    """A parameter and how often it is used: what a cost is a function of.

    A buffer that a layer multiplies by (a fixed filter) is one, too.

    Attributes:
        name: Its fully qualified name.
        tensor: The dense network's, of any dtype; a `torch.nn.Parameter` or a buffer.
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


def cost_model(
    parameters: Mapping[str, Tensor],
    axes: Sequence[Axis],
    costs: Mapping[str, Mapping[str, int]],
    constants: Mapping[str, int],
) -> CostModel:
    """Costs as sums of products of two position counts (see CostModel).

    Every pruned (parameter, dimension) has a count: its positions outside any axis plus
    multiplicity times width for each axis that sits there. A parameter's size is the product of its
    counts, of which there are at most two (a weight's outputs and inputs), times what no axis
    touches.

    Args:
        parameters: The network's, and buffers that multiply, by name, shared ones once.
        axes: What may be pruned.
        costs: What each entry of each parameter costs, by cost and parameter.
        constants: What the network costs beside its parameters, by cost.

    Returns:
        The model, whose costs are in the order of `costs`.

    Raises:
        ValueError: A parameter may be pruned along more than two dimensions.
    """
    members: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, axis in enumerate(axes):
        for place in axis.places:
            if place.parameter in parameters:  # statistics cost nothing
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

    terms: dict[tuple[int, int], list[int]] = {(ONE, ONE): [constants[name] for name in costs]}
    for name, tensor in parameters.items():
        own = counts.get(name, {})
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

    def integers(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    return CostModel(
        constant=integers(constant),
        offsets=integers(offsets),
        axis=integers(axis_of),
        factor=integers(factor),
        terms=integers(list(terms)).view(-1, 2),
        coefficients=integers(list(terms.values())).view(-1, len(costs)).T.contiguous(),
    )
