"""Which values' channels may be rotated: those that meet only what is linear and treats all alike.

A stream of channels that layers write and layers read, with nothing between that tells one channel
from another, may be given in any basis: writers put out T x, readers take up T^-1. Additions of
such values, dropout, average pooling, interpolation, zero padding and the movement of data keep to
that; an activation, a scale for each channel, a maximum or a constant added do not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from mdcp_fast.modules.layer_kinds import BATCH_NORM, CONVOLUTION, LINEAR, TRANSPOSED
from mdcp_fast.tracing.labels import elementwise, movement
from mdcp_fast.tracing.labels.label_tensors import varying
from mdcp_fast.tracing.labels.state import Call, Walk, op_name

LAYERS = (*CONVOLUTION.operators, *TRANSPOSED.operators, *LINEAR.operators)
SUMS = ("add", "sub", "subtract")
SCALINGS = ("mul", "multiply", "div", "divide", "true_divide")
COPIES = (
    "dropout feature_dropout contiguous clone detach alias lift_fresh lift_fresh_copy to _to_copy "
    "type_as float half bfloat16 double neg"
)
MOVES = (
    f"{movement.RESHAPE} {movement.REORDER} {movement.SELECT} expand expand_as flip roll repeat "
    "repeat_interleave cat concat concatenate stack chunk getitem pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle mean sum"
)
POOLS = [op for op in movement.SPATIAL if not op.startswith(("max_", "adaptive_max", "lp_"))]
UNREAD = f"{elementwise.CREATION} {elementwise.CHECKS}"  # these look at sizes alone
LINEAR_OPS = frozenset([*COPIES.split(), *MOVES.split(), *UNREAD.split(), *POOLS])


def note_nonlinear(walk: Walk, call: Call) -> None:
    """Marks the channels that a call keeps from being rotated.

    Args:
        walk: With the labels of what the call reads and of what it puts out.
        call: Of any op.
    """
    if walk.is_weight(call.node) or _keeps_linear(walk, call):
        return
    reason = f"{call.name}, {call.where}"
    values = [
        node
        for node in call.node.all_input_nodes
        if not (walk.is_parameter(node) or walk.is_weight(node))
    ]
    for labels in [*map(walk.labels, values), walk.labels(call.node)]:
        _bend(walk, labels, reason)


def _bend(walk: Walk, labels: Any, reason: str) -> None:
    if isinstance(labels, (list, tuple)):
        for part in labels:
            _bend(walk, part, reason)
    elif isinstance(labels, Tensor):
        walk.classes.bend(labels, reason)


def _keeps_linear(walk: Walk, call: Call) -> bool:
    """Whether a call is linear in each value with channels, and treats these alike."""
    name = call.name
    if name in LINEAR_OPS:
        return True
    if name in LAYERS:
        return walk.is_parameter(call["weight"]) and (call["groups"] or 1) == 1
    if name in BATCH_NORM.operators:  # counted as part of the layer before it
        source = call["input"]
        return op_name(source) in LAYERS and len(source.users) == 1
    if name in ("pad", "constant_pad_nd"):
        return not call["value"]
    if name in SUMS:
        return _adds_alike(walk, call)
    if name in SCALINGS:
        return _scales_alike(walk, call)
    return False


def _operands(call: Call) -> list[Any]:
    return list(call.node.args[:2])


def _adds_alike(walk: Walk, call: Call) -> bool:
    """Whether two values are added channel by channel, none of them the same to all channels."""
    along = [_channel_dimensions(walk, call, operand) for operand in _operands(call)]
    return len(along) == 2 and bool(along[0]) and along[0] == along[1]


def _scales_alike(walk: Walk, call: Call) -> bool:
    """Whether one value is multiplied or divided by what is the same for all of its channels."""
    value, scale = (_operands(call) + [None])[:2]
    if not _channel_dimensions(walk, call, value) and not call.name.startswith(("div", "true")):
        value, scale = scale, value
    if isinstance(scale, Node) and walk.is_constant(scale):
        return scale.meta["val"].numel() == 1
    return isinstance(value, Node) and not _channel_dimensions(walk, call, scale)


def _channel_dimensions(walk: Walk, call: Call, operand: Any) -> list[int]:
    """The dimensions of the result, counted from the last, along which an operand has channels."""
    labels = None if walk.is_constant(operand) else walk.labels(operand)
    if not isinstance(labels, Tensor):
        return []
    return [d - labels.dim() for d in varying(labels)]
