"""The ops give what they promise whatever torch's default dtype and device are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mdcp_fast import channel_statistics, crowding_distance, kmeans, ward

POINTS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
OFFSETS, CLUSTERS = torch.tensor([0, 7, 20]), torch.tensor([2, 3])
OPS: dict[str, Callable[[], object]] = {
    "channel_statistics": lambda: channel_statistics([POINTS, POINTS[:5]]),
    "crowding_distance": lambda: crowding_distance(POINTS, OFFSETS),
    "kmeans": lambda: kmeans(POINTS, OFFSETS, CLUSTERS),
    "ward": lambda: ward(POINTS, OFFSETS),
}


def tensors(answer: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_default_dtype(name: str, dtype: torch.dtype) -> None:
    expected = tensors(OPS[name]())
    torch.set_default_dtype(dtype)
    try:
        found = tensors(OPS[name]())
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("name", OPS)
def test_default_device(name: str) -> None:
    """A meta tensor has no memory: were one handed to the native core, it would crash."""
    expected = tensors(OPS[name]())
    with torch.device("meta"):
        found = tensors(OPS[name]())
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == "cpu" and torch.equal(one, other)
