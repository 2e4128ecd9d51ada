"""Variations of images that need no labels: a teacher answers for whatever it is shown."""

from __future__ import annotations

import torch
from torch import Tensor

from mdcp_fast.modules.calls import Inputs, map_tensors, tensors_in

SHIFT = 8  # the most that images move is their side over this


def varied(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """A network's arguments with images mirrored and shifted at random.

    By whole pixels, so that nothing is drawn anew: blurred, a few hundred images teach a network
    that is already near its teacher more about blur than about images.

    Args:
        inputs: Where they are a single tensor of images, [batch, channels, height, width] of
            floating point, these change; anything else stays as it is, since what belongs together
            (coordinates and images, say) is not known.
        generator: On the CPU.

    Returns:
        Arguments of the same shapes, dtypes and device.
    """
    tensors = tensors_in(inputs)
    if len(tensors) != 1 or tensors[0].dim() != 4 or not tensors[0].is_floating_point():
        return inputs
    changed: Inputs = map_tensors(inputs, lambda images: _varied(images, generator))
    return changed


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    count, channels, height, width = images.shape
    rows, columns = (_shifted(count, size, generator) for size in (height, width))
    mirrored = torch.rand(count, generator=generator, device="cpu") < 0.5
    columns = torch.where(mirrored.unsqueeze(1), columns.flip(1), columns)
    numbers = torch.arange(count, device="cpu"), torch.arange(channels, device="cpu")
    where = numbers[0].view(-1, 1, 1, 1), numbers[1].view(-1, 1, 1), rows.view(count, 1, -1, 1)
    places = (*where, columns.view(count, 1, 1, -1))
    moved = images[tuple(place.to(images.device) for place in places)]
    return torch.empty_like(images).copy_(moved)  # in the images' memory format


def _shifted(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Which pixel each one along a side becomes: int64 [count, size], mirrored at the border."""
    most = size // SHIFT
    moved = torch.randint(-most, most + 1, (count, 1), generator=generator, device="cpu")
    moved = moved + torch.arange(size, device="cpu")
    return (size - 1) - ((size - 1) - moved.abs()).abs()
