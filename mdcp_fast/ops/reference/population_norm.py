"""`population_norm` written out, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def population_norm_reference(
    x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """As `mdcp_fast.population_norm`, in float64."""
    parts = x.detach().double().unflatten(0, (len(masks), -1))  # [P, B, C, ...]
    ones = [1] * (x.dim() - 2)
    results = []
    for part, mask in zip(parts, masks.double(), strict=True):
        channels = part.movedim(1, 0).flatten(1)  # [C, B * places]
        centred = channels - channels.mean(1, keepdim=True)
        normal = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
        y = normal * weight.double()[:, None] + bias.double()[:, None]
        y = y.view(part.movedim(1, 0).shape).movedim(0, 1)  # [B, C, ...]
        results.append(torch.where(mask.view(-1, *ones) != 0, mask.view(-1, *ones) * y, 0.0))
    return torch.cat(results)
