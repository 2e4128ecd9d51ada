"""Variations of images that need no labels: a teacher answers for whatever it is shown."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mdcp_fast.modules.calls import Inputs, map_tensors, tensors_in

ZOOM = 0.3  # the most of a side that a crop leaves out


def varied(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """A network's arguments with images mirrored at random, and cropped and enlarged again.

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
    count = len(images)
    kept = 1 - ZOOM * torch.rand(count, generator=generator)
    place = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - kept).unsqueeze(1)
    mirrored = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).float()
    where = torch.zeros(count, 2, 3)  # [x; y] of the source as a linear map of the target's
    where[:, 0, 0], where[:, 1, 1], where[:, :, 2] = kept * mirrored, kept, place
    grid = F.affine_grid(where.to(images.device), list(images.shape), align_corners=False)
    # In float32: half precision has too few bits for places in an image.
    drawn = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return drawn.to(images.dtype)
