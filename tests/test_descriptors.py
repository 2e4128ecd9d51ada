"""The points that get clustered: standardised, tied layers described together, repeatable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.descriptors import moments
from mdcp_fast.graph import trace
from mdcp_fast.ops._arguments import MAX_DIMENSIONS


class Residual(nn.Module):
    """A stream of 12 channels that `blocks` + 1 convolutions write."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.blocks = nn.ModuleList(nn.Conv2d(12, 12, 1) for _ in range(blocks))
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(torch.relu(x))
        return self.head(x)


def traced(model: nn.Module):
    return trace(model, torch.randn(1, 3, 6, 6), check=False)


def test_columns_are_standardised_over_each_axis() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 30, 3), nn.ReLU(), nn.Conv2d(30, 8, 1), nn.Conv2d(8, 4, 1))
    found = moments(traced(model))
    assert found.points.shape == (38, 3) and found.points.dtype == torch.float32
    assert found.offsets.tolist() == [0, 30, 38]
    for start, stop in found.offsets.unfold(0, 2, 1).tolist():
        points = found.points[start:stop].double()
        assert torch.allclose(points.mean(0), torch.zeros(3).double(), atol=1e-6)
        assert torch.allclose(points.var(0, correction=0), torch.ones(3).double(), atol=1e-5)


def test_the_numbers_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 30, 3), nn.ReLU(), nn.Conv2d(30, 8, 1))
    rows = model[0].weight.detach().double().flatten(1)
    cosine = 1 - torch.cosine_similarity(rows, torch.ones_like(rows))
    wanted = torch.stack([rows.mean(1), rows.var(1, correction=0), cosine], 1)
    wanted = (wanted - wanted.mean(0)) / wanted.std(0, correction=0)
    found = moments(traced(model))
    assert torch.allclose(found.points.double(), wanted, atol=1e-4)
    assert torch.allclose(found.norms, rows.norm(dim=1).float())


def test_tied_layers_are_described_together() -> None:
    torch.manual_seed(0)
    found = moments(traced(Residual(2)))
    assert found.points.shape == (12, 9)


def test_many_tied_layers_are_reduced_to_the_components_that_vary_most() -> None:
    torch.manual_seed(0)
    model = Residual(7)
    found = moments(traced(model))
    assert found.points.shape == (12, MAX_DIMENSIONS)
    # 12 centred points span at most 11 dimensions: nothing of their distances may be lost.
    assert (found.points[:, 11:].abs() < 1e-5).all()
    energy = found.points.double().square().sum()
    assert energy == pytest.approx(12 * 8 * 3, rel=1e-5)  # unit variance in 24 columns


def test_a_constant_column_is_zero() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
    assert torch.equal(moments(traced(model)).points, torch.zeros(6, 3))


def test_the_same_bits_at_every_thread_count() -> None:
    torch.manual_seed(0)
    graph = traced(Residual(7))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = moments(graph)
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, moments(graph), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1))
    graph = traced(model)
    with torch.no_grad():
        model[0].weight[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights"):
        moments(graph)
