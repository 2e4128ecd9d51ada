"""Takes positions out of a module's parameters, and checks the smaller module against the zeroed one.

Works on plain positions, {parameter: {dimension: kept positions}}, so that tracing, pruning and loading all use it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Positions = Mapping[str, Mapping[int, Tensor]]


def remove(model: nn.Module, kept: Positions) -> nn.Module:
    """Returns a copy of `model` that holds only the `kept` positions of its parameters and buffers.

    Training mode, requires_grad, dtype, device, memory format, hooks and shared parameters survive; gradients do not.
    Attributes that repeat a size (in_channels, num_features, groups of a depthwise layer, ...) follow.

    Args:
        model: The dense network; not changed.
        kept: For each parameter or buffer and each of its dimensions that loses something, int64 positions that stay.

    Returns:
        The smaller module, of the same class.

    Raises:
        ValueError: `kept` names a parameter, dimension or position that `model` does not have.
    """
    memo: dict[int, Any] = {}
    for name, dimensions in kept.items():
        old = _tensor(model, name)
        memo[id(old)] = _sliced(name, old, dimensions)
    for parameter in model.parameters():
        if id(parameter) not in memo:
            memo[id(parameter)] = _parameter(parameter, parameter.detach().clone())
    small = copy.deepcopy(model, memo)
    for path, module in small.named_modules():
        _update_sizes(module, model.get_submodule(path))
    return small


def kept_tensor(tensor: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
    """`tensor` with only the kept positions of each dimension, in the same memory format."""
    small = tensor.detach()
    for dimension, positions in dimensions.items():
        small = small.index_select(dimension, positions.to(tensor.device))
    if small is tensor or not dimensions:
        return small.clone()
    for rank, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=memory_format):
            return small.contiguous(memory_format=memory_format)
    return small.contiguous()


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    try:
        found = getattr(model.get_submodule(path), leaf)
    except AttributeError:
        found = None
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the model should have a parameter or buffer {name!r}, got {type(model).__name__} without it"
        )
    return found


def _sliced(name: str, old: Tensor, dimensions: Mapping[int, Tensor]) -> Tensor:
    for dimension, positions in dimensions.items():
        if not 0 <= dimension < old.dim():
            raise ValueError(
                f"{name} should have a dimension {dimension}, got shape {tuple(old.shape)}"
            )
        if positions.numel() and int(positions.max()) >= old.shape[dimension]:
            raise ValueError(
                f"{name} should have more than {int(positions.max())} positions along dimension {dimension}, "
                f"got shape {tuple(old.shape)}"
            )
    new = kept_tensor(old, dimensions)
    return _parameter(old, new) if isinstance(old, nn.Parameter) else new


def _parameter(old: nn.Parameter, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new, requires_grad=old.requires_grad)


def _update_sizes(module: nn.Module, dense: nn.Module) -> None:
    """Attributes of torch.nn layers that repeat the shape of a weight."""
    weight = getattr(module, "weight", None)
    if (
        not isinstance(weight, Tensor)
        or not isinstance(dense.weight, Tensor)
        or weight.shape == dense.weight.shape
    ):
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if (
            dense.groups > 1 and dense.groups == dense.in_channels
        ):  # depthwise: a group for each input channel
            per_group = dense.out_channels // dense.groups
            module.groups = weight.shape[0] if transposed else weight.shape[0] // per_group
        first, second = weight.shape[0], weight.shape[1] * module.groups
        module.in_channels, module.out_channels = (first, second) if transposed else (second, first)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


def zeroed(model: nn.Module, kept: Positions) -> nn.Module:
    """A float64 copy of `model` whose parameters are zero wherever `kept` would remove them."""
    twin = in_float64(model)
    with torch.no_grad():
        for name, dimensions in kept.items():
            tensor = _tensor(twin, name)
            if not isinstance(tensor, nn.Parameter):
                continue  # statistics of a zeroed channel do not matter: its normalisation multiplies by zero
            for dimension, positions in dimensions.items():
                gone = torch.ones(tensor.shape[dimension], dtype=torch.bool)
                gone[positions] = False
                tensor.index_fill_(dimension, gone.nonzero().flatten().to(tensor.device), 0)
    return twin


def scrambled(model: nn.Module) -> nn.Module:
    """A float64 copy of `model` with random weights under which every channel matters to the outputs.

    Whether removing equals zeroing is a matter of structure. Untrained or badly scaled weights would hide a difference:
    where signals die out on their way, everything equals everything.
    """
    twin = in_float64(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*twin.parameters(), *twin.buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() >= 2:
                values = noise * (2 / max(tensor[0].numel(), 1)) ** 0.5
            else:
                values = 1 + 0.2 * noise.clamp(
                    -2, 2
                )  # scales and variances stay positive, and shifts are not zero
            if isinstance(tensor, nn.Parameter) or tensor.dim() == 1:
                tensor.copy_(values)
    return twin


def in_float64(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval()


def float64_inputs(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, (list, tuple)):
        return tuple(float64_inputs(item) for item in inputs)
    return inputs


@torch.no_grad()
def difference(model: nn.Module, kept: Positions, inputs: tuple[Any, ...]) -> float:
    """Largest difference between the pruned and the zeroed network's outputs, relative to their largest value.

    Both run in float64 and evaluation mode; where removal equals zeroing it is at rounding level (below 1e-10).

    Raises:
        Exception: Whatever the pruned network raises when its sizes do not fit.
    """
    inputs = float64_inputs(inputs)
    small = in_float64(remove(model, kept))
    return relative_difference(small(*inputs), zeroed(model, kept)(*inputs))


def relative_difference(left: Any, right: Any) -> float:
    """Largest absolute difference over largest absolute value, over all tensors of two nested outputs."""
    pairs = list(zip(_tensors(left), _tensors(right), strict=True))
    worst, scale = 0.0, 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            gap = (a.double() - b.double()).abs().max()
            worst = max(worst, float(torch.nan_to_num(gap, nan=float("inf"))))
            scale = max(scale, float(b.double().abs().max()))
    return worst / scale if scale > 0 else worst


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in _tensors(value)]
    return []
