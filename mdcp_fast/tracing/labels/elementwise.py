"""Rules of ops that work element by element: channels that meet go together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mdcp_fast.tracing.labels.label_tensors import compact, none, spread, varying
from mdcp_fast.tracing.labels.state import ALONG, Call, Rules, Walk, ops

UNARY = (
    "relu relu6 sigmoid silu gelu hardtanh hardswish hardsigmoid tanh leaky_relu elu selu celu "
    "mish softplus softsign logsigmoid log_sigmoid hardshrink softshrink threshold dropout "
    "feature_dropout alpha_dropout feature_alpha_dropout rrelu exp exp2 sqrt rsqrt abs neg log "
    "log2 log1p expm1 erf sin cos square reciprocal sign to _to_copy type_as float half "
    "bfloat16 double contiguous clone detach alias lift_fresh_copy lift_fresh bernoulli "
    "zeros_like ones_like full_like empty_like rand_like randn_like floor ceil round trunc "
    "nan_to_num logical_not isnan isinf fill"
)
BROADCASTING = (
    "add sub rsub mul div maximum minimum where fmax fmin floor_divide remainder fmod atan2 "
    "copy lerp addcmul addcdiv pow clamp clamp_min clamp_max masked_fill eq ne gt ge lt le "
    "logical_and logical_or logical_xor true_divide multiply subtract divide"
)
CREATION = (
    "new_zeros new_ones new_full new_empty zeros ones full empty arange linspace eye scalar_tensor "
    "rand randn"
)
ALONG_POSITIONS = "a parameter that lies along positions"
CHECKS = "_assert_scalar _assert_tensor_metadata sym_constrain_range"


def unary(walk: Walk, call: Call) -> Any:
    return walk.labels(call.source)


def broadcasting(walk: Walk, call: Call) -> Any:
    shape = call.shape
    operands = [
        value
        for value in call.arguments.values()
        if isinstance(value, Node) and isinstance(value.meta.get("val"), Tensor)
    ]
    reason = f"met a constant, padding or the network's input, {call.where}"
    merged, *others = [aligned(walk, operand, operands, len(shape)) for operand in operands]
    for other in others:
        merged = meet(walk, merged, other, reason)
    return merged.expand(shape)


def aligned(walk: Walk, node: Node, operands: list[Node], rank: int) -> Tensor:
    """Labels of an operand, aligned to the result's dimensions (size 1 where it is broadcast)."""
    labels: Tensor | None = None
    if walk.is_parameter(node) and not walk.knows(node):
        labels = adopt(walk, node, operands)
        if labels is not None:
            walk.set_labels(node, labels)
    elif walk.is_constant(node):
        labels = adopt_computed(walk, node, operands)
    if labels is None:
        labels = walk.labels(node)
    assert labels is not None
    return labels[(None,) * (rank - labels.dim())]


def adopt(walk: Walk, node: Node, operands: list[Node]) -> Tensor | None:
    """A parameter that is added or multiplied in takes the labels of the channels it meets.

    So does a position embedding, which has several wide dimensions; one that lies along positions
    alone has no channels of its own.
    """
    shape = node.meta["val"].shape
    wide = [d for d, size in enumerate(shape) if size > 1]
    met = channels_met(walk, node, operands)
    if met is None:
        return None
    channels, dim = met
    walk.pin(node, ALONG_POSITIONS, [d for d in wide if d != dim])
    if dim not in wide:
        return none(shape)
    walk.use(node, dim, channels, ALONG)
    return spread(channels, shape, dim)


def adopt_computed(walk: Walk, node: Node, operands: list[Node]) -> Tensor | None:
    """Likewise what is computed of parameters: only where it meets channels it has some itself."""
    own, met = walk.weight(node), channels_met(walk, node, operands)
    if own is None or met is None:
        return None
    _, dim = met
    for d, labels in enumerate(own):
        if d != dim:
            walk.fix(labels, ALONG_POSITIONS)
    shape = node.meta["val"].shape
    return none(shape) if not 0 <= dim < len(own) else spread(own[dim], shape, dim)


def channels_met(walk: Walk, node: Node, operands: list[Node]) -> tuple[Tensor, int] | None:
    """The channels of a value that meets `node`, and where they would lie in that."""
    for operand in operands:
        if operand is node or walk.is_constant(operand):
            continue
        labels = walk.labels(operand)
        along = varying(labels)
        if len(along) == 1:
            dim = along[0] - labels.dim() + node.meta["val"].dim()
            return walk.channels(labels, along[0]), dim
    return None


def meet(walk: Walk, left: Tensor, right: Tensor, reason: str) -> Tensor:
    """Merges two aligned label tensors where they share a channel dimension.

    Where they do not, one is broadcast over the other's channels: a single channel that is
    broadcast must stay, a value without channels changes nothing, and whatever has a size of its
    own there fixes what it meets.
    """
    shape = torch.broadcast_shapes(left.shape, right.shape)
    left_dims, right_dims = set(varying(left)), set(varying(right))
    if left_dims & right_dims or not (left_dims or right_dims):
        left, right = torch.broadcast_tensors(compact(left), compact(right))
        walk.classes.merge(left, right, reason)
        return torch.maximum(left, right).expand(shape)
    if left_dims and right_dims:
        walk.fix([left, right], f"an outer product of channels: {reason}")
        return none(shape)
    single, many = (right, left) if left_dims else (left, right)
    walk.fix(single, "a single channel that is broadcast over others")
    if any(single.shape[d] > 1 for d in left_dims | right_dims):
        walk.fix(many, reason)
    return many.expand(shape)


def gate(walk: Walk, call: Call) -> Any:
    """glu: one half of the channels, each gated by its twin in the other half."""
    source = walk.labels(call.source)
    left, right = source.chunk(2, call["dim"] % source.dim())
    walk.classes.merge(left, right, "a gate of which one half is fixed")
    return torch.maximum(left, right)


def created(walk: Walk, call: Call) -> Any:
    """A new tensor of a size written in the source has no channels of its own."""
    return walk.no_labels(call)


def nothing(walk: Walk, call: Call) -> None:
    """A check of sizes, which has no result."""
    return None


RULES: Rules = {
    **ops(UNARY, unary),
    **ops(BROADCASTING, broadcasting),
    **ops("glu", gate),
    **ops(CREATION, created),
    **ops(CHECKS, nothing),
}
