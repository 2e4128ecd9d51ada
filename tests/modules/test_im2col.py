"""A layer's outputs are its weight as a matrix times the patches of its input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.modules.im2col import (
    as_matrix,
    as_weight,
    is_its_matrix,
    output_rows,
    output_shape,
    patches,
)

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 7, 9)),
    "padded": (nn.Conv2d(4, 6, (3, 5), padding=(1, 2)), (4, 7, 9)),
    "strided": (nn.Conv2d(4, 6, 3, stride=(2, 3), padding=1), (4, 8, 9)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), (4, 7, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 7, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 7, 9)),
    "same, even kernel": (nn.Conv2d(4, 6, (2, 4), padding="same"), (4, 7, 9)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 7, 9)),
    "circular": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (4, 9)),
    "one dimension": (nn.Conv1d(4, 6, 5, stride=2), (4, 17)),
    "three dimensions": (nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 3, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5, 6)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 2, stride=3, groups=2), (4, 5, 6)),
    "transposed, dilated": (nn.ConvTranspose2d(4, 6, 3, dilation=(2, 1)), (4, 5, 6)),
    "transposed, one dimension": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (4, 7)),
    "linear": (nn.Linear(5, 7), (5,)),
    "linear over a sequence": (nn.Linear(5, 7), (3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_outputs_are_patches_times_matrix(name: str) -> None:
    torch.manual_seed(0)
    layer, sizes = LAYERS[name]
    layer = layer.double()
    weight: Any = layer.weight
    bias: Any = layer.bias
    x = torch.randn(3, *sizes, dtype=torch.float64)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    output = layer(x)
    shape = output_shape(layer, output)
    rows = torch.randperm(math.prod(shape))
    matrix = as_matrix(layer, weight)
    found = (patches(layer, x, rows, shape) @ matrix.transpose(1, 2)).transpose(0, 1).flatten(1)
    assert torch.allclose(found + bias, output_rows(layer, output, rows), rtol=0, atol=1e-12)
    assert torch.equal(as_weight(layer, matrix), weight)
    assert is_its_matrix(layer, x, output)


class PadsAlone(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 0, 1, 0)))


def test_layers_that_do_otherwise_are_found_out() -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = PadsAlone(4, 6, 3, stride=2)
    assert not is_its_matrix(padded, x, padded(x))
    layer = nn.Conv2d(4, 6, 3)
    assert not is_its_matrix(layer, x, layer(x) * 2)
    assert not is_its_matrix(layer, x[0], layer(x[0]))  # without a batch dimension
    assert not is_its_matrix(layer, x, layer(x)[:0])
