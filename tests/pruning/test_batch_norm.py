"""Statistics of BatchNorm change by what pruning changed, and by nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.pruning.batch_norm import (
    image_moments,
    recalibrate_relatively,
    relative_statistics,
    with_statistics_of,
)


def norm_of_another_data_set(channels: int = 6) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(channels).eval()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    return norm


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(count, 6, 1, 1, generator=generator)
    return 3 + level + 2 * torch.randn(count, 6, 5, 5, generator=generator)


def changed(norm: nn.BatchNorm2d, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    return relative_statistics(norm, mean, variance, image_moments(x), image_moments(y))


@pytest.mark.parametrize("count", [1, 2, 40])
def test_nothing_changed_is_nothing_changed(count: int) -> None:
    norm, x = norm_of_another_data_set(), images(count)
    mean, variance = changed(norm, x, x.clone())
    assert torch.equal(mean, norm.running_mean) and torch.equal(variance, norm.running_var)


@torch.no_grad()
def test_outputs_get_the_moments_that_the_dense_ones_had() -> None:
    norm, x = norm_of_another_data_set(), images(4000)
    y = 0.5 * x - 1
    wanted = norm(x)
    norm.running_mean, norm.running_var = changed(norm, x, y)
    got = norm(y)
    assert torch.allclose(got.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=0.01)
    assert torch.allclose(got.std((0, 2, 3)), wanted.std((0, 2, 3)), rtol=0.01)


def test_a_single_image_says_nothing() -> None:
    norm = norm_of_another_data_set()
    mean, variance = changed(norm, images(1), images(1, seed=1))
    assert torch.equal(mean, norm.running_mean) and torch.equal(variance, norm.running_var)


def test_what_is_within_its_error_is_shrunk() -> None:
    """Changes that are noise from image to image count less than ones that all images share."""
    norm, x = norm_of_another_data_set(), images(8)
    norm.running_mean = x.mean((0, 2, 3))
    noise = torch.randn(8, 6, 1, 1, generator=torch.Generator().manual_seed(2))
    shared = noise.mean(0, keepdim=True).expand_as(noise)
    by_noise, by_all = ((changed(norm, x, x + y)[0] - norm.running_mean) for y in (noise, shared))
    assert torch.allclose(by_all, shared[0].flatten(), atol=1e-4)
    assert (by_noise.abs() < 0.9 * by_all.abs()).all()


def test_samples_without_positions() -> None:
    moments = image_moments(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert moments.mean.tolist() == [[1, 2], [3, 4]] and moments.square.tolist() == [
        [1, 4],
        [9, 16],
    ]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 6, 1), norm_of_another_data_set(), nn.ReLU(), nn.Conv2d(6, 3, 1)
    )
    return model.eval()


@torch.no_grad()
def test_batches_one_after_the_other_change_nothing_either() -> None:
    model, small = network(), network()
    recalibrate_relatively(model, small, {}, [(images(8),), (images(5, seed=3),)])
    state = small.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@torch.no_grad()
def test_the_same_function_with_other_statistics() -> None:
    model, x = network().double(), images(64).double()
    twin = with_statistics_of(model, [(x[:40],), (x[40:],)])
    assert torch.allclose(twin(x), model(x), rtol=1e-10)
    seen = model[0](x)
    variance, mean = torch.var_mean(seen, (0, 2, 3), unbiased=False)
    assert torch.allclose(twin[1].running_mean, mean) and torch.allclose(
        twin[1].running_var, variance
    )
