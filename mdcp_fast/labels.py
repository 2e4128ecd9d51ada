"""Which channels hang together: integer labels walked through a torch.export graph.

Every output channel of every layer gets a label. Label tensors then travel beside the network's values:

- an op that only moves data (view, permute, cat, chunk, pad, ...) is analysed by running that same op on labels;
- an op that combines two tensors element by element merges the labels that meet (union-find);
- a layer reads labels along its weight's input dimension and makes new ones along its output dimension;
- whatever cannot shrink (the network's outputs, sizes written in the source, unknown ops) fixes its labels, with the reason.

A class of merged labels is one removable channel: a set of positions in parameters that go together or not at all.

Label tensors have the full shape of the value they accompany but are kept as stride-0 views of their smallest form, so the
walk costs little beside the export. Label 0 means "no channel of its own": padding, constants, the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

OUTPUT, INPUT, ALONG = "output", "input", "along"


@dataclass
class Use:
    """One place where labels sit: along `dimension` of `parameter` (a parameter or a buffer)."""

    parameter: str
    dimension: int
    labels: Tensor  # int64 [size of that dimension]
    role: str


@dataclass
class Multiplication:
    """A layer's cost: `positions` times the number of entries of its weight."""

    weight: str
    positions: int


@dataclass
class Classes:
    """Union-find over labels; remembers why a class is fixed and which op makes it inexact."""

    parent: list[int] = field(default_factory=lambda: [0])
    reasons: dict[int, str] = field(default_factory=dict)
    mixed: dict[int, str] = field(default_factory=dict)

    def fresh(self, count: int) -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        parent = self.parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def merge(self, left: Tensor, right: Tensor, reason: str) -> None:
        """Merges `left` and `right` position by position; a label that meets 0 is fixed for `reason`."""
        left, right = torch.broadcast_tensors(_compact(left), _compact(right))
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)], 1)
        if pairs.shape[0] > 64:
            pairs = torch.unique(pairs, dim=0)
        for a, b in pairs.tolist():
            if a and b:
                a, b = self.find(a), self.find(b)
                self.parent[max(a, b)] = min(a, b)
            elif a or b:
                self.reasons.setdefault(a or b, reason)

    def fix(self, labels: Tensor, reason: str) -> None:
        for label in _distinct(labels):
            self.reasons.setdefault(label, reason)

    def mix(self, labels: Tensor, reason: str) -> None:
        for label in _distinct(labels):
            self.mixed.setdefault(label, reason)

    def roots(self, labels: Tensor) -> Tensor:
        """The root of every entry of `labels`."""
        distinct, where = torch.unique(labels, return_inverse=True)
        return torch.tensor([self.find(label) for label in distinct.tolist()], dtype=torch.int64)[
            where
        ]

    def resolve(self) -> tuple[Tensor, dict[int, str], dict[int, str]]:
        """Returns the root of every label, and the reasons why roots are fixed or mixed (first one found)."""
        roots = [self.find(label) for label in range(len(self.parent))]

        def by_root(reasons: dict[int, str]) -> dict[int, str]:
            found: dict[int, str] = {}
            for label, reason in reasons.items():
                found.setdefault(roots[label], reason)
            return found

        return torch.tensor(roots), by_root(self.reasons), by_root(self.mixed)


def _unexpanded(labels: Tensor) -> Tensor:
    """Undoes `expand`: size 1 along every stride-0 dimension."""
    for d, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(d, 0, 1)
    return labels


def _compact(labels: Tensor) -> Tensor:
    """The smallest tensor that expands to `labels`: size 1 along every dimension where they do not vary."""
    labels = _unexpanded(labels)
    for d in range(labels.dim()):
        if not _varies(labels, d):
            labels = labels.narrow(d, 0, min(1, labels.shape[d]))
    return labels


def _distinct(labels: Tensor) -> list[int]:
    return [label for label in torch.unique(_compact(labels)).tolist() if label]


def _varies(labels: Tensor, dim: int) -> bool:
    if labels.shape[dim] < 2 or labels.stride(dim) == 0:
        return False
    small = _unexpanded(labels)
    return not bool((small == small.narrow(dim, 0, 1)).all())


