"""Blocks in which channels go their ways: sums, concatenations, splits, slices, groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.inputs import conv


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
