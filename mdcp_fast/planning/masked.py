"""Scores candidates on the dense network with masks, a whole population in one forward pass.

The batch holds each candidate's samples, candidate after candidate.

The network itself is not touched: while a `Population` is entered, the calls of convolutions,
linear layers and BatchNorm that the network makes are seen on their way. BatchNorm then normalises
each candidate's part of the batch by that part's own statistics, and the channels that a candidate
drops are set to zero, by the places of their axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mdcp_fast.modules.calls import (
    Inputs,
    call,
    eval_mode,
    map_tensors,
    preserve_buffers,
    tensors_in,
)
from mdcp_fast.modules.layer_kinds import BATCH_NORM, KINDS, MatrixKind
from mdcp_fast.modules.memory import peak_memory
from mdcp_fast.modules.removal import remove, tensor_of
from mdcp_fast.modules.verification import relative_difference, scrambled
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.planning.judge import AnswerJudge, KeptChannels, answers
from mdcp_fast.pruning.batch_norm import check_several_values, with_statistics_of
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.tracing.graph import ChannelGraph

TOLERANCE = 1e-8  # largest difference, relative to the largest output, from the pruned network
MEMORY = 1 << 30  # bytes of activations, by default
TRIED = 4  # samples on which it is tried whether masks at outputs suffice

CALLED = {function: kind for kind in KINDS for function in kind.functions}
Dropped = dict[tuple[str, int], Tensor]  # (parameter, dimension) -> bool [candidates, size]


def dropped_positions(graph: ChannelGraph, kept: Sequence[Tensor]) -> Dropped:
    """What each candidate drops of every parameter and buffer.

    Args:
        graph: The traced network.
        kept: For each axis, bool [candidates, channels].

    Returns:
        bool [candidates, size] by parameter and dimension, only where something is dropped.
    """
    dropped: Dropped = {}
    for axis, mask in zip(graph.axes, kept, strict=True):
        if bool(mask.all()):
            continue
        for place in axis.places:
            key = (place.parameter, place.dimension)
            if key not in dropped:
                size = tensor_of(graph.model, place.parameter).shape[place.dimension]
                dropped[key] = torch.zeros(len(mask), size, dtype=torch.bool)
            gone = (~mask).repeat_interleave(place.multiplicity, 1)
            dropped[key][:, place.positions.flatten()] = gone
    return dropped


class Population(TorchFunctionMode):
    """While entered, a network's batch is that of several candidates, one after the other.

    Args:
        model: The network that will run.
        candidates: How many there are; the first rows of the batch are those of the first.
        dropped: What each drops (see `dropped_positions`).
        normalized_by: As in `ChannelGraph`: what BatchNorm masks right away, its producer need not.
        at_inputs: Drop channels where layers read them, too. Where they are written suffices if
            what lies between keeps zeros, as ReLU and pooling do.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: int,
        dropped: Mapping[tuple[str, int], Tensor],
        normalized_by: Mapping[str, str],
        at_inputs: bool,
    ) -> None:
        super().__init__()
        self.candidates, self.at_inputs = candidates, at_inputs
        # By identity: a layer is known by the tensors it is called with.
        self._dropped: dict[tuple[int, int], Tensor] = {}
        for (name, dimension), gone in dropped.items():
            tensor = tensor_of(model, name)
            self._dropped[id(tensor), dimension] = gone.to(tensor.device)
        self._normalized = {
            id(tensor_of(model, weight))
            for weight, mean in normalized_by.items()
            if (mean, 0) in dropped
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        kind = CALLED.get(func)
        if kind is BATCH_NORM:
            return self._batch_norm(*args, **named)
        if isinstance(kind, MatrixKind):
            return self._layer(func, kind, *args, **named)
        return func(*args, **named)

    def _layer(
        self,
        func: Callable[..., Tensor],
        kind: MatrixKind,
        input: Tensor,
        weight: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        along = kind.channel_dimension(input, weight)
        reads = self._dropped.get((id(weight), kind.input_dimension))
        if reads is not None and self.at_inputs:
            input = self._without(reads, input, along, in_place=False)
        output = func(input, weight, *rest, **named)
        writes = self._dropped.get((id(weight), kind.output_dimension))
        if writes is not None and id(weight) not in self._normalized:
            output = self._without(writes, output, along, in_place=True)
        return output

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        check_several_values(input, self.candidates)
        self._check(input)
        dropped = torch.zeros(self.candidates, input.shape[1], dtype=torch.bool)
        for tensor in (running_mean, running_var, weight, bias):
            dropped = self._dropped.get((id(tensor), 0), dropped)
        return population_norm(input, ~dropped.to(input.device), weight, bias, eps)

    def _without(self, dropped: Tensor, x: Tensor, along: int, in_place: bool) -> Tensor:
        """`x` with zeros where its candidate drops the channel.

        Args:
            dropped: bool [candidates, size]; the channels of a layer with groups are several times
                `size`, and each group drops the same.
            x: [candidates x batch, ...].
            along: Its dimension with the channels.
            in_place: Whether `x` may change.
        """
        self._check(x)
        parts = x.unflatten(0, (self.candidates, -1))
        gone = dropped.repeat(1, x.shape[along] // dropped.shape[1])
        shape = [1] * parts.dim()
        shape[0], shape[along + 1] = gone.shape
        fill = parts.masked_fill_ if in_place else parts.masked_fill
        return fill(gone.view(shape), 0).flatten(0, 1)

    def _check(self, x: Tensor) -> None:
        if x.shape[0] % self.candidates:
            raise ValueError(
                "search: evaluator: expected a network whose activations keep the batch in their "
                f"first dimension, got shape {list(x.shape)} for {self.candidates} candidates in "
                "the batch"
            )


def repeat_batch(inputs: Inputs, candidates: int) -> Inputs:
    """Inputs with the batch repeated for every candidate, candidate after candidate."""

    def repeated(tensor: Tensor) -> Tensor:
        return torch.cat([tensor] * candidates) if tensor.dim() else tensor

    repeated_inputs: Inputs = map_tensors(inputs, repeated)
    return repeated_inputs


@torch.no_grad()
def masked_forward(
    graph: ChannelGraph,
    model: nn.Module,
    inputs: Inputs,
    kept: Sequence[Tensor],
    at_inputs: bool,
) -> Any:
    """The network's output for all candidates, one behind the other, by batch statistics.

    Args:
        graph: Of the dense network.
        model: That network, or a copy of it, in evaluation mode.
        inputs: One batch of its arguments.
        kept: For each axis, bool [candidates, channels].
        at_inputs: See `Population`.
    """
    candidates = len(kept[0])
    dropped = dropped_positions(graph, kept)
    with Population(model, candidates, dropped, graph.normalized_by, at_inputs):
        return call(model, repeat_batch(inputs, candidates))


def needs_masks_at_inputs(graph: ChannelGraph, inputs: Inputs) -> bool:
    """Finds out whether channels must be dropped where they are read, too, by trying.

    A copy in float64 with random weights, run for two candidates of which one drops half of every
    axis, must give what the pruned network gives; and the other what the dense one does. Only the
    first tensor of the output is looked at: the logits.

    Args:
        graph: The traced network.
        inputs: A batch of its arguments; a few samples of it are used.

    Raises:
        ValueError: Dropping them in both places does not give the pruned network either.
    """
    few = map_tensors(inputs, lambda tensor: _double(tensor[:TRIED] if tensor.dim() else tensor))
    double = scrambled(graph.model)
    generator = torch.Generator().manual_seed(0)
    kept = []
    for axis in graph.axes:
        mask = torch.ones(2, axis.channels, dtype=torch.bool)
        if axis.exact:
            order = torch.randperm(axis.channels, generator=generator)
            mask[0, order[(axis.channels + 1) // 2 :]] = False
        kept.append(mask)
    channels = [mask[0].nonzero().flatten().tolist() for mask in kept]
    everything = [mask[1:] for mask in kept]
    small = remove(double, graph.positions(channels))
    with torch.no_grad(), preserve_buffers(double):
        with Population(small, 1, {}, {}, False):
            pruned = call(small, few)
        dense = masked_forward(graph, double, few, everything, False)
        wanted = [tensors_in(pruned)[0], tensors_in(dense)[0]]
        for at_inputs in (False, True):
            together = tensors_in(masked_forward(graph, double, few, kept, at_inputs))[0]
            gap = relative_difference(list(together.chunk(2)), wanted)
            if gap <= TOLERANCE:
                return at_inputs
    raise ValueError(
        "search: evaluator: expected a network whose samples do not depend on one another, so that "
        f"candidates can share a batch, got one where the masked and the pruned network differ by "
        f"{gap:.1e}; use evaluator='table'"
    )


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class MaskedJudge(AnswerJudge):
    """Scores candidates on the dense network with the channels that go masked: see its base class.

    BatchNorm uses the statistics of the candidate's batch (so a batch should hold 16 samples or
    more), relative to those of the dense network on all batches. Candidates share a
    batch, as many at a time as `memory` allows. Axes that a normalisation over channels mixes
    (trace's `allow_inexact`) are scored with zeros in it, which is not what removing gives; all
    others exactly.

    Args:
        graph, kept, limits, calibration: See `AnswerJudge`.
        memory: Bytes that the activations of one pass may take, scratch space inside
            convolutions not counted.

    Raises:
        ValueError: `memory` is too small for one candidate; candidates cannot share a batch of this
            network.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        kept: KeptChannels,
        limits: Tensor,
        calibration: CalibrationData,
        *,
        memory: int = MEMORY,
    ) -> None:
        model = with_statistics_of(graph.model, calibration.batches)
        super().__init__(graph.with_model(model), kept, limits, calibration)
        graph = self._graph
        with torch.no_grad(), eval_mode(graph.model), preserve_buffers(graph.model):
            self._at_inputs = needs_masks_at_inputs(graph, self._batches[0])
            self.together = self._candidates_in(memory)

    @torch.no_grad()
    def _run(self, widths: Tensor) -> Tensor:
        kept = self._kept(widths)
        model = self._graph.model
        with eval_mode(model), preserve_buffers(model):
            losses = [self._losses(i, batch, kept) for i, batch in enumerate(self._batches)]
        return torch.stack(losses).sum(0)

    def _losses(self, index: int, batch: Inputs, kept: Sequence[Tensor]) -> Tensor:
        """Sum over a batch's samples of every candidate's loss, float64 [candidates]."""
        output = masked_forward(self._graph, self._graph.model, batch, kept, self._at_inputs)
        by_candidate = answers(output).chunk(len(kept[0]))
        return torch.stack([self._loss(index, logits) for logits in by_candidate]).cpu()

    def _candidates_in(self, memory: int) -> int:
        """How many candidates fit: memory grows by what the second one takes."""
        largest = max(range(len(self._batches)), key=lambda i: self._dense[i].numel())
        batch, half = self._batches[largest], (self._graph.widths // 2).clamp_min(1)

        def peak(candidates: int) -> int:
            kept = self._kept(half.expand(candidates, -1))
            return peak_memory(self._graph.model, lambda: self._losses(largest, batch, kept))

        first, both = peak(1), peak(2)
        if memory < first:
            raise ValueError(
                f"NetworkEvaluator: memory: expected at least {first:,} bytes, which one candidate "
                f"takes on the largest calibration batch, got {memory:,}; or give smaller batches"
            )
        return 1 + (memory - first) // max(both - first, 1)
