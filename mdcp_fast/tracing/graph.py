"""ChannelGraph: the axes along which a network can be pruned, and what each costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import (
    Inputs,
    as_inputs,
    call,
    count_macs,
    evaluating,
    export,
    export_training,
)
from mdcp_fast.modules.removal import tensor_of
from mdcp_fast.modules.verification import (
    TOLERANCE,
    cropped,
    culprits,
    difference,
    fits,
    runs,
    tensors_in,
)
from mdcp_fast.tracing.axes import Axis, FixedAxis, Place, gather, merged, module_of
from mdcp_fast.tracing.cost import cost_model, macs_by_weight
from mdcp_fast.tracing.labels import ALONG, OUTPUT, Multiplication, Walk, walk_program

__all__ = [
    "Axis",
    "ChannelGraph",
    "FixedAxis",
    "Place",
    "call",
    "count_macs",
    "evaluating",
    "trace",
]


class ChannelGraph:
    """What `trace` found out about a network. Print it to see every axis, its layers and its MACs.

    Attributes:
        model: The dense network, untouched.
        example_inputs: The inputs it was traced with: a tuple of arguments, or a dict of named
            ones.
        axes: What may be pruned, in order of execution.
        fixed: What may not, with reasons.
        cost: MACs and parameters (in this order) as a function of the axis widths, exact.
        macs: Multiply-accumulates of the dense network for `example_inputs`.
        params: Number of parameters of the dense network.
        normalized_by: For each weight whose layer a BatchNorm follows directly, the name of that
            running mean.
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
    ) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.axes = tuple(axes)
        self.fixed = tuple(fixed)
        self.multiplications = tuple(multiplications)
        self.normalized_by = dict(normalized_by or {})
        self.macs = macs
        parameters = dict(model.named_parameters())
        self.params = sum(p.numel() for p in parameters.values())
        self.cost = cost_model(parameters, self.axes, self.multiplications, macs)

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
            weight = self.model.get_parameter(place.parameter).detach()
            rows = weight.movedim(place.dimension, 0).flatten(1)
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
        for name, first in _shared_names(self.model).items():
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
            for place in axis.places
        }
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        channels, positions, start = [], [], 0
        for axis in self.axes:
            own = torch.arange(start, start + axis.channels)
            start += axis.channels
            for place in axis.places:
                channels.append(own.repeat_interleave(place.multiplicity))
                positions.append(
                    place.positions.flatten() + starts[place.parameter, place.dimension]
                )
        nothing = torch.zeros(0, dtype=torch.int64)
        return sizes, torch.cat([nothing, *channels]), torch.cat([nothing, *positions])

    def failing(self, kept: Sequence[Sequence[int]], *, scramble: bool = False) -> dict[str, str]:
        """Names of the axes for which keeping `kept` does not give the zeroed network, and how.

        Args:
            kept: For each axis, the channels that stay.
            scramble: Try it with random weights under which every channel matters; and on a corner
                of the example images, where that passes and the sizes fit on the whole of them
                (networks may take another way there).

        Raises:
            ValueError: The network fails its own check with nothing removed, so it says nothing.
        """

        def trial(indices: Sequence[int], inputs: Inputs = self.example_inputs) -> str | None:
            wanted = set(indices)
            chosen = [
                kept[i] if i in wanted else range(axis.channels) for i, axis in enumerate(self.axes)
            ]
            return self._failure(chosen, inputs, scramble)

        everything = range(len(self.axes))
        corner = cropped(self.example_inputs) if scramble else None
        if (
            corner is not None
            and trial(everything, corner) is None
            and fits(self.model, self.positions(kept), self.example_inputs)
        ):
            return {}
        if trial(everything) is None:
            return {}
        unpruned = trial([])
        if unpruned is not None:
            raise ValueError(
                "check: model: expected a network that gives the same output twice in float64, got "
                f"one where, with nothing removed, {unpruned}; pass check=False to go unchecked"
            )
        found = culprits(len(self.axes), trial)
        return {self.axes[i].name: reason for i, reason in found.items()}

    def _failure(self, kept: Sequence[Sequence[int]], inputs: Inputs, scramble: bool) -> str | None:
        """What is wrong with the network pruned to `kept`, or None.

        Inexact axes are only required to run.
        """
        exact = [
            chosen if axis.exact else range(axis.channels)
            for axis, chosen in zip(self.axes, kept, strict=True)
        ]
        try:
            if not all(axis.exact for axis in self.axes):
                runs(self.model, self.positions(kept), inputs)
            gap = difference(self.model, self.positions(exact), inputs, scramble=scramble)
        except Exception as error:  # whatever the user's forward raises on fewer channels
            first = (str(error).strip().splitlines() or [""])[0]
            return (
                f"the pruned network does not run ({type(error).__name__}: {first}); are sizes "
                "written in its source?"
            )
        if gap <= TOLERANCE:
            return None
        return f"the pruned network differs from the zeroed one by {gap:.1e}"

    def shares(self) -> list[float]:
        """For each axis, the share of the MACs spent in layers that write or read its channels."""
        times = macs_by_weight(self.multiplications)
        spent = {n: t * self.model.get_parameter(n).numel() for n, t in times.items()}
        return [
            sum(spent.get(name, 0) for name in {place.parameter for place in axis.places})
            / max(self.macs, 1)
            for axis in self.axes
        ]

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
        return "\n".join(lines + left_whole(self.fixed))

    __repr__ = __str__