def _settle(labels: Tensor, shape: Sequence[int]) -> Tensor:
    return _compact(labels).expand(tuple(shape))


def _none(shape: Sequence[int]) -> Tensor:
    return torch.zeros((), dtype=torch.int64).expand(tuple(shape))


# Ops by what they do to channels. Names are those of aten overload packets; a trailing underscore (in-place) is ignored.
POINTWISE_ONE = frozenset(
    "relu relu6 sigmoid silu gelu hardtanh hardswish hardsigmoid tanh leaky_relu elu selu celu mish softplus softsign "
    "logsigmoid log_sigmoid hardshrink softshrink threshold dropout feature_dropout alpha_dropout feature_alpha_dropout "
    "rrelu exp exp2 sqrt rsqrt abs neg log log2 log1p expm1 erf sin cos square reciprocal sign to _to_copy type_as float "
    "half bfloat16 double contiguous clone detach alias lift_fresh_copy lift_fresh bernoulli zeros_like ones_like "
    "full_like empty_like rand_like randn_like floor ceil round trunc nan_to_num logical_not isnan isinf fill".split()
)
POINTWISE_MANY = frozenset(
    "add sub rsub mul div maximum minimum where fmax fmin floor_divide remainder fmod atan2 lerp addcmul addcdiv pow "
    "clamp clamp_min clamp_max masked_fill eq ne gt ge lt le logical_and logical_or logical_xor true_divide multiply "
    "subtract divide".split()
)
SPATIAL = {  # op -> number of spatial dimensions; channels are carried over one by one
    **{f"{kind}_pool{n}d": n for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": n for n in (2, 3)},
    **{f"adaptive_max_pool{n}d_with_indices": n for n in (2, 3)},
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3, "_upsample_nearest_exact2d": 2,
    "upsample_linear1d": 1, "upsample_bilinear2d": 2, "_upsample_bilinear2d_aa": 2, "upsample_bicubic2d": 2,
    "_upsample_bicubic2d_aa": 2, "upsample_trilinear3d": 3, "grid_sampler": 2, "grid_sampler_2d": 2,
    "reflection_pad1d": 1, "reflection_pad2d": 2, "replication_pad1d": 1, "replication_pad2d": 2,
}  # fmt: skip
RESHAPE = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as _reshape_copy".split()
)
REORDER = frozenset(
    "permute transpose t numpy_T movedim moveaxis swapaxes swapdims mT mH adjoint expand expand_as".split()
)
ALONG_DIM = frozenset("flip roll repeat_interleave".split())
REDUCE = frozenset(
    "mean sum amax amin max min prod std var norm linalg_vector_norm logsumexp argmax argmin any all median "
    "std_mean var_mean".split()
)
CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())
TRANSPOSED = frozenset("conv_transpose1d conv_transpose2d conv_transpose3d".split())
CREATION = frozenset(
    "new_zeros new_ones new_full new_empty zeros ones full empty arange linspace eye scalar_tensor rand randn".split()
)
WITHOUT_VALUE = frozenset("_assert_scalar _assert_tensor_metadata sym_constrain_range".split())


def _op_name(node: Node) -> str:
    packet = getattr(node.target, "_overloadpacket", None)
    name = (
        packet.__name__
        if packet is not None
        else getattr(node.target, "__name__", str(node.target))
    )
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _where(node: Node) -> str:
    """The line of the user's source that made `node`, else the module it stands in."""
    lines = [
        line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()
    ]
    code = lines[-1] if lines and not lines[-1].startswith("File ") else ""
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    place = modules[-1].replace("L['self'].", "") if modules else ""
    return f"`{code}`" + (f" in {place}" if place else "") if code else (place or node.name)


