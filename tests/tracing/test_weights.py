"""Weights that are no parameters of a layer: buffers, plain tensors, and what is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, image
from plans import pruned_right, random_plan
from torch import Tensor, nn

from mdcp_fast.planning.search import search
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.serialization import load, save
from mdcp_fast.tracing.trace import trace


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Blur(nn.Module):
    """A fixed filter for each channel, held in one way or another."""

    kernel: Tensor

    def __init__(self, held: str, made: Callable[[Tensor, int], Tensor] = lambda k, _: k) -> None:
        super().__init__()
        self.a, self.b, self.head, self.made = conv(3, 8), conv(8, 5), conv(5, 2), made
        kernel = torch.rand(8 if held != "one" else 1, 1, 3, 3)
        if held == "plain":
            self.kernel = kernel
        else:
            self.register_buffer("kernel", kernel, persistent=held != "not saved")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        kernel = self.made(self.kernel, x.shape[1])
        x = F.conv2d(x, kernel, padding=1, groups=kernel.shape[0])
        return self.head(F.relu(self.b(x)))


@pytest.mark.parametrize("held", ["saved", "not saved", "plain"])
def test_a_fixed_filter_shrinks_with_its_channels(held: str, tmp_path: Path) -> None:
    graph = pruned_right(Blur(held), image(), {"a": 8, "b": 5})
    assert "written by a, kernel" in str(graph)
    assert graph.params == sum(p.numel() for p in graph.model.parameters())
    assert graph.macs == 2 * 36 * 9 * (3 * 8 + 8 + 8 * 5 + 5 * 2)
    plan = search(graph, macs=0.5)
    small = prune(graph, plan)
    assert small.kernel.shape[0] == small.a.out_channels < 8
    save(tmp_path / "small", small, plan)

    def dense() -> nn.Module:
        torch.manual_seed(0)
        return Blur(held)

    loaded = load(tmp_path / "small", dense)
    assert torch.equal(loaded(image()), small(image()))


MADE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "expand": lambda k, c: k.expand(c, -1, -1, -1),
    "repeat": lambda k, c: k.repeat(c, 1, 1, 1),
    "cat": lambda k, c: torch.cat([k] * c),
    "row and column": lambda k, c: (k[0, 0, 0][:, None] * k[0, 0, 1]).expand(c, 1, 3, 3),
    "normalised": lambda k, c: (k / k.sum()).expand(c, 1, 3, 3),
}


@pytest.mark.parametrize("made", MADE)
def test_a_filter_made_for_as_many_channels_as_there_are_follows_them(made: str) -> None:
    graph = pruned_right(Blur("one", MADE[made]), image(), {"a": 8, "b": 5})
    assert graph.macs == 2 * 36 * 9 * (3 * 8 + 8 + 8 * 5 + 5 * 2)


def test_a_filter_of_a_size_written_in_the_source_keeps_its_channels() -> None:
    graph = trace(Blur("one", lambda k, _: k.expand(8, 1, 3, 3)).eval(), image())
    assert [axis.name for axis in graph.axes] == ["b"]
    assert {one.name for one in graph.fixed} == {"a", "head"}


@pytest.mark.parametrize("plain", [True, False])
def test_a_plain_weight_of_a_linear_layer(plain: bool) -> None:
    class Projected(nn.Module):
        weight: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(5, 8), nn.Linear(6, 2)
            if plain:
                self.weight = torch.randn(6, 8)
            else:
                self.register_buffer("weight", torch.randn(6, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(F.linear(F.relu(self.a(x)), self.weight)))

    pruned_right(Projected(), torch.randn(3, 5), {"a": 8, "weight": 6})


def test_a_plain_tensor_that_is_added_shrinks() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head, self.mean = conv(3, 8), conv(8, 2), torch.randn(1, 8, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x) - self.mean)

    graph = pruned_right(Centred(), image(), {"a": 8})
    assert prune(graph, random_plan(graph)).mean.shape[1] < 8
    assert graph.model.mean.shape == (1, 8, 1, 1)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_layer_whose_weight_is_a_buffer(transposed: bool) -> None:
    layer = nn.ConvTranspose2d(8, 6, 2, stride=2) if transposed else conv(8, 6)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    model = nn.Sequential(conv(3, 8), nn.ReLU(), layer, nn.ReLU(), conv(6, 2))
    pruned_right(model, image(), {"0": 8, "2": 6})


class Computed(nn.Module):
    """A convolution whose weight is computed of parameters."""

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.compute = conv(3, 8), conv(8, 6), conv(6, 2), compute
        self.gain = nn.Parameter(torch.rand(6, 1, 1, 1) + 0.5)
        self.b.register_buffer("mask", (torch.rand(6, 8, 3, 3) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.compute(self.b.weight, self.gain) * self.b.mask
        return self.head(F.relu(F.conv2d(F.relu(self.a(x)), weight, self.b.bias, padding=1)))


def standardised(w: Tensor, _: Tensor) -> Tensor:
    centred = w - w.mean((1, 2, 3), keepdim=True)
    return centred / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()


COMPUTED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, int]]] = {
    "masked": (lambda w, _: w, {"a": 8, "b": 6}),
    "rectified": (lambda w, g: F.relu(w) * g, {"a": 8, "b": 6}),
    "equalised": (lambda w, _: w * 0.1, {"a": 8, "b": 6}),
    "taps of norm 1": (lambda w, g: g * F.normalize(w, dim=(2, 3)), {"a": 8, "b": 6}),
    "outputs of norm 1": (
        lambda w, g: g * w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-5).sqrt(),
        {"a": 8, "b": 6},
    ),
    "divided by its norm": (
        lambda w, g: g * w / torch.linalg.vector_norm(w, dim=(1, 2, 3), keepdim=True),
        {"a": 8},
    ),
    "standardised": (standardised, {"b": 6}),
    "turned and back": (lambda w, _: w.permute(2, 3, 0, 1).permute(2, 3, 0, 1), {"a": 8, "b": 6}),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_has_the_channels_of_its_parameters(name: str) -> None:
    compute, axes = COMPUTED[name]
    graph = pruned_right(Computed(compute), image(), axes)
    assert graph.macs == 2 * 36 * 9 * (3 * 8 + 8 * 6 + 6 * 2)


def test_a_standardised_weight_mixes_its_inputs() -> None:
    graph = trace(Computed(standardised).eval(), image(), allow_inexact=True)
    assert {axis.name: axis.exact for axis in graph.axes} == {"a": False, "b": True}


@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["hook", "new"]
)
def test_weight_norm_frees_what_the_layer_reads(norm: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), norm(conv(8, 6)), nn.ReLU(), conv(6, 2))
    pruned_right(model, image(), {"0": 8})


class Fused(nn.Module):
    """Features weighted by parameters that passed some op on the way."""

    def __init__(self, fuse: Callable[[Tensor, Tensor, nn.ParameterDict], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.fuse = conv(3, 6), conv(3, 6), conv(6, 2), fuse
        shapes = {"two": (2,), "each": (2, 6, 1, 1), "place": (1, 6, 6, 6), "channel": (6,)}
        self.by = nn.ParameterDict({n: nn.Parameter(torch.rand(s)) for n, s in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.fuse(self.a(x), self.b(x), self.by)))


FUSED: dict[str, Callable[[Tensor, Tensor, nn.ParameterDict], Tensor]] = {
    "weighted sum": lambda a, b, by: (
        (F.relu(by["two"]) / (F.relu(by["two"]).sum() + 1e-4))[0] * a + F.relu(by["two"])[1] * b
    ),
    "weighted stack": lambda a, b, by: (
        torch.stack([a, b], 1) * by["two"].softmax(0).view(1, 2, 1, 1, 1)
    ).sum(1),
    "weighted last": lambda a, b, by: (torch.stack([a, b], -1) * F.relu(by["two"])).sum(-1),
    "of each channel": lambda a, b, by: by["each"][0] * a + by["each"][1] * b,
    "unbound": lambda a, b, by: by["each"].unbind(0)[0] * a + b,
    "of each place": lambda a, b, by: a + b + torch.tanh(by["place"]),
    "exponential": lambda a, b, by: a + b * by["channel"].exp().view(1, -1, 1, 1),
}


@pytest.mark.parametrize("name", FUSED)
def test_parameters_that_passed_an_op_leave_the_channels_free(name: str) -> None:
    model = Fused(FUSED[name])
    graph = trace(model.eval(), image())
    assert [(axis.name, axis.channels) for axis in graph.axes] == [("a", 6)], graph
