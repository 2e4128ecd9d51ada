"""What is true of each kind of layer: nothing else in the library knows what a Conv2d is.

A kind says where a layer's inputs and outputs lie in its weight and in its activations, which
attributes repeat a size, how the layer is a matrix, and whether a BatchNorm behind it can be
counted as part of it. `KINDS` lists them. To support another kind of layer, add its kind there, and
a rule for its operator to `tracing/labels/layers.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdcp_fast.modules import im2col
from mdcp_fast.modules.names import shared_names

VERIFIED = 64  # outputs of a layer that are computed anew, to see whether its matrix form is right


Kept = Mapping[int, Tensor]  # positions that stay, by dimension


class LayerKind:
    """A kind of layer.

    Attributes:
        types: Its module classes.
        operators: Names of the aten operators that such layers call, without overload.
        functions: The Python functions that they call.
        sizes: Attributes that repeat the size of a dimension of the weight.
        sized_by: What has that size: the weight, or what there is where a layer has none.
        width: The attribute that repeats the size where a layer has none of these tensors.
    """

    types: ClassVar[tuple[type[nn.Module], ...]] = ()
    operators: ClassVar[tuple[str, ...]] = ()
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    sizes: ClassVar[Mapping[str, int]] = {}
    sized_by: ClassVar[tuple[str, ...]] = ("weight",)
    width: ClassVar[str | None] = None

    def update_sizes(self, layer: Any, shape: Sequence[int], kept: Kept) -> None:
        """Sets the attributes that repeat a size.

        Args:
            layer: Of this kind.
            shape: The new one, of what it is `sized_by`.
            kept: What stayed of that, by dimension, where some went.
        """
        for attribute, dimension in self.sizes.items():
            setattr(layer, attribute, shape[dimension])


class MatrixKind(LayerKind, ABC):
    """A kind of layer whose weight multiplies patches of its input: each output is a dot product.

    Attributes:
        input_dimension: Of the weight: where inputs lie.
        output_dimension: Of the weight: where outputs lie.
        absorbs_batch_norm: Whether a BatchNorm right behind scales this layer's outputs, and takes
            up a constant that is added to them.
        reads_flattened: Whether several inputs may be the positions of one flattened channel.
    """

    sized_by = ("weight_v", "weight")  # the first is there where the other is made of it

    input_dimension: ClassVar[int] = 1
    output_dimension: ClassVar[int] = 0
    absorbs_batch_norm: ClassVar[bool] = True
    reads_flattened: ClassVar[bool] = False

    @abstractmethod
    def channel_dimension(self, x: Tensor, weight: Tensor) -> int:
        """Where `x`, an input or an output with or without a batch, has its channels."""

    def outputs(self, weight: Tensor, groups: int = 1) -> int:
        """How many outputs a layer with this weight and these groups has, over all groups."""
        return weight.shape[self.output_dimension]

    @abstractmethod
    def inputs(self, layer: Any) -> int:
        """How many input channels a layer reads, over all groups."""

    def taps(self, layer: Any) -> int:
        """How many positions an output sees."""
        return int(layer.weight[0, 0].numel())

    def groups(self, layer: Any) -> int:
        """Into how many groups inputs and outputs fall that have nothing to do with each other."""
        return 1

    def kept_outputs(self, layer: Any, kept: Mapping[int, Tensor]) -> Tensor | None:
        """Which of a layer's outputs stay.

        Args:
            layer: Before anything was removed.
            kept: Positions of the weight that stay, by dimension, where some go.

        Returns:
            int64, or None for all.
        """
        return kept.get(self.output_dimension)

    def inputs_by_group(self, layer: Any) -> bool:
        """Whether the weight's input dimension counts the inputs of one group."""
        return True

    def taps_per_seen(self, layer: Any) -> int:
        """The number of taps divided by how many of them an output sees."""
        return 1

    def rows(self, layer: Any, x: Tensor, most: int | None = None) -> Tensor:
        """An input or an output with each position as a row: [positions, channels].

        Args:
            layer: Of this kind.
            x: What it reads or puts out.
            most: Of each sample at most so many positions, spread over all; None for all.
        """
        dimension = self.channel_dimension(x, layer.weight)
        # The copy, where there is one, goes channel by channel, which is how images lie in memory.
        first = x.movedim(dimension, 0)  # [channels, batch, ...]
        if most is not None and self.has_batch(layer, x):
            first = first.flatten(2) if x.dim() > 2 else first.unsqueeze(2)
            if first.shape[2] > most:
                first = first.index_select(2, spread_positions(first.shape[2], most).to(x.device))
        return first.reshape(x.shape[dimension], -1).T

    @abstractmethod
    def output_shape(self, output: Tensor) -> tuple[int, ...]:
        """The positions at which a layer has outputs, sample first: the shape but its channels."""

    @abstractmethod
    def output_rows(self, output: Tensor, rows: Tensor) -> Tensor:
        """What a layer put out at some positions: [R, outputs].

        Args:
            output: [batch, ...].
            rows: int64 [R], indices into the flattened `output_shape`.
        """

    @abstractmethod
    def patches(self, layer: Any, x: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The patches of a layer's input that some of its outputs see.

        Args:
            layer: Of this kind.
            x: Its input, with a batch dimension.
            rows: int64 [R], indices into the flattened `shape`, on the device of `x`.
            shape: The layer's `output_shape`.

        Returns:
            [groups, R, inputs of a group x taps], in the order of `as_matrix`.
        """

    @abstractmethod
    def as_matrix(self, layer: Any, weight: Tensor) -> Tensor:
        """A layer's weight as [groups, outputs of a group, inputs of a group x taps]."""

    @abstractmethod
    def as_weight(self, layer: Any, matrix: Tensor) -> Tensor:
        """The weight that `as_matrix` makes `matrix` of."""

    def is_its_matrix(self, layer: Any, x: Tensor, output: Tensor) -> bool:
        """Whether the matrix form gives the outputs that a layer gave, at a few places.

        Subclasses may pad in their own way, and hooks may change what comes out.

        Args:
            layer: Of this kind.
            x: Its input.
            output: Its output.
        """
        if x.dim() != output.dim() or not output.numel() or not self.has_batch(layer, x):
            return False
        shape = self.output_shape(output)
        rows = torch.linspace(0, math.prod(shape) - 1, VERIFIED, device=x.device).long()
        got = self.output_rows(output, rows).float()
        seen = self.patches(layer, x, rows, shape).float()
        matrix = self.as_matrix(layer, layer.weight).float()
        expected = (seen @ matrix.transpose(1, 2)).transpose(0, 1).flatten(1)
        if layer.bias is not None:
            expected = expected + layer.bias.float()
        if expected.shape != got.shape:
            return False
        # Half precision rounds to a hundredth; a wrong position is off by as much as the outputs.
        smallest = torch.finfo(torch.float32).tiny
        return bool((expected - got).abs().max() <= 0.05 * got.abs().max().clamp_min(smallest))

    def has_batch(self, layer: Any, x: Tensor) -> bool:
        """Whether an input has the batch dimension that `patches` expects."""
        return True


class Linear(MatrixKind):
    """Channels last, positions before them: [..., channels]."""

    types = (nn.Linear,)
    operators = ("linear",)
    functions = (F.linear,)
    sizes: ClassVar[Mapping[str, int]] = {"out_features": 0, "in_features": 1}
    reads_flattened = True

    def channel_dimension(self, x: Tensor, weight: Tensor) -> int:
        return x.dim() - 1

    def inputs(self, layer: Any) -> int:
        return int(layer.in_features)

    def has_batch(self, layer: Any, x: Tensor) -> bool:
        return x.dim() > 1

    def output_shape(self, output: Tensor) -> tuple[int, ...]:
        return tuple(output.shape[:-1])

    def output_rows(self, output: Tensor, rows: Tensor) -> Tensor:
        return output.reshape(-1, output.shape[-1])[rows]

    def patches(self, layer: Any, x: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
        return x.reshape(-1, x.shape[-1])[rows].unsqueeze(0)

    def as_matrix(self, layer: Any, weight: Tensor) -> Tensor:
        return weight.unsqueeze(0)

    def as_weight(self, layer: Any, matrix: Tensor) -> Tensor:
        return matrix.squeeze(0)


class Convolution(MatrixKind):
    """Plain, grouped and depthwise, of one to three dimensions: [batch, channels, ...].

    The weight is [outputs, inputs of a group, ...].
    """

    types = (nn.modules.conv._ConvNd,)
    operators = ("conv1d", "conv2d", "conv3d")
    functions: ClassVar[tuple[Callable[..., Any], ...]] = (torch.conv1d, torch.conv2d, torch.conv3d)
    transposed: ClassVar[bool] = False

    def update_sizes(self, layer: Any, shape: Sequence[int], kept: Kept) -> None:
        if is_depthwise(layer):  # a group goes with its only input
            multiplier = layer.out_channels // layer.groups
            layer.groups = shape[0] // (1 if self.transposed else multiplier)
        inputs, outputs = layer.groups * shape[1], shape[0]
        if self.transposed:
            inputs, outputs = outputs, inputs
        layer.in_channels, layer.out_channels = inputs, outputs

    def channel_dimension(self, x: Tensor, weight: Tensor) -> int:
        return x.dim() - weight.dim() + 1

    def inputs(self, layer: Any) -> int:
        return int(layer.in_channels)

    def groups(self, layer: Any) -> int:
        return int(layer.groups)

    def has_batch(self, layer: Any, x: Tensor) -> bool:
        return x.dim() == layer.weight.dim()

    def output_shape(self, output: Tensor) -> tuple[int, ...]:
        return (output.shape[0], *output.shape[2:])

    def output_rows(self, output: Tensor, rows: Tensor) -> Tensor:
        places = output[0, 0].numel()
        return output.flatten(2)[rows // places, :, rows % places]

    def patches(self, layer: Any, x: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
        return im2col.patches(layer, x, rows, shape, self.transposed)

    def as_matrix(self, layer: Any, weight: Tensor) -> Tensor:
        return im2col.as_matrix(weight, layer.groups, self.transposed)

    def as_weight(self, layer: Any, matrix: Tensor) -> Tensor:
        return im2col.as_weight(matrix, layer.kernel_size, self.transposed)


class TransposedConvolution(Convolution):
    """The weight is [inputs, outputs of a group, ...]."""

    types = (nn.modules.conv._ConvTransposeNd,)
    operators = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    functions = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
    input_dimension, output_dimension, transposed = 0, 1, True

    def outputs(self, weight: Tensor, groups: int = 1) -> int:
        return weight.shape[1] * groups

    def inputs_by_group(self, layer: Any) -> bool:
        return bool(layer.groups == 1)

    def taps_per_seen(self, layer: Any) -> int:
        return math.prod(layer.stride)  # the others fall between its inputs

    def kept_outputs(self, layer: Any, kept: Mapping[int, Tensor]) -> Tensor | None:
        if not kept:
            return None
        size = layer.out_channels // layer.groups
        groups = torch.arange(layer.groups)
        if is_depthwise(layer):  # a group goes with its only input
            groups = kept.get(0, groups)
        return (groups.unsqueeze(1) * size + kept.get(1, torch.arange(size))).flatten()


class BatchNorm(LayerKind):
    """Normalises each channel by statistics that it keeps."""

    types = (nn.modules.batchnorm._BatchNorm,)
    operators = ("batch_norm",)
    functions = (F.batch_norm,)
    width = "num_features"
    sizes: ClassVar[Mapping[str, int]] = {"num_features": 0}
    sized_by = ("weight", "running_mean")

    def scale(self, norm: Any) -> Tensor | None:
        """What it multiplies each channel by: gamma / sqrt(variance + eps).

        Returns:
            float64 [channels] on the CPU, or None if it keeps no statistics.
        """
        if norm.running_var is None:
            return None
        scale: Tensor = (norm.running_var.detach().to("cpu", torch.float64) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach().to("cpu", torch.float64)
        return scale


class InstanceNorm(LayerKind):
    types = (nn.modules.instancenorm._InstanceNorm,)
    operators = ("instance_norm",)
    width = "num_features"
    sizes: ClassVar[Mapping[str, int]] = {"num_features": 0}
    sized_by = ("weight", "running_mean")


class GroupNorm(LayerKind):
    types = (nn.GroupNorm,)
    operators = ("group_norm",)
    width = "num_channels"

    def update_sizes(self, layer: Any, shape: Sequence[int], kept: Kept) -> None:
        """Whole groups may go, or the same channels of each: then there are as many as before."""
        size = layer.num_channels // layer.num_groups
        positions = kept.get(0, torch.arange(layer.num_channels))
        groups = (positions // size).unique()
        if len(groups) * size == len(positions):
            layer.num_groups = len(groups)
        layer.num_channels = shape[0]


class LayerNorm(LayerKind):
    types: ClassVar[tuple[type[nn.Module], ...]] = (nn.LayerNorm,)
    operators = ("layer_norm",)
    width = "normalized_shape"

    def update_sizes(self, layer: Any, shape: Sequence[int], kept: Kept) -> None:
        layer.normalized_shape = tuple(shape)


class RMSNorm(LayerNorm):
    types = (nn.RMSNorm,)
    operators = ("rms_norm",)


class PReLU(LayerKind):
    types = (nn.PReLU,)
    operators = ("prelu",)
    sizes: ClassVar[Mapping[str, int]] = {"num_parameters": 0}


class Embedding(LayerKind):
    """Looks up rows of its weight, [entries, channels]."""

    types = (nn.Embedding,)
    operators = ("embedding",)
    sizes: ClassVar[Mapping[str, int]] = {"embedding_dim": 1}


LINEAR, TRANSPOSED, CONVOLUTION = Linear(), TransposedConvolution(), Convolution()
BATCH_NORM, INSTANCE_NORM, GROUP_NORM = BatchNorm(), InstanceNorm(), GroupNorm()
LAYER_NORM, RMS_NORM, PRELU, EMBEDDING = LayerNorm(), RMSNorm(), PReLU(), Embedding()
# The first that fits counts: to PyTorch a transposed convolution is a convolution.
KINDS: tuple[LayerKind, ...] = (
    LINEAR, TRANSPOSED, CONVOLUTION, BATCH_NORM, INSTANCE_NORM, GROUP_NORM, LAYER_NORM, RMS_NORM,
    PRELU, EMBEDDING,
)  # fmt: skip


def spread_positions(total: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Indices below `total`: all, or `count` of them, one at random from each of equal parts.

    At random, since a grid would see only some taps of what strides or is upsampled.

    Args:
        total, count: How many there are, and are wanted.
        generator: Of the random numbers; by default the same indices each time.

    Returns:
        int64, increasing.
    """
    if total <= count:
        return torch.arange(total)
    generator = generator or torch.Generator().manual_seed(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return ((torch.arange(count) + drawn) * (total / count)).long().clamp_max(total - 1)


@dataclass(frozen=True)
class Layer:
    """A layer whose weight multiplies its input, and what goes with it. All names are full ones.

    Attributes:
        path: Its module.
        weight: The parameter; of a shared one its first name.
        bias: The parameter, or None.
        batch_norm: The module of the BatchNorm right behind it, or None.
        running_mean: The buffer that takes up a constant added to the layer's output, or None: that
            BatchNorm's, or one that is handed to a function.
        kind: How it multiplies.
    """

    path: str
    weight: str
    bias: str | None
    batch_norm: str | None
    running_mean: str | None
    kind: MatrixKind

    @property
    def absorbs_mean(self) -> bool:
        """Whether a constant in its outputs can go to its bias or to a BatchNorm behind."""
        return self.bias is not None or self.running_mean is not None


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a module; None if it is none of `KINDS`."""
    return next((kind for kind in KINDS if isinstance(module, kind.types)), None)


def layers_of(model: nn.Module, normalized_by: Mapping[str, str]) -> dict[str, Layer]:
    """A network's layers whose weights are parameters that multiply their inputs, by path.

    Args:
        model: Any network.
        normalized_by: For the weight of each layer with a BatchNorm right behind it, the name of
            that running mean.
    """
    first, layers = shared_names(model), {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        kind, prefix = kind_of(module), f"{path}." if path else ""
        if not isinstance(kind, MatrixKind) or f"{prefix}weight" not in parameters:
            continue
        weight = first[f"{prefix}weight"]
        mean = normalized_by.get(weight)
        bias = f"{prefix}bias" if f"{prefix}bias" in parameters else None  # or it is computed
        layers[path] = Layer(path, weight, bias, batch_norm_of(model, mean), mean, kind)
    return layers


def batch_norm_of(model: nn.Module, running_mean: str | None) -> str | None:
    """The path of the BatchNorm that keeps a running mean; None if a function was handed it."""
    path = "" if running_mean is None else running_mean.rpartition(".")[0]
    kept = running_mean is not None and is_batch_norm(model.get_submodule(path))
    return path if kept else None


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of any number of dimensions, synchronised or not."""
    return kind_of(module) is BATCH_NORM


def batch_norms(model: nn.Module) -> dict[str, Any]:
    """The BatchNorms of a network that keep statistics, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if is_batch_norm(module) and module.running_mean is not None
    }


def update_sizes(module: Any, dense: Any, kept: Mapping[str, Kept]) -> None:
    """Attributes of a module that repeat a size follow the tensors that it now has.

    Args:
        module: Some of its positions were removed.
        dense: The same module before.
        kept: Positions that stayed of its tensors, and of its width where it has none, by name.
    """
    kind = kind_of(module)
    if kind is None:
        return
    for name in kind.sized_by:
        tensor, before = getattr(module, name, None), getattr(dense, name, None)
        if not (isinstance(tensor, Tensor) and isinstance(before, Tensor)):
            continue
        if tensor.shape != before.shape:
            kind.update_sizes(module, tensor.shape, kept.get(name, {}))
    positions, width = kept.get(kind.width or ""), width_of(dense, kind.width or "")
    if positions and width is not None:
        shape = [len(positions.get(d, range(n))) for d, n in enumerate(width.shape)]
        kind.update_sizes(module, shape, positions)


def width_of(module: nn.Module, name: str) -> Tensor | None:
    """A tensor of a module; or one of the shape, without values, that a layer merely repeats."""
    found, kind = getattr(module, name, None), kind_of(module)
    if isinstance(found, Tensor) or kind is None or name != kind.width or found is None:
        return found if isinstance(found, Tensor) else None
    return torch.empty(found, device="meta")


def bare_widths(model: nn.Module) -> set[str]:
    """Full names of the widths that layers repeat without having a tensor of that size."""
    return {
        f"{path}.{kind.width}" if path else kind.width
        for path, module in model.named_modules()
        if (kind := kind_of(module)) is not None
        and kind.width is not None
        and not any(isinstance(getattr(module, name, None), Tensor) for name in kind.sized_by)
    }


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution has a group for each input."""
    return bool(layer.groups > 1 and layer.groups == layer.in_channels)


def continues_channels(weight: Tensor, dimension: int) -> bool:
    """Whether a weight is a depthwise convolution's, which continues channels.

    Its shape does not tell that from a plain convolution of a single channel, such as a network's
    first layer on grey images.

    Args:
        weight: Of any layer.
        dimension: Where the channels lie that are meant.
    """
    channels, reads = weight.shape[:2]
    return weight.dim() > 2 and reads == 1 and channels > 1 and dimension == 0
