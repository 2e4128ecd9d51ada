"""Takes positions out of a module's parameters: a smaller module of the same class.

Works on plain positions, {parameter: {dimension: kept positions}}, so that tracing, pruning and
loading all use it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.layer_kinds import update_sizes, width_of
from mdcp_fast.modules.memory_format import in_format_of, prefers_channels_last
from mdcp_fast.modules.names import plain_tensors
from mdcp_fast.modules.state import reachable
from mdcp_fast.modules.widths import follow_widths

Positions = Mapping[str, Mapping[int, Tensor]]
Kept = Callable[[Tensor, Mapping[int, Tensor]], Tensor]  # see `kept_tensor`


def kept_tensor(tensor: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
    """A copy of `tensor` with only the kept positions of each dimension, in its memory format."""
    small = tensor.detach()
    if not dimensions:
        return small.clone()
    for dimension, positions in sorted(dimensions.items()):  # whole rows first: less to copy
        small = small.index_select(dimension, positions.to(tensor.device))
    return in_format_of(tensor, small)


def remove(model: nn.Module, kept: Positions, make: Kept = kept_tensor) -> nn.Module:
    """Returns a copy of `model` that holds only the `kept` positions of its parameters and buffers.

    Training mode, requires_grad, dtype, device, memory format, hooks and shared parameters survive;
    gradients do not. Attributes that repeat a size (in_channels, num_features, groups of a
    depthwise layer, ...) follow.

    Args:
        model: The dense network; not changed.
        kept: For each parameter or buffer and each of its dimensions that loses something, int64
            positions that stay, increasing.
        make: Makes each new tensor, of the size that stays, from the dense one and what stays along
            each dimension that loses something.

    Returns:
        The smaller module, of the same class.

    Raises:
        ValueError: `kept` names a parameter, dimension or position that `model` does not have.
    """
    dimensions = {}
    for name, wanted in kept.items():
        tensor = tensor_of(model, name)
        _check_positions(name, tensor, wanted)
        dimensions[id(tensor)] = wanted
    small = rebuilt(model, lambda tensor: make(tensor, dimensions.get(id(tensor), {})))
    if kept:
        _update_sizes(small, model, kept)
    return small


def _update_sizes(small: nn.Module, dense: nn.Module, kept: Positions) -> None:
    """Attributes of modules that repeat a size follow what is kept."""
    by_path: dict[str, dict[str, Mapping[int, Tensor]]] = {}
    for name, positions in kept.items():
        path, _, leaf = name.rpartition(".")
        by_path.setdefault(path, {})[leaf] = positions
    for path, module in small.named_modules():
        update_sizes(module, dense.get_submodule(path), by_path.get(path, {}))
    follow_widths(small, dense, kept)


@contextmanager
def removed_meanwhile(
    twin: nn.Module, dense: nn.Module, kept: Positions, changed: Collection[str] = ()
) -> Iterator[None]:
    """`remove` on a copy of a network itself, for a while: what is done often and must be quick.

    Args:
        twin: A copy of `dense` (see `rebuilt`); afterwards as it was.
        dense: The dense network; not changed.
        kept: As `remove` takes it.
        changed: Names of tensors that lose nothing and are changed meanwhile: copies stand in.
    """
    wanted = {id(tensor_of(twin, name)): kept.get(name, {}) for name in (*kept, *changed)}
    made: dict[int, Tensor] = {}
    before = [(module, dict(vars(module))) for module in twin.modules()]
    try:
        for module, _ in before:
            for kind in ("_parameters", "_buffers"):
                own = vars(module)[kind]
                if any(id(tensor) in wanted for tensor in own.values()):
                    vars(module)[kind] = type(own)(
                        (name, _replaced(tensor, wanted, made)) for name, tensor in own.items()
                    )
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor):
                    vars(module)[name] = _replaced(value, wanted, made)
        _update_sizes(twin, dense, kept)
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _replaced(tensor: Tensor | None, wanted: Mapping[int, Any], made: dict[int, Tensor]) -> Any:
    """What stays of a tensor, the same for all its names, where it is wanted."""
    if tensor is None or id(tensor) not in wanted:
        return tensor
    if id(tensor) not in made:
        new = kept_tensor(tensor, wanted[id(tensor)])
        is_parameter = isinstance(tensor, nn.Parameter)
        made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
    return made[id(tensor)]


@torch.inference_mode(False)  # else the new parameters could not be trained
def rebuilt(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy of `model` in which `change` makes every parameter, buffer and plain tensor.

    What changes its shape or its strides gets the memory format of the network.

    Args:
        model: Not changed.
        change: Gets a tensor and returns the new one, which shares no memory with it.
    """
    memo: dict[int, Any] = {}
    channels_last = prefers_channels_last(model.parameters())

    def changed(tensor: Tensor) -> Tensor:
        new = change(tensor).detach()
        same = (new.shape, new.stride()) == (tensor.shape, tensor.stride())
        if same or new.dim() != tensor.dim():
            return new
        return in_format_of(tensor, new, channels_last=channels_last)

    for parameter in model.parameters():
        new = changed(parameter)
        memo[id(parameter)] = nn.Parameter(new, requires_grad=parameter.requires_grad)
    for tensor in (*model.buffers(), *plain_tensors(model).values()):
        if id(tensor) not in memo:
            memo[id(tensor)] = changed(tensor).requires_grad_(tensor.requires_grad)
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (OrderedDict, set) and not value:
                # A module has a dozen, mostly for hooks; deepcopy is slow to find out about each.
                memo[id(value)] = type(value)()
            elif isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo:
                # Weights computed by hooks (weight_norm) cannot be deep-copied.
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:  # whatever objects that hang on it raise
        return copy.deepcopy(model, memo | _stand_ins(model, memo))


