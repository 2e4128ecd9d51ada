"""Statistics of BatchNorm, estimated anew on calibration batches, relative to the dense network's.

Calibration images are seldom those that a network was trained on, and their statistics are others:
taken as they are, they damage even a network of which nothing was pruned. What pruning has changed
is the difference between the pruned and the dense network on the same images. So with mean m and
variance v of the pruned network's inputs, m_0 and v_0 of the dense one's, and the dense network's
statistics mu and sigma^2,

    sigma^2 + eps -> (sigma^2 + eps) r,  r = (v + eps) / (v_0 + eps),
    mu -> mu + (m - m_0) + (mu - m_0) (r^1/2 - 1),

after which the outputs on these images have the means and variances that the dense network's have.
Where nothing changed, nothing changes, whatever the images. Both differences, m - m_0 and log r,
are shrunk by what the images say about their own error: d -> d d^2 / (d^2 + e^2), e^2 the jackknife
variance over images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call, eval_mode, preserve_buffers
from mdcp_fast.modules.hooks import forward_hooks, layer_input
from mdcp_fast.modules.layer_kinds import batch_norms
from mdcp_fast.modules.removal import Positions, kept_tensor, rebuilt

SMALLEST = 1e-30  # variances below are zero


class ImageMoments(NamedTuple):
    """What a BatchNorm reads of every image.

    Attributes:
        mean: float64 [images, channels].
        square: float64 [images, channels], the mean square.
    """

    mean: Tensor
    square: Tensor

    @staticmethod
    def joined(parts: Sequence[ImageMoments]) -> ImageMoments:
        """Those of all images of several batches."""
        return ImageMoments(*map(torch.cat, zip(*parts, strict=True)))


def image_moments(x: Tensor) -> ImageMoments:
    """The moments of each image.

    Args:
        x: What a BatchNorm reads, [batch, channels, ...].
    """
    rows = x.unsqueeze(2) if x.dim() == 2 else x.flatten(2)
    rows = rows.to(torch.promote_types(x.dtype, torch.float32))
    mean = rows.mean(2)
    # Several times faster than torch.var_mean, and as exact.
    spread = torch.linalg.vector_norm(rows - mean.unsqueeze(2), dim=2).double().square()
    mean = mean.double()
    return ImageMoments(mean, spread / rows.shape[2] + mean.square())


def relative_statistics(
    norm: Any, mean: Tensor, variance: Tensor, dense: ImageMoments, pruned: ImageMoments
) -> tuple[Tensor, Tensor]:
    """The statistics of a BatchNorm in the pruned network.

    Args:
        norm: The BatchNorm; of it eps.
        mean: [channels], the dense network's running mean of the channels that stay.
        variance: [channels], its running variance.
        dense: What it reads of each image in the dense network, of the same channels.
        pruned: What it reads in the pruned network, of the same images in the same order.

    Returns:
        Mean and variance, of the dtype of the dense ones. With a single image these.
    """
    together = _differences(dense, pruned, norm.eps)
    without_one = _differences(dense, pruned, norm.eps, leave_out=True)
    shift, logarithm = (_shrunk(*each) for each in zip(together, without_one, strict=True))
    factor, mu, sigma = logarithm.exp(), mean.double(), variance.double()
    new_mean = mu + shift + (mu - dense.mean.mean(0)) * (factor.sqrt() - 1)
    new_variance = sigma + (sigma + norm.eps) * (factor - 1)
    return new_mean.to(mean.dtype), new_variance.clamp_min(0).to(variance.dtype)


def _shrunk(value: Tensor, without_one: Tensor) -> Tensor:
    """An estimate, the smaller the less it stands out from its error; 0 with a single image.

    Args:
        value: float64 [channels].
        without_one: float64 [images, channels], the same with each image left out.
    """
    images = len(without_one)
    if images == 1:
        return torch.zeros_like(value)
    error = (without_one - without_one.mean(0)).square().sum(0) * (images - 1) / images
    return value * value.square() / (value.square() + error).clamp_min(SMALLEST)


def _differences(
    dense: ImageMoments, pruned: ImageMoments, eps: float, *, leave_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Differences of means and of logarithms of variances; or these with each image left out."""

    def moments(of: ImageMoments) -> tuple[Tensor, Tensor]:
        count = len(of.mean)
        mean, square = of.mean.mean(0), of.square.mean(0)
        if leave_out:
            rest = max(count - 1, 1)
            mean = (mean * count - of.mean) / rest
            square = (square * count - of.square) / rest
        return mean, (square - mean.square()).clamp_min(0) + eps

    (m, v), (m_0, v_0) = moments(pruned), moments(dense)
    return m - m_0, (v / v_0).log()


