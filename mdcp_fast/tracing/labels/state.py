"""What the rules of ops work with: a call of the graph, and the state of the walk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from mdcp_fast.tracing.labels.label_tensors import compact, none, spread, varies, varying
from mdcp_fast.tracing.labels.union_find import Classes, Resolved

OUTPUT, INPUT, ALONG = "output", "input", "along"
REPEATED = "repeated"  # a width that a layer repeats without having a tensor of it
COMPUTED = "computed"  # along a weight that the network computes: it costs what a parameter does


UNSUPPORTED = "a parameter used outside a layer along several dimensions"


@dataclass
class Use:
    """One place where labels sit: along `dimension` of `parameter` (a parameter or a buffer).

    A weight that one layer writes and another reads along the same dimension (a decoder with its
    encoder's weight) has the role "output" and is read.
    """

    parameter: str
    dimension: int
    labels: Tensor  # int64 [size of that dimension]
    role: str
    read: bool = False


@dataclass
class Multiplication:
    """A layer's cost: `positions` times the number of entries of its weight.

    Attributes:
        weight: A parameter or buffer, or what stands for a weight that the network computes.
        positions: How often each entry is multiplied.
        shape: Of such a computed weight; None for a parameter.
    """

    weight: str
    positions: int
    shape: tuple[int, ...] | None = None


@dataclass
class Call:
    """One call of an op in the captured graph.

    Attributes:
        node: The graph's node.
        name: The op's name, without overload and without the underscore of in-place ops.
        arguments: By the names of the op's schema, defaults filled in.
    """

    node: Node
    name: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, node: Node) -> Call:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            arguments = {str(i): argument for i, argument in enumerate(node.args)}
        else:
            arguments = {
                a.name: a.default_value if a.has_default_value() else None for a in schema.arguments
            }
            arguments |= {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)}
            arguments |= node.kwargs
        return cls(node, op_name(node), arguments)

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def source(self) -> Any:
        """The first argument: what the op works on."""
        return self.node.args[0]

    @property
    def value(self) -> Any:
        """The result as a fake tensor, or several."""
        return self.node.meta.get("val")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def where(self) -> str:
        """The line of the user's source that made the call, and the module it stands in."""
        trace = [line.strip() for line in (self.node.meta.get("stack_trace") or "").splitlines()]
        lines = [line for line in trace if line]
        code = f"`{lines[-1]}`" if lines and not lines[-1].startswith("File ") else ""
        return " in ".join(part for part in (code, self.path) if part) or self.node.name

    @property
    def path(self) -> str:
        """The module in which the call stands; empty for the network itself."""
        paths = [path for path, _ in (self.node.meta.get("nn_module_stack") or {}).values() if path]
        return paths[-1].replace("L['self'].", "") if paths else ""


def op_name(node: Node) -> str:
    packet = getattr(node.target, "_overloadpacket", node.target)
    name = getattr(packet, "__name__", str(packet))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


class Walk:
    """The state of a walk over one or several captured graphs of a model.

    Attributes:
        classes: Which labels go together.
        uses: Where labels sit, by parameter and dimension.
        multiplications: What each layer costs.
        all_known: Whether every op was analysed, so that nothing but these layers multiplies.
        normalized_by: By weight, the running mean of the BatchNorm right behind its layer; "" where
            something else reads its output as well.
        reached: Names of the parameters and buffers that some op uses.
        zeros: Values that are zero wherever their channel is removed (see `zeros`).
        uncounted: Ops that multiply and for which there is no formula.

    Args:
        widths: Full names of the widths that layers repeat without having a tensor of that size.
        exact: Whether only what can go without changing the rest may go: whole groups of a
            GroupNorm, not channels of each.
    """

    def __init__(self, widths: Collection[str] = (), exact: bool = True) -> None:
        self.widths, self.exact = widths, exact
        self.uncounted: list[str] = []
        self.reached: set[str] = set()
        self.zeros: set[Node] = set()
        self.classes = Classes()
        self.uses: dict[tuple[str, int], Use] = {}
        self.multiplications: list[Multiplication] = []
        self.all_known = True
        self.normalized_by: dict[str, str] = {}
        self._split_views: list[Tensor] = []
        self._names: dict[Node, str] = {}
        self._values: dict[Node, Any] = {}
        self._weights: dict[Node, list[Tensor]] = {}
        self._constant: set[Node] = set()

    def enter(self, program: torch.export.ExportedProgram, same: dict[str, str]) -> None:
        """Starts on another graph. `same` maps names of shared parameters to the first."""
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        # Plain tensors of modules; others are constants written in the source.
        plain = signature.inputs_to_lifted_tensor_constants
        names |= {node: name for node, name in plain.items() if name in same}
        self._names = {
            node: same.get(names[node.name], names[node.name])
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in names
        }
        self.reached.update(self._names[node] for node in self._names if node.users)
        self._values, self._weights, self._constant = {}, {}, set()

    # Values

    def labels(self, value: Any) -> Any:
        """Labels of a value; a parameter first met outside a layer gets labels of its own."""
        if isinstance(value, (list, tuple)):
            return [self.labels(item) for item in value]
        if not isinstance(value, Node):
            return None
        if value not in self._values:
            self._values[value] = self._first_labels(value)
        return self._values[value]

    def set_labels(self, node: Node, labels: Any) -> None:
        self._values[node] = labels

    def stands_for(self, inner: Node, outer: Any) -> None:
        """A value of a region's own graph is one that was handed to it."""
        if self.is_parameter(outer):
            self._names[inner] = self._names[outer]
        elif isinstance(outer, Node) and outer in self._weights:
            self._weights[inner] = self._weights[outer]
        else:
            self.set_labels(inner, self.labels(outer))
        for known in (self._constant, self.zeros):
            if outer in known:
                known.add(inner)

    def knows(self, node: Node) -> bool:
        """Whether the value has labels already."""
        return node in self._values

    def _first_labels(self, node: Node) -> Any:
        tensor = node.meta.get("val")
        if not isinstance(tensor, Tensor):
            return None
        if node in self._weights:
            return self._flattened(node, tensor)
        wide = [d for d, size in enumerate(tensor.shape) if size > 1]
        if not self.is_parameter(node) or not wide:
            return none(tensor.shape)
        if len(wide) > 1:
            self.pin(node, UNSUPPORTED)
            return none(tensor.shape)
        labels = self.classes.fresh(tensor.shape[wide[0]])
        self.use(node, wide[0], labels, ALONG)
        return spread(labels, tensor.shape, wide[0])

    def _flattened(self, node: Node, tensor: Tensor) -> Tensor:
        """Labels of what was computed of parameters, where no rule looks at each dimension."""
        along = [d for d, labels in enumerate(self._weights[node]) if bool(labels.any())]
        if len(along) == 1:
            return spread(self._weights[node][along[0]], tensor.shape, along[0])
        for d in along:
            self.fix(self._weights[node][d], UNSUPPORTED)
        return none(tensor.shape)

    # Values that are computed of parameters alone

    def note_constant(self, node: Node) -> None:
        """Notes whether a value is a parameter or computed of nothing else, in order."""
        computed = node.op == "call_function" and all(map(self.is_constant, node.all_input_nodes))
        if computed or self.is_parameter(node):
            self._constant.add(node)

    def is_constant(self, node: Any) -> bool:
        """Whether a value is a parameter, or computed of nothing else."""
        return node in self._constant

    def is_weight(self, node: Any) -> bool:
        """Whether a constant may have channels along several dimensions, as weights do."""
        if not isinstance(node, Node) or node in self._weights:
            return isinstance(node, Node)
        if node in self._values or not self.is_parameter(node):
            return False
        value = node.meta.get("val")
        return isinstance(value, Tensor) and sum(size > 1 for size in value.shape) > 1

    def set_weight(self, node: Node, labels: list[Tensor]) -> None:
        self._weights[node] = labels

    def weight(self, node: Any) -> list[Tensor] | None:
        """Labels along each dimension of a constant, int64 [size] each; None for what is none.

        A parameter that is first met here has channels along all of its dimensions.
        """
        if node in self._weights:
            return self._weights[node]
        if not self.is_constant(node) or not isinstance(node.meta.get("val"), Tensor):
            return None
        shape = node.meta["val"].shape
        if self.is_weight(node):
            name = self.parameter_name(node)
            for d, size in enumerate(shape):
                if size > 1 and (name, d) not in self.uses:
                    self.use(node, d, self.classes.fresh(size), ALONG)
            own = [self.uses[name, d].labels if n > 1 else none([n]) for d, n in enumerate(shape)]
            self._weights[node] = own
            return own
        labels = self.labels(node)
        along = varying(labels)
        if len(along) > 1 or (not along and bool(labels.any())):
            return None
        return [
            compact(labels).flatten() if d in along else none([size])
            for d, size in enumerate(shape)
        ]

    def sources(self, node: Node) -> list[Node]:
        """The parameters that a constant is computed of."""
        seen, waiting = dict[Node, None](), [node]
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen[one] = None
                waiting.extend(one.all_input_nodes)
        return [one for one in seen if self.is_parameter(one)]

    def computes(self, call: Call, weight: Node, positions: int, along: dict[int, Tensor]) -> None:
        """Notes what a weight costs that the network computes.

        Args:
            call: The layer.
            weight: Its weight.
            positions: How often each of its entries is multiplied.
            along: Labels of the weight, by dimension.
        """
        name = f"{call.node.name} of {call.path}" if call.path else call.node.name
        shape = tuple(weight.meta["val"].shape)
        self.multiplications.append(Multiplication(name, positions, shape))
        for d, labels in along.items():
            self.uses[name, d] = Use(name, d, labels, COMPUTED)

    def no_labels(self, call: Call) -> Any:
        """A result without channels."""
        value = call.value
        if isinstance(value, (list, tuple)):
            return [none(v.shape) if isinstance(v, Tensor) else None for v in value]
        return none(value.shape) if isinstance(value, Tensor) else None

    def channels(self, labels: Tensor, dim: int) -> Tensor:
        """Labels along `dim`: int64 [size]; merged until they differ along no other dimension."""
        small, size = compact(labels), labels.shape[dim]
        if small.shape[dim] == 1:
            small = small.expand([size if d == dim else n for d, n in enumerate(small.shape)])
        flat = small.movedim(dim, 0).reshape(size, -1)
        if flat.shape[1] > 1:
            self.classes.merge(flat[:, :1], flat, "channels that meet padding or a constant")
        return flat.amax(1)

    def tie(self, channels: Tensor, groups: int) -> None:
        """Every group loses the same positions."""
        parts = channels.view(groups, -1)
        self.classes.merge(parts[:1], parts, "groups of which one is fixed")

    def split_view(self, labels: Tensor) -> Tensor:
        """Notes that channels may lie along several dimensions (see `finish`)."""
        if len(varying(labels)) > 1:
            self._split_views.append(labels)
        return labels

    def doubt(self, labels: Tensor, reason: str) -> None:
        """A size that may be written in the source, or follow the channels: the check decides."""
        self.classes.doubts.append((compact(labels), reason))

    def fix(self, labels: Any, reason: str) -> None:
        """The channels of a value, or of several, must stay."""
        if isinstance(labels, (list, tuple)):
            for item in labels:
                self.fix(item, reason)
        elif isinstance(labels, Tensor):
            self.classes.fix(labels, reason)

    def unknown(self, call: Call, why: str = "an op that is not analysed") -> Any:
        """Everything that goes into the call stays whole."""
        self.all_known = False
        reason = f"{why}: {call.name}, {call.where}"
        for source in call.node.all_input_nodes:
            if self.is_parameter(source):
                self.pin(source, reason)
            self.fix(self.labels(source), reason)
        return self.no_labels(call)

    # Parameters

    def is_parameter(self, node: Any) -> bool:
        return node in self._names

    def parameter_name(self, node: Node) -> str:
        return self._names[node]

    def use(self, node: Any, dimension: int, labels: Tensor, role: str) -> None:
        """Notes that `labels` sit along a parameter's dimension.

        A second use of it loses the same positions as the first.
        """
        if not self.is_parameter(node):
            return
        key = (self.parameter_name(node), dimension)
        known = self.uses.setdefault(key, Use(*key, labels, role))
        if known.labels is not labels:
            self.classes.merge(known.labels, labels, "a shared parameter with a fixed use")
        known.read |= role == INPUT
        if role == OUTPUT or known.role == ALONG:
            known.role = role

    def repeat_width(self, call: Call, attribute: str | None, labels: Tensor) -> None:
        """Notes that the layer of a call repeats how many these channels are."""
        name = f"{call.path}.{attribute}" if call.path else str(attribute)
        if name in self.widths:
            known = self.uses.setdefault((name, 0), Use(name, 0, labels, REPEATED))
            self.classes.merge(known.labels, labels, "a layer that is shared with a fixed use")

    def pin(self, node: Node, reason: str, dims: Iterable[int] | None = None) -> None:
        """A parameter keeps its size along these dimensions, by default along all."""
        shape = node.meta["val"].shape
        for d in range(len(shape)) if dims is None else dims:
            labels = self.classes.fresh(shape[d])
            self.classes.fix(labels, reason)
            self.use(node, d, labels, ALONG)

    def multiplies(self, weight: Node, positions: int) -> None:
        self.multiplications.append(Multiplication(self.parameter_name(weight), positions))

    # The end

    def finish(self) -> Resolved:
        """Makes every split channel dimension rectangular and resolves the classes.

        A view [B, C] -> [B, g, C/g] can only be replayed on fewer channels if the same positions
        stay in each of the g parts, so where labels still differ along several dimensions they are
        merged along all but the last.
        """
        for labels in self._split_views:
            labels = self.classes.roots(compact(labels))
            for d in varying(labels)[:-1]:
                self.classes.merge(labels.narrow(d, 0, 1), labels, "a view that splits channels")
        return self.classes.resolve()


Rule = Callable[[Walk, Call], Any]
Rules = dict[str, Rule]


def ops(names: str, rule: Rule) -> Rules:
    """One rule for several ops, their names in one string."""
    return dict.fromkeys(names.split(), rule)


def several_vary(labels: Tensor, dims: Iterable[int]) -> bool:
    return any(varies(labels, d) for d in dims)


def as_dims(dims: int | Sequence[int] | None, rank: int) -> list[int]:
    """Dimension arguments as non-negative numbers; None or nothing means all."""
    chosen = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return [d % rank for d in chosen] if rank else []
