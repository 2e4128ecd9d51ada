"""Candidates masked in one batch score as each would alone, and the network is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS, Residual, SeveralInputs, SigmoidBetween, conv, image
from plans import random_plan
from torch import Tensor, nn

from mdcp_fast.modules.calls import call, eval_mode, map_tensors, tensors_in
from mdcp_fast.modules.memory import PeakMemory
from mdcp_fast.modules.removal import remove
from mdcp_fast.modules.verification import zeroed
from mdcp_fast.planning.masked import masked_forward, needs_masks_at_inputs, repeat_batch
from mdcp_fast.tracing.axes import Axis
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

CANDIDATES = 3
# With and without BatchNorm; concatenations, depthwise and grouped layers, activations that do not
# keep zero, weights used without a layer, shared ones, positions that a channel has several of.
NAMES = [
    "residual",
    "dense concatenation",
    "C2f",
    "channel shuffle",
    "pixel shuffle",
    "depthwise",
    "depthwise with multiplier",
    "grouped",
    "squeeze-and-excitation, convolution",
    "squeeze-and-excitation, linear",
    "zero-padded shortcut",
    "shared layers",
    "shared weights",
    "transposed",
    "transposed, grouped",
    "transposed, depthwise",
    "U-Net",
    "flatten and linear",
    "a parameter multiplied in",
    "several outputs",
    "several inputs",
    "named inputs",
    "functional",
    "normalisations",
    "sigmoid between",
    "one dimension",
    "three dimensions",
    "linear only",
]


def varied(model: nn.Module) -> nn.Module:
    """The model with BatchNorm weights, biases and statistics that are not the initial ones."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_()
    return model


def traced(name: str) -> ChannelGraph:
    torch.manual_seed(0)
    block = BLOCKS[name]
    return trace(varied(block.make().eval()), block.inputs)


def kept_by(graph: ChannelGraph, seeds: range) -> tuple[list[Tensor], list[list[list[int]]]]:
    """Random candidates: a mask [candidates, channels] for each axis, and channels by candidate."""
    chosen = [[list(axis.kept) for axis in random_plan(graph, seed).axes] for seed in seeds]
    masks = []
    for a, axis in enumerate(graph.axes):
        mask = torch.zeros(len(chosen), axis.channels, dtype=torch.bool)
        for row, candidate in zip(mask, chosen, strict=True):
            row[candidate[a]] = True
        masks.append(mask)
    return masks, chosen


def batch_statistics(model: nn.Module, inputs: Any) -> Tensor:
    """The first output in evaluation mode, but BatchNorm in training mode."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    with torch.no_grad():
        return tensors_in(call(model, inputs))[0]


@pytest.mark.parametrize("name", NAMES)
def test_folded_is_each_candidate_alone(name: str) -> None:
    """On a masked copy, whose parameters are zero where a channel was, and really pruned."""
    graph = traced(name)
    inputs = map_tensors(graph.example_inputs, lambda x: x.double())
    graph.model.double()
    masks, chosen = kept_by(graph, range(CANDIDATES))
    at_inputs = needs_masks_at_inputs(graph, inputs)
    output = tensors_in(masked_forward(graph, graph.model, inputs, masks, at_inputs))[0]
    for part, channels in zip(output.chunk(CANDIDATES), chosen, strict=True):
        positions = graph.positions(channels)
        masked = batch_statistics(
            zeroed(graph.model, remove(graph.model, positions), positions, torch.clone), inputs
        )
        pruned = batch_statistics(remove(graph.model, positions), inputs)
        torch.testing.assert_close(part, masked, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(part, pruned, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["residual", "depthwise", "dense concatenation", "U-Net"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_in_float32_and_channels_last(name: str, channels_last: bool) -> None:
    graph = traced(name)
    inputs = graph.example_inputs
    masks, chosen = kept_by(graph, range(CANDIDATES))
    if channels_last:
        graph.model.to(memory_format=torch.channels_last)
        inputs = map_tensors(inputs, lambda x: x.contiguous(memory_format=torch.channels_last))
    output = masked_forward(graph, graph.model, inputs, masks, False)
    assert output.is_contiguous(memory_format=torch.channels_last) or not channels_last
    for part, channels in zip(output.chunk(CANDIDATES), chosen, strict=True):
        pruned = batch_statistics(remove(graph.model, graph.positions(channels)), inputs)
        torch.testing.assert_close(part, pruned, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "expected"), [(Residual, False), (SigmoidBetween, True)])
def test_masks_at_inputs_are_found_to_be_needed(make: type[nn.Module], expected: bool) -> None:
    torch.manual_seed(0)
    graph = trace(make().eval(), image())
    assert needs_masks_at_inputs(graph, (image(),)) == expected


class Mixing(nn.Module):
    """A network whose samples depend on one another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.b(x - x.mean(0, keepdim=True))))


