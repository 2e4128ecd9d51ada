"""ChannelGraph: the axes along which a network can be pruned, what each costs, and what may not be pruned and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.labels import INPUT, OUTPUT, LabelWalk
from mdcp_fast.ops.population import CostModel
from mdcp_fast.removal import difference, float64_inputs, in_float64, remove, scrambled

TOLERANCE = 1e-10  # largest difference, relative to the largest output, between a pruned and a zeroed network


@dataclass(frozen=True)
class Place:
    """Where an axis's channels sit in one parameter or buffer.

    Attributes:
        parameter: Fully qualified name, e.g. "layer1.0.conv1.weight".
        dimension: The dimension of that tensor.
        positions: int64 [channels, multiplicity], the positions of each channel along it.
        role: "output" (a weight's producing dimension), "input" (a weight's consuming dimension) or "along" (a bias, a
            normalisation's weights and statistics, a parameter that is multiplied in).
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
        exact: Removing a channel equals zeroing it. False behind LayerNorm, GroupNorm or softmax over channels.
    """

    name: str
    channels: int
    places: tuple[Place, ...]
    exact: bool = True

    @property
    def producers(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.role == OUTPUT)

    @property
    def consumers(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.role == INPUT)


@dataclass(frozen=True)
class FixedAxis:
    """Channels that stay, and why."""

    name: str
    channels: int
    reason: str


class ChannelGraph:
    """What `trace` found out about a network. Print it to see every axis, its layers and its share of the MACs.

    Attributes:
        model: The dense network, untouched.
        example_inputs: The inputs it was traced with.
        axes: What may be pruned, in order of execution.
        fixed: What may not, with reasons.
        cost: MACs and parameters (in this order) as a function of the axis widths, exact.
        macs: Multiply-accumulates of the dense network for `example_inputs`.
        params: Number of parameters of the dense network.
        normalized_by: For each weight whose layer a BatchNorm follows directly, the name of that running mean.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...],
        axes: Sequence[Axis],
        fixed: Sequence[FixedAxis],
        multiplications: Sequence[tuple[str, int]],
        macs: int,
        normalized_by: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.axes = tuple(axes)
        self.fixed = tuple(fixed)
        self.multiplications = tuple(multiplications)
        self.normalized_by = dict(normalized_by or {})
        self.macs = macs
        self.params = sum(p.numel() for p in model.parameters())
        self.cost = _cost_model(model, self.axes, self.multiplications, macs)

    @property
    def widths(self) -> Tensor:
        """Dense width of every axis, int64 [axes]."""
        return torch.tensor([axis.channels for axis in self.axes], dtype=torch.int64)

    def weights(self, axis: Axis) -> list[Tensor]:
        """The weights that make each channel of `axis`: float32 [channels, numbers], one matrix per producing layer."""
        matrices = []
        for place in axis.producers:
            weight = self.model.get_parameter(place.parameter).detach()
            rows = weight.movedim(place.dimension, 0).flatten(1)
            picked = rows[place.positions.to(rows.device)]  # [channels, multiplicity, numbers]
            matrices.append(picked.flatten(1).to("cpu", torch.float32))
        return matrices

    def positions(self, kept: Sequence[Sequence[int]]) -> dict[str, dict[int, Tensor]]:
        """Positions that stay when axis i keeps the channels `kept[i]`: {parameter: {dimension: int64 positions}}.

        Only parameters and dimensions that lose something are in it.
        """
        masks: dict[tuple[str, int], Tensor] = {}
        for axis, chosen in zip(self.axes, kept, strict=True):
            gone = torch.ones(axis.channels, dtype=torch.bool)
            gone[list(chosen)] = False
            if not gone.any():
                continue
            for place in axis.places:
                key = (place.parameter, place.dimension)
                if key not in masks:
                    path, _, leaf = place.parameter.rpartition(".")
                    tensor = getattr(self.model.get_submodule(path), leaf)
                    masks[key] = torch.ones(tensor.shape[place.dimension], dtype=torch.bool)
                masks[key][place.positions[gone].flatten()] = False
        positions: dict[str, dict[int, Tensor]] = {}
        for (parameter, dimension), mask in masks.items():
            positions.setdefault(parameter, {})[dimension] = mask.nonzero().flatten()
        return positions

    def failing(
        self, kept: Sequence[Sequence[int]], model: nn.Module | None = None
    ) -> dict[str, str]:
        """Names of the axes for which keeping `kept` does not give the zeroed network, and what happened.

        `model` is a network of the same structure to try it on; by default the dense network itself.

        All axes are tried together first; where that fails, halves of them, down to single axes; and for failures that
        take several axes, one more at a time.
        """
        model = self.model if model is None else model
        whole = [range(axis.channels) for axis in self.axes]
        failing: dict[str, str] = {}

        def pruned_along(indices: Sequence[int]) -> list[Sequence[int]]:
            return [kept[i] if i in set(indices) else whole[i] for i in range(len(whole))]

        def halve(indices: list[int]) -> None:
            reason = self._failure(pruned_along(indices), model)
            if reason is None:
                return
            if len(indices) == 1:
                failing[self.axes[indices[0]].name] = reason
                return
            halve(indices[: len(indices) // 2])
            halve(indices[len(indices) // 2 :])

        reason = self._failure(kept, model)
        if reason is None:
            return {}
        if len(whole) == 1:
            return {self.axes[0].name: reason}
        halve(list(range(len(whole) // 2)))
        halve(list(range(len(whole) // 2, len(whole))))
        passing = [i for i, axis in enumerate(self.axes) if axis.name not in failing]
        if (
            self._failure(pruned_along(passing), model) is not None
        ):  # it takes several axes together
            together: list[int] = []
            for i in passing:
                reason = self._failure(pruned_along([*together, i]), model)
                if reason is None:
                    together.append(i)
                else:
                    failing[self.axes[i].name] = reason
        return failing

    def _failure(self, kept: Sequence[Sequence[int]], model: nn.Module) -> str | None:
        """What is wrong with the network pruned to `kept`, or None. Inexact axes are only required to run."""
        exact = [
            chosen if axis.exact else range(axis.channels)
            for axis, chosen in zip(self.axes, kept, strict=True)
        ]
        try:
            gap = difference(model, self.positions(exact), self.example_inputs)
            if any(not axis.exact for axis in self.axes):
                with torch.no_grad():
                    in_float64(remove(model, self.positions(kept)))(
                        *float64_inputs(self.example_inputs)
                    )
        except (
            Exception
        ) as error:  # whatever the user's forward raises on fewer channels is the reason
            first = (str(error).strip().splitlines() or [""])[0]
            return f"the pruned network does not run ({type(error).__name__}: {first}); are sizes written in its source?"
        return (
            None
            if gap <= TOLERANCE
            else f"the pruned network differs from the zeroed one by {gap:.1e}"
        )

    def shares(self) -> list[float]:
        """For each axis, the share of the network's MACs spent in layers that write or read its channels."""
        spent: dict[str, int] = {}
        for weight, positions in self.multiplications:
            spent[weight] = (
                spent.get(weight, 0) + positions * self.model.get_parameter(weight).numel()
            )
        return [
            sum(spent.get(name, 0) for name in {place.parameter for place in axis.places})
            / max(self.macs, 1)
            for axis in self.axes
        ]

    def __str__(self) -> str:
        lines = [
            f"ChannelGraph: {self.macs:,} MACs, {self.params:,} parameters, {len(self.axes)} prunable axes"
        ]
        for axis, share in zip(self.axes, self.shares(), strict=True):
            writers = ", ".join(_module(place.parameter) for place in axis.producers)
            readers = ", ".join(dict.fromkeys(_module(place.parameter) for place in axis.consumers))
            mixed = "" if axis.exact else "  (normalised over: removing is not zeroing)"
            lines.append(
                f"  {axis.name}: {axis.channels} channels, in {share:.1%} of the MACs{mixed}"
            )
            lines.append(f"    written by {writers}")
            lines.append(f"    read by {readers}")
        if self.fixed:
            lines.append("Left whole:")
            lines += [f"  {one.name}: {one.channels} channels: {one.reason}" for one in self.fixed]
        return "\n".join(lines)

    __repr__ = __str__


def trace(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    ignore: Iterable[str | nn.Module] = (),
    allow_inexact: bool = False,
    check: bool = True,
) -> ChannelGraph:
    """Finds out which channels of a network can be removed, which hang together, and what each costs.

    The network is captured with torch.export in evaluation mode (and in training mode too where layers, such as auxiliary
    heads, run only there), and channel labels are walked through the captured graph. It is left as it was.

    Args:
        model: Any network that torch.export can capture.
        example_inputs: A tensor or a tuple of the arguments of `model`, on its device, of the shapes that will be used.
            MACs are counted for exactly these inputs, so a batch of 1 gives MACs per image.
        ignore: Modules, or names of modules or parameters, whose output channels stay.
        allow_inexact: Also prune channels that a LayerNorm, a GroupNorm or a softmax mixes. There removing a channel is
            not the same as zeroing it: the statistics of the others change.
        check: Prune half of every axis on a copy and compare it, in float64, with the same network with those channels
            zeroed. An axis that fails (sizes written into a `view`, say) is left whole, with the reason.

    Returns:
        The graph. `print` it before pruning anything.

    Raises:
        TypeError: `model` is not a module, or an entry of `ignore` is neither a name nor a module.
        ValueError: `model` has no parameters, `ignore` names something that it does not have, or torch.export cannot
            capture it (the message says what it said).
    """
    example_inputs = _as_inputs(example_inputs)
    if not isinstance(model, nn.Module):
        raise TypeError(f"trace: model should be a torch.nn.Module, got {type(model).__name__}")
    if not any(p.numel() for p in model.parameters()):
        raise ValueError("trace: model should have parameters to prune, got none")
    ignored = _ignored_parameters(model, ignore)

    walk = LabelWalk()
    walk.walk(_export(model, example_inputs, training=False))
    multiplications = [(one.weight, one.positions) for one in walk.multiplications]
    unreached = {name for name, _ in model.named_parameters()} - {name for name, _ in walk.uses}
    if unreached:
        _walk_training_graph(walk, model, example_inputs)
    for use in walk.uses.values():
        if use.role == OUTPUT and use.parameter in ignored:
            walk.classes.fix(use.labels, "ignored, as asked")

    macs = count_macs(model, example_inputs)
    normalized_by = {weight: mean for weight, mean in walk.normalized_by.items() if mean}
    axes, fixed = _axes(walk, allow_inexact)
    graph = ChannelGraph(model, example_inputs, axes, fixed, multiplications, macs, normalized_by)
    if check and graph.axes:
        failing = graph.failing(_probe(graph.axes), scrambled(model))
        if failing:
            axes = [axis for axis in graph.axes if axis.name not in failing]
            fixed = [
                *fixed,
                *(
                    FixedAxis(a.name, a.channels, failing[a.name])
                    for a in graph.axes
                    if a.name in failing
                ),
            ]
            graph = ChannelGraph(
                model, example_inputs, axes, fixed, multiplications, macs, normalized_by
            )
    return graph


def _probe(axes: Sequence[Axis]) -> list[list[int]]:
    """About half of every axis's channels, irregularly spread so that shifted or unequal positions show."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randperm(axis.channels, generator=generator)[: (axis.channels + 1) // 2].tolist()
        for axis in axes
    ]


@torch.no_grad()
def count_macs(model: nn.Module, example_inputs: Tensor | tuple[Any, ...]) -> int:
    """Multiply-accumulates of one evaluation of `model`: convolutions, linear layers and matrix products.

    Args:
        model: Any module; evaluated in evaluation mode and put back.
        example_inputs: A tensor or a tuple of arguments.

    Returns:
        Half of what torch.utils.flop_counter counts (it counts a multiply-add as two).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, evaluating(model):
        model(*_as_inputs(example_inputs))
    return int(counter.get_total_flops()) // 2


class evaluating:
    """Context manager: `model` in evaluation mode, every module's own mode put back afterwards."""

    def __init__(self, model: nn.Module, training: bool = False) -> None:
        self.model, self.training = model, training

    def __enter__(self) -> nn.Module:
        self.modes = [(module, module.training) for module in self.model.modules()]
        return self.model.train(self.training)

    def __exit__(self, *error: object) -> None:
        for module, mode in self.modes:
            module.training = mode


def _as_inputs(example_inputs: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs)
    raise TypeError(
        f"trace: example_inputs should be a tensor or a tuple of the model's arguments, got {type(example_inputs).__name__}"
    )


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _ignored_parameters(model: nn.Module, ignore: Iterable[str | nn.Module]) -> set[str]:
    if isinstance(ignore, (str, nn.Module)):
        ignore = (ignore,)
    names = [name for name, _ in model.named_parameters()]
    modules = {id(module): name for name, module in model.named_modules()}
    found: set[str] = set()
    for item in ignore:
        if isinstance(item, nn.Module):
            if id(item) not in modules:
                raise ValueError(
                    f"trace: ignore should hold modules of the model, got a foreign {type(item).__name__}"
                )
            prefix = modules[id(item)]
        elif isinstance(item, str):
            prefix = item
        else:
            raise TypeError(
                f"trace: ignore should hold names or modules, got {type(item).__name__}"
            )
        matches = {
            name for name in names if name == prefix or name.startswith(f"{prefix}.") or not prefix
        }
        if not matches:
            raise ValueError(
                f"trace: ignore should name modules or parameters of the model, got {prefix!r}"
            )
        found |= matches
    return found


def _export(
    model: nn.Module, example_inputs: tuple[Any, ...], training: bool
) -> torch.export.ExportedProgram:
    with evaluating(model, training), torch.set_grad_enabled(False):
        try:
            return torch.export.export(model, example_inputs)
        except Exception as error:
            first = str(error).strip().splitlines()
            raise ValueError(
                f"trace: torch.export could not capture the model ({type(error).__name__}: {first[0] if first else ''}). "
                "See which line it means with torch.export.export(model, example_inputs)"
            ) from error


def _walk_training_graph(
    walk: LabelWalk, model: nn.Module, example_inputs: tuple[Any, ...]
) -> None:
    """Adds what only runs in training mode (auxiliary heads), so that these layers shrink along with what they read."""
    twice = tuple(
        torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() and x.shape[0] == 1 else x
        for x in example_inputs
    )  # BatchNorm in training mode refuses a single value per channel
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        program = _export(model, twice, training=True)
    except ValueError:
        return
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    walk.walk(program)


def _axes(walk: LabelWalk, allow_inexact: bool) -> tuple[list[Axis], list[FixedAxis]]:
    """Gathers classes that sit in the same places into axes."""
    roots, reasons, mixed = walk.finish()
    uses = list(walk.uses.values())
    classes: dict[int, dict[int, list[int]]] = {}  # root -> use -> positions
    for index, use in enumerate(uses):
        for position, root in enumerate(roots[use.labels].tolist()):
            if root:
                classes.setdefault(root, {}).setdefault(index, []).append(position)

    groups: dict[tuple[Any, ...], list[int]] = {}
    for root, members in classes.items():
        counts = tuple((index, len(positions)) for index, positions in members.items())
        groups.setdefault((counts, reasons.get(root), root in mixed), []).append(root)

    axes: list[Axis] = []
    fixed: list[FixedAxis] = []
    for (counts, reason, is_mixed), group in groups.items():
        places = tuple(
            Place(
                uses[index].parameter,
                uses[index].dimension,
                torch.tensor([classes[root][index] for root in group], dtype=torch.int64),
                uses[index].role,
            )
            for index, _ in counts
        )
        writers = [place for place in places if place.role == OUTPUT]
        if not writers:
            continue
        name = _module(writers[0].parameter)
        positions = int(writers[0].positions.numel())
        if reason is None and is_mixed and not allow_inexact:
            reason = f"{mixed[group[0]]}: pass allow_inexact=True to prune them all the same"
        if reason is None and len(group) == 1:
            reason = (
                "all of its channels are tied together"
                if positions > 1
                else "it has a single channel"
            )
        if reason is None and not any(place.role == INPUT for place in places):
            reason = "no layer reads these channels"
        if reason is None:
            axes.append(Axis(name, len(group), places, exact=not is_mixed))
        else:
            fixed.append(FixedAxis(name, positions, reason))
    return _unique_names(axes), _merged(fixed)


def _unique_names(axes: list[Axis]) -> list[Axis]:
    """Two axes written by one layer (it serves several purposes) are told apart by a number."""
    seen: dict[str, int] = {}
    named = []
    for axis in axes:
        seen[axis.name] = seen.get(axis.name, 0) + 1
        suffix = f"#{seen[axis.name]}" if seen[axis.name] > 1 else ""
        named.append(Axis(axis.name + suffix, axis.channels, axis.places, axis.exact))
    return named


def _merged(fixed: list[FixedAxis]) -> list[FixedAxis]:
    total: dict[tuple[str, str], int] = {}
    for one in fixed:
        total[one.name, one.reason] = total.get((one.name, one.reason), 0) + one.channels
    return [FixedAxis(name, channels, reason) for (name, reason), channels in total.items()]


def _cost_model(
    model: nn.Module, axes: Sequence[Axis], multiplications: Sequence[tuple[str, int]], macs: int
) -> CostModel:
    """MACs and parameters as sums of products of two position counts (see CostModel).

    Count 0 is the constant 1. Every pruned (parameter, dimension) gets a count: its positions outside any axis plus
    multiplicity times width for each axis that sits there. What no axis touches is one constant term.
    """
    parts: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, axis in enumerate(axes):
        for place in axis.places:
            parts.setdefault((place.parameter, place.dimension), []).append(
                (index, place.multiplicity)
            )

    tensors = dict(model.named_parameters())
    constant, offsets, axis_index, factor = [1], [0, 0], [], []
    counts: dict[tuple[str, int], int] = {}
    for (name, dimension), members in parts.items():
        if name not in tensors:  # a buffer costs nothing
            continue
        counts[name, dimension] = len(constant)
        size = tensors[name].shape[dimension]
        constant.append(size - sum(m * axes[i].channels for i, m in members))
        axis_index += [i for i, _ in members]
        factor += [m for _, m in members]
        offsets.append(len(axis_index))

    terms: dict[tuple[int, int], list[int]] = {(0, 0): [0, 0]}
    spent: dict[str, int] = {}
    for weight, positions in multiplications:
        spent[weight] = spent.get(weight, 0) + positions
    for name, tensor in tensors.items():
        dims = [d for d in range(tensor.dim()) if (name, d) in counts]
        numel = tensor.numel()
        per_entry = numel
        for d in dims:
            per_entry //= tensor.shape[d]
        pair = tuple(([0, 0] + [counts[name, d] for d in dims])[-2:])
        term = terms.setdefault((pair[0], pair[1]), [0, 0])
        term[0] += per_entry * spent.get(name, 0)
        term[1] += per_entry
    dense = sum(spent.get(name, 0) * tensor.numel() for name, tensor in tensors.items())
    terms[0, 0][0] += macs - dense  # products of activations: the same at every width

    def integers(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    return CostModel(
        constant=integers(constant),
        offsets=integers(offsets),
        axis=integers(axis_index),
        factor=integers(factor),
        terms=integers(list(terms)).view(-1, 2),
        coefficients=integers(list(terms.values())).view(-1, 2).T.contiguous(),
    )
