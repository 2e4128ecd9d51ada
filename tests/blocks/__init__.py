"""Small networks, one for each way in which channels hang together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from blocks.inputs import conv, image
from blocks.limits import (
    Attention,
    ChannelSoftmax,
    ComplexState,
    ExpandedChannel,
    Functional,
    HandWrittenAttention,
    LinearOnly,
    LiteralView,
    LiteralViewThatFits,
    MeetsTheInput,
    Normalisations,
    OddPadding,
    OldWeightNorm,
    OneDimension,
    ParameterMultiplied,
    Recurrent,
    Reparametrised,
    SampledAt,
    SeveralInputs,
    SeveralOutputs,
    SigmoidBetween,
    SpatialAttention,
    Stacked,
    ThreeDimensions,
    TrainingHead,
    WrittenInPlace,
)
from blocks.paths import (
    C2f,
    ChannelShuffle,
    DenseConcatenation,
    Depthwise,
    FlattenLinear,
    Gated,
    Grouped,
    GroupNorm,
    HalfSlices,
    LayerNormPermuted,
    Maxout,
    NestedConcatenation,
    PixelShuffle,
    Residual,
    SharedLayers,
    SharedWeights,
    SplitBySize,
    SqueezeExcitation,
    Transposed,
    UNet,
    ZeroPaddedShortcut,
)

__all__ = [
    "BLOCKS",
    "Block",
    "conv",
    "image",
    "Residual",
    "DenseConcatenation",
    "NestedConcatenation",
    "C2f",
    "SplitBySize",
    "HalfSlices",
    "ChannelShuffle",
    "PixelShuffle",
    "Depthwise",
    "Grouped",
    "SqueezeExcitation",
    "ZeroPaddedShortcut",
    "SharedLayers",
    "SharedWeights",
    "Transposed",
    "UNet",
    "GroupNorm",
    "LayerNormPermuted",
    "FlattenLinear",
    "Maxout",
    "Gated",
    "Attention",
    "HandWrittenAttention",
    "ChannelSoftmax",
    "ParameterMultiplied",
    "SeveralOutputs",
    "SeveralInputs",
    "MeetsTheInput",
    "SpatialAttention",
    "ExpandedChannel",
    "Stacked",
    "LiteralView",
    "LiteralViewThatFits",
    "WrittenInPlace",
    "Functional",
    "OddPadding",
    "Normalisations",
    "SigmoidBetween",
    "OneDimension",
    "ThreeDimensions",
    "Recurrent",
    "Reparametrised",
    "OldWeightNorm",
    "SampledAt",
    "TrainingHead",
    "ComplexState",
    "LinearOnly",
]


@dataclass
class Block:
    """A network, what must be pruned of it, and what must be left whole.

    Attributes:
        make: Makes it.
        pruned: Widths of the axes that must be found, by name.
        whole: For each module that must stay whole, a part of the reason.
        inputs: Its arguments.
        mixed: Widths of the axes that only allow_inexact opens.
        by_check: Names of axes that only the check finds to be wrong.
    """

    make: Callable[[], nn.Module]
    pruned: dict[str, int]
    whole: dict[str, str] = field(default_factory=lambda: {"head": "the network's output"})
    inputs: Any = field(default_factory=lambda: (image(),))
    mixed: dict[str, int] = field(default_factory=dict)
    by_check: tuple[str, ...] = ()


HEAD = {"head": "the network's output"}
WRITTEN = "sizes written in the source"

BLOCKS: dict[str, Block] = {
    "residual": Block(Residual, {"stem": 8, "a": 6}),
    "dense concatenation": Block(DenseConcatenation, {"a": 5, "b": 4, "c": 6}),
    "nested concatenation": Block(NestedConcatenation, {"a": 4, "b": 4}),
    "C2f": Block(C2f, {"cv1": 4, "m.0.0": 6, "m.1.0": 6, "cv2": 5}),
    "split by size": Block(SplitBySize, {"b": 4, "c": 4}, {"a": WRITTEN, **HEAD}, by_check=("a",)),
    "half slices": Block(HalfSlices, {"b": 6}, {"a": WRITTEN, **HEAD}, by_check=("a",)),
    "channel shuffle": Block(ChannelShuffle, {"a": 3, "b": 4}),
    "native channel shuffle": Block(lambda: ChannelShuffle(native=True), {"a": 3, "b": 4}),
    "pixel shuffle": Block(PixelShuffle, {"a": 4, "b": 6, "c": 5}),
    "depthwise": Block(Depthwise, {"a": 6}),
    "depthwise with multiplier": Block(lambda: Depthwise(3), {"a": 6}),
    "grouped": Block(Grouped, {"a": 3, "b": 2, "c": 6}),
    "squeeze-and-excitation, convolution": Block(
        lambda: SqueezeExcitation(linear=False), {"a": 8, "down": 4}
    ),
    "squeeze-and-excitation, linear": Block(
        lambda: SqueezeExcitation(linear=True), {"a": 8, "down": 4}
    ),
    "zero-padded shortcut": Block(ZeroPaddedShortcut, {"a": 4}, {"b": "padding", **HEAD}),
    "shared layers": Block(SharedLayers, {"a": 6, "shared": 5}),
    "shared weights": Block(SharedWeights, {"a": 6, "encode": 4}),
    "transposed": Block(Transposed, {"a": 8, "up": 8}),
    "transposed, grouped": Block(lambda: Transposed(2), {"a": 4, "up": 4}),
    "transposed, depthwise": Block(lambda: Transposed(8), {"a": 8}),
    "U-Net": Block(
        UNet,
        {"enc1": 4, "enc2": 6, "mid": 8, "up2": 6, "dec2": 6, "dec1": 4},
        inputs=(image(size=8),),
    ),
    "GroupNorm": Block(GroupNorm, {"a": 2, "b": 6}, mixed={"a": 4}),
    "LayerNorm on permuted input": Block(
        LayerNormPermuted, {"up": 12}, {"stem": "LayerNorm", **HEAD}, mixed={"stem": 6}
    ),
    "flatten and linear": Block(FlattenLinear, {"a": 4, "b": 3, "fc": 10}),
    "maxout": Block(Maxout, {"a": 6, "b": 4}),
    "gated": Block(Gated, {"a": 6, "b": 5}),
    "multi-head attention": Block(
        Attention,
        {"up": 16},
        {"attention": "matrix product", "patch": "does not run", **HEAD},
        by_check=("patch",),
    ),
    "hand-written attention": Block(
        HandWrittenAttention, {"patch": 8}, {"qkv": "matrix product", **HEAD}
    ),
    "softmax over channels": Block(
        ChannelSoftmax, {"b": 5}, {"a": "softmax", **HEAD}, mixed={"a": 6}
    ),
    "a parameter multiplied in": Block(ParameterMultiplied, {"a": 6}),
    "several outputs": Block(
        SeveralOutputs,
        {"a": 6},
        {"b": "the network's output", "c": "reduced over channels", **HEAD},
    ),
    "several inputs": Block(SeveralInputs, {"a": 6}, inputs=(image(), image(2))),
    "named inputs": Block(
        SeveralInputs, {"a": 6}, inputs={"y": image(2), "x": image(), "scale": 0.5}
    ),
    "meets the input": Block(MeetsTheInput, {"b": 5, "c": 4}, {"a": "network's input", **HEAD}),
    "spatial attention": Block(SpatialAttention, {"b": 5}, {"a": "reduced over channels", **HEAD}),
    "an expanded channel": Block(ExpandedChannel, {"b": 5}, {"a": "", **HEAD}),
    "stacked branches": Block(Stacked, {"a": 6}),
    "sizes in a view": Block(
        LiteralView, {"a": 6, "fc": 8}, {"b": "are sizes written", **HEAD}, by_check=("b",)
    ),
    "sizes in a view that still fits": Block(
        LiteralViewThatFits, {"b": 6}, {"a": "pruned network", **HEAD}, by_check=("a",)
    ),
    "written in place": Block(
        WrittenInPlace, {}, {"a": WRITTEN, "c": WRITTEN, **HEAD}, by_check=("a", "c")
    ),
    "functional": Block(Functional, {"a": 6, "weight": 5}),
    "odd padding": Block(
        OddPadding, {"c": 4}, {"a": "cut off", "b": "positions written", "d": "positions", **HEAD}
    ),
    "normalisations": Block(Normalisations, {"a": 6, "b": 5, "c": 6}, {"d": "padding", **HEAD}),
    "sigmoid between": Block(SigmoidBetween, {"a": 6, "b": 5}),
    "one dimension": Block(OneDimension, {"a": 3, "b": 2}),
    "three dimensions": Block(ThreeDimensions, {"a": 6, "up": 4}),
    "recurrent": Block(Recurrent, {"a": 4, "up": 7}, {"b": "lstm", **HEAD}),
    "reparametrised": Block(Reparametrised, {"c": 5}),
    "old weight norm": Block(OldWeightNorm, {"b": 5}),
    "sampled at computed positions": Block(SampledAt, {"a": 6, "b": 5}, {"grid": "positions"}),
    "a head for training": Block(
        TrainingHead,
        {"a": 6, "b": 5},
        {"aux": "the network's output", "unused": "no output depends on it", **HEAD},
    ),
    "complex state": Block(ComplexState, {"b": 5}, {"a": "not analysed", **HEAD}),
    "linear only": Block(LinearOnly, {"a": 9, "b": 7}),
}
