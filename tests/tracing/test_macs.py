"""What multiplies is counted, whatever op does it, or named."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from plans import random_plan
from torch import Tensor, nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.trace import trace

T, B, C, H = 5, 2, 8, 6  # positions, batch, channels, hidden size


class Behind(nn.Module):
    """A layer, some op on its [B, T, C] output, and a layer behind."""

    def __init__(self, op: nn.Module | Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.a, self.op, self.head = nn.Linear(4, C), op, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.op(self.a(x))
        y = y[0] if isinstance(y, tuple) else y
        return self.head(y)


class Cell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        found = self.cell(x[:, 0])
        return (found[0] if isinstance(found, tuple) else found)[:, None]


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]


def by_hand(x: Tensor) -> Tensor:
    return (x @ x.mT / C**0.5).softmax(-1) @ x


STEPS = B * T
COUNTED = {
    "LSTM": (lambda: nn.LSTM(C, H, batch_first=True), H, STEPS * 4 * H * (C + H)),
    "LSTM, two layers, both ways": (
        lambda: nn.LSTM(C, H, 2, bidirectional=True, batch_first=True),
        2 * H,
        STEPS * 4 * H * 2 * ((C + H) + (2 * H + H)),
    ),
    "GRU": (lambda: nn.GRU(C, H, batch_first=True), H, STEPS * 3 * H * (C + H)),
    "RNN": (lambda: nn.RNN(C, H), H, STEPS * H * (C + H)),
    "LSTM cell": (lambda: Cell(nn.LSTMCell(C, H)), H, B * 4 * H * (C + H)),
    "GRU cell": (lambda: Cell(nn.GRUCell(C, H)), H, B * 3 * H * (C + H)),
    "fused attention": (lambda: attend, C, B * T * T * 2 * C),
    "attention by hand": (lambda: by_hand, C, B * T * T * 2 * C),
    "einsum": (lambda: lambda x: torch.einsum("btc,bsc->bts", x, x), T, B * T * T * C),
    "bmm": (lambda: lambda x: torch.bmm(x, x.mT), T, B * T * T * C),
    "baddbmm": (lambda: lambda x: torch.baddbmm(x[:, :, :T], x, x.mT), T, B * T * T * C),
    "distances": (lambda: lambda x: torch.cdist(x, x), T, B * T * T * C),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_torch_has_is_counted(name: str) -> None:
    make, width, macs = COUNTED[name]
    torch.manual_seed(0)
    model, x = Behind(make(), width).eval(), torch.randn(B, T, 4)
    graph = trace(model, x)
    rows = B if "cell" in name else STEPS
    assert graph.macs == count_macs(model, x) == STEPS * 4 * C + macs + rows * width * 2
    assert graph.uncounted == ()
    plan = random_plan(graph)
    assert count_macs(prune(graph, plan), x) == plan.macs


def test_multi_head_attention_is_counted() -> None:
    x, model = torch.randn(B, T, C), nn.MultiheadAttention(C, 2, batch_first=True)
    macs = STEPS * C * (4 * C + 2 * T)
    assert count_macs(model.eval(), (x, x, x)) == macs
    layer = nn.TransformerEncoderLayer(C, 2, 16, batch_first=True)
    assert count_macs(layer, x) == macs + STEPS * 2 * C * 16


def test_bilinear_layers_and_matrix_vector_products_are_counted() -> None:
    x = torch.randn(B, C)
    assert count_macs(nn.Bilinear(C, C, 3), (x, x)) == B * C * C * 3


def test_deformable_convolutions_are_counted() -> None:
    layer = pytest.importorskip("torchvision").ops.DeformConv2d(4, 6, 3, padding=1)
    inputs = torch.randn(1, 4, 5, 5), torch.zeros(1, 18, 5, 5)
    assert count_macs(layer, inputs) == 25 * 9 * 4 * 6


def test_what_cannot_be_counted_is_named_and_warned_of_once() -> None:
    class Spectral(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x, dim=1), n=T, dim=1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, C), Spectral(), nn.Linear(C, 2))
    graph = trace(model.eval(), torch.randn(B, T, 4))
    assert graph.uncounted == ("fft_rfft in 3", "fft_irfft in 3")
    line = "Not counted in the MACs: fft_rfft in 3, fft_irfft in 3"
    assert line in str(graph)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plans = search(graph, macs=[0.8, 0.7])
    assert [str(one.message) for one in caught] == [
        "search: these ops are not in the MACs: fft_rfft in 3, fft_irfft in 3"
    ]
    assert line in str(plans[0]) and line in str(PruningPlan.from_json(plans[0].to_json()))
