"""Parts in which channels meet: sums, splits, gates, attention, shared and odd weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_networks.place import Draw, Part, Place, activation, beside, conv, norm, pooled, unit


class Residual(Part):
    """A basic or bottleneck block, its shortcut with a layer or without, scaled or in place."""

    def build(self, at: Place, draw: Draw) -> None:
        inner = draw.width()
        out = at.channels if draw.flag(0.6) else draw.width()
        self.body = nn.Sequential(
            unit(at, inner, draw), conv(at.wide(inner), out, draw), norm(at.wide(out), draw)
        )
        bare = out == at.channels
        self.shortcut = nn.Identity() if bare else conv(at, out, draw, kernel=1)
        self.how = draw.one("+", "+=", "scaled", "subtracted", "maximum")
        self.gamma = nn.Parameter(torch.ones(out, *[1] * at.dims)) if self.how == "scaled" else None
        self.last, self.out = activation(at.wide(out), draw), at.wide(out)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        y, x = self.body(x), self.shortcut(x)
        if self.how == "+=":
            y += x
        elif self.how == "scaled":
            y = x + self.gamma * y
        elif self.how == "subtracted":
            y = x - 0.5 * y
        elif self.how == "maximum":
            y = torch.maximum(x, y)
        else:
            y = x + y
        return self.last(y)


class Branches(Part):
    """Several layers on the same input, concatenated or summed or stacked."""

    def build(self, at: Place, draw: Draw) -> None:
        self.how = draw.one("concatenated", "summed", "stacked")
        count = draw.one(2, 3)
        wide = draw.one(4, 6)
        widths = [draw.one(2, 3, 4) if self.how == "concatenated" else wide for _ in range(count)]
        self.branches = nn.ModuleList(unit(at, width, draw) for width in widths)
        self.out = at.wide(sum(widths) if self.how == "concatenated" else wide)
        self.weights = nn.Parameter(torch.ones(count))

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        if self.how == "concatenated":
            return torch.cat(parts, 1)
        if self.how == "summed":
            return sum(part * w for part, w in zip(parts, self.weights.softmax(0), strict=True))
        return (torch.stack(parts, 1) * self.weights.view(1, -1, *[1] * (x.dim() - 1))).sum(1)


class Split(Part):
    """Halves by chunk, split, slices or steps, which go their own ways and meet again."""

    def build(self, at: Place, draw: Draw) -> None:
        half = draw.one(4, 5, 6)
        self.first = conv(at, 2 * half, draw)
        self.how = draw.one("chunk", "split", "narrow", "steps", "tensor_split", "unbind")
        self.end = draw.one("cat", "swap", "gate", "add", "glu")
        self.layer, self.norm = conv(at.wide(half), half, draw), norm(at.wide(half), draw)
        self.out = at.wide(2 * half if self.end in ("cat", "swap") else half)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        x = self.first(x)
        if self.end == "glu":
            return self.norm(self.layer(F.glu(x, 1)))
        half = x.shape[1] // 2
        if self.how == "chunk":
            a, b = x.chunk(2, 1)
        elif self.how == "split":
            a, b = x.split(half, 1)
        elif self.how == "narrow":
            a, b = x.narrow(1, 0, half), x[:, half:]
        elif self.how == "steps":
            a, b = x[:, ::2], x[:, 1::2]
        elif self.how == "tensor_split":
            a, b = x.tensor_split(2, 1)
        else:
            a, b = x.unflatten(1, (2, half)).unbind(1)
        b = self.norm(self.layer(b))
        if self.end == "cat":
            return torch.cat([a, b], 1)
        if self.end == "swap":
            return torch.cat([b, a.relu()], 1)
        return a * b.sigmoid() if self.end == "gate" else a + b


class Squeezed(Part):
    """Squeeze-and-excitation, with convolutions or linear layers."""

    def build(self, at: Place, draw: Draw) -> None:
        self.linear, hidden = draw.flag(), draw.one(2, 4)
        if self.linear:
            self.down, self.up = nn.Linear(at.channels, hidden), nn.Linear(hidden, at.channels)
        else:
            self.down = at.layer("Conv")(at.channels, hidden, 1)
            self.up = at.layer("Conv")(hidden, at.channels, 1)
        self.gate = draw.one(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh)()

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        y = pooled(x) if self.linear else beside(pooled(x), x)
        y = self.gate(self.up(F.relu(self.down(y))))
        return x * (beside(y, x) if self.linear else y)


class Modulated(Part):
    """A scale and a shift of each channel, computed by one layer from an earlier map."""

    def build(self, at: Place, draw: Draw) -> None:
        self.first = conv(at, at.channels, draw)
        self.compute = nn.Linear(at.channels, 2 * at.channels)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        scale, shift = self.compute(pooled(x)).chunk(2, -1)
        return self.first(x) * (1 + beside(scale, x)) + beside(shift, x)


class Masked(Part):
    """One map of weights for all channels, out of their mean and maximum, or of a layer."""

    def build(self, at: Place, draw: Draw) -> None:
        self.of_statistics = draw.flag(0.3)
        self.mask = conv(at.wide(2 if self.of_statistics else at.channels), 1, draw, kernel=3)
        self.after = conv(at, draw.width(), draw)
        self.out = at.wide(self.after.out_channels)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        y = x
        if self.of_statistics:
            y = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.after(x * self.mask(y).sigmoid())


class Attention(Part):
    """Pixels as tokens: attention by hand, by torch's function or by its module; then an MLP."""

    def build(self, at: Place, draw: Draw) -> None:
        wide, hidden = draw.one(4, 8), draw.one(6, 8)
        self.enter = conv(at, wide, draw, kernel=1)
        self.kind, self.heads = draw.one("hand", "function", "module", "none"), draw.one(1, 2)
        self.literal = draw.flag(0.3)
        self.wide, self.out = wide, at.wide(wide)
        self.norm = nn.LayerNorm(wide) if draw.flag() else nn.Identity()
        if self.kind == "module":
            self.attend = nn.MultiheadAttention(wide, self.heads, batch_first=True)
        else:
            self.qkv, self.project = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
        self.up, self.down = nn.Linear(wide, hidden), nn.Linear(hidden, wide)

    def attended(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            return self.attend(x, x, x, need_weights=False)[0]
        n, length, channels = x.shape
        channels = self.wide if self.literal else channels
        head = (self.wide if self.literal else self.qkv.out_features // 3) // self.heads
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, head).permute(2, 0, 3, 1, 4)
        if self.kind == "hand":
            y = (q @ k.transpose(-2, -1) * head**-0.5).softmax(-1) @ v
        elif self.kind == "function":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = q * k.sigmoid() + v
        return self.project(y.transpose(1, 2).reshape(n, length, -1))

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        x = self.enter(x)
        size = x.shape[2:]
        y = x.flatten(2).transpose(1, 2)
        y = y + self.attended(self.norm(y))
        y = y + self.down(F.gelu(self.up(y)))
        return y.transpose(1, 2).reshape(x.shape[0], -1, *size)


class Tokens(Part):
    """Layers on permuted images, as in ConvNeXt; or a recurrent one over the pixels."""

    def build(self, at: Place, draw: Draw) -> None:
        wide = at.channels
        self.kind = draw.one("last", "flat", "recurrent", "einsum")
        self.up = nn.Linear(wide, draw.width())
        self.down = nn.Linear(self.up.out_features, wide)
        if self.kind == "recurrent":
            cell = draw.one(nn.GRU, nn.LSTM, nn.RNN)
            self.cell = cell(wide, self.up.in_features, batch_first=True)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        if self.kind == "last":
            return x + self.down(F.gelu(self.up(x.movedim(1, -1)))).movedim(-1, 1)
        if self.kind == "einsum":
            y = torch.einsum("nc...,dc->nd...", x, self.up.weight).relu()
            return torch.einsum("nd...,cd->nc...", y, self.down.weight)
        y = x.flatten(2).transpose(1, 2)
        if self.kind == "recurrent":
            y = self.cell(y)[0]
        y = self.down(self.up(y).relu())
        return y.transpose(1, 2).reshape(x.shape)


class Shared(Part):
    """Layers and weights that are used more than once."""

    def build(self, at: Place, draw: Draw) -> None:
        self.kind = draw.one("in a row", "branches", "weight", "transposed", "norm")
        if self.kind == "transposed":
            self.matrix = nn.Linear(at.channels, draw.width())
            return
        self.layer = at.layer("Conv")(at.channels, at.channels, 3, padding=1)
        if self.kind in ("in a row", "norm"):
            self.norm = norm(at, draw)
        if self.kind in ("weight", "norm"):
            self.other = at.layer("Conv")(at.channels, at.channels, 3, padding=1)
        if self.kind == "weight":
            self.other.weight = self.layer.weight

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        if self.kind == "in a row":
            return self.layer(self.norm(self.layer(x)).relu())
        if self.kind == "branches":
            return torch.cat([self.layer(x), self.layer(x.relu())], 1).unflatten(1, (2, -1)).sum(1)
        if self.kind == "weight":
            return self.layer(x) + self.other(x.relu())
        if self.kind == "norm":
            return self.norm(self.layer(x)) * self.norm(self.other(x)).sigmoid()
        y = self.matrix(x.movedim(1, -1)).relu()
        return F.linear(y, self.matrix.weight.t()).movedim(-1, 1)


class Weights(Part):
    """Weights that are no layer's: parameters, buffers, plain tensors, computed ones."""

    def build(self, at: Place, draw: Draw) -> None:
        self.kind = draw.one(
            "parameter", "blur", "plain", "plain kernel", "gain", "computed", "position", "standard"
        )
        wide, ones, out = at.channels, [1] * at.dims, draw.width()
        kernel = torch.randn(out, wide, *[3] * at.dims) * 0.2
        scale = torch.rand(1, wide, *ones) + 0.5
        if self.kind in ("parameter", "computed", "standard"):
            self.weight = nn.Parameter(kernel)
        if self.kind in ("computed", "gain"):
            self.scale = nn.Parameter(scale)
        if self.kind == "plain":
            self.plain = scale[0]
        elif self.kind == "plain kernel":
            self.plain = kernel
        elif self.kind == "blur":
            self.register_buffer("blur", torch.rand(wide, 1, *[3] * at.dims))
        elif self.kind == "gain":
            self.register_buffer("gain", scale.clone(), persistent=draw.flag())
        elif self.kind == "position":
            self.embedding = nn.Parameter(torch.randn(1, wide, *[at.size] * at.dims))
        changes = ("parameter", "computed", "standard", "plain kernel")
        self.out = at.wide(out) if self.kind in changes else at

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
        if self.kind == "parameter":
            return convolve(x, self.weight, padding=1)
        if self.kind == "blur":
            return convolve(x, self.blur, padding=1, groups=x.shape[1])
        if self.kind == "plain":
            return x * self.plain
        if self.kind == "plain kernel":
            return convolve(x, self.plain, padding=1)
        if self.kind == "gain":
            return x * self.scale.sigmoid() + self.gain
        if self.kind == "computed":
            return convolve(x, self.weight * self.scale.exp(), padding=1)
        if self.kind == "position":
            return x + self.embedding
        w = self.weight
        over = tuple(range(1, w.dim()))
        return convolve(x, (w - w.mean(over, keepdim=True)), padding=1)


class ForTraining(Part):
    """What runs only in training: a path, another output, a loss that is kept, noise."""

    def build(self, at: Place, draw: Draw) -> None:
        self.kind = draw.one("path", "output", "kept", "noise", "evaluation only")
        if self.kind in ("path", "output"):
            self.side = unit(at, at.channels, draw)
        if self.kind in ("output", "kept"):
            self.head = nn.Linear(at.channels, 2)
        self.loss: Tensor | None = None

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        if self.kind == "evaluation only":
            return x if self.training else x * 2
        if not self.training:
            return x
        if self.kind == "path":
            return x + self.side(x)
        if self.kind == "noise":
            return x + 0.1 * torch.randn_like(x)
        if self.kind == "output":
            extra.append(self.head(pooled(self.side(x))))
        else:
            self.loss = self.head(pooled(x)).sum()
        return x


class Stateful(Part):
    """Writes to itself when it runs: a map, a count, a cache of positions."""

    def build(self, at: Place, draw: Draw) -> None:
        self.kind = draw.one("map", "count", "cache", "list")
        self.seen: Tensor | None = None
        self.maps: list[Tensor] = []
        self.cache: dict[int, Tensor] = {}
        if self.kind == "count":
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        if self.kind == "map":
            self.seen = x.detach()
        elif self.kind == "count":
            self.calls += 1
        elif self.kind == "list":
            self.maps.append(x.detach())
        else:
            if x.shape[-1] not in self.cache:
                self.cache[x.shape[-1]] = torch.linspace(0, 1, x.shape[-1])
            x = x + self.cache[x.shape[-1]].to(x.dtype)
        return x


class Skip(Part):
    """An earlier part's map, brought to this size, concatenated or added."""

    def build(self, at: Place, draw: Draw) -> None:
        self.back, self.add = draw.one(2, 3, 4), draw.flag()
        self.lazy_draw = draw
        self.layer: nn.Module | None = None

    def meet(self, at: Place, past: list[Place]) -> None:
        """Makes the layer for what is there to be met."""
        draw, other = self.lazy_draw, past[-min(self.back, len(past))]
        del self.lazy_draw
        out = at.channels if self.add else draw.one(4, 6)
        self.direct = other.channels == at.channels and self.add
        self.layer = None if self.direct else conv(other.wide(other.channels), out, draw, kernel=1)
        self.out = at if self.add else at.wide(at.channels + out)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        other = past[-min(self.back, len(past))]
        if other.shape[2:] != x.shape[2:]:
            other = F.interpolate(other, size=x.shape[2:])
        if self.layer is not None:
            other = self.layer(other)
        return x + other if self.add else torch.cat([x, other], 1)


class Chosen(Part):
    """Channels chosen by positions: a permutation that is a buffer, a literal slice, a repeat."""

    def build(self, at: Place, draw: Draw) -> None:
        self.kind = draw.one("permuted", "literal", "repeated", "flipped", "softmax", "padded")
        order = draw.ordered(range(at.channels))
        if self.kind == "permuted":
            self.register_buffer("order", torch.tensor(order))
        self.first = conv(at, at.channels, draw)
        self.count = draw.one(1, 2)
        wide = {"repeated": 2 * at.channels, "padded": at.channels + 2}.get(self.kind, at.channels)
        self.after = conv(at.wide(wide), draw.width(), draw)
        self.out = at.wide(self.after.out_channels)

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        y = self.first(x)
        if self.kind == "permuted":
            y = y.index_select(1, self.order)
        elif self.kind == "literal":
            y = torch.cat([y[:, self.count :], y[:, : self.count].relu()], 1)
        elif self.kind == "repeated":
            y = torch.cat([y, y], 1) if self.count == 1 else y.repeat_interleave(2, 1)
        elif self.kind == "flipped":
            y = y.flip(1)
        elif self.kind == "softmax":
            y = y.softmax(1)
        else:
            y = F.pad(y, (0, 0) * (y.dim() - 2) + (1, 1))
        return self.after(y)


class Literal(Part):
    """Sizes written in the source, which a smaller network does not have."""

    def build(self, at: Place, draw: Draw) -> None:
        self.layer, self.channels = conv(at, at.channels, draw), at.channels
        self.after = conv(at, draw.width(), draw)
        self.out = at.wide(self.after.out_channels)
        self.kind = draw.one("view", "zeros", "expand")

    def forward(self, x: Tensor, past: list[Tensor], extra: list[Tensor]) -> Tensor:
        y = self.layer(x)
        if self.kind == "view":
            y = (
                y.reshape(y.shape[0], self.channels, -1)
                .relu()
                .reshape(x.shape[0], -1, *x.shape[2:])
            )
        elif self.kind == "zeros":
            y = y + torch.ones(1, self.channels, *[1] * (x.dim() - 2), dtype=x.dtype)
        else:
            y = y + y.mean(1, keepdim=True).expand(-1, self.channels, *[-1] * (x.dim() - 2))
        return self.after(y)
