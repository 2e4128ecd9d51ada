"""Blocks with what is not, or only partly, to be pruned, and unusual layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.inputs import conv


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
