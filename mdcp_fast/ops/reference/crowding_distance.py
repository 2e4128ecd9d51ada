"""`crowding_distance` written out, in float64."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor


def crowding_distance_reference(points: Tensor, offsets: Tensor) -> Tensor:
    """As `mdcp_fast.crowding_distance`, in float64: [N]."""
    distance = torch.zeros(len(points), dtype=torch.float64)
    bounds = offsets.tolist()
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        segment = points[begin:end].detach().double()
        if len(segment) <= 2:
            distance[begin:end] = inf
            continue
        for values in segment.T:
            order = torch.argsort(values, stable=True)
            ordered = values[order]
            spread = ordered[-1] - ordered[0]
            if spread == 0:
                continue
            distance[begin + order[1:-1]] += (ordered[2:] - ordered[:-2]) / spread
            distance[begin + order[[0, -1]]] = inf
    return distance