def test_a_network_that_mixes_its_samples_is_refused() -> None:
    graph = trace(Mixing().eval(), image())
    with pytest.raises(ValueError, match="samples do not depend on one another.*use evaluator="):
        needs_masks_at_inputs(graph, (image(),))


def test_a_network_whose_batch_is_not_first_is_refused() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:  # [batch, 3, 4]
            x = F.relu(self.a(x.transpose(0, 1)))
            return self.head(F.relu(self.b(x)).mean(0))

    inputs = (torch.randn(2, 3, 4),)
    graph = trace(Turned().eval(), inputs)
    with pytest.raises(ValueError, match=r"batch in their first dimension, got shape \[3, 4, 6\]"):
        needs_masks_at_inputs(graph, inputs)


def test_a_single_value_for_each_channel_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    graph = trace(model, torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"more than one value per channel .* shape \[1, \d\]"):
        needs_masks_at_inputs(graph, (torch.randn(1, 4),))


def test_folding_repeats_every_tensor_of_the_batch() -> None:
    a, b = torch.randn(2, 3, 4), torch.tensor(2.0)
    repeated = repeat_batch({"x": a, "scale": b, "flag": True}, 2)
    assert torch.equal(repeated["x"], torch.cat([a, a]))
    assert repeated["scale"] is b and repeated["flag"] is True
    assert (
        repeat_batch((a.contiguous(memory_format=torch.contiguous_format),), 1)[0].shape == a.shape
    )


class RaisesOnLargeBatches(SeveralInputs):
    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        if x.shape[0] > 4:
            raise RuntimeError("too many for me")
        return super().forward(x, y, scale)


def test_nothing_of_the_network_changes_even_when_it_raises() -> None:
    torch.manual_seed(0)
    model = RaisesOnLargeBatches()
    model.a = nn.Sequential(model.a, nn.BatchNorm2d(6))
    inputs = (image(), image(2))
    graph = trace(model.eval(), inputs)
    model.a.train()
    model.a[0].weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    masks, _ = kept_by(graph, range(CANDIDATES))
    with eval_mode(model):
        with pytest.raises(RuntimeError, match="too many for me"):
            masked_forward(graph, model, inputs, masks, True)
        masked_forward(graph, model, inputs, [mask[:2] for mask in masks], True)
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    x = image()
    plain = F.batch_norm(x, x.mean((0, 2, 3)), torch.ones(3))  # nothing intercepts it any more
    torch.testing.assert_close(plain, x - x.mean((0, 2, 3), keepdim=True), rtol=1e-4, atol=1e-4)


def test_a_custom_batch_norm_keeps_what_else_it_does() -> None:
    """Classes that add to BatchNorm, as timm's with its activation does, are seen as well."""

    class NormAndActivation(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 6), NormAndActivation(6), conv(6, 2)).eval()
    graph = trace(varied(model), image())
    masks, chosen = kept_by(graph, range(CANDIDATES))
    output = masked_forward(graph, model, (image(),), masks, False)
    for part, channels in zip(output.chunk(CANDIDATES), chosen, strict=True):
        pruned = batch_statistics(remove(model, graph.positions(channels)), (image(),))
        torch.testing.assert_close(part, pruned, rtol=1e-5, atol=1e-5)


def test_peak_memory_counts_what_is_alive_together() -> None:
    x = torch.zeros(1000)
    weights = torch.zeros(1000)
    with PeakMemory([weights]) as memory:
        for _ in range(10):
            y = x + weights  # 4,000 bytes
            y = y.view(10, 100) * 2  # 4,000 more, then the first go
            del y
        weights.view(10, 100)
    assert memory.peak == 8000


def test_axes_that_are_not_exact_are_left_out_of_the_trial() -> None:
    torch.manual_seed(0)
    block = BLOCKS["GroupNorm"]
    graph = trace(block.make().eval(), block.inputs, allow_inexact=True)
    inexact: list[Axis] = [axis for axis in graph.axes if not axis.exact]
    assert inexact and needs_masks_at_inputs(graph, graph.example_inputs) is False
