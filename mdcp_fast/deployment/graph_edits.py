"""Changes to captured networks that keep what they compute, or lower its precision."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from mdcp_fast.modules.layer_kinds import BATCH_NORM, CONVOLUTION, LINEAR, TRANSPOSED


def fold_batch_norms(network: GraphModule) -> int:
    """Multiplies each BatchNorm into the layer right before it, where nothing else reads that.

    Parameters keep their names; a layer without bias gets one beside its weight.

    Args:
        network: Captured by torch.export in evaluation mode; changed.

    Returns:
        How many were folded.
    """
    folded = 0
    readers = _readers(network)
    for norm in _batch_norms(network):
        layer = norm.args[0]
        if isinstance(layer, Node) and _fold(network, layer, norm, readers):
            norm.replace_all_uses_with(layer)
            network.graph.erase_node(norm)
            folded += 1
    _cleaned(network)
    return folded


def expand_batch_norms(network: GraphModule) -> None:
    """Writes the BatchNorms that are left as a product and a sum, for a writer that knows none."""
    for norm in _batch_norms(network):
        weight, bias, mean, variance = (_value(network, node) for node in norm.args[1:5])
        if mean is None or variance is None:
            continue
        scale = (variance.double() + norm.args[7]).rsqrt()
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale
        shift = shift if bias is None else shift + bias.double()
        x, path = norm.args[0], str(norm.args[3].target).rpartition(".")[0]
        shape = [-1] + [1] * (x.meta["val"].dim() - 2)
        graph, aten = network.graph, torch.ops.aten
        with graph.inserting_before(norm):
            factors = [
                _new_parameter(network, f"{path}.{name}".lstrip("."), value.view(shape), mean)
                for name, value in (("folded_scale", scale), ("folded_shift", shift))
            ]
            product = graph.call_function(aten.mul.Tensor, (x, factors[0]))
            norm.replace_all_uses_with(graph.call_function(aten.add.Tensor, (product, factors[1])))
        graph.erase_node(norm)
    _cleaned(network)


def to_half(network: GraphModule) -> None:
    """Weights and everything in between become float16; inputs and outputs keep their dtypes.

    Args:
        network: Captured by torch.export; changed.
    """
    graph, aten = network.graph, torch.ops.aten
    given = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    for node in list(graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):  # which asks for the dtype that was
            graph.erase_node(node)
            continue
        node.args = _with_half(node.args)
        node.kwargs = _with_half(node.kwargs)
    for node in reversed(given):
        if _is_float32(node):
            with graph.inserting_after(given[-1]):
                cast = graph.call_function(aten.to.dtype, (node, torch.float16))
            node.replace_all_uses_with(
                cast, delete_user_cb=lambda user, cast=cast: user is not cast
            )

    def back(node: Node) -> Node:
        if not _is_float32(node):
            return node
        with graph.inserting_before(output):
            return graph.call_function(aten.to.dtype, (node, torch.float32))

    output.args = torch.fx.map_arg(output.args, back)
    for node in graph.nodes:
        tensor = _value(network, node)
        if tensor is not None and tensor.dtype is torch.float32:
            tensor.data = tensor.data.half()
    _cleaned(network)


def _batch_norms(network: GraphModule) -> Iterator[Any]:
    """Those by kept statistics: (x, weight, bias, mean, variance, training, momentum, eps, ...)."""
    for node in list(network.graph.nodes):
        is_norm = _operator(node) in BATCH_NORM.operators
        if is_norm and len(node.args) > 7 and node.args[5] is False:
            yield node


def _fold(network: GraphModule, layer: Any, norm: Any, readers: Mapping[int, int]) -> bool:
    """Changes the weight and the bias of a layer, if it is one that can take a BatchNorm up."""
    name = _operator(layer)
    transposed, linear = name in TRANSPOSED.operators, name in LINEAR.operators
    if len(layer.users) != 1 or not (transposed or linear or name in CONVOLUTION.operators):
        return False
    nodes = [*layer.args[1:3], *[None] * (3 - len(layer.args))]
    weight, bias = (_value(network, node) for node in nodes)
    gamma, beta, mean, variance = (_value(network, node) for node in norm.args[1:5])
    if weight is None or mean is None or variance is None:
        return False
    if any(value is not None and readers[id(value)] != 1 for value in (weight, bias)):
        return False  # shared with another layer, or called twice
    if linear and layer.meta["val"].dim() != 2:
        return False  # it then normalises another dimension than the layer's outputs
    if transposed and len(mean) != _along(weight, 1):
        return False  # with groups, a position of the weight has several outputs
    w, b, m, v, g, s = (
        x if x is None else x.detach().double() for x in (weight, bias, mean, variance, gamma, beta)
    )
    new = (
        fuse_linear_bn_weights(w, b, m, v, norm.args[7], g, s)  # type: ignore[arg-type]
        if linear
        else fuse_conv_bn_weights(w, b, m, v, norm.args[7], g, s, transposed)  # type: ignore[arg-type]
    )
    weight.data = new[0].detach().to(weight.dtype)
    if bias is not None:
        bias.data = new[1].detach().to(bias.dtype)
        return True
    path, _, attribute = str(nodes[0].target).rpartition(".")
    attribute = "bias" if attribute == "weight" else f"{attribute}_bias"
    with network.graph.inserting_before(layer):
        node = _new_parameter(network, f"{path}.{attribute}".lstrip("."), new[1], weight)
    layer.args = (*layer.args[:2], node, *layer.args[3:])
    return True


def _along(weight: Tensor, dimension: int) -> int:
    return weight.size(dimension)


def _readers(network: GraphModule) -> dict[int, int]:
    """How many operations read each tensor, by its id: one may have several names."""
    counts: dict[int, int] = {}
    for node in network.graph.nodes:
        value = _value(network, node)
        if value is not None:
            counts[id(value)] = counts.get(id(value), 0) + len(node.users)
    return counts


def _operator(node: Any) -> str:
    """aten.conv2d.default -> conv2d."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target._schema.name).partition("::")[2]


def _value(network: GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a node reads; None if it is computed or is not there."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(network)
    return found if isinstance(found, Tensor) else None


def _new_parameter(network: GraphModule, name: str, value: Tensor, like: Tensor) -> Node:
    """Reads a new parameter, at the graph's place of insertion."""
    path, _, attribute = name.rpartition(".")
    value = nn.Parameter(value.detach().to(like.dtype), requires_grad=False)
    network.get_submodule(path).register_parameter(attribute, value)
    return network.graph.get_attr(name)


def _is_float32(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _with_half(value: Any) -> Any:
    """Arguments in which float32, where it is named, becomes float16."""
    return torch.fx.node.map_aggregate(
        value, lambda item: torch.float16 if item is torch.float32 else item
    )


def _cleaned(network: GraphModule) -> None:
    """Drops what nothing reads any more, also from the state_dict."""
    for node in reversed(list(network.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            network.graph.erase_node(node)
    read = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    for name in [*dict(network.named_parameters()), *dict(network.named_buffers())]:
        if name not in read:
            path, _, attribute = name.rpartition(".")
            delattr(network.get_submodule(path), attribute)
    network.graph.lint()
    network.recompile()
