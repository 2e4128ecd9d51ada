"""Small networks, one for each way in which channels hang together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def image(channels: int = 3, size: int = 6, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, 8, bias=False), nn.BatchNorm2d(8)
        self.a, self.bn_a, self.b = conv(8, 6), nn.BatchNorm2d(6), conv(6, 8)
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.b(F.relu(self.bn_a(self.a(x))))
        return self.head(F.relu_(x))


class DenseConcatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn, self.c = conv(3, 5), conv(5, 4), nn.BatchNorm2d(9), conv(9, 6)
        self.head = conv(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        ab = torch.cat([a, self.b(F.relu(a))], 1)
        return self.head(torch.cat([ab, self.c(F.relu(self.bn(ab)))], 1))


class NestedConcatenation(nn.Module):
    """Concatenations of concatenations, in several orders, with an addition across them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(3, 4), conv(3, 8)
        self.head = conv(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x)
        left = torch.cat([a, b], 1) + c
        return self.head(torch.cat([torch.cat([b, a], 1), left], 1))


class C2f(nn.Module):
    """YOLOv8: a layer's output chunked, one chunk refined, all of them concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(3, 8, 1), conv(16, 5, 1)
        self.m = nn.ModuleList(nn.Sequential(conv(4, 6), nn.SiLU(), conv(6, 4)) for _ in range(2))
        self.head = conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            y.append(y[-1] + m(y[-1]))
        return self.head(F.silu(self.cv2(torch.cat(y, 1))))


class SplitBySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(4, 4), conv(4, 4), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).split((4, 4), 1)
        return self.head(torch.cat([self.b(left), self.c(right)], 1))


class HalfSlices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(4, 6), conv(4, 6), conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.head(self.b(a[:, :4]) + self.c(a[:, 4:]))


class ChannelShuffle(nn.Module):
    def __init__(self, native: bool = False) -> None:
        super().__init__()
        self.a, self.b = conv(3, 12), conv(12, 8, groups=2)
        self.head = conv(8, 2)
        self.native = nn.ChannelShuffle(2) if native else None

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        if self.native is not None:
            a = self.native(a)
        else:
            n, c, h, w = a.shape
            a = a.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.b(a)))


class PixelShuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(4, 6), conv(24, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.pixel_shuffle(self.a(x), 2))
        return self.head(self.c(F.pixel_unshuffle(F.relu(x), 2)))


class Depthwise(nn.Module):
    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        self.a = conv(3, 6)
        self.dw, self.bn = conv(6, 6 * multiplier, groups=6), nn.BatchNorm2d(6 * multiplier)
        self.head = conv(6 * multiplier, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu6(self.bn(self.dw(self.a(x)))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 12), conv(12, 8, groups=4), conv(8, 12, groups=2)
        self.head = conv(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(self.a(x))))))


class SqueezeExcitation(nn.Module):
    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.a, self.head = conv(3, 8), conv(8, 2)
        self.down = nn.Linear(8, 4) if linear else conv(8, 4, 1)
        self.up = nn.Linear(4, 8) if linear else conv(4, 8, 1)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        s = a.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(a, 1)
        s = torch.sigmoid(self.up(F.relu(self.down(s))))
        return self.head(a * (s[:, :, None, None] if self.linear else s))


class ZeroPaddedShortcut(nn.Module):
    """ResNet-20 for CIFAR: a shortcut widened by zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 4), conv(4, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.head(F.relu(self.b(a) + F.pad(a, (0, 0, 0, 0, 2, 2))))


class SharedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared, self.head = conv(3, 6), conv(3, 6), conv(6, 5), conv(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.shared(self.a(x)), self.shared(F.relu(self.b(x)))], 1))


