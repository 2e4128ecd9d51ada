"""Which values are zero wherever their channel is removed: sums over such channels stay the same.

In the network that a pruned one is checked against, what a layer writes into a removed channel is
zero. An activation may keep it so, or (a sigmoid) make something of it.
"""

from __future__ import annotations

from torch.fx import Node

from mdcp_fast.modules.layer_kinds import (
    BATCH_NORM,
    CONVOLUTION,
    EMBEDDING,
    GROUP_NORM,
    INSTANCE_NORM,
    LINEAR,
    PRELU,
    TRANSPOSED,
)
from mdcp_fast.tracing.labels import movement
from mdcp_fast.tracing.labels.state import Call, Walk

LAYERS = frozenset(
    op for kind in (CONVOLUTION, EMBEDDING, LINEAR, TRANSPOSED) for op in kind.operators
)
NORMS = frozenset(op for kind in (BATCH_NORM, GROUP_NORM, INSTANCE_NORM) for op in kind.operators)
KEEPING = frozenset(
    f"{movement.RESHAPE} {movement.REORDER} {movement.SELECT} {' '.join(movement.SPATIAL)} "
    "expand expand_as flip roll repeat tile repeat_interleave cat concat stack chunk getitem "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle relu relu6 silu gelu "
    "hardswish tanh leaky_relu elu selu celu mish softsign hardshrink softshrink dropout "
    "feature_dropout expm1 sqrt abs neg log1p erf sin square sign to _to_copy type_as float "
    "half bfloat16 double contiguous clone detach alias mean sum amax amin".split()
)


def note(walk: Walk, call: Call) -> None:
    """Notes whether a call's result is such a value."""
    values = call.node.all_input_nodes
    zero = [one in walk.zeros or walk.is_parameter(one) for one in values]
    name, bias = call.name, call["bias"]
    if name in LAYERS:
        found = bias is None or walk.is_parameter(bias)
    elif name in NORMS:
        found = walk.is_parameter(call["weight"])
    elif name in ("mul", "multiply"):
        found = any(zero)
    elif name in ("div", "divide", "true_divide", "pow", *PRELU.operators):
        found = bool(zero) and zero[0]
    elif name in ("add", "sub", "subtract"):
        numbers = [one for one in call.node.args[:2] if not isinstance(one, Node)]
        found = all(zero) and not numbers
    else:
        found = name in KEEPING and bool(zero) and all(zero)
    if found:
        walk.zeros.add(call.node)
