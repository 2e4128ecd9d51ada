"""Rules of layers: labels are read along a weight's inputs and made along its outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from mdcp_fast.modules.layer_kinds import (
    BATCH_NORM,
    CONVOLUTION,
    EMBEDDING,
    GROUP_NORM,
    INSTANCE_NORM,
    KINDS,
    LAYER_NORM,
    LINEAR,
    PRELU,
    RMS_NORM,
    TRANSPOSED,
    LayerKind,
    MatrixKind,
)
from mdcp_fast.tracing.labels.label_tensors import compact, spread, varies, varying
from mdcp_fast.tracing.labels.state import (
    ALONG,
    INPUT,
    OUTPUT,
    Call,
    Rule,
    Rules,
    Walk,
    op_name,
    ops,
)
from mdcp_fast.tracing.labels.weights import credit, made_to_size

BEFORE_BATCH_NORM = frozenset(
    operator
    for kind in KINDS
    if isinstance(kind, MatrixKind) and kind.absorbs_batch_norm
    for operator in kind.operators
)

NORMS = {name: kind for kind in (LAYER_NORM, RMS_NORM) for name in kind.operators}


def convolution(walk: Walk, call: Call) -> Any:
    weight, groups, out = call["weight"], call["groups"], call.value
    if not walk.is_parameter(weight):
        return computed_weight(walk, call, CONVOLUTION)
    kind = CONVOLUTION
    dim, inputs, outputs = layer_channels(walk, call, kind)
    walk.use(weight, kind.output_dimension, outputs, OUTPUT)
    walk.use(call["bias"], 0, outputs, ALONG)
    if groups == 1:
        walk.use(weight, kind.input_dimension, inputs, INPUT)
    elif groups == len(inputs):
        depthwise(walk, inputs, outputs)
    else:
        walk.tie(inputs, groups)
        walk.tie(outputs, groups)
        walk.use(weight, kind.input_dimension, inputs.view(groups, -1)[0], INPUT)
    walk.multiplies(weight, out.numel() // len(outputs))
    return spread(outputs, out.shape, dim)


def transposed_convolution(walk: Walk, call: Call) -> Any:
    weight, groups, out = call["weight"], call["groups"], call.value
    if not walk.is_parameter(weight):
        return computed_weight(walk, call, TRANSPOSED)
    kind = TRANSPOSED
    dim, inputs, outputs = layer_channels(walk, call, kind)
    if groups > 1 and groups == len(inputs):
        depthwise(walk, inputs, outputs)
        walk.use(weight, kind.input_dimension, inputs, OUTPUT)  # it writes what it reads
    else:
        if groups > 1:
            walk.tie(inputs, groups)
            walk.tie(outputs, groups)
        walk.use(weight, kind.input_dimension, inputs, INPUT)
        walk.use(weight, kind.output_dimension, outputs.view(groups, -1)[0], OUTPUT)
    walk.use(call["bias"], 0, outputs, ALONG)
    walk.multiplies(weight, call["input"].meta["val"].numel() // len(inputs))
    return spread(outputs, out.shape, dim)


def layer_channels(walk: Walk, call: Call, kind: MatrixKind) -> tuple[int, Tensor, Tensor]:
    """Where a layer's activations have channels, the labels that it reads, and those it makes."""
    weight = call["weight"].meta["val"]
    dim = kind.channel_dimension(call.value, weight)
    inputs = walk.channels(walk.labels(call["input"]), dim)
    return dim, inputs, walk.classes.fresh(kind.outputs(weight, call["groups"] or 1))


def depthwise(walk: Walk, inputs: Tensor, outputs: Tensor) -> None:
    """The outputs of one input channel go with it, be they one or several."""
    multiplier = len(outputs) // len(inputs)
    reason = "a depthwise layer of channels that are the network's input"
    walk.classes.merge(outputs, inputs.repeat_interleave(multiplier), reason)