def left_whole(fixed: Iterable[FixedAxis]) -> list[str]:
    """Lines that name what may not be pruned, and why; none where there is nothing to name."""
    lines = [f"  {one.name}: {one.channels} channels: {one.reason}" for one in fixed]
    return ["Left whole:", *lines] if lines else []


def trace(
    model: nn.Module,
    example_inputs: Tensor | tuple[object, ...] | Mapping[str, object],
    *,
    ignore: Iterable[str | nn.Module] = (),
    allow_inexact: bool = False,
    check: bool = True,
) -> ChannelGraph:
    """Finds out which channels of a network can go, which hang together, and what each costs.

    The network is captured with torch.export in evaluation mode (and in training mode too where
    layers, such as auxiliary heads, run only there), and channel labels are walked through the
    captured graph. It is left as it was.

    Args:
        model: Any network that torch.export can capture.
        example_inputs: A tensor, a tuple of the arguments of `model` or a dict of named ones, on
            its device, of the shapes that will be used. MACs are counted for exactly these inputs,
            so a batch of 1 gives MACs per image.
        ignore: Modules, or names of modules, parameters or buffers, whose output channels stay.
        allow_inexact: Also prune channels that a LayerNorm, a GroupNorm or a softmax mixes. There
            removing a channel is not the same as zeroing it: the statistics of the others change.
        check: Prune half of every axis on a copy and compare it, in float64, with the same network
            with those channels zeroed; of large example images on a corner, where the network takes
            one (`prune` compares the plan on the whole of them). An axis that fails (sizes written
            into a `view`, say) is left whole, with the reason.

    Returns:
        The graph. `print` it before pruning anything. A network with nothing to prune gives a graph
        without axes that says why.

    Raises:
        TypeError: `model` is not a module, `example_inputs` are no inputs, or an entry of `ignore`
            is neither a name nor a module.
        ValueError: `model` has no parameters or lazy ones, `ignore` names something that it does
            not have, torch.export cannot capture it (the message says what it said), or it cannot
            be checked.
    """
    inputs = as_inputs("trace", example_inputs)
    given = tensors_in(inputs)
    if not given:
        raise TypeError("trace: example_inputs: expected at least one tensor, got none")
    if any(not tensor.numel() for tensor in given):
        raise ValueError(
            "trace: example_inputs: expected at least one example, got an empty tensor"
        )
    _check_model(model)
    ignored = _ignored_parameters(model, ignore)
    same = _shared_names(model)

    walk = Walk()
    walk_program(walk, export(model, inputs), same)
    multiplications = list(walk.multiplications)  # training mode has other costs
    if walk.all_known and not _unreached(walk, model):
        macs = sum(one.positions * tensor_of(model, one.weight).numel() for one in multiplications)
    else:
        macs = count_macs(model, inputs)
    unreached = _walk_unreached(walk, model, inputs, same)
    for use in walk.uses.values():
        itself = ignored.get(use.parameter)
        if itself is not None and (use.role == OUTPUT or (use.role == ALONG and itself)):
            walk.classes.fix(use.labels, "ignored, as asked")

    normalized_by = {weight: mean for weight, mean in walk.normalized_by.items() if mean}
    axes, fixed = gather(walk.uses.values(), walk.finish(), allow_inexact)
    fixed = merged([*fixed, *unreached])
    graph = ChannelGraph(model, inputs, axes, fixed, multiplications, macs, normalized_by)
    failing = graph.failing(_probe(graph.axes), scramble=True) if check and axes else {}
    if not failing:
        return graph
    passing = [axis for axis in axes if axis.name not in failing]
    fixed += [FixedAxis(a.name, a.channels, failing[a.name]) for a in axes if a.name in failing]
    return ChannelGraph(model, inputs, passing, fixed, multiplications, macs, normalized_by)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"trace: model: expected a torch.nn.Module, got {type(model).__name__}")
    parameters = dict(model.named_parameters())
    lazy = [n for n, p in parameters.items() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"trace: model: expected parameters with shapes (run the model once), got {lazy[0]} "
            "without"
        )
    if not any(p.numel() for p in parameters.values()):
        raise ValueError("trace: model: expected parameters to prune, got a network without any")


