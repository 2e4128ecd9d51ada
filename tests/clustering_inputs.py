"""Problems that the tests of `ward` and `kmeans` share, on the CPU and as CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

# Around the sizes of a leaf (8 slots), a group (64), and their multiples.
COUNTS = (2, 3, 7, 8, 9, 63, 64, 65, 127, 200, 1000)
POWERS = (-149, -100, 60, 125)


def bounds(*sizes: int) -> Tensor:
    return torch.tensor((0, *sizes)).cumsum(0)


def cloud(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


TIES = {
    "all equal": torch.ones(100, 3),
    "zeros of both signs": torch.tensor([[0.0], [-0.0], [0.0], [-0.0]]),
    "pairs": cloud(40, 2).repeat(2, 1),
    "a line of equal steps": torch.arange(70.0)[:, None],
    "a grid": torch.cartesian_prod(torch.arange(9.0), torch.arange(9.0)),
    "a cube's corners": torch.cartesian_prod(*[torch.arange(2.0)] * 7),
    "one-hot": torch.eye(16).repeat(3, 1),
}


def small_problems() -> list[Tensor]:
    """Random points, and points with many ties, of all numbers of dimensions."""
    random = torch.Generator().manual_seed(1)
    problems = []
    for case in range(60):
        count = int(torch.randint(2, 80, (), generator=random))
        dimensions = int(torch.randint(1, 17, (), generator=random))
        points = torch.randn(count, dimensions, generator=random)
        if case % 2:
            points = torch.randint(0, 3, (count, dimensions), generator=random).float()
        problems.append(points)
    return problems


def integers_of_magnitude(power: int) -> Tensor:
    points = torch.randint(-3, 4, (60, 3), generator=torch.Generator().manual_seed(0)).float()
    return points * 2.0**power


def thousand_sizes() -> Tensor:
    """Of ragged problems, some of no point and some of one."""
    sizes = torch.randint(0, 30, (1000,), generator=torch.Generator().manual_seed(0))
    sizes[[0, 500, 999]] = torch.tensor([0, 1, 0])
    return sizes