class SharedWeights(nn.Module):
    """Two layers with one weight, and a decoder with its encoder's weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(6, 6), conv(6, 6)
        self.encode, self.decode = conv(6, 4), nn.ConvTranspose2d(4, 6, 3, padding=1)
        self.head = conv(6, 2)
        self.c.weight = self.b.weight
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.relu(self.b(self.a(x))))
        return self.head(self.decode(F.relu(self.encode(x))))


class Transposed(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.a, self.bn = conv(3, 8), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups)
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.up(self.a(x)))))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.mid = conv(3, 4), conv(4, 6), conv(6, 8)
        self.up2, self.dec2 = nn.ConvTranspose2d(8, 6, 2, stride=2), conv(12, 6)
        self.dec1, self.head = conv(10, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = F.relu(self.enc1(x))
        two = F.relu(self.enc2(F.max_pool2d(one, 2)))
        mid = F.relu(self.mid(F.avg_pool2d(two, 2)))
        two = self.dec2(torch.cat([self.up2(mid), two], 1))
        up = F.interpolate(two, scale_factor=2, mode="bilinear")
        return self.head(self.dec1(torch.cat([one, up], 1)))


class GroupNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gn, self.b, self.head = conv(3, 8), nn.GroupNorm(2, 8), conv(8, 6), conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.gn(self.a(x))))))


class LayerNormPermuted(nn.Module):
    """ConvNeXt's block: LayerNorm over channels, an inner axis, and a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw = conv(3, 6), conv(6, 6, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.head = conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head(x + self.scale * y)


class FlattenLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(3, 3)
        self.fc, self.head = nn.Linear(7 * 36, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.head(F.relu(self.fc(torch.flatten(F.relu(x), 1))))


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(6, 8), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        x = a.view(a.shape[0], a.shape[1] // 2, 2, *a.shape[2:]).amax(2)
        left, right = self.b(x).chunk(2, 1)
        return self.head(torch.maximum(left, right))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 12), conv(6, 10), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.b(F.glu(self.a(x), 1)).chunk(2, 1)
        return self.head(value * torch.sigmoid(gate))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attention = conv(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class HandWrittenAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.out = conv(3, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(n, length, 8)
        x = x + self.out(mixed)
        return self.head(x.mean(1))


class ChannelSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).softmax(1)))


class ParameterMultiplied(nn.Module):
    """Parameters of channels, of positions, and of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 6), conv(6, 2)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.column = nn.Parameter(torch.rand(6))
        self.embedding = nn.Parameter(torch.rand(1, 6, 6, 6))
        self.temperature = nn.Parameter(torch.rand(()))
        self.register_buffer("gain", torch.rand(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * torch.sigmoid(self.scale) * self.gain + self.embedding
        return self.head(x * self.column * self.temperature)


class SeveralOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 5), conv(5, 4), conv(4, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        a = self.a(x)
        b = self.b(F.relu(a))
        return {"features": b, "heads": (self.head(self.c(b)), self.c(b).mean())}


class SeveralInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(2, 6), conv(6, 2)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(F.relu(self.a(x) + scale * self.b(y)))


class MeetsTheInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 3), conv(3, 5), conv(8, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(torch.cat([self.b(x), x + self.a(x)], 1))))


class SpatialAttention(nn.Module):
    """CBAM: one channel that is broadcast over the others, made of their mean and maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mask = conv(3, 6), conv(6, 5), conv(2, 1)
        self.head = conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        mask = self.mask(torch.cat([a.mean(1, keepdim=True), a.amax(1, keepdim=True)], 1))
        return self.head(self.b(a * torch.sigmoid(mask)))


class ExpandedChannel(nn.Module):
    """A single channel expanded to a size that is written in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.b, self.head = conv(3, 6), conv(3, 1), conv(6, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x) + self.one(x).expand(-1, 6, -1, -1)))


class Stacked(nn.Module):
    """Selective kernels: branches stacked, weighted by a softmax over the branches, and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 6), conv(3, 6, 1), conv(6, 12, 1)
        self.head = conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.a(x), self.b(x)], 1)
        s = self.fc(F.adaptive_avg_pool2d(y.sum(1), 1))
        s = s.view(s.shape[0], 2, s.shape[1] // 2, 1, 1).softmax(1)
        return self.head((y * s).sum(1))


class LiteralView(nn.Module):
    """Sizes written into a view: nothing in the captured graph tells, only the check."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.head = conv(3, 6), conv(6, 4), nn.Linear(4, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x))).reshape(-1, 4, 36).transpose(1, 2)
        return self.head(self.fc(x).transpose(1, 2).unflatten(2, (6, 6)))


class LiteralViewThatFits(nn.Module):
    """With half the channels the view still runs, on half as many images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.a(x), 1).reshape(-1, 8)
        return self.head(F.relu(self.b(x))).mean(0)


class WrittenInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(3, 4), conv(8, 6), conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        a[:, :4] += self.b(x)
        c = self.c(F.relu(a))
        c[:, 2:4] = 0
        return self.head(c)