def _shared_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _unreached(walk: Walk, model: nn.Module) -> list[str]:
    """Parameters that no captured graph uses so far."""
    reached = {name for name, _ in walk.uses}
    return [name for name, p in model.named_parameters() if name not in reached and p.dim()]


def _walk_unreached(
    walk: Walk, model: nn.Module, inputs: Inputs, same: Mapping[str, str]
) -> list[FixedAxis]:
    """Walks what runs only in training mode, so that such layers shrink along with what they read.

    Returns:
        What was not reached even so: it keeps its size.
    """
    if not _unreached(walk, model):
        return []
    reason = "no output depends on it"
    try:
        walk_program(walk, export_training(model, inputs), same)
    except ValueError as error:
        reason = (
            "it does not run in evaluation mode, and training mode could not be captured with "
            f"these example inputs, so it will not fit what it reads: {error.__cause__}"
        )
    sizes: dict[str, int] = {}
    for name in _unreached(walk, model):
        sizes.setdefault(module_of(name), model.get_parameter(name).shape[0])
    return [FixedAxis(name, size, reason) for name, size in sizes.items()]


def _probe(axes: Sequence[Axis]) -> list[list[int]]:
    """About half of every axis's channels, an odd number, irregularly spread.

    So shifted or unequal positions show, and so do sizes that must be even.
    """
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randperm(axis.channels, generator=generator)[: (axis.channels // 2) | 1].tolist()
        for axis in axes
    ]


def _ignored_parameters(model: nn.Module, ignore: Iterable[str | nn.Module]) -> dict[str, bool]:
    """What `ignore` names, and whether by itself or its module rather than by one further up.

    A normalisation named itself keeps the channels that it normalises; within a larger module, only
    what that module's layers write is meant.
    """
    if isinstance(ignore, (str, nn.Module)):
        ignore = (ignore,)
    if not isinstance(ignore, Iterable):
        raise TypeError(f"trace: ignore: expected names or modules, got {type(ignore).__name__}")
    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    modules = {id(module): name for name, module in model.named_modules()}
    found: dict[str, bool] = {}
    for item in ignore:
        if not isinstance(item, (str, nn.Module)):
            raise TypeError(f"trace: ignore: expected names or modules, got {type(item).__name__}")
        prefix = item if isinstance(item, str) else modules.get(id(item))
        if prefix is None:
            raise ValueError(
                f"trace: ignore: expected modules of the model, got a foreign {type(item).__name__}"
            )
        matches = {n for n in names if n == prefix or n.startswith(f"{prefix}.") or not prefix}
        if not matches:
            raise ValueError(
                "trace: ignore: expected names of modules or parameters of the model, got "
                f"{prefix!r}"
            )
        for name in matches:
            itself = name == prefix or name.rpartition(".")[0] == prefix
            found[name] = found.get(name, False) or itself
    return found
