"""Finds out which channels of a network can go: `trace`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, as_inputs, count_macs, tensors_in
from mdcp_fast.modules.layer_kinds import bare_widths
from mdcp_fast.modules.locks import alone_with_its_network
from mdcp_fast.modules.modes import modes_differ
from mdcp_fast.modules.names import shared_names
from mdcp_fast.modules.wrappers import nothing_compiled, unwrapped
from mdcp_fast.tracing.axes import Axis, FixedAxis, gather, merged, module_of
from mdcp_fast.tracing.check import failing_at_unlike_widths, failing_axes, with_least_widths
from mdcp_fast.tracing.export import (
    drops_sizes_of_one,
    export,
    export_training,
    writes_sizes,
)
from mdcp_fast.tracing.graph import ChannelGraph, multiplied
from mdcp_fast.tracing.labels import ALONG, OUTPUT, Walk, walk_program

PROBE_WIDTHS = 8  # at most, so that wide axes lose about half all the same


@alone_with_its_network
@nothing_compiled()
def trace(
    model: nn.Module,
    example_inputs: Tensor | tuple[object, ...] | Mapping[str, object],
    *,
    ignore: Iterable[str | nn.Module] = (),
    allow_inexact: bool = False,
    check: bool = True,
) -> ChannelGraph:
    """Finds out which channels of a network can go, which hang together, and what each costs.

    The network is captured with torch.export in evaluation mode, and in training mode too where
    that computes something else, and channel labels are walked through the captured graphs. It is
    left as it was. Wrappers (torch.compile, DataParallel, DistributedDataParallel) are taken off.

    Args:
        model: Any network that torch.export can capture.
        example_inputs: A tensor, a tuple of the arguments of `model` or a dict of named ones, on
            its device, of the shapes that will be used. MACs are counted for exactly these inputs,
            so a batch of 1 gives MACs per image.
        ignore: Modules, or names of modules, parameters or buffers, whose output channels stay.
        allow_inexact: Also prune channels that a LayerNorm, a GroupNorm or a softmax mixes. There
            removing a channel is not the same as zeroing it: the statistics of the others change.
        check: Prune half of every axis on a copy and compare it, in float64, with the same network
            with those channels zeroed; where that takes many MACs, on a corner of the example
            images, if the network takes one (`prune` compares the plan on the whole of them). An
            axis that fails (sizes written into a `view`, say) is left whole, with the reason.

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
    model = unwrapped(model)
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
    same = shared_names(model)

    walk = Walk(bare_widths(model), exact=not allow_inexact)
    program = export(model, inputs)
    walk_program(walk, program, same)
    multiplications = list(walk.multiplications)  # training mode has other costs
    uncounted = tuple(dict.fromkeys(walk.uncounted))
    if walk.all_known and not _unreached(walk, model):
        macs = sum(one.positions * multiplied(model, one).numel() for one in multiplications)
    else:
        macs = count_macs(model, inputs)
    unreached = _walk_training(walk, model, inputs, same)
    for use in walk.uses.values():
        itself = ignored.get(use.parameter)
        if itself is not None and (use.role == OUTPUT or (use.role == ALONG and itself)):
            walk.classes.fix(use.labels, "ignored, as asked")

    normalized_by = {weight: mean for weight, mean in walk.normalized_by.items() if mean}
    axes, fixed = gather(walk.uses.values(), walk.finish(), allow_inexact)
    fixed = merged([*fixed, *unreached])

    def graph_of(some: Sequence[Axis]) -> ChannelGraph:
        return ChannelGraph(
            model, inputs, some, fixed, multiplications, macs, normalized_by, uncounted
        )

    def left_whole(failing: Mapping[str, str]) -> ChannelGraph:
        fixed.extend(
            FixedAxis(a.name, a.channels, failing[a.name]) for a in graph.axes if a.name in failing
        )
        return graph_of([axis for axis in graph.axes if axis.name not in failing])

    graph = graph_of(axes)
    if check and graph.axes:
        graph = left_whole(failing_axes(graph, _probe(graph.axes), scramble=True))
    if check and graph.axes and writes_sizes(program):
        graph = left_whole(failing_at_unlike_widths(graph))
    if check and graph.axes and drops_sizes_of_one(program):
        graph = graph_of(with_least_widths(graph))
    return graph


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


def _unreached(walk: Walk, model: nn.Module) -> list[str]:
    """Parameters that no captured graph uses so far."""
    reached = walk.reached | {name for name, _ in walk.uses}
    return [name for name, p in model.named_parameters() if name not in reached and p.dim()]


def _walk_training(
    walk: Walk, model: nn.Module, inputs: Inputs, same: Mapping[str, str]
) -> list[FixedAxis]:
    """Walks what runs in training mode if that is something else.

    So layers that run only there shrink along with what they read, channels that meet only there
    stay as many, and what only it puts out stays whole.

    Returns:
        What was not reached even so: it keeps its size.
    """
    if not _unreached(walk, model) and not modes_differ(model, inputs):
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

    So shifted or unequal positions show, and so do sizes that must be even. Axes that are as wide
    as one another lose different numbers, as far as there are any: so sizes show that one axis
    takes from another (`y.reshape(x.shape)`).
    """
    generator = torch.Generator().manual_seed(0)
    seen: Counter[int] = Counter()
    kept = []
    for axis in axes:
        widths = _probe_widths(axis.channels)
        width = widths[seen[axis.channels] % len(widths)]
        seen[axis.channels] += 1
        kept.append(torch.randperm(axis.channels, generator=generator)[:width].tolist())
    return kept


def _probe_widths(channels: int) -> list[int]:
    """Widths to try an axis at: odd ones, the nearest to half first, then even ones."""
    first = (channels // 2) | 1
    others = sorted(range(2, channels), key=lambda width: (width % 2 == 0, abs(width - first)))
    return [first, *(width for width in others if width != first)][:PROBE_WIDTHS]


def _ignored_parameters(model: nn.Module, ignore: Iterable[str | nn.Module]) -> dict[str, bool]:
    """What `ignore` names, and whether by itself or its module rather than by one further up.

    Shared ones go by their first names.

    A normalisation named itself keeps the channels that it normalises; within a larger module, only
    what that module's layers write is meant.
    """
    if isinstance(ignore, (str, nn.Module)):
        ignore = (ignore,)
    if not isinstance(ignore, Iterable):
        raise TypeError(f"trace: ignore: expected names or modules, got {type(ignore).__name__}")
    first = shared_names(model)
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
        matches = {n for n in first if n == prefix or n.startswith(f"{prefix}.") or not prefix}
        if not matches:
            raise ValueError(
                "trace: ignore: expected names of modules or parameters of the model, got "
                f"{prefix!r}"
            )
        for name in matches:
            itself = name == prefix or name.rpartition(".")[0] == prefix
            found[first[name]] = found.get(first[name], False) or itself
    return found
