"""Random small networks, written down in a line: `Spec`, and made of it: `Network`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from random_networks import layers, structures
from random_networks.place import Draw, Part, Place, conv, pooled, unit

PARTS: dict[str, type[Part]] = {
    cls.__name__.lower(): cls
    for module in (layers, structures)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, Part) and cls is not Part
}
SELDOM = {"literal", "chosen", "normalised", "stateful", "activated", "dropped", "cast"}
ENTRIES = ("one", "one", "one", "two", "named", "nested", "vector")
EXITS = ("one", "one", "one", "tuple", "dict", "nested", "features")
HEADS = ("pool", "pool", "flatten", "view", "conv", "two")
SIZES = {1: 8, 2: 8, 3: 4}
BATCH = 2


@dataclass(frozen=True)
class Spec:
    """A network in words. The parts are (name, seed); all else is drawn from these seeds."""

    parts: tuple[tuple[str, int], ...]
    dims: int = 2
    entry: str = "one"
    exit: str = "one"
    head: str = "pool"
    seed: int = 0

    def __str__(self) -> str:
        parts = " ".join(f"{name}:{seed}" for name, seed in self.parts)
        kinds = f"entry={self.entry} exit={self.exit} head={self.head}"
        return f"{self.dims}d {kinds} seed={self.seed} {parts}"

    @classmethod
    def parse(cls, text: str) -> Spec:
        """The opposite of `str`."""
        words = text.split()
        named = dict(word.split("=") for word in words if "=" in word)
        parts = tuple((w.split(":")[0], int(w.split(":")[1])) for w in words if ":" in w)
        return cls(
            parts, int(words[0][0]), named["entry"], named["exit"], named["head"],
            int(named["seed"]),
        )  # fmt: skip

    def simpler(self) -> list[Spec]:
        """The same with a part less, or with something plainer: what to try on a failure."""
        fewer = [
            replace(self, parts=self.parts[:i] + self.parts[i + 1 :])
            for i in range(len(self.parts))
        ]
        plainer = [
            replace(self, **{name: value})
            for name, value in {"entry": "one", "exit": "one", "head": "pool", "dims": 2}.items()
            if getattr(self, name) != value
        ]
        return [*fewer, *plainer]


def random_spec(seed: int) -> Spec:
    """The network of a seed."""
    draw = Draw(seed)
    names = [name for name in PARTS for _ in range(1 if name in SELDOM else 3)]
    parts = tuple((draw.choice(names), draw.randrange(1000)) for _ in range(draw.one(3, 4, 5, 6)))
    return Spec(
        parts,
        draw.one(1, 2, 2, 2, 2, 3) if draw.flag() else 2,
        draw.choice(ENTRIES),
        draw.choice(EXITS),
        draw.choice(HEADS),
        seed,
    )


class Network(nn.Module):
    """What a `Spec` says: a first layer, the parts one after another, and a head."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            self._build(spec)
            with torch.no_grad():
                _enliven(self)

    def _build(self, spec: Spec) -> None:
        draw = Draw(spec.seed + 1)
        self.entry, self.exit, self.kind = spec.entry, spec.exit, spec.head
        at = Place(spec.dims, 3, SIZES[spec.dims])
        wide = draw.width()
        self.stem = unit(at, wide, draw, kernel=3)
        if spec.entry in ("two", "named", "nested"):
            self.second = conv(at.wide(2), wide, draw)
        elif spec.entry == "vector":
            self.from_vector = nn.Linear(5, wide)
        past = [at := at.wide(wide)]
        self.parts = nn.ModuleList()
        for name, seed in spec.parts:
            part = PARTS[name](at, Draw(seed))
            if isinstance(part, structures.Skip):
                part.meet(at, past)
            past.append(at := part.out)
            self.parts.append(part)
        flat = at.channels * at.size**at.dims
        if spec.head in ("flatten", "view"):
            self.head: nn.Module = nn.Linear(flat, 3)
        elif spec.head == "conv":
            self.head = at.layer("Conv")(at.channels, 3, 1)
        else:
            self.head = nn.Linear(at.channels, 3)
        self.other = nn.Linear(at.channels, 2) if spec.head == "two" or spec.exit != "one" else None

    def forward(self, *args: Any, **named: Any) -> Any:
        return self._outputs(self._entered(*args, **named))

    def _entered(self, x: Any, y: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        if self.entry == "nested":
            x, y = x["image"], x["more"][0]
        z = self.stem(x)
        if y is None:
            return z
        if self.entry == "vector":
            return z + self.from_vector(y).reshape(z.shape[0], -1, *[1] * (z.dim() - 2))
        return z + scale * self.second(y)

    def _outputs(self, x: Tensor) -> Any:
        past, extra = [x], list[Tensor]()
        for part in self.parts:
            x = part(x, past, extra)
            past.append(x)
        if self.kind == "flatten":
            y = self.head(x.flatten(1))
        elif self.kind == "view":
            y = self.head(x.reshape(x.shape[0], -1))
        elif self.kind == "conv":
            y = self.head(x)
        else:
            y = self.head(pooled(x))
        outputs = [y, *extra]
        if self.other is not None:
            outputs.append(self.other(pooled(x)))
        if self.exit == "features":
            outputs.append(past[len(past) // 2])
        if self.exit == "dict":
            return {f"output {i}": one for i, one in enumerate(outputs)}
        if self.exit == "nested":
            return {"first": (outputs[0],), "rest": [{"more": outputs[1:]}]}
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _enliven(network: nn.Module) -> None:
    """Scales, shifts and statistics that differ by channel, so that a wrong channel shows."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.dim() == 1 and tensor.is_floating_point():
            low = -0.5 if name.endswith(("bias", "running_mean")) else 0.5
            tensor.uniform_(low, low + 1)


def example(spec: Spec, seed: int = 0) -> Any:
    """Example inputs of a network, as `trace` wants them."""
    generator = torch.Generator().manual_seed(seed)
    size = [SIZES[spec.dims]] * spec.dims

    def images(channels: int) -> Tensor:
        return torch.randn(BATCH, channels, *size, generator=generator)

    if spec.entry == "two":
        return images(3), images(2)
    if spec.entry == "named":
        return {"y": images(2), "x": images(3), "scale": 0.5}
    if spec.entry == "nested":
        return ({"image": images(3), "more": [images(2)]},)
    if spec.entry == "vector":
        return images(3), torch.randn(BATCH, 5, generator=generator)
    return (images(3),)
