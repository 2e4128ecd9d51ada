"""Rules of matrix products outside layers: of a value with what is computed of parameters.

Each is an einsum, in which letters name dimensions; channels lie along one letter of the value.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.fx import Node

from mdcp_fast.tracing.labels.elementwise import ALONG_POSITIONS
from mdcp_fast.tracing.labels.label_tensors import none, spread, varying
from mdcp_fast.tracing.labels.state import ALONG, INPUT, OUTPUT, Call, Rules, Walk, ops
from mdcp_fast.tracing.labels.weights import credit

BATCH = "abcdefgh"
TITLE = "a matrix product outside a layer"


def product(walk: Walk, call: Call) -> Any:
    found = None
    if call.name == "einsum":
        found = einsum(walk, call)
    elif call.name in ("matmul", "mm", "bmm", "mv"):
        found = matmul(walk, call, *call.node.all_input_nodes)
    elif call.name == "addmm" and call["beta"] == call["alpha"] == 1:
        found = matmul(walk, call, call["mat1"], call["mat2"])
        bias = call["self"] if call["self"] is not None else call["input"]
        if found is not None:
            if not walk.is_parameter(bias) or bias.meta["val"].shape[-1] != call.shape[-1]:
                return walk.unknown(call, TITLE)
            last = len(call.shape) - 1
            walk.use(bias, bias.meta["val"].dim() - 1, walk.channels(found, last), ALONG)
    return walk.unknown(call, TITLE) if found is None else found


def einsum(walk: Walk, call: Call) -> Tensor | None:
    terms, arrow, out = call["equation"].replace(" ", "").partition("->")
    operands, letters = call["tensors"], terms.split(",")
    if "." in terms or len(operands) != 2 or any(len({*one}) < len(one) for one in letters):
        return None
    if not arrow:
        out = "".join(sorted({*terms} - {","}, key=str))
        out = "".join(one for one in out if terms.count(one) == 1)
    return contracted(walk, call, operands, letters, out)


def matmul(walk: Walk, call: Call, *operands: Node) -> Tensor | None:
    if len(operands) != 2:  # of a value with itself
        return None
    shapes = [node.meta["val"].shape for node in operands]
    left, right = (len(shape) for shape in shapes)
    batches = [BATCH[10 - rank :] if rank > 2 else "" for rank in (left, right)]
    shared = min(left, right) - 2
    if shared > 0 and shapes[0][-2 - shared : -2] != shapes[1][-2 - shared : -2]:
        return None
    first = batches[0] + ("yz" if left > 1 else "z")
    second = batches[1] + ("zw" if right > 1 else "z")
    out = max(batches, key=len) + ("y" if left > 1 else "") + ("w" if right > 1 else "")
    return contracted(walk, call, operands, [first, second], out)


def contracted(walk: Walk, call: Call, operands: Any, letters: list[str], out: str) -> Any:
    """Labels of a product of a value with what is constant; None for what is no such product."""
    constant = [walk.is_constant(node) for node in operands]
    if constant.count(True) != 1:
        return None
    which = constant.index(True)
    weight, source = operands[which], operands[1 - which]
    of_weight, of_source = letters[which], letters[1 - which]
    labels, own = walk.labels(source), walk.weight(weight)
    along = varying(labels)
    if own is None or len(along) > 1:
        return None
    there = of_source[along[0]] if along else None
    channels = walk.channels(labels, along[0]) if along else none([1])
    if there is not None and there not in of_weight + out:
        return None
    reason = f"{TITLE}: {call.name}, {call.where}"
    made: tuple[str, Tensor] | None = (there, channels) if there and there in out else None
    pruned = dict[int, Tensor]()
    for d, letter in enumerate(of_weight):
        if letter == there:
            walk.classes.merge(own[d], channels, reason)
            _credit(walk, weight, d, ALONG if letter in out else INPUT)
        elif letter in of_source or letter not in out or made is not None:
            walk.fix(own[d], ALONG_POSITIONS if letter in of_source else reason)
            continue
        else:
            made = (letter, own[d])
            _credit(walk, weight, d, OUTPUT)
        pruned[d] = own[d]
    if not walk.is_parameter(weight):
        credit(walk, weight, none([0]) if made is None else made[1], channels)
    if any(letter in of_source and letter not in out for letter in of_weight):
        _count(walk, call, weight, source, of_weight, of_source, pruned)
    if made is None:
        return none(call.shape)
    return spread(made[1], call.shape, out.index(made[0]))


def _credit(walk: Walk, weight: Node, dimension: int, role: str) -> None:
    if walk.is_parameter(weight) and (weight.meta["val"].shape[dimension]) > 1:
        own = walk.weight(weight)
        assert own is not None
        walk.use(weight, dimension, own[dimension], role)


def _count(
    walk: Walk,
    call: Call,
    weight: Node,
    source: Node,
    of_weight: str,
    of_source: str,
    pruned: dict[int, Tensor],
) -> None:
    sizes = dict(zip(of_source, source.meta["val"].shape, strict=True))
    rest = math.prod(size for letter, size in sizes.items() if letter not in of_weight)
    if walk.is_parameter(weight):
        walk.multiplies(weight, rest)
    else:
        walk.computes(call, weight, rest, pruned)


RULES: Rules = ops("matmul bmm mm mv baddbmm addmm einsum scaled_dot_product_attention", product)
