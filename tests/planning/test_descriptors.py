"""The points that get clustered: standardised, tied layers described together, repeatable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.ops.kmeans import MAX_DIMENSIONS
from mdcp_fast.planning import descriptors
from mdcp_fast.planning.descriptors import EXACT, Descriptors, embedded, moments, responses, weights
from mdcp_fast.pruning.folded_weights import weight_gram
from mdcp_fast.pruning.reconstruction import errors_from_weights
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


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
    assert found.points.shape == (12, 12)
    # 12 centred points span at most 11 dimensions: nothing of their distances may be lost.
    assert (found.points[:, 11:].abs() < 1e-5).all()
    energy = found.points.double().square().sum()
    assert energy == pytest.approx(12 * 8 * 3, rel=1e-5)  # unit variance in 24 columns


def test_a_constant_column_is_zero() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
    assert torch.equal(moments(traced(model)).points, torch.zeros(6, 3))


@pytest.mark.parametrize("describe", [moments, weights])
def test_the_same_bits_at_every_thread_count(
    describe: Callable[[ChannelGraph], Descriptors],
) -> None:
    torch.manual_seed(0)
    graph = traced(Residual(7))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = describe(graph)
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, describe(graph), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("describe", [moments, weights])
def test_weights_that_are_not_finite_are_refused(
    describe: Callable[[ChannelGraph], Descriptors],
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1))
    graph = traced(model)
    with torch.no_grad():
        model[0].weight[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights"):
        describe(graph)


def test_numbers_can_be_left_out() -> None:
    graph = traced(nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 2, 1)))
    every = moments(graph).points
    assert torch.equal(moments(graph, ("cosine", "mean")).points, every[:, [2, 0]])
    for numbers in ((), ("median",)):
        with pytest.raises(ValueError, match="numbers: expected some of mean, variance, cosine"):
            moments(graph, numbers)


def gaps(points: Tensor) -> Tensor:
    return torch.cdist(points.double(), points.double())


def normalised(channels: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, 4, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].running_var.uniform_(0.5, 2)
    return model


@torch.no_grad()
def test_what_batch_norm_undoes_makes_no_difference() -> None:
    model = normalised()
    before = weights(traced(model)).points
    factor = torch.rand(10) * 5 + 0.2
    model[0].weight *= factor.view(-1, 1, 1, 1)
    model[1].running_var.copy_((model[1].running_var + 1e-5) * factor**2 - 1e-5)
    torch.testing.assert_close(gaps(weights(traced(model)).points), gaps(before), atol=1e-4, rtol=0)


@torch.no_grad()
def test_every_layer_that_writes_a_stream_counts_and_on_one_scale() -> None:
    torch.manual_seed(0)
    model = Residual(2)
    for conv in (model.stem, *model.blocks):
        conv.weight[1] = conv.weight[0]
    before = gaps(weights(traced(model)).points)
    assert before[0, 1] < 1e-6 < before[0, 2]
    for conv in (model.stem, *model.blocks):
        kept = conv.weight.clone()
        conv.weight[1] += 1
        assert gaps(weights(traced(model)).points)[0, 1] > 0.1
        conv.weight.copy_(kept)
    model.blocks[0].weight *= 1000
    torch.testing.assert_close(gaps(weights(traced(model)).points), before, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_depthwise_layer_tells_channels_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1))
    model[0].weight[1] = model[0].weight[0]
    graph = traced(model)
    assert gaps(weights(graph).points)[0, 1] > 0.1
    gram = weight_gram(graph, graph.axes[0])
    same = gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()
    first, second = (model[1].weight[i].flatten().double() for i in (0, 1))
    assert float(same) == pytest.approx(float(torch.cosine_similarity(first, second, 0)), rel=1e-6)


@torch.no_grad()
def test_renumbered_channels_get_the_renumbered_points() -> None:
    model, shuffle = normalised(), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    graph = traced(model)
    before = [weights(graph).points, responses(graph, errors_from_weights(graph)).points]
    for tensor in (*model[0].parameters(), *model[1].parameters(), *model[1].buffers()):
        if tensor.dim():
            tensor.copy_(tensor[shuffle])
    model[3].weight.copy_(model[3].weight[:, shuffle])
    after = [weights(graph).points, responses(graph, errors_from_weights(graph)).points]
    for old, new in zip(before, after, strict=True):
        assert new.shape == (10, 10)
        torch.testing.assert_close(new, old[shuffle], atol=1e-5, rtol=1e-4)  # signs, too


def test_inner_products_of_responses_are_those_of_what_channels_add() -> None:
    graph = traced(normalised())
    found = responses(graph, errors_from_weights(graph))
    kernel = errors_from_weights(graph)[0][0].kernel
    points = found.points.double()
    torch.testing.assert_close(points @ points.T, kernel, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.norms.double(), kernel.diagonal().sqrt(), atol=1e-6, rtol=1e-5)


def test_wide_axes_keep_their_leading_components() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = 0.8 ** torch.arange(60, dtype=torch.float64)
    root = torch.randn(EXACT + 8, 60, generator=generator, dtype=torch.float64) * scales
    kernel = root @ root.T
    points = embedded(kernel).double()
    values = torch.linalg.eigvalsh(kernel).flip(0)[:MAX_DIMENSIONS]
    assert points.shape == (EXACT + 8, MAX_DIMENSIONS)
    torch.testing.assert_close(points.square().sum(0), values, rtol=1e-4, atol=0)


def test_deep_streams_of_few_channels_keep_their_distances() -> None:
    """Where layers outnumber channels, the smaller side is taken: the cube of the depth was."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(12, 3 * 500, generator=generator, dtype=torch.float64)
    points -= points.mean(0)
    reduced = descriptors._reduced(points)
    assert reduced.shape == (12, 12) and reduced.dtype == torch.float32
    assert torch.allclose(
        torch.cdist(reduced.double(), reduced.double()), torch.cdist(points, points), rtol=1e-5
    )