def _stand_ins(model: nn.Module, memo: Mapping[int, Any]) -> dict[int, Any]:
    """For what hangs on a network and cannot be copied, by its id: what the copy has in its place.

    Tensors that autograd knows (cached activations, collected losses) lose their history; what
    cannot be copied at all (locks, open files) is shared with the copy.
    """
    found = reachable(model)
    stand_ins: dict[int, Any] = {
        id(tensor): tensor.detach().clone()
        for tensor in found.tensors
        if id(tensor) not in memo and not tensor.is_leaf
    }
    for item in found.others:
        try:
            copy.deepcopy(item, {**memo, **stand_ins})
        except Exception:  # whatever it raises
            stand_ins[id(item)] = item
    return stand_ins


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter, buffer or plain tensor by its fully qualified name.

    For a width that a layer repeats without having such a tensor ("norm.num_features"), one of that
    size without values.

    Raises:
        ValueError: `model` does not have it.
    """
    path, _, leaf = name.rpartition(".")
    try:
        tensor = width_of(model.get_submodule(path), leaf)
    except AttributeError:
        tensor = None
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"model: expected a network with a parameter or buffer {name!r}, got a "
            f"{type(model).__name__} without it"
        )
    return tensor


def _check_positions(name: str, tensor: Tensor, dimensions: Mapping[int, Tensor]) -> None:
    shape = tuple(tensor.shape)
    for dimension, positions in dimensions.items():
        if not 0 <= dimension < len(shape):
            raise ValueError(f"{name}: expected a dimension {dimension}, got shape {shape}")
        if positions.numel() == 0:
            raise ValueError(f"{name}: expected positions to keep along {dimension}, got none")
        first, last = int(positions[0]), int(positions[-1])
        if first < 0 or last >= shape[dimension] or bool((positions.diff() <= 0).any()):
            raise ValueError(
                f"{name}: expected increasing positions from 0 to {shape[dimension] - 1} along "
                f"dimension {dimension} of shape {shape}, got {positions.tolist()[:8]} to {last}"
            )
