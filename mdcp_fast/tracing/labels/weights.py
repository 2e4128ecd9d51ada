"""Rules of what is computed of parameters alone: weights that a network normalises, masks, turns.

Such a value may have channels along several dimensions, as a weight has, so it carries labels for
each of them. What no rule here knows keeps its size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Node

from mdcp_fast.tracing.labels.elementwise import BROADCASTING, UNARY
from mdcp_fast.tracing.labels.label_tensors import none
from mdcp_fast.tracing.labels.movement import EXACT_SUMS, REDUCE
from mdcp_fast.tracing.labels.state import ALONG, INPUT, OUTPUT, Call, Walk, as_dims, op_name

Labels = list[Tensor]  # of each dimension, int64 [size]
QUOTIENTS = ("div", "divide", "true_divide", "floor_divide", "remainder", "fmod", "reciprocal")
# What a quotient may have passed on the way to its divisor that leaves no zero in it.
POSITIVE = ("add", "clamp_min", "clamp", "maximum", "exp", "sigmoid", "softplus")


def same(walk: Walk, call: Call) -> Labels | None:
    return walk.weight(call.source)


def broadcasting(walk: Walk, call: Call) -> Labels | None:
    nodes = [value for value in call.arguments.values() if isinstance(value, Node)]
    parts = [walk.weight(node) for node in nodes]
    shape, found = call.shape, list[Labels]()
    for part in parts:
        if part is None:
            return None
        found.append([none([1])] * (len(shape) - len(part)) + part)
    reason = f"met a constant, {call.where}"
    if call.name in QUOTIENTS and len(found) > 1 and not _nonzero(nodes[1]):
        for labels in found[1]:  # of a channel that is zero: 0 / 0
            walk.fix(labels, f"divided by what is computed of it, {call.where}")
    merged = found[0]
    for other in found[1:]:
        merged = [_met(walk, a, b, reason) for a, b in zip(merged, other, strict=True)]
    return merged


def _nonzero(node: Node) -> bool:
    """Whether a divisor has passed something that leaves no zero in it."""
    while node.op == "call_function":
        name = op_name(node)
        if name in POSITIVE:
            return True
        if name not in UNARY.split() and name not in ("expand", "expand_as", "view", "reshape"):
            return False
        source = node.args[0]
        assert isinstance(source, Node)
        node = source
    return node.meta["val"].numel() == 1


def _met(walk: Walk, left: Tensor, right: Tensor, reason: str) -> Tensor:
    if len(left) == 1 or len(right) == 1:
        return right if len(left) == 1 else left
    walk.classes.merge(left, right, reason)
    return torch.maximum(left, right)


def reordered(walk: Walk, call: Call) -> Labels | None:
    own = walk.weight(call.source)
    if own is None:
        return None
    rank = len(own)
    if call.name == "permute":
        order = [d % rank for d in call["dims"]]
    else:
        ends = (call["dim0"], call["dim1"])
        first, second = (0, 1) if None in ends else (ends[0] % rank, ends[1] % rank)
        order = list(range(rank))
        if call.name in ("mT", "t", "numpy_T"):
            first, second = (rank - 2) % rank, rank - 1
        order[first], order[second] = order[second], order[first]
    return [own[d] for d in order]


def reshaped(walk: Walk, call: Call) -> Labels | None:
    """A reshape that merely puts in or leaves out dimensions of size 1."""
    own = walk.weight(call.source)
    if own is None:
        return None
    wide = [labels for labels in own if len(labels) > 1]
    if [len(labels) for labels in wide] != [size for size in call.shape if size > 1]:
        return None
    rest = iter(wide)
    return [next(rest) if size > 1 else none([1]) for size in call.shape]


def repeated(walk: Walk, call: Call) -> Labels | None:
    """What was of size 1 is repeated to a size that may follow the channels it is made for."""
    own, shape = walk.weight(call.source), call.shape
    if own is None:
        return None
    own = [none([1])] * (len(shape) - len(own)) + own
    if any(len(labels) not in (1, size) for labels, size in zip(own, shape, strict=True)):
        return None
    return [
        labels if len(labels) == size else none([size])
        for labels, size in zip(own, shape, strict=True)
    ]


def concatenated(walk: Walk, call: Call) -> Labels | None:
    """Copies of what has size 1 along the dimension in which they are joined."""
    parts, dim = call["tensors"], call["dim"] % len(call.shape)
    if any(part is not parts[0] for part in parts):
        return None
    own = walk.weight(parts[0])
    if own is None or len(own[dim]) > 1:
        return None
    return [none([size]) if d == dim else own[d] for d, size in enumerate(call.shape)]


def reduced(walk: Walk, call: Call) -> Labels | None:
    own = walk.weight(call.source)
    if own is None or call["other"] is not None or isinstance(call.value, (list, tuple)):
        return None
    dims = as_dims(call["dim"], len(own))
    if call.name not in EXACT_SUMS:
        for d in dims:
            reason = f"reduced over channels: {call.name}, {call.where}"
            if len(own[d]) > 1:
                walk.classes.mix(own[d], reason)
    keep = bool(call["keepdim"])
    return [none([1]) if d in dims else own[d] for d in range(len(own)) if keep or d not in dims]


def taken(walk: Walk, call: Call) -> Labels | None:
    """A part, or each of the parts, at positions written in the source: that dimension stays."""
    own = walk.weight(call.source)
    if own is None:
        return None
    d = (call["dim"] or 0) % len(own)
    rest = own[:d] + own[d + 1 :]
    if call.name == "slice":
        part = own[d][call["start"] : call["end"] : call["step"] or 1]
        if len(part) < len(own[d]):
            walk.fix(own[d], f"sizes written in the source: slice, {call.where}")
        return [*own[:d], part, *own[d + 1 :]]
    walk.fix(own[d], f"positions written in the source: {call.name}, {call.where}")
    return rest


def weight_norm(walk: Walk, call: Call) -> Labels | None:
    """A row that is zero has no direction, so that one removed is not one zeroed."""
    direction, size = walk.weight(call["v"]), walk.weight(call["g"])
    if direction is None or size is None:
        return None
    for labels in (direction[call["dim"]], *size):
        walk.fix(labels, f"a layer whose weight is computed: {call.name}, {call.where}")
    return direction


Rule = Callable[[Walk, Call], "Labels | None"]
RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY.split(), same),
    **dict.fromkeys(BROADCASTING.split(), broadcasting),
    **dict.fromkeys(
        ["permute", "transpose", "t", "mT", "numpy_T", "swapaxes", "swapdims"], reordered
    ),
    **dict.fromkeys(["view", "reshape", "squeeze", "unsqueeze", "view_as", "reshape_as"], reshaped),
    **dict.fromkeys(["expand", "expand_as", "repeat", "tile"], repeated),
    **dict.fromkeys(["cat", "concat", "concatenate"], concatenated),
    **dict.fromkeys(REDUCE.split(), reduced),
    **dict.fromkeys(["slice", "select", "unbind"], taken),
    "getitem": same,
    "_weight_norm": weight_norm,
}


def visit(walk: Walk, call: Call) -> bool:
    """Labels what is computed of weights alone; False for what is left to other rules."""
    sources = call.node.all_input_nodes
    if call.name not in RULES or not any(map(walk.is_weight, sources)):
        return False
    if not all(map(walk.is_constant, sources)):
        return False
    labels = RULES[call.name](walk, call)
    if labels is None:
        return False
    walk.set_weight(call.node, labels)
    return True


def made_to_size(walk: Walk, weight: Node, size: int) -> bool:
    """Whether a constant has `size` entries along a dimension though no parameter has."""
    return size > 1 and all(size not in source.meta["val"].shape for source in walk.sources(weight))


def credit(walk: Walk, weight: Node, outputs: Tensor, inputs: Tensor) -> None:
    """The parameters that a weight is computed of write and read its channels, as it does."""
    sources, size = walk.sources(weight), weight.meta["val"].numel()
    whole = [source for source in sources if source.meta["val"].numel() == size]
    for source in whole or sources:
        for d in range(source.meta["val"].dim()):
            use = walk.uses.get((walk.parameter_name(source), d))
            if use is None:
                continue
            own = walk.classes.roots(use.labels)
            if torch.equal(own, walk.classes.roots(outputs)):
                use.role = OUTPUT
            elif torch.equal(own, walk.classes.roots(inputs)):
                use.role, use.read = (INPUT if use.role == ALONG else use.role), True
