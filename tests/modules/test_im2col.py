"""A layer's outputs are its weight as a matrix times the patches of its input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.modules.layer_kinds import MatrixKind, kind_of

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


def matrix_kind(layer: nn.Module) -> MatrixKind:
    kind = kind_of(layer)
    assert isinstance(kind, MatrixKind)
    return kind


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
    kind = matrix_kind(layer)
    shape = kind.output_shape(output)
    rows = torch.randperm(math.prod(shape))
    matrix = kind.as_matrix(layer, weight)
    seen = kind.patches(layer, x, rows, shape)
    found = (seen @ matrix.transpose(1, 2)).transpose(0, 1).flatten(1)
    assert torch.allclose(found + bias, kind.output_rows(output, rows), rtol=0, atol=1e-12)
    assert torch.equal(kind.as_weight(layer, matrix), weight)
    assert kind.is_its_matrix(layer, x, output)


class PadsAlone(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 0, 1, 0)))


def test_layers_that_do_otherwise_are_found_out() -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    padded = PadsAlone(4, 6, 3, stride=2)
    assert not matrix_kind(padded).is_its_matrix(padded, x, padded(x))
    layer = nn.Conv2d(4, 6, 3)
    kind = matrix_kind(layer)
    assert not kind.is_its_matrix(layer, x, layer(x) * 2)
    assert not kind.is_its_matrix(layer, x[0], layer(x[0]))  # without a batch dimension
    assert not kind.is_its_matrix(layer, x, layer(x)[:0])
