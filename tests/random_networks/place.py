"""What the parts of a random network share: where they sit, what they draw, plain layers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (4, 6, 8, 12)
WIDEST = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """What a part reads: images of `dims` dimensions, each `size` long, with `channels`."""

    dims: int
    channels: int
    size: int

    def wide(self, channels: int) -> Place:
        return replace(self, channels=channels)

    def layer(self, kind: str) -> Any:
        """A class of torch.nn for this number of dimensions: "Conv" gives Conv2d."""
        return getattr(nn, f"{kind}{self.dims}d")


class Draw(random.Random):
    """The choices of one part. The same seed makes the same choices."""

    def one(self, *options: T) -> T:
        return self.choice(options)

    def flag(self, share: float = 0.5) -> bool:
        return self.random() < share

    def width(self) -> int:
        return self.choice(WIDTHS)

    def group(self, *widths: int) -> int:
        """A number of groups that divides all widths, 1 only where there is no other."""
        fitting = [n for n in range(2, min(widths) + 1) if not any(w % n for w in widths)]
        return self.choice(fitting or [1])

    def ordered(self, items: Sequence[T]) -> list[T]:
        return self.sample(list(items), len(items))


class Part(nn.Module):
    """One block of a network.

    Attributes:
        out: What it puts out.
    """

    out: Place

    def __init__(self, at: Place, draw: Draw) -> None:
        super().__init__()
        self.out = at
        self.build(at, draw)

    def build(self, at: Place, draw: Draw) -> None:
        """Makes the layers; sets `out` where that is not `at`."""
        raise NotImplementedError

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        """Computes the part.

        Args:
            x: What the last part put out.
            past: What all parts have put out so far, `x` the last.
            extra: What becomes an output besides; a part may append to it.
        """
        raise NotImplementedError


def conv(at: Place, out: int, draw: Draw, kernel: int | None = None, **options: Any) -> nn.Module:
    """A convolution that keeps the size of its images, of a random kind."""
    kernel = draw.one(1, 3, 3, 5) if kernel is None else kernel
    dilation = draw.one(1, 1, 2) if kernel == 3 else 1
    padding: Any = dilation * (kernel - 1) // 2
    modes = ["zeros"] * 6 + (["reflect", "replicate", "circular"] if at.size > padding else [])
    mode = draw.choice(modes)
    if mode == "zeros" and draw.flag(0.2):
        padding = "same"
    settings = {"bias": draw.flag(0.7), "padding_mode": mode, **options}
    return at.layer("Conv")(
        at.channels, out, kernel, padding=padding, dilation=dilation, **settings
    )


def norm(at: Place, draw: Draw, mixing: float = 0.15) -> nn.Module:
    """A normalisation, a share of `mixing` of the kinds that mix channels."""
    if draw.flag(mixing):
        return draw.one(
            lambda: nn.GroupNorm(draw.group(at.channels), at.channels, affine=draw.flag(0.8)),
            lambda: nn.GroupNorm(1, at.channels),
            lambda: LastNorm(nn.LayerNorm(at.channels)),
            lambda: LastNorm(RootMeanSquare(at.channels)),
            lambda: at.wide(at.channels).layer("BatchNorm")(at.channels, affine=False),
            lambda: nn.LocalResponseNorm(3),
            Unit,
        )()
    kinds: list[Any] = [
        lambda: at.layer("BatchNorm")(at.channels),
        lambda: at.layer("BatchNorm")(at.channels),
        lambda: at.layer("BatchNorm")(at.channels, affine=False),
        lambda: at.layer("BatchNorm")(at.channels, track_running_stats=False),
        lambda: nn.GroupNorm(at.channels, at.channels),
        nn.Identity,
    ]
    if at.size > 1:
        kinds.append(
            lambda: at.layer("InstanceNorm")(
                at.channels, affine=draw.flag(), track_running_stats=draw.flag()
            )
        )
    return draw.choice(kinds)()


class LastNorm(nn.Module):
    """A normalisation of the last dimension, which the channels become."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


class RootMeanSquare(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class Call(nn.Module):
    """An activation that is a function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "x * sigmoid(x)":
            return x * torch.sigmoid(x)
        if self.name == "clamp":
            return x.clamp(-1, 2)
        if self.name == "relu_":
            return F.relu_(x + 0)
        return getattr(F, self.name)(x)


def activation(at: Place, draw: Draw) -> nn.Module:
    return draw.one(
        nn.ReLU, nn.ReLU, lambda: nn.PReLU(at.channels), nn.PReLU, nn.GELU, nn.SiLU,
        nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.ReLU6,
        lambda: Call("x * sigmoid(x)"), lambda: Call("clamp"), lambda: Call("relu_"),
        lambda: Call("mish"), lambda: Call("softsign"),
    )()  # fmt: skip


def unit(at: Place, out: int, draw: Draw, **options: Any) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    there = at.wide(out)
    return nn.Sequential(conv(at, out, draw, **options), norm(there, draw), activation(there, draw))


def pooled(x: Tensor) -> Tensor:
    """[N, C, ...] -> [N, C]"""
    return x.flatten(2).mean(2)


def beside(x: Tensor, like: Tensor) -> Tensor:
    """[N, C] -> [N, C, 1, ...], to be multiplied with images."""
    return x.reshape(x.shape[0], -1, *[1] * (like.dim() - 2))