class Functional(nn.Module):
    """A weight that is used without a layer, and one that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv(3, 6), conv(5, 2)
        self.weight = nn.Parameter(torch.randn(5, 6, 3, 3))
        self.computed = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        a = F.conv2d(self.a(x), self.weight, padding=1)
        scale = (self.computed @ self.computed.mT).mean()
        return self.head(a * scale)


class OddPadding(nn.Module):
    """Channels cut off, mirrored, rolled and repeated by positions written in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 6), conv(4, 6), conv(6, 4), conv(8, 6)
        self.head = conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.pad(self.a(x), (0, 0, 0, 0, 0, -2)))
        x = self.c(x.roll(1, 1)).repeat(1, 2, 1, 1)
        return self.head(self.d(x).flip(1))


class Normalisations(nn.Module):
    """BatchNorm without affine parameters, InstanceNorm, PReLU, LocalResponseNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = conv(3, 6), nn.BatchNorm2d(6, affine=False)
        self.b, self.norm = conv(6, 5), nn.InstanceNorm2d(5, affine=True)
        self.c, self.act = conv(5, 6), nn.PReLU(6)
        self.d, self.lrn = conv(6, 8), nn.LocalResponseNorm(3)
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.bn(self.a(x))))
        return self.head(self.lrn(self.d(self.act(self.c(x)))))


class SigmoidBetween(nn.Module):
    """An activation that does not keep zero: what reads the channel loses it all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cos(self.b(torch.sigmoid(self.a(x)) + 1)))


class OneDimension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = (
            nn.Conv1d(3, 6, 3),
            nn.BatchNorm1d(6),
            nn.Conv1d(6, 4, 3, groups=2),
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.a(x.flatten(2))))
        return self.head(F.adaptive_max_pool1d(self.b(x), 1).squeeze(-1))


class ThreeDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.up, self.head = nn.ConvTranspose3d(6, 4, 2, stride=2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.bn(self.a(x.unsqueeze(2))), (1, 2, 2))
        return self.head(self.up(x).mean((2, 3, 4)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 4), conv(4, 6)
        self.lstm, self.up, self.head = nn.LSTM(6, 5), nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x))).flatten(2).permute(2, 0, 1)
        return self.head(F.relu(self.up(self.lstm(x)[0].mean(0))))


class Reparametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), conv(6, 6), conv(6, 5), conv(5, 2)
        nn.utils.parametrizations.weight_norm(self.a)
        nn.utils.parametrizations.spectral_norm(self.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))


class OldWeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 2)
        nn.utils.weight_norm(self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class SampledAt(nn.Module):
    """A network that says where to sample its own features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grid, self.b, self.head = conv(3, 6), conv(3, 2), conv(6, 5), conv(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.tanh(self.grid(x)).permute(0, 2, 3, 1)
        return self.head(self.b(F.grid_sample(self.a(x), grid, align_corners=False)))


class TrainingHead(nn.Module):
    """An auxiliary head that runs in training mode only, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux, self.head = conv(3, 6), conv(6, 5), conv(6, 2), conv(5, 2)
        self.unused = conv(3, 4)

    def forward(self, x: Tensor) -> Any:
        a = F.relu(self.a(x))
        out = self.head(F.relu(self.b(a)))
        return (out, self.aux(a)) if self.training else out


class ComplexState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 5), conv(5, 2)
        self.register_buffer("phase", torch.randn(6, 4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(self.a(x)) * self.phase
        return self.head(F.relu(self.b(torch.fft.irfft2(spectrum, s=x.shape[2:]))))


class LinearOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Linear(9, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(2).flatten(1)[:, :12]
        return self.head(torch.tanh(self.b(F.relu(self.bn(self.a(x))))))


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
    "split by size": Block(SplitBySize, {"b": 4, "c": 4}, {"a": WRITTEN, **HEAD}),
    "half slices": Block(HalfSlices, {"b": 6}, {"a": WRITTEN, **HEAD}),
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
    "GroupNorm": Block(GroupNorm, {"b": 6}, {"a": "GroupNorm", **HEAD}, mixed={"a": 4}),
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
    "written in place": Block(WrittenInPlace, {}, {"a": WRITTEN, "c": WRITTEN, **HEAD}),
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
