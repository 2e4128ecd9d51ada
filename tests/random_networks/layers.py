"""Parts that are mostly one layer: convolutions, normalisations, activations, movement."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_networks.place import WIDEST, Draw, Part, Place, activation, conv, norm, unit


class Plain(Part):
    def build(self, at: Place, draw: Draw) -> None:
        out = draw.width()
        self.body, self.out = unit(at, out, draw), at.wide(out)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        return self.body(x)


class Strided(Plain):
    def build(self, at: Place, draw: Draw) -> None:
        out = draw.width()
        kernel = draw.one(2, 3)
        size = (at.size + 2 * (kernel // 2) - kernel) // 2 + 1
        self.body = nn.Sequential(
            at.layer("Conv")(at.channels, out, kernel, stride=2, padding=kernel // 2),
            activation(at.wide(out), draw),
        )
        self.out = Place(at.dims, out, size)


class Depthwise(Plain):
    """Depthwise, with a multiplier or without, and pointwise."""

    def build(self, at: Place, draw: Draw) -> None:
        inner = at.channels * (2 if at.channels <= 8 and draw.flag(0.3) else 1)
        out = draw.width()
        there = at.wide(inner)
        self.body = nn.Sequential(
            conv(at, inner, draw, kernel=draw.one(3, 5), groups=at.channels),
            norm(there, draw), activation(there, draw), unit(there, out, draw, kernel=1),
        )  # fmt: skip
        self.out = at.wide(out)


class Grouped(Plain):
    """Grouped convolutions, from whatever came, and from a layer of their own."""

    def build(self, at: Place, draw: Draw) -> None:
        inner, out = draw.width(), draw.width()
        first = conv(at, inner, draw, groups=draw.group(at.channels, inner))
        second = conv(at.wide(inner), out, draw, groups=draw.group(inner, out))
        self.body = nn.Sequential(first, activation(at.wide(inner), draw), second)
        self.out = at.wide(out)


class Transposed(Plain):
    """Twice the size, or the same, with groups or without."""

    def build(self, at: Place, draw: Draw) -> None:
        out = draw.width()
        groups = draw.group(at.channels, out) if draw.flag(0.4) else 1
        if at.size <= 4:
            settings, size = draw.one((2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0)), at.size * 2
        else:
            settings, size = (3, 1, 1, 0), at.size
        kernel, stride, padding, more = settings
        self.body = at.layer("ConvTranspose")(
            at.channels, out, kernel, stride, padding, more, groups=groups, bias=draw.flag()
        )
        self.out = Place(at.dims, out, size)


class Reparametrised(Plain):
    """A layer whose weight another module computes."""

    def build(self, at: Place, draw: Draw) -> None:
        out = draw.width()
        layer = at.layer("Conv")(at.channels, out, 3, padding=1)
        self.body = nn.utils.parametrizations.weight_norm(layer, dim=draw.one(0, 1))
        self.out = at.wide(out)


class Normalised(Plain):
    def build(self, at: Place, draw: Draw) -> None:
        self.body = nn.Sequential(norm(at, draw, mixing=0.4), activation(at, draw))


class Activated(Plain):
    def build(self, at: Place, draw: Draw) -> None:
        self.body = activation(at, draw)


class Dropped(Part):
    """Dropout as modules and as functions."""

    def build(self, at: Place, draw: Draw) -> None:
        self.kind = draw.one("module", "channels", "function")
        self.module = nn.Dropout(0.2)
        self.channels = at.layer("Dropout")(0.2)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        if self.kind == "module":
            return self.module(x)
        if self.kind == "channels":
            return self.channels(x)
        return F.dropout(x, 0.1, training=self.training)


class Resized(Part):
    """Pooling, interpolation, padding, rolling: what moves pixels."""

    def build(self, at: Place, draw: Draw) -> None:
        kinds = ["pad", "roll", "crop and pad"]
        kinds += ["maximum", "mean", "adaptive"] if at.size >= 4 else ["nearest", "linear"]
        self.kind = draw.choice(kinds)
        self.value = draw.one(0.0, 0.0, 1.0)
        size = at.size // 2 if at.size >= 4 else at.size * 2
        self.out = at if self.kind in kinds[:3] else Place(at.dims, at.channels, size)
        self.maximum = at.layer("MaxPool")(2)
        self.mean = at.layer("AvgPool")(3, 2, 1)
        self.adaptive = at.layer("AdaptiveAvgPool")(max(size, 1))

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        dims = x.dim() - 2
        if self.kind == "pad":
            return F.pad(x, (1, 0) + (0, 0) * (dims - 1), value=self.value)[..., 1:]
        if self.kind == "crop and pad":
            return F.pad(x[..., 1:], (0, 1) + (0, 0) * (dims - 1))
        if self.kind == "roll":
            return x.roll(1, -1)
        if self.kind == "nearest":
            return F.interpolate(x, scale_factor=2)
        if self.kind == "linear":
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
            return F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=False)
        return getattr(self, self.kind)(x)


class Cast(Part):
    """To another type and back, or to the type that it has."""

    def build(self, at: Place, draw: Draw) -> None:
        self.kind = draw.one("float", "double and back", "as it is", "like another", "to")

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        if self.kind == "float":
            return x.float().tanh().type_as(x)
        if self.kind == "double and back":
            return x.double().softmax(-1).to(x.dtype) + x
        if self.kind == "like another":
            return x.type_as(past[0])
        if self.kind == "to":
            return x.to(past[0].device, past[0].dtype)
        return x.contiguous().clone()


class Shuffled(Part):
    """Channels shuffled between groups, then a grouped convolution."""

    def build(self, at: Place, draw: Draw) -> None:
        self.groups = draw.group(at.channels)
        self.native = draw.flag(0.4) and at.dims == 2
        self.shuffle = nn.ChannelShuffle(self.groups)
        groups = self.groups if draw.flag() else 1
        self.after = conv(at, at.channels, draw, groups=groups)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        if self.native:
            return self.after(self.shuffle(x))
        n, channels, *size = x.shape
        x = x.view(n, self.groups, channels // self.groups, *size).transpose(1, 2)
        return self.after(x.reshape(n, channels, *size))


class PixelShuffled(Part):
    """Space into channels, a layer, and back."""

    def build(self, at: Place, draw: Draw) -> None:
        self.layer = conv(at, at.channels * 4, draw, kernel=1)
        self.after = conv(at, at.channels, draw, kernel=1)
        self.mode = draw.one("native", "view") if at.dims == 2 else "maxout"

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        y = self.layer(x)
        if self.mode == "maxout":
            y = y.reshape(y.shape[0], y.shape[1] // 4, 4, *y.shape[2:]).amax(2)
        elif self.mode == "native":
            y = F.avg_pool2d(F.pixel_shuffle(y, 2), 2)
        else:
            n, c, h, w = y.shape
            y = (
                y.view(n, c // 4, 2, 2, h, w)
                .permute(0, 1, 4, 2, 5, 3)
                .reshape(n, c // 4, 2 * h, -1)
            )
            y = y[..., ::2, 1::2]
        return self.after(y)


class Concatenated(Part):
    """What came, and what a layer makes of it, in either order, some of it several times."""

    def build(self, at: Place, draw: Draw) -> None:
        out = draw.one(3, 4, 5)
        self.body = unit(at, out, draw)
        self.order = draw.ordered([0, 1] if at.channels > 8 or draw.flag(0.7) else [0, 1, 1])
        total = at.channels + out * self.order.count(1)
        self.squeeze = conv(at.wide(total), draw.width(), draw) if total > WIDEST else None
        self.out = at.wide(total if self.squeeze is None else self.squeeze.out_channels)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        parts = (x, self.body(x))
        x = torch.cat([parts[i] for i in self.order], 1)
        return x if self.squeeze is None else self.squeeze(x)
