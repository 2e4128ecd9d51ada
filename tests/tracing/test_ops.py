"""Ops between layers: what they leave free, tie, or keep, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, image
from plans import pruned_right
from torch import Tensor, nn

from mdcp_fast.tracing.trace import trace


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Between(nn.Module):
    """An op between two convolutions, of 8 and of `reads` channels."""

    def __init__(self, op: Callable[[Tensor], Tensor], reads: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.head, self.op = conv(3, 8), conv(reads, 5), conv(5, 2), op

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.op(self.a(x)))))


def half(x: Tensor) -> int:
    return x.shape[1] // 2


def add_to_half(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, : half(x)] += 1
    return x


PARTS: dict[str, Callable[[Tensor], Any]] = {
    "split": lambda x: x.split(half(x), 1),
    "split by sizes": lambda x: x.split([half(x), half(x)], 1),
    "tensor_split": lambda x: torch.tensor_split(x, 2, 1),
    "tensor_split at": lambda x: torch.tensor_split(x, (half(x),), 1),
    "hsplit": lambda x: torch.hsplit(x, 2),
    "slices": lambda x: (x[:, : half(x)], x[:, half(x) :]),
    "narrow": lambda x: (x.narrow(1, 0, half(x)), x.narrow(1, half(x), half(x))),
    "unflatten": lambda x: nn.Unflatten(1, (2, half(x)))(x).unbind(1),
}


@pytest.mark.parametrize("name", PARTS)
def test_equal_parts_whose_sizes_follow_are_pruned_as_chunks(name: str) -> None:
    def swapped(x: Tensor) -> Tensor:
        first, second = PARTS[name](x)
        return torch.cat([F.relu(second), first], 1)

    pruned_right(Between(swapped), image(), {"a": 4, "b": 5})


def test_a_half_alone_and_one_written_in_place() -> None:
    pruned_right(Between(lambda x: x[:, : half(x)], 4), image(), {"a": 4, "b": 5})
    pruned_right(Between(add_to_half), image(), {"a": 4, "b": 5})


def test_parts_of_a_size_written_in_the_source_stay_with_the_line() -> None:
    graph = trace(Between(lambda x: x.split(4, 1)[1], 4).eval(), image())
    assert [axis.name for axis in graph.axes] == ["b"]
    reasons = {one.name: one.reason for one in graph.fixed}
    assert "sizes written in the source: split" in reasons["a"]


FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "normalize": lambda x: F.normalize(x, dim=1),
    "sum": lambda x: x * torch.sigmoid(x.sum(1, keepdim=True)),
    "sum of what keeps zeros": lambda x: x * F.relu(x).square().sum(1, keepdim=True),
    "norm": lambda x: x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1),
    "unfold and fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1),
    "unfold rows": lambda x: x.unfold(2, 3, 1).mean(-1),
    "tile": lambda x: x.tile(1, 1, 2, 1)[:, :, :6],
    "repeat_interleave": lambda x: x.repeat_interleave(2, 2),
    "flip": lambda x: x.flip(2),
    "topk": lambda x: x.flatten(2).topk(4, -1)[0].unflatten(2, (2, 2)),
    "sort": lambda x: x.sort(3, descending=True)[0],
    "cumsum": lambda x: x.cumsum(2),
    "gather": lambda x: x.gather(3, x.argsort(3)),
    "index": lambda x: x[:, :, [2, 0, 1]],
    "index_select": lambda x: x.index_select(3, torch.tensor([1, 1, 0])),
}


@pytest.mark.parametrize("name", FREE)
def test_ops_that_leave_each_channel_to_itself(name: str) -> None:
    pruned_right(Between(FREE[name]), image(), {"a": 8, "b": 5})


def test_channels_repeated_one_by_one() -> None:
    model = Between(lambda x: x.repeat_interleave(2, 1), 16)
    pruned_right(model, image(), {"a": 8, "b": 5})


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "sum of what keeps no zeros": lambda x: x * torch.sigmoid(x).sum(1, keepdim=True),
    "maximum": lambda x: x * x.amax(1, keepdim=True),
}


@pytest.mark.parametrize("name", MIXING)
def test_reductions_that_change_with_the_number_are_pruned_on_request(name: str) -> None:
    graph = trace(Between(MIXING[name]).eval(), image())
    assert [axis.name for axis in graph.axes] == ["b"]
    assert "a: 8 channels: reduced over channels" in str(graph)
    graph = trace(graph.model, image(), allow_inexact=True)
    assert {axis.name: axis.exact for axis in graph.axes} == {"a": False, "b": True}


class Product(nn.Module):
    """A parameter as a plain matrix operand."""

    def __init__(self, multiply: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.head, self.multiply = nn.Linear(4, 8), nn.Linear(6, 2), multiply
        self.w, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.multiply(F.relu(self.a(x)), self.w, self.bias)))


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w, b: x @ w + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
    "mm": lambda x, w, b: torch.mm(x, w) * b,
    "transposed": lambda x, w, b: (w.t() @ x.t()).t() + b,
    "einsum": lambda x, w, b: torch.einsum("nc,co->no", x, w) + b,
    "einsum, the weight first": lambda x, w, b: torch.einsum("co,nc->no", w, x) + b,
    "computed": lambda x, w, b: x @ torch.tanh(w) + b,
    "linear": lambda x, w, b: F.linear(x, w.mT, b),
    "images": lambda x, w, b: (x[:, None] @ w)[:, 0] + b,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_parameter_in_a_matrix_product_is_a_layer(name: str) -> None:
    graph = pruned_right(Product(PRODUCTS[name]), torch.randn(3, 4), {"a": 8, "w": 6})
    assert graph.macs == 3 * (4 * 8 + 8 * 6 + 6 * 2)


def test_parameters_of_a_single_number_are_no_news() -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.head = conv(3, 8), nn.PReLU(), conv(8, 2)
            self.gain, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.a(x)) * self.gain + self.shift)

    graph = pruned_right(Gained(), image(), {"a": 8})
    assert {one.name for one in graph.fixed} == {"head"}


def test_regions_in_another_mode_are_walked() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 6), conv(6, 4), conv(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = F.relu(self.b(F.relu(self.a(x))))
            with torch.autocast("cpu", enabled=False):
                x = F.relu(self.c(x))
            return self.head(x)

    pruned_right(Regions(), image(), {"a": 8, "b": 6, "c": 4})


def test_each_mixed_axis_names_the_op_that_mixes_it() -> None:
    layers = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)
    graph = trace(nn.Sequential(*layers).eval(), torch.randn(2, 4))
    reasons = {one.name: one.reason for one in graph.fixed}
    assert " in 1: pass" in reasons["0"] and " in 3: pass" in reasons["2"]
