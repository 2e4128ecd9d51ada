"""What targets are is found out or asked for; batches of named inputs train and are evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mdcp_fast.training.evaluation import evaluate
from mdcp_fast.training.finetune import finetune


def image_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))


def classifier(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))


def loader(inputs: Tensor, targets: Any) -> DataLoader[Any]:
    return DataLoader(list(zip(inputs, targets, strict=True)), 4)


def train(model: nn.Module, *data: Any, **options: Any) -> Any:
    return finetune(model, *data, epochs=1, progress=False, **options)


IMAGES = torch.rand(8, 3, 4, 4)
VECTORS = torch.randn(8, 3, 2, 2)
ROWS = torch.softmax(torch.randn(8, 3), 1)


@pytest.mark.parametrize(
    ("model", "inputs", "targets"),
    [
        (image_net(), IMAGES, IMAGES),  # a restoration network's images in [0, 1]
        (image_net(), IMAGES, IMAGES * 2 - 1),
        (classifier(), VECTORS, torch.rand(8, 3)),
        (classifier(), VECTORS, (ROWS * 2).clamp_max(1)),
        (classifier(), VECTORS, ROWS - torch.tensor([1.0, -0.5, -0.5])),  # sums to 1, is negative
        (classifier(), VECTORS, torch.full((8, 3), torch.nan)),
        (classifier(1), VECTORS, torch.rand(8, 1)),
        (classifier(1), VECTORS, torch.ones(8, 1)),
        (classifier(1), VECTORS, torch.rand(8)),
        (nn.Sequential(classifier(1), nn.Flatten(0)), VECTORS, torch.rand(8)),
        (nn.Sequential(classifier(1), nn.Flatten(0)), VECTORS, torch.zeros(8).long()),
        (classifier(), VECTORS, torch.zeros(8, 1).long()),  # would be broadcast
        (classifier(), VECTORS, torch.zeros(8, 3).bool()),
    ],
)
def test_the_default_loss_and_metric_ask_where_targets_are_no_classes(
    model: nn.Module, inputs: Tensor, targets: Tensor
) -> None:
    data = loader(inputs, targets)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="finetune: loss: expected one of your own"):
        train(model, data)
    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ValueError, match="metric: expected one of your own"):
        evaluate(model, data)
    with pytest.raises(ValueError, match="metric: expected one of your own"):
        train(model, data, data, loss=lambda outputs, targets: outputs.square().mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_are_targets(dtype: torch.dtype) -> None:
    data = loader(VECTORS, torch.softmax(torch.randn(8, 3), 1).to(dtype))
    model = classifier()
    if dtype == torch.float32:
        train(model, data, data, teacher=classifier())
    assert 0 <= evaluate(model, data) <= 1


def test_segmentation_targets_are_classes() -> None:
    data = loader(IMAGES, torch.randint(3, (8, 4, 4)))
    train(image_net(), data, data, teacher=image_net())


def test_a_regression_trains_with_a_loss_and_a_metric() -> None:
    data = loader(IMAGES, IMAGES)
    model = image_net()
    done = train(
        model,
        data,
        data,
        loss=F.mse_loss,
        metric=lambda outputs, targets: -(outputs - targets).square().flatten(1).mean(1),
    )
    assert done.best_accuracy is not None and done.best_accuracy < 0


def test_a_teacher_adds_no_divergence_over_colours() -> None:
    data = loader(IMAGES, IMAGES)
    with pytest.raises(ValueError, match="teacher: expected none, or distillation=0"):
        train(image_net(), data, teacher=image_net(), loss=F.mse_loss)
    alone, beside = image_net(), image_net()
    train(alone, data, loss=F.mse_loss)
    train(beside, data, loss=F.mse_loss, teacher=image_net(), distillation=0.0)
    assert all(map(torch.equal, alone.parameters(), beside.parameters()))


class Two(nn.Module):
    """Takes two inputs by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return self.left(left) + scale * self.right(right)


LEFT, RIGHT, CLASSES = torch.randn(8, 4), torch.randn(8, 2), torch.arange(8) % 3
FORMS: dict[str, list[Any]] = {
    "pairs of tuples": [((a, b), c) for a, b, c in zip(LEFT, RIGHT, CLASSES, strict=True)],
    "flat tuples": list(zip(LEFT, RIGHT, CLASSES, strict=True)),
    "pairs of dicts": [
        ({"left": a, "right": b}, c) for a, b, c in zip(LEFT, RIGHT, CLASSES, strict=True)
    ],
    "dicts with more than the model takes": [
        ({"right": b, "left": a, "id": c}, c) for a, b, c in zip(LEFT, RIGHT, CLASSES, strict=True)
    ],
    "dicts that hold the targets": [
        {"labels": c, "left": a, "right": b} for a, b, c in zip(LEFT, RIGHT, CLASSES, strict=True)
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_may_be_named(form: str) -> None:
    """In every form the same training, the same score, with and without a teacher."""
    plain, named = Two(), Two()
    usual, data = DataLoader(FORMS["pairs of tuples"], 4), DataLoader(FORMS[form], 4)
    for options in ({}, {"teacher": Two()}):
        one = train(plain, usual, usual, **options)
        two = train(named, data, data, **options)
        assert one == two
    assert evaluate(plain, usual) == evaluate(named, data)
    assert all(map(torch.equal, plain.parameters(), named.parameters()))


def test_a_dict_without_targets_is_refused_by_its_names() -> None:
    data = DataLoader([{"left": LEFT[0], "right": RIGHT[0]}])
    with pytest.raises(TypeError, match="data: expected batches of .* got a dict of left, right"):
        evaluate(Two(), data)
