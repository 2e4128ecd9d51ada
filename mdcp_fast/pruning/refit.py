"""Fits the pruned network's layers anew, one after another, each to what the dense one put out.

Compensation as `compensate` does it looks at the dense network alone. Here the pruned network runs,
once, on all calibration samples, in parts that go through it in lockstep. Just before a layer runs,
its weight W is chosen so that it gives from the inputs y that the layer now gets, pruned and
already fitted upstream, what the dense layer gave:

    argmin over W of  mean ||t - W p(y)||^2 + lam ||W - W_0||^2

t are the dense layer's outputs, p(y) the patches that they see (all taps, and the zeros of the
padding), W_0 the weight as `compensate` leaves it, which has looked at the dense network alone. How
far W goes from there is for images to say that were held out (see `held_out_ridge`).
Where the layer has a bias or a BatchNorm right behind it, t and p are centred and the mean goes
there. A BatchNorm takes statistics of its input before it runs (see `batch_norm`), so that what
follows it is fitted to its final output.

The same idea as He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
section 3.1, with all of a layer's inputs as regressors, every kind of layer, and a ridge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import (
    Inputs,
    call,
    eval_mode,
    map_tensors,
    preserve_buffers,
    samples_in,
)
from mdcp_fast.modules.hooks import forward_hooks, layer_input
from mdcp_fast.modules.layer_kinds import Layer, batch_norms, spread_positions
from mdcp_fast.modules.lockstep import Meeting, OutOfStepError, keeps_step, run_in_lockstep
from mdcp_fast.modules.memory import PeakMemory, peak_memory
from mdcp_fast.modules.removal import Positions, kept_tensor, tensor_of
from mdcp_fast.pruning.batch_norm import ImageMoments, image_moments, relative_statistics
from mdcp_fast.pruning.calibration import TOGETHER, in_parts, joined_batches
from mdcp_fast.pruning.compensation import absorb_lost_inputs, lost_inputs
from mdcp_fast.pruning.held_out_ridge import held_out_ridge
from mdcp_fast.pruning.input_moments import Consumer, collect_grams
from mdcp_fast.tracing.axes import module_of
from mdcp_fast.tracing.graph import ChannelGraph

SAME = 1e-9  # share of the outputs' energy that is rounding: such a layer is left as it is
ROWS = 1 << 15  # outputs of a layer that it is fitted to, at most
AMPLE = 128  # of them for each entry of a patch: the fit to fewer is worse by a hundredth or more
FEWEST = 8192  # that layers with few entries are fitted to
PATCH_NUMBERS = 1 << 26  # numbers in a layer's patches, at most: 256 MB in float32
TARGET_NUMBERS = 1 << 28  # numbers in the targets of all layers together: 1 GB in float32
MEMORY = 4 << 30  # bytes of activations of all samples that wait for a layer to be fitted
PARTS = 32  # of the samples at most: each has a thread, and that one torch's threads
THREADS = 256  # of all parts together, about


@dataclass
class _Target:
    """What the dense layer put out, for each part of the samples.

    Attributes:
        layer: Which.
        rows: int64 [R], where, as indices into the flattened shape.
        shapes: The layer's `output_shape`.
        samples: How many there are.
        values: [R, outputs], of the outputs that stay.
    """

    layer: Layer
    rows: list[Tensor] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def images(self) -> Tensor:
        """int64, the sample that each of all rows is of."""
        first, images = 0, []
        for rows, shape, samples in zip(self.rows, self.shapes, self.samples, strict=True):
            # A sample may be several along the layer's first dimension, as frames of a film are.
            images.append(first + rows // math.prod(shape[1:]) * samples // shape[0])
            first += samples
        return torch.cat(images)


class Refit(NamedTuple):
    """What `refit` did not do, and did.

    Attributes:
        skipped: Weights that lost inputs and could not be compensated at all.
        alone: Weights that lost inputs and were compensated by `compensate` alone.
        norms: Names of the BatchNorms that got new statistics.
    """

    skipped: set[str]
    alone: set[str]
    norms: set[str]


@torch.no_grad()
def refit(
    graph: ChannelGraph,
    small: nn.Module,
    positions: Positions,
    batches: list[Inputs],
    *,
    consumers: Sequence[Consumer] | None = None,
    compensation: bool = True,
    recalibrate: bool = True,
) -> Refit:
    """Fits every layer whose inputs changed to the dense layer's outputs, in place in `small`.

    Layers that are called several times, whose weight serves several, or that do not compute what
    their class says are compensated by `compensate` alone if they lost inputs, and left as they are
    if not. So are layers with too few samples, before they are fitted.

    Args:
        graph: The traced dense network; not changed.
        small: The pruned network, with the dense network's remaining weights.
        positions: Kept positions by parameter and dimension.
        batches: Calibration batches (see `calibration_batches`), of which as many samples are used
            as fit into `MEMORY`.
        consumers: What layers of the dense network read; by default it is measured on `batches`.
        compensation: Whether layers are fitted at all.
        recalibrate: Whether BatchNorm takes statistics of its new inputs (see `batch_norm`).
    """
    lost = lost_inputs(graph, positions) if compensation else set()
    if lost and consumers is None:
        consumers, _ = collect_grams(graph, batches, lost)
    skipped = lost - absorb_lost_inputs(graph, small, positions, consumers or ())
    parts = _parts(graph, small, batches)
    if not parts:
        return Refit(skipped, lost - skipped, set())
    targets, norms = _dense_pass(graph, small, positions, parts, compensation)
    fitted, renewed = set[str](), set[str]()

    def fit(path: str) -> Meeting:
        def meeting(module: nn.Module, inputs: list[Tensor]) -> None:
            target = targets.pop(path, None)
            if target is not None and _fit(graph, small, positions, inputs, target):
                fitted.add(target.layer.weight)

        return meeting

    def re_estimate(path: str, dense: ImageMoments) -> Meeting:
        def meeting(norm: Any, inputs: list[Tensor]) -> None:
            now = ImageMoments.joined([image_moments(x) for x in inputs])
            mean, variance = (
                kept_tensor(tensor_of(graph.model, name), positions.get(name, {}))
                for name in (f"{path}.running_mean", f"{path}.running_var")
            )
            mean, variance = relative_statistics(norm, mean, variance, dense, now)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            renewed.add(path)

        return meeting

    meetings = {path: fit(path) for path in targets}
    if recalibrate:
        meetings |= {path: re_estimate(path, dense) for path, dense in norms.items()}
    by_module = {small.get_submodule(path): meeting for path, meeting in meetings.items()}
    # Layers that parts do not come to together are not fitted.
    with eval_mode(small), suppress(OutOfStepError):
        run_in_lockstep(small, parts, by_module)
    return Refit(skipped - fitted, lost - skipped - fitted, renewed)


def _parts(graph: ChannelGraph, small: nn.Module, batches: list[Inputs]) -> list[Inputs]:
    """The samples in parts that can run in lockstep, as many as fit into `MEMORY`.

    One part of fewer samples where they cannot, and none where it is not clear how to join batches.
    """
    modules = [small.get_submodule(path) for path in (*graph.layers, *batch_norms(graph.model))]
    # Copies: what is alive of a view is all that it is a view of.
    few = map_tensors(batches[0], lambda tensor: tensor[:2].clone() if tensor.dim() else tensor)
    inputs = joined_batches(batches, _fitting(_waiting_memory(small, few, modules), few))
    if inputs is None:
        return []
    most = min(PARTS, max(2, THREADS // torch.get_num_threads()))
    parts = list(in_parts([inputs], max(TOGETHER, math.ceil(samples_in(inputs) / most))))
    with eval_mode(small), preserve_buffers(small):
        if len(parts) > 1 and keeps_step(small, [map_tensors(p, _two) for p in parts[:2]], modules):
            return parts
    model = graph.model
    with eval_mode(model), preserve_buffers(model):
        running = peak_memory(model, lambda: call(model, few))
    alone = joined_batches(batches, _fitting(running, few))
    return [] if alone is None else [alone]


def _two(tensor: Tensor) -> Tensor:
    """Two samples, of a part all whose tensors have as many."""
    return tensor[:2]


def _fitting(memory: int, few: Inputs) -> int:
    """How many samples fit into `MEMORY` where these few take so many bytes."""
    return max(1, MEMORY * samples_in(few) // max(memory, 1))


def _waiting_memory(model: nn.Module, few: Inputs, modules: Sequence[nn.Module]) -> int:
    """The most bytes of activations that are alive before one of these modules runs."""
    waiting = 0
    with PeakMemory([*model.parameters(), *model.buffers()]) as memory, torch.no_grad():

        def look(*_: Any) -> None:
            nonlocal waiting
            waiting = max(waiting, memory.now)

        hooks = forward_hooks([(module, look) for module in modules], before=True)
        with hooks, eval_mode(model), preserve_buffers(model):
            call(model, few)
    return waiting


def _dense_pass(
    graph: ChannelGraph,
    small: nn.Module,
    positions: Positions,
    parts: list[Inputs],
    layers: bool,
) -> tuple[dict[str, _Target], dict[str, ImageMoments]]:
    """Runs the dense network.

    Returns:
        For each layer that can be fitted its target, by its name, if `layers` are to be; and for
        each BatchNorm that has statistics what it reads in the channels that stay. Only of what
        runs exactly once.
    """
    sizes = _matrix_sizes(graph, small) if layers else {}
    numbers = sum(groups * outputs for groups, outputs, _ in sizes.values())
    most = max(1, min(ROWS, TARGET_NUMBERS // max(numbers, 1)))
    samples = sum(map(samples_in, parts))
    generator = torch.Generator().manual_seed(0)
    calls: Counter[str] = Counter()
    norms: dict[str, list[ImageMoments]] = {path: [] for path in batch_norms(graph.model)}
    targets = {path: _Target(graph.layers[path]) for path in sizes}

    def see(path: str) -> Callable[..., None]:
        layer, kind = targets[path].layer, targets[path].layer.kind
        groups, _, entries = sizes[path]
        count = min(most, max(1, PATCH_NUMBERS // (groups * entries)), max(FEWEST, AMPLE * entries))

        def hook(
            module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> None:
            calls[path] += 1
            target, x = targets.get(path), layer_input(arguments, named)
            if target is None:
                return
            if calls[path] == 1 and not kind.is_its_matrix(module, x, output):
                del targets[path]
                return
            shape = kind.output_shape(output)
            share = math.ceil(count * together / samples)
            rows = spread_positions(math.prod(shape), share, generator).to(output.device)
            values = kind.output_rows(output, rows)
            outputs = kind.kept_outputs(module, positions.get(layer.weight, {}))
            if outputs is not None:
                values = values[:, outputs.to(values.device)]
            target.rows.append(rows)
            target.samples.append(together)
            target.shapes.append(shape)
            target.values.append(values)

        return hook

    def statistics(path: str) -> Callable[..., None]:
        kept = positions.get(f"{path}.running_mean", {}).get(0)

        def hook(
            module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any
        ) -> None:
            calls[path] += 1
            x = layer_input(arguments, named)
            norms[path].append(image_moments(x if kept is None else x[:, kept.to(x.device)]))

        return hook

    hooks = {path: see(path) for path in targets} | {path: statistics(path) for path in norms}
    model = graph.model
    by_module = [(model.get_submodule(path), hook) for path, hook in hooks.items()]
    several = set[str]()
    with forward_hooks(by_module, before=False), eval_mode(model), preserve_buffers(model):
        for number, part in enumerate(parts, 1):
            together = samples_in(part)
            call(model, part)
            several |= {path for path in hooks if calls[path] != number}
            for path in several & set(targets):
                del targets[path]
    return targets, {
        path: ImageMoments.joined(moments) for path, moments in norms.items() if path not in several
    }


def _matrix_sizes(graph: ChannelGraph, small: nn.Module) -> dict[str, torch.Size]:
    """Groups, outputs and entries of the matrices of layers whose weights have no other use."""
    used = Counter(multiplication.weight for multiplication in graph.multiplications)
    return {
        path: layer.kind.as_matrix(
            small.get_submodule(path), small.get_parameter(layer.weight)
        ).shape
        for path, layer in graph.layers.items()
        if used[layer.weight] == 1 and module_of(layer.weight) == path
    }


def _fit(
    graph: ChannelGraph,
    small: nn.Module,
    positions: Positions,
    inputs: list[Tensor],
    target: _Target,
) -> bool:
    """Fits one layer to its target; False where that gives no finite numbers.

    Args:
        graph: The traced dense network.
        small: The pruned network.
        positions: Kept positions by parameter and dimension.
        inputs: What it is about to read, for each part.
        target: What it should put out.
    """
    kind, running_mean = target.layer.kind, target.layer.running_mean
    layer: Any = small.get_submodule(target.layer.path)
    exact = torch.promote_types(inputs[0].dtype, torch.float32)
    parts = zip(inputs, target.rows, target.shapes, strict=True)
    seen = torch.cat(  # [groups, R, entries]
        [kind.patches(layer, x, rows, shape).to(exact) for x, rows, shape in parts], 1
    )
    matrix = kind.as_matrix(layer, layer.weight).to(exact)
    wanted = torch.cat(target.values).to(exact).unflatten(1, (len(matrix), -1)).transpose(0, 1)
    lacking = wanted - seen @ matrix.transpose(1, 2)  # [groups, R, outputs of a group]
    if layer.bias is not None:
        lacking -= layer.bias.to(exact).view(len(matrix), 1, -1)
    if lacking.square().sum() <= SAME * wanted.square().sum():
        return True

    centred = target.layer.absorbs_mean
    mean = seen.mean(1, keepdim=True)
    if centred:
        seen -= mean
        lacking -= lacking.mean(1, keepdim=True)
    try:
        correction = held_out_ridge(seen, lacking, target.images())
    except torch.linalg.LinAlgError:
        return False
    fitted = kind.as_matrix(layer, layer.weight).double() + correction
    # What the outputs then have too little on average:
    shift = (
        wanted.double().mean(1) - (mean.double() @ fitted.transpose(1, 2)).squeeze(1)
    ).flatten()
    if not bool(fitted.isfinite().all() & shift.isfinite().all()):
        return False
    layer.weight.copy_(kind.as_weight(layer, fitted))
    if target.layer.bias is not None:
        layer.bias.copy_(shift)
    elif running_mean is not None:  # BatchNorm subtracts it: lowering it adds the shift
        if layer.bias is not None:  # which is computed, and stays
            shift = shift - layer.bias.double()
        dense = tensor_of(graph.model, running_mean)
        dense = kept_tensor(dense, positions.get(running_mean, {}))
        tensor_of(small, running_mean).copy_(dense - shift)
    return True
