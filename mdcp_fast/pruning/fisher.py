"""Fisher information: how much a network's answer depends on what each layer puts out.

One backward pass, no labels.

A small error e in a layer's output changes the class probabilities by KL(dense || disturbed) =
e^T F e / 2, F the Fisher information matrix of the softmax seen from there. It is found as
E[g g^T] over gradients g of random combinations of the logits, combined such that their second
moments are those of the softmax's Fisher matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import (
    Inputs,
    call,
    eval_mode,
    map_tensors,
    preserve_buffers,
    tensors_in,
)
from mdcp_fast.modules.hooks import forward_hooks
from mdcp_fast.modules.layer_kinds import Layer
from mdcp_fast.pruning.calibration import in_parts
from mdcp_fast.pruning.input_moments import Consumer
from mdcp_fast.tracing.graph import ChannelGraph

# Of the softmax: above 1, classes that the network rules out count too, and a network that is sure
# of everything still tells its layers apart.
TEMPERATURE = 4.0
WORK = 1 << 38  # multiply-accumulates of the forward passes after which samples are enough
ENOUGH = 256  # samples, whatever the work; with half of them harder budgets lose 3 % of KL
SAMPLES = 16  # that run at a time: activations are kept for the backward pass


def output_fisher(
    graph: ChannelGraph, consumers: Sequence[Consumer], batches: Iterable[Inputs], seed: int = 0
) -> dict[str, Tensor]:
    """Second moments of the gradient of the logits with respect to what consumers put out.

    Positions of an output count as independent, as in K-FAC for convolutions (Grosse and Martens,
    "A Kronecker-factored approximate Fisher matrix for convolution layers", 2016).

    Args:
        graph: The traced network; not changed.
        consumers: Layers, by their weights.
        batches: The model's arguments. Large networks get by with the first of them.
        seed: Of the random combinations.

    Returns:
        By weight, float64 [outputs, outputs]: summed over the positions of an output, averaged over
        samples. Weights that the first output of the network does not depend on are missing.
    """
    sums: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    model = graph.model
    hooks = [
        (model.get_submodule(layer.path), _watch(sums, layer))
        for consumer in consumers
        for layer in consumer.layers
    ]
    samples, enough = 0, min(max(SAMPLES, WORK // max(graph.macs, 1)), ENOUGH)
    with (
        forward_hooks(hooks, before=False),
        eval_mode(model),
        preserve_buffers(model),
        torch.enable_grad(),
    ):
        for batch in in_parts(batches, SAMPLES):
            if samples >= enough:
                break
            samples += _backward(model, batch, generator)
    return {name: total / samples for name, total in sums.items() if bool(total.isfinite().all())}


def _watch(sums: dict[str, Tensor], layer: Layer) -> Callable[..., None]:
    """A forward hook: adds up the products of the gradients that the layer's output will get."""

    name = layer.weight

    def add(module: nn.Module, gradient: Tensor) -> None:
        rows = layer.kind.rows(module, gradient).float()  # [positions, outputs]
        product = (rows.T @ rows).double()
        sums[name] = sums[name] + product if name in sums else product

    def hook(module: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: add(module, gradient))

    return hook


def _backward(model: nn.Module, batch: Inputs, generator: torch.Generator) -> int:
    """Runs a batch forward, and backward to the inputs: no parameter gets a gradient."""
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        leaves.append(x.detach().clone().requires_grad_())
        return leaves[-1] * 1  # which the network may change in place

    outputs = tensors_in(call(model, map_tensors(batch, leaf)))
    logits = outputs[0]
    if leaves and logits.requires_grad:
        towards = _towards(logits.detach(), generator)
        torch.autograd.grad((logits * towards).sum(), leaves, allow_unused=True)
    return len(logits)


def _towards(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Random v, of the shape of the logits, with E[v v^T] = diag(p) - p p^T for their softmax p."""
    signs = torch.randint(0, 2, logits.shape, generator=generator).to(logits) * 2 - 1
    if logits.dim() < 2 or logits.shape[1] < 2:
        return signs
    root = (logits / TEMPERATURE).softmax(1).sqrt()
    return root * (signs - (root * signs).sum(1, keepdim=True) * root)