class LabelWalk:
    """Walks exported graphs of one model and gathers `uses` and `multiplications` over shared label `classes`."""

    def __init__(self) -> None:
        self.classes = Classes()
        self.uses: dict[tuple[str, int], Use] = {}
        self.multiplications: list[Multiplication] = []
        self.normalized_by: dict[
            str, str
        ] = {}  # weight -> running mean of the BatchNorm right behind its layer
        self.split_views: list[
            Tensor
        ] = []  # label tensors of values whose channel dimension is split over several

    def walk(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        self.names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.trainable_names = set(signature.inputs_to_parameters) | set(
            signature.inputs_to_buffers
        )
        self.values: dict[Node, Any] = {}
        for node in program.graph.nodes:
            self._node(node)

    def finish(self) -> tuple[Tensor, dict[int, str], dict[int, str]]:
        """Makes every split channel dimension rectangular, then resolves the classes (see `Classes.resolve`).

        A view [B, C] -> [B, g, C/g] can only be replayed on fewer channels if the same positions stay in each of the g
        parts, so where labels still vary along several dimensions they are merged along all but the last.
        """
        for labels in self.split_views:
            labels = self.classes.roots(_compact(labels))
            varying = [d for d in range(labels.dim()) if _varies(labels, d)]
            for d in varying[:-1]:
                self.classes.merge(labels.narrow(d, 0, 1), labels, "a view that splits channels")
        return self.classes.resolve()

    # Values and parameters

    def _labels(self, value: Any) -> Any:
        """Labels of a graph value; a parameter met for the first time outside a layer gets labels of its own."""
        if isinstance(value, (list, tuple)):
            return [self._labels(item) for item in value]
        if not isinstance(value, Node):
            return None
        if value not in self.values:
            self.values[value] = self._own_labels(value)
        return self.values[value]

    def _own_labels(self, node: Node) -> Any:
        tensor = node.meta.get("val")
        if not isinstance(tensor, Tensor):
            return None
        wide = [d for d, size in enumerate(tensor.shape) if size > 1]
        if node.name not in self.trainable_names or not wide:
            return _none(tensor.shape)
        if len(wide) == 1:
            own = self.classes.fresh(tensor.shape[wide[0]])
            self._use(node, wide[0], own, ALONG)
            return self._spread(own, tensor.shape, wide[0])
        return self._pin(node, "a parameter used outside a layer along several dimensions")

    def _pin(self, node: Node, reason: str) -> Tensor:
        """Fixes a parameter along all of its dimensions."""
        tensor = node.meta["val"]
        for d, size in enumerate(tensor.shape):
            labels = self.classes.fresh(size)
            self.classes.fix(labels, reason)
            self._use(node, d, labels, ALONG)
        return _none(tensor.shape)

    def _use(self, node: Any, dimension: int, labels: Tensor, role: str) -> None:
        """Notes that `labels` sit along a parameter's dimension; a second use loses the same positions as the first."""
        if not isinstance(node, Node) or node.name not in self.trainable_names:
            return
        key = (self.names[node.name], dimension)
        if key in self.uses:
            self.classes.merge(self.uses[key].labels, labels, "a shared parameter with a fixed use")
            if role == OUTPUT:
                self.uses[key].role = role
        else:
            self.uses[key] = Use(*key, labels, role)

    def _is_parameter(self, node: Any) -> bool:
        return (
            isinstance(node, Node)
            and node.op == "placeholder"
            and node.name in self.trainable_names
        )

    def _spread(self, labels: Tensor, shape: Sequence[int], dim: int) -> Tensor:
        view = [1] * len(shape)
        view[dim] = -1
        return labels.view(view).expand(tuple(shape))

    def _channels(self, labels: Tensor, dim: int) -> Tensor:
        """Labels along `dim` [size]; where they also vary along another dimension they are merged until they do not."""
        small = _compact(labels)
        if small.shape[dim] == 1:
            small = small.expand(
                [labels.shape[dim] if d == dim else n for d, n in enumerate(small.shape)]
            )
        flat = small.movedim(dim, 0).reshape(labels.shape[dim], -1)
        if flat.shape[1] > 1:
            self.classes.merge(flat[:, :1], flat, "channels that meet padding or a constant")
        return flat.amax(1)

    # One graph node

    def _node(self, node: Node) -> None:
        value = node.meta.get("val")
        if node.op == "placeholder":
            if node.name not in self.trainable_names and isinstance(value, Tensor):
                self.values[node] = _none(value.shape)
        elif node.op == "output":
            for source in node.all_input_nodes:
                self._fix_all(self._labels(source), "the network's output")
        elif node.op == "call_function":
            arguments = self._arguments(node)
            name = _op_name(node)
            rule = self._rule(name)
            try:
                self.values[node] = (
                    rule(node, name, arguments) if rule else self._unknown(node, name)
                )
            except (RuntimeError, IndexError, TypeError, KeyError, ValueError, AttributeError):
                self.values[node] = self._unknown(node, name)

    def _arguments(self, node: Node) -> dict[str, Any]:
        """The call's arguments by the names of the op's schema, defaults filled in."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return {str(i): a for i, a in enumerate(node.args)}
        bound = {
            a.name: a.default_value if a.has_default_value() else None for a in schema.arguments
        }
        bound.update({a.name: v for a, v in zip(schema.arguments, node.args, strict=False)})
        bound.update(node.kwargs)
        return bound

    def _rule(self, name: str) -> Callable[[Node, str, dict[str, Any]], Any] | None:
        named = getattr(self, f"_op_{name}", None)
        if named is not None:
            return named  # type: ignore[no-any-return]
        for names, rule in (
            (CONVOLUTIONS, self._convolution),
            (TRANSPOSED, self._transposed_convolution),
            (POINTWISE_ONE, self._pointwise_one),
            (POINTWISE_MANY, self._pointwise_many),
            (SPATIAL, self._spatial),
            (RESHAPE, self._reshape),
            (REORDER, self._reorder),
            (ALONG_DIM, self._along_dim),
            (REDUCE, self._reduce),
            (WITHOUT_VALUE, self._nothing),
            (CREATION, self._created),
        ):
            if name in names:
                return rule
        return None

    def _created(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        """A new tensor of a size written in the source: no channels of its own."""
        return self._no_labels(node)

    def _nothing(self, node: Node, name: str, a: dict[str, Any]) -> None:
        return None

    def _fix_all(self, labels: Any, reason: str) -> None:
        if isinstance(labels, (list, tuple)):
            for item in labels:
                self._fix_all(item, reason)
        elif isinstance(labels, Tensor):
            self.classes.fix(labels, reason)

    def _no_labels(self, node: Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            return [_none(v.shape) if isinstance(v, Tensor) else None for v in value]
        return _none(value.shape) if isinstance(value, Tensor) else None

    def _unknown(self, node: Node, name: str, why: str = "an op that is not analysed") -> Any:
        reason = f"{why}: {name}, {_where(node)}"
        for source in node.all_input_nodes:
            if self._is_parameter(source):
                self._pin(source, reason)
            self._fix_all(self._labels(source), reason)
        return self._no_labels(node)

    # Layers

    def _convolution(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        weight, groups = a["weight"], a["groups"]
        if not self._is_parameter(weight):
            return self._computed_weight(node, name)
        shape = weight.meta["val"].shape
        out = node.meta["val"]
        dim = out.dim() - len(shape) + 1
        inputs = self._channels(self._labels(a["input"]), dim)
        outputs = self.classes.fresh(shape[0])
        self._use(weight, 0, outputs, OUTPUT)
        self._use(a["bias"], 0, outputs, ALONG)
        if groups == 1:
            self._use(weight, 1, inputs, INPUT)
        elif groups == len(inputs):
            self.classes.merge(
                outputs,
                inputs.repeat_interleave(shape[0] // groups),
                "a depthwise layer of unlabelled channels",
            )
        else:
            self._tie(inputs, groups)
            self._tie(outputs, groups)
            self._use(weight, 1, inputs.view(groups, -1)[0], INPUT)
        self.multiplications.append(
            Multiplication(self.names[weight.name], out.numel() // shape[0])
        )
        return self._spread(outputs, out.shape, dim)

    def _transposed_convolution(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        weight, groups = a["weight"], a["groups"]
        if not self._is_parameter(weight):
            return self._computed_weight(node, name)
        shape = weight.meta["val"].shape
        source, out = a["input"].meta["val"], node.meta["val"]
        dim = out.dim() - len(shape) + 1
        inputs = self._channels(self._labels(a["input"]), dim)
        outputs = self.classes.fresh(shape[1] * groups)
        if groups > 1 and groups == len(inputs):
            self.classes.merge(
                outputs,
                inputs.repeat_interleave(shape[1]),
                "a depthwise layer of unlabelled channels",
            )
            self._use(weight, 0, inputs, OUTPUT)
        else:
            if groups > 1:
                self._tie(inputs, groups)
                self._tie(outputs, groups)
            self._use(weight, 0, inputs, INPUT)
            self._use(weight, 1, outputs.view(groups, -1)[0], OUTPUT)
        self._use(a["bias"], 0, outputs, ALONG)
        self.multiplications.append(
            Multiplication(self.names[weight.name], source.numel() // shape[0])
        )
        return self._spread(outputs, out.shape, dim)

    def _tie(self, labels: Tensor, groups: int) -> None:
        """Every group loses the same positions."""
        parts = labels.view(groups, -1)
        self.classes.merge(parts[:1], parts, "groups of which one is fixed")

    def _computed_weight(self, node: Node, name: str) -> Any:
        return self._unknown(node, name, "a layer whose weight is computed")

    def _op_linear(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        weight, out = a["weight"], node.meta["val"]
        if not self._is_parameter(weight):
            return self._computed_weight(node, name)
        source = self._labels(a["input"])
        self._use(weight, 1, self._channels(source, source.dim() - 1), INPUT)
        outputs = self.classes.fresh(out.shape[-1])
        self._use(weight, 0, outputs, OUTPUT)
        self._use(a["bias"], 0, outputs, ALONG)
        self.multiplications.append(
            Multiplication(self.names[weight.name], out.numel() // out.shape[-1])
        )
        return self._spread(outputs, out.shape, out.dim() - 1)

    def _op_batch_norm(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        channels = self._channels(self._labels(a["input"]), 1)
        for key in ("weight", "bias", "running_mean", "running_var"):
            self._use(a.get(key), 0, channels, ALONG)
        self._note_normalized(a["input"], a.get("running_mean"))
        return self._spread(channels, node.meta["val"].shape, 1)

    _op_instance_norm = _op_batch_norm

    def _note_normalized(self, source: Node, running_mean: Any) -> None:
        layer = (
            source.args[1] if _op_name(source) in CONVOLUTIONS | TRANSPOSED | {"linear"} else None
        )
        if (
            not isinstance(layer, Node)
            or not self._is_parameter(layer)
            or not self._is_parameter(running_mean)
        ):
            return
        weight, mean = self.names[layer.name], self.names[running_mean.name]
        alone = len(source.users) == 1 and self.normalized_by.get(weight, mean) == mean
        self.normalized_by[weight] = mean if alone else ""

    def _op_group_norm(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        channels = self._channels(self._labels(a["input"]), 1)
        self._tie(channels, a["num_groups"])
        self.classes.mix(channels, f"GroupNorm normalises over these channels, {_where(node)}")
        for key in ("weight", "bias"):
            self._use(a[key], 0, channels, ALONG)
        return self._spread(channels, node.meta["val"].shape, 1)

    def _op_layer_norm(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source = self._labels(a["input"])
        if len(a["normalized_shape"]) != 1:
            return self._unknown(node, name, "LayerNorm over several dimensions")
        channels = self._channels(source, source.dim() - 1)
        self.classes.mix(channels, f"LayerNorm normalises over these channels, {_where(node)}")
        for key in ("weight", "bias"):
            self._use(a[key], 0, channels, ALONG)
        return self._spread(channels, source.shape, source.dim() - 1)

    def _op_prelu(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source = self._labels(a["self"])
        if a["weight"].meta["val"].numel() == 1:
            return source
        channels = self._channels(source, 1)
        self._use(a["weight"], 0, channels, ALONG)
        return self._spread(channels, source.shape, 1)

    def _softmax(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source = self._labels(a["self"])
        if _varies(source, a["dim"]):
            self.classes.mix(source, f"softmax normalises over these channels, {_where(node)}")
        return source

    _op_softmax = _op_log_softmax = _op__softmax = _op__log_softmax = _softmax

    def _op_matmul(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        return self._unknown(node, name, "a product of two activations")

    _op_bmm = _op_mm = _op_baddbmm = _op_einsum = _op_scaled_dot_product_attention = _op_matmul

    # Element-wise

    def _pointwise_one(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        return self._labels(node.args[0])

    def _pointwise_many(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        shape = node.meta["val"].shape
        operands = [
            v for v in a.values() if isinstance(v, Node) and isinstance(v.meta.get("val"), Tensor)
        ]
        aligned = [self._aligned(operand, operands, shape) for operand in operands]
        reason = f"met a constant, padding or the network's input, {_where(node)}"
        merged = aligned[0]
        for other in aligned[1:]:
            merged = self._meet(merged, other, reason)
        return merged.expand(tuple(shape))

    def _aligned(self, node: Node, others: list[Node], shape: Sequence[int]) -> Tensor:
        """Labels of an operand with its dimensions aligned to the result's (size 1 where it is broadcast)."""
        if self._is_parameter(node) and node not in self.values:
            adopted = self._adopt(node, others, len(shape))
            if adopted is not None:
                self.values[node] = adopted
        labels: Tensor = self._labels(node)
        return labels[(None,) * (len(shape) - labels.dim())]

    def _adopt(self, node: Node, others: list[Node], rank: int) -> Tensor | None:
        """A parameter of several wide dimensions (a position embedding) takes the labels of the value it meets."""
        shape = node.meta["val"].shape
        if sum(size > 1 for size in shape) < 2:
            return None
        for other in others:
            if other is node or self._is_parameter(other):
                continue
            labels = self._labels(other)
            varying = [d for d in range(labels.dim()) if _varies(labels, d)]
            if len(varying) != 1:
                continue
            dim = varying[0] - labels.dim() + len(shape)
            if dim >= 0 and shape[dim] == labels.shape[varying[0]]:
                channels = self._channels(labels, varying[0])
                self._use(node, dim, channels, ALONG)
                return self._spread(channels, shape, dim)
        return None

    def _meet(self, left: Tensor, right: Tensor, reason: str) -> Tensor:
        """Merges two aligned label tensors where they share a channel dimension.

        Where they do not, one is broadcast over the other's channels: a single channel that is broadcast must stay, a value
        without channels changes nothing, and a constant with a size of its own fixes what it meets.
        """
        shape = torch.broadcast_shapes(left.shape, right.shape)
        left_dims = {d for d in range(len(shape)) if _varies(left, d)}
        right_dims = {d for d in range(len(shape)) if _varies(right, d)}
        if left_dims & right_dims or not (left_dims or right_dims):
            small = torch.broadcast_tensors(_compact(left), _compact(right))
            self.classes.merge(*small, reason)
            return torch.maximum(*small).expand(shape)
        for one, many, dims, other_dims in (
            (left, right, left_dims, right_dims),
            (right, left, right_dims, left_dims),
        ):
            if not dims:
                if bool(_compact(one).any()):
                    self.classes.fix(one, "a single channel that is broadcast over others")
                elif any(one.shape[d] > 1 for d in other_dims):
                    self.classes.fix(many, reason)
                return many.expand(shape)
        self.classes.fix(left, f"an outer product of channels: {reason}")
        self.classes.fix(right, f"an outer product of channels: {reason}")
        return _none(shape)

    # Data movement

    def _spatial(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source = self._labels(node.args[0])
        dim = source.dim() - SPATIAL[name] - 1
        channels = self._channels(source, dim)
        value = node.meta["val"]
        if isinstance(value, (list, tuple)):
            return [self._spread(channels, v.shape, dim) for v in value]
        return self._spread(channels, value.shape, dim)

    def _reshape(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, shape = self._labels(node.args[0]), tuple(node.meta["val"].shape)
        labels = _reshaped(_compact(source), source.shape, shape)
        labels = _settle(labels, shape)
        if sum(_varies(labels, d) for d in range(labels.dim())) > 1:
            self.split_views.append(labels)
        return labels

    def _reorder(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, shape = self._labels(node.args[0]), node.meta["val"].shape
        if name in ("expand", "expand_as"):
            return source.expand(tuple(shape))
        return node.target(source, *node.args[1:], **node.kwargs)  # type: ignore[operator]

    def _along_dim(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        """Ops on given dimensions: where labels do not vary along them nothing happens to labels."""
        source, shape = self._labels(node.args[0]), node.meta["val"].shape
        dims = a.get("dims", a.get("dim"))
        dims = [dims] if isinstance(dims, int) else list(dims or range(source.dim()))
        if any(_varies(source, d) for d in dims):
            return self._unknown(node, name, "channels moved by positions written in the source")
        return (
            _settle(source, source.shape).expand(tuple(shape))
            if source.shape == shape
            else _compact(source).expand(tuple(shape))
        )

    def _op_repeat(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, shape = self._labels(node.args[0]), node.meta["val"].shape
        small = _compact(source)
        small = small.view((1,) * (len(shape) - small.dim()) + tuple(small.shape))
        repeats = [r if small.shape[d] > 1 else 1 for d, r in enumerate(a["repeats"])]
        return small.repeat(repeats).expand(tuple(shape))

    def _op_cat(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        shape = node.meta["val"].shape
        parts = [self._labels(part) for part in a["tensors"]]
        parts = [part for part in parts if part.dim() == len(shape)]
        dim = a["dim"] % len(shape)
        return self._joined(parts, dim, shape)

    _op_concat = _op_concatenate = _op_cat

    def _op_stack(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        shape = node.meta["val"].shape
        dim = a["dim"] % len(shape)
        labels = self._joined(
            [self._labels(part).unsqueeze(dim) for part in a["tensors"]], dim, shape
        )
        if sum(_varies(labels, d) for d in range(labels.dim())) > 1:
            self.split_views.append(labels)
        return labels

    def _joined(self, parts: list[Tensor], dim: int, shape: Sequence[int]) -> Tensor:
        sizes = [part.shape[dim] for part in parts]
        small = [_compact(part) for part in parts]
        if all(part.shape[dim] == 1 for part in small) and any(part.numel() > 1 for part in small):
            # Joined along positions, not channels: the pieces' channels are the same channels.
            merged = small[0]
            for part in small[1:]:
                self.classes.merge(merged, part, "joined with a constant")
                merged = torch.maximum(*torch.broadcast_tensors(merged, part))
            return merged.expand(tuple(shape))
        wide = [max(part.shape[d] for part in small) for d in range(len(shape))]
        pieces = [
            part.expand([size if d == dim else n for d, n in enumerate(wide)])
            for part, size in zip(small, sizes, strict=True)
        ]
        return _settle(torch.cat(pieces, dim), shape)

    def _op_chunk(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, dim = self._labels(node.args[0]), a["dim"] % node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        if _varies(source, dim):
            if source.shape[dim] % a["chunks"]:
                self.classes.fix(source, f"unequal chunks, {_where(node)}")
            else:
                parts = _compact(source).unflatten(dim, (a["chunks"], -1))
                self.classes.merge(parts.narrow(dim, 0, 1), parts, "chunks of which one is fixed")
        return list(torch.chunk(source, a["chunks"], dim))

    def _op_glu(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, dim = self._labels(a["self"]), a["dim"] % a["self"].meta["val"].dim()
        left, right = source.chunk(2, dim)
        self.classes.merge(left, right, "a gate of which one half is fixed")
        return torch.maximum(left, right)

    def _select(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        """Ops that take out parts at positions written in the source."""
        source = self._labels(node.args[0])
        dim = (a.get("dim") or 0) % source.dim()
        value = node.meta["val"]
        whole = isinstance(value, Tensor) and value.shape == source.shape
        if _varies(source, dim) and not whole:
            others = [d for d in range(source.dim()) if d != dim and _varies(source, d)]
            if others:  # the channels go on along another dimension: this one must keep its size
                small = _compact(source)
                self.classes.merge(small.narrow(dim, 0, 1), small, "parts of which one is fixed")
            else:
                self.classes.fix(source, f"sizes written in the source: {name}, {_where(node)}")
        result = node.target(source, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        return list(result) if isinstance(result, (list, tuple)) else result

    _op_slice = _op_select = _op_split = _op_split_with_sizes = _op_unbind = _op_narrow = _select
    _op_tensor_split = _op_unsafe_chunk = _op_unsafe_split = _select

    def _op_getitem(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source = self._labels(node.args[0])
        return source[node.args[1]] if isinstance(source, (list, tuple)) else self._no_labels(node)

    def _pad(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, shape = self._labels(node.args[0]), node.meta["val"].shape
        pad = list(a["pad"])
        small = _compact(source)
        padded = [
            source.dim() - 1 - i for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]
        ]
        if not any(small.shape[d] > 1 for d in padded):
            return small.expand(tuple(shape))
        if a.get("mode", "constant") != "constant":
            return self._unknown(node, name, "channels padded by other channels")
        for i in range(len(pad) // 2):
            if small.shape[source.dim() - 1 - i] == 1:
                pad[2 * i] = pad[2 * i + 1] = 0
        return _settle(nn.functional.pad(small, pad), shape)

    _op_pad = _op_constant_pad_nd = _pad

    def _op_pixel_shuffle(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, shape = self._labels(a["self"]), node.meta["val"].shape
        channels = self._channels(source, source.dim() - 3).view(shape[-3], -1)
        self.classes.merge(channels[:, :1], channels, "a pixel shuffle of fixed channels")
        return self._spread(channels.amax(1), shape, len(shape) - 3)

    def _op_pixel_unshuffle(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source, shape = self._labels(a["self"]), node.meta["val"].shape
        channels = self._channels(source, source.dim() - 3).repeat_interleave(
            a["downscale_factor"] ** 2
        )
        return self._spread(channels, shape, len(shape) - 3)

    def _op_channel_shuffle(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        source = self._labels(a["self"])
        channels = self._channels(source, 1)
        self._tie(channels, a["groups"])
        return self._spread(channels.view(a["groups"], -1).t().reshape(-1), source.shape, 1)

    _op_native_channel_shuffle = _op_channel_shuffle

    def _reduce(self, node: Node, name: str, a: dict[str, Any]) -> Any:
        if "other" in a:  # max(x, y)
            return self._pointwise_many(node, name, a)
        source = self._labels(node.args[0])
        dims = a.get("dim")
        dims = (
            list(range(source.dim()))
            if dims is None or dims == []
            else [dims]
            if isinstance(dims, int)
            else list(dims)
        )
        dims = [d % source.dim() for d in dims] if source.dim() else []
        if any(_varies(source, d) for d in dims):
            self.classes.fix(source, f"reduced over channels: {name}, {_where(node)}")
            return self._no_labels(node)
        labels = source
        for d in sorted(dims, reverse=True):
            labels = labels.narrow(d, 0, 1) if a.get("keepdim") else labels.select(d, 0)
        return [labels, labels] if isinstance(node.meta["val"], (list, tuple)) else labels


def _reshaped(small: Tensor, source: Sequence[int], target: tuple[int, ...]) -> Tensor:
    """`small.expand(source).reshape(target)`, without materialising dimensions that both shapes begin or end with."""
    if math.prod(source) == 0:
        return torch.zeros(target, dtype=torch.int64)
    front = 0
    limit = min(len(source), len(target))
    while front < limit and source[front] == target[front] and small.shape[front] == 1:
        front += 1
    back = 0
    while (
        back < limit - front
        and source[-1 - back] == target[-1 - back]
        and small.shape[-1 - back] == 1
    ):
        back += 1
    middle_source = source[front : len(source) - back]
    middle_target = target[front : len(target) - back]
    middle = small.reshape(small.shape[front : len(source) - back]).expand(tuple(middle_source))
    return middle.reshape((1,) * front + tuple(middle_target) + (1,) * back)