@torch.no_grad()
def recalibrate(model: nn.Module, batches: list[Inputs], without: Collection[str] = ()) -> None:
    """Re-estimates the statistics of every BatchNorm as the cumulative average over `batches`.

    In place, and absolutely: see `recalibrate_relatively`. Everything but BatchNorm runs in
    evaluation mode; modes, momenta and weights stay as they were, and so do the statistics if a
    batch fails.

    Args:
        model: The network.
        batches: The model's arguments; each batch needs more than one value per channel.
        without: Names of BatchNorms to leave as they are.

    Raises:
        ValueError: A batch has a single value per channel.
    """
    norms = [module for path, module in batch_norms(model).items() if path not in without]
    if not norms:
        return
    statistics = [(m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    before = [[tensor.clone() for tensor in tensors] for tensors in statistics]
    momenta = [module.momentum for module in norms]
    try:
        with eval_mode(model):
            for module in norms:
                module.train()
                module.reset_running_stats()
                module.momentum = None  # the cumulative average
            for batch in batches:
                call(model, batch)
    except BaseException:
        for tensors, values in zip(statistics, before, strict=True):
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        raise
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum


@torch.no_grad()
def recalibrate_relatively(
    dense: nn.Module,
    small: nn.Module,
    positions: Positions,
    batches: list[Inputs],
    without: Collection[str] = (),
) -> None:
    """Gives BatchNorms the dense network's statistics and what pruning has changed in them.

    In place in `small`, for BatchNorms that `refit` does not reach (they run several times, or
    batches cannot be joined): each network runs with statistics of its own batches, and nothing is
    shrunk.

    Args:
        dense: The dense network; not changed.
        small: The pruned one.
        positions: Kept positions by parameter and dimension.
        batches: The model's arguments; each batch needs more than one value per channel.
        without: Names of BatchNorms to leave as they are.

    Raises:
        ValueError: A batch has a single value per channel.
    """
    names = [path for path in batch_norms(small) if path not in without]
    if not names:
        return
    twin = rebuilt(dense, torch.clone)
    for model in (twin, small):
        recalibrate(model, batches, without)
    known, seen, now = (batch_norms(model) for model in (dense, twin, small))
    for path in names:
        kept = {
            name: positions.get(f"{path}.{name}", {}) for name in ("running_mean", "running_var")
        }
        mean, variance = _kept(known[path], kept)
        dense_mean, dense_variance = (t.double() for t in _kept(seen[path], kept))
        own_mean, own_variance = now[path].running_mean.double(), now[path].running_var.double()
        eps = now[path].eps
        factor = (own_variance + eps) / (dense_variance + eps)
        shift = own_mean - dense_mean + (mean.double() - dense_mean) * (factor.sqrt() - 1)
        now[path].running_mean.copy_(mean.double() + shift)
        now[path].running_var.copy_(variance.double() + (variance.double() + eps) * (factor - 1))
        now[path].num_batches_tracked.copy_(known[path].num_batches_tracked)


def _kept(norm: Any, kept: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The statistics of the channels that stay."""
    mean, variance = (kept_tensor(getattr(norm, name), kept[name]) for name in kept)
    return mean, variance


@torch.no_grad()
def with_statistics_of(model: nn.Module, batches: Sequence[Inputs]) -> nn.Module:
    """The same function, with BatchNorms that keep the statistics of these batches.

    Their scales and shifts make up for it. A pruned copy that normalises by statistics of its own
    on the same images then changes by what pruning has changed, as with `relative_statistics`.

    Args:
        model: Not changed. BatchNorms without scale and shift, or that do not run, keep theirs.
        batches: Its arguments.
    """
    twin = rebuilt(model, torch.clone)
    norms = {path: norm for path, norm in batch_norms(twin).items() if norm.weight is not None}
    seen: dict[str, list[ImageMoments]] = {}

    def see(path: str) -> Callable[..., None]:
        def hook(norm: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.setdefault(path, []).append(image_moments(layer_input(arguments, named)))

        return hook

    hooks = [(norm, see(path)) for path, norm in norms.items()]
    with forward_hooks(hooks, before=True), eval_mode(twin), preserve_buffers(twin):
        for batch in batches:
            call(twin, batch)
    for path, moments in seen.items():
        norm = norms[path]
        mean, square = (each.mean(0) for each in ImageMoments.joined(moments))
        variance = (square - mean.square()).clamp_min(0)
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() + gain * (mean - norm.running_mean.double())
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.bias.copy_(shift)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return twin


def check_several_values(x: Tensor, candidates: int = 1) -> None:
    """A variance takes two values of a channel.

    Args:
        x: What a BatchNorm reads, [batch, channels, ...].
        candidates: How many networks share the batch, each with statistics of its part.

    Raises:
        ValueError: There is a single value.
    """
    if x.numel() == candidates * x.shape[1]:
        raise ValueError(
            "calibration: expected batches with more than one value per channel for BatchNorm, got "
            f"an input of shape {[x.shape[0] // candidates, *x.shape[1:]]}"
        )
