"""Strided 1x1 convolutions of few channels train without oneDNN's out-of-bounds writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import run_python
from torch import Tensor, nn

from mdcp_fast.training.onednn import strided_by_slices


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 5, 1, stride=2, bias=False),
        nn.Conv2d(5, 7, 1, stride=(2, 3)),
        nn.Conv2d(7, 9, 1, stride=2, padding=1),
        nn.Conv2d(9, 3, 1, stride=2),
    ).double()


@pytest.mark.parametrize("size", [(28, 27), (13, 14), (5, 5), (1, 2)])
def test_outputs_and_gradients_are_those_of_the_strides(size: tuple[int, int]) -> None:
    model, inputs = network(), torch.randn(2, 6, *size, dtype=torch.float64)

    def results() -> list[Tensor]:
        model.zero_grad()
        outputs = model(inputs)
        outputs.square().sum().backward()
        return [outputs.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    wanted, strides = results(), [layer.stride for layer in model]
    with strided_by_slices(model):
        assert [layer.stride for layer in model] == [(1, 1), (1, 1), (2, 2), (2, 2)]
        for found, expected in zip(results(), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert [layer.stride for layer in model] == strides
    assert not any(layer._forward_pre_hooks for layer in model)


def test_inputs_may_be_named() -> None:
    layer, x = network()[0], torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected = layer(x)
    with strided_by_slices(layer):
        torch.testing.assert_close(layer(input=x), expected)


def test_the_layers_are_put_back_after_an_error() -> None:
    model = network()
    with pytest.raises(KeyError), strided_by_slices(model):
        raise KeyError
    assert model[0].stride == (2, 2)


TRAINING = """
import torch
from mdcp_fast import finetune
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.Conv2d(6, 12, 1, stride=2, bias=False),
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(12, 3),
).to(memory_format=torch.channels_last)
data = torch.utils.data.TensorDataset(torch.randn(256, 1, 28, 28), torch.arange(256) % 3)
finetune(model, data, epochs=2, progress=False)
"""


def test_training_does_not_corrupt_memory(tmp_path: Path) -> None:
    """On a processor with AVX2 and no more, the allocator finds what would be written there."""
    done = run_python(TRAINING, folder=tmp_path, check=False, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