def linear(walk: Walk, call: Call) -> Any:
    weight, out = call["weight"], call.value
    if not walk.is_parameter(weight):
        return computed_weight(walk, call, LINEAR)
    kind = LINEAR
    dim, inputs, outputs = layer_channels(walk, call, kind)
    walk.use(weight, kind.input_dimension, inputs, INPUT)
    walk.use(weight, kind.output_dimension, outputs, OUTPUT)
    walk.use(call["bias"], 0, outputs, ALONG)
    walk.multiplies(weight, out.numel() // len(outputs))
    return spread(outputs, out.shape, dim)


def computed_weight(walk: Walk, call: Call, kind: MatrixKind) -> Any:
    """A layer whose weight is computed of parameters: it has the channels that they have."""
    weight, title = call["weight"], "a layer whose weight is computed"
    own, reason = walk.weight(weight), f"{title}: {call.name}, {call.where}"
    groups, out, source = call["groups"] or 1, call.value, call["input"].meta["val"]
    dim = kind.channel_dimension(out, weight.meta["val"])
    count = source.shape[dim]
    if own is None or groups not in (1, count):
        return walk.unknown(call, title)
    outputs = kind.outputs(weight.meta["val"], groups)
    inputs = walk.channels(walk.labels(call["input"]), dim)
    if groups == 1:
        walk.classes.merge(inputs, own[kind.input_dimension], reason)
        made = own[kind.output_dimension]
        along = {kind.input_dimension: inputs, kind.output_dimension: made}
    else:
        made = walk.classes.fresh(outputs)
        depthwise(walk, inputs, made)
        along = {0: inputs if kind is TRANSPOSED else made}
        if not made_to_size(walk, weight, len(own[0])):
            walk.classes.merge(along[0], own[0], reason)
    bias = call["bias"]
    if walk.is_parameter(bias):
        walk.use(bias, 0, made, ALONG)
    elif bias is not None:
        walk.classes.merge(made, walk.channels(walk.labels(bias), 0), reason)
    positions = source.numel() // count if kind is TRANSPOSED else out.numel() // outputs
    walk.computes(call, weight, positions, along)
    credit(walk, weight, made, inputs)
    return spread(made, out.shape, dim)


def batch_norm(walk: Walk, call: Call) -> Any:
    channels = walk.channels(walk.labels(call["input"]), 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        walk.use(call[name], 0, channels, ALONG)
    walk.repeat_width(call, BATCH_NORM.width, channels)
    note_normalized(walk, call["input"], call["running_mean"])
    return spread(channels, call.shape, 1)


def note_normalized(walk: Walk, source: Node, running_mean: Any) -> None:
    """Remembers which running mean takes up a constant added to a layer's output."""
    layer = source.args[1] if op_name(source) in BEFORE_BATCH_NORM else None
    if not (isinstance(layer, Node) and walk.is_parameter(layer)):
        return
    if not walk.is_parameter(running_mean):
        return
    weight, mean = walk.parameter_name(layer), walk.parameter_name(running_mean)
    alone = len(source.users) == 1 and walk.normalized_by.get(weight, mean) == mean
    walk.normalized_by[weight] = mean if alone else ""


def group_norm(walk: Walk, call: Call) -> Any:
    """Whole groups can go, exactly; the same channels of each group change the others."""
    channels, groups = walk.channels(walk.labels(call["input"]), 1), call["num_groups"]
    if walk.exact and groups > 1:
        parts = channels.view(groups, -1)
        walk.classes.merge(parts[:, :1], parts, "a group of GroupNorm of which a part is fixed")
        return scaled(walk, call, GROUP_NORM, channels, 1)
    walk.tie(channels, groups)
    return normalized(walk, call, GROUP_NORM, channels, 1)


def layer_norm(walk: Walk, call: Call) -> Any:
    kind, source = NORMS[call.name], walk.labels(call["input"])
    if len(call["normalized_shape"]) != 1:
        return walk.unknown(call, f"{type(kind).__name__} over several dimensions")
    last = source.dim() - 1
    return normalized(walk, call, kind, walk.channels(source, last), last)


def normalized(walk: Walk, call: Call, kind: LayerKind, channels: Tensor, dim: int) -> Tensor:
    title = type(kind).__name__
    walk.classes.mix(channels, f"{title} normalises over these channels, {call.where}")
    return scaled(walk, call, kind, channels, dim)


def scaled(walk: Walk, call: Call, kind: LayerKind, channels: Tensor, dim: int) -> Tensor:
    for name in ("weight", "bias"):
        walk.use(call[name], 0, channels, ALONG)
    walk.repeat_width(call, kind.width, channels)
    return spread(channels, call.shape, dim)


def embedding(walk: Walk, call: Call) -> Any:
    """Rows of a weight, looked up: its columns are channels."""
    weight, shape = call["weight"], call.shape
    if not walk.is_parameter(weight):
        return walk.unknown(call, "rows of a weight that is computed")
    walk.fix(walk.labels(call["indices"]), f"used as positions: {call.name}, {call.where}")
    outputs = walk.classes.fresh(shape[-1])
    walk.use(weight, 1, outputs, OUTPUT)
    return spread(outputs, shape, len(shape) - 1)


def softmax(walk: Walk, call: Call) -> Any:
    """Over all channels it mixes them; over a part of a split dimension it ties that part."""
    source = walk.labels(call.source)
    dim = call["dim"] % source.dim()
    if varying(source) == [dim]:
        walk.classes.mix(source, f"softmax normalises over these channels, {call.where}")
    elif varies(source, dim):
        small = compact(source)
        walk.classes.merge(small.narrow(dim, 0, 1), small, "a softmax over channels, some fixed")
    return source


def prelu(walk: Walk, call: Call) -> Any:
    source = walk.labels(call.source)
    if call["weight"].meta["val"].numel() == 1:
        return source
    channels = walk.channels(source, 1)
    walk.use(call["weight"], 0, channels, ALONG)
    return spread(channels, source.shape, 1)


def of_kind(kind: LayerKind, rule: Rule) -> Rules:
    """One rule for the operators of a kind of layer."""
    return dict.fromkeys(kind.operators, rule)


RULES: Rules = {
    **of_kind(CONVOLUTION, convolution),
    **of_kind(TRANSPOSED, transposed_convolution),
    **of_kind(LINEAR, linear),
    **of_kind(BATCH_NORM, batch_norm),
    **of_kind(INSTANCE_NORM, batch_norm),
    **of_kind(GROUP_NORM, group_norm),
    **of_kind(LAYER_NORM, layer_norm),
    **of_kind(RMS_NORM, layer_norm),
    **of_kind(EMBEDDING, embedding),
    **of_kind(PRELU, prelu),
    **ops("softmax log_softmax _softmax _log_softmax", softmax),
}
