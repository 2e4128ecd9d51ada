"""`compress`: from a dense network and images to a smaller one, and an honest report."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from timed import time_by_macs
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mdcp_fast import compress, count_macs
from mdcp_fast.training.imitation import answers_apart
from mdcp_fast.training.unlabelled import Samples


def dense() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 4),
        )
        with torch.no_grad():
            model[-1].weight.mul_(20)
            model.train()(images())
    return model.eval()


def images(count: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(count, 2, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, 8, mode="bilinear")


def run(images: Any, model: nn.Module | None = None, **options: Any) -> Any:
    settings = {"macs": 0.5, "minutes": 0.02, "progress": False, **options}
    return compress(dense() if model is None else model, images, **settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdcp_fast.training.mimic.STEPS", 60)


def test_the_report_says_what_the_networks_are(few_steps: None) -> None:
    model, x = dense(), images()
    before = weights(model)
    result = run(x, model, macs=0.2, minutes=None, seed=3)
    report = result.report
    assert same(weights(model), before) and not result.model.training
    assert [step.name for step in report.steps] == ["trace", "search", "prune", "mimic"]
    assert (
        report.macs
        == count_macs(result.model, x[:1])
        == result.plan.macs
        <= 0.2 * report.dense_macs
    )
    assert report.params == sum(p.numel() for p in result.model.parameters()) < report.dense_params
    _, judge = Samples([(x,)]).split(3)
    held_out = judge.take(range(len(judge)), model)[0]
    assert report.held_out == len(judge) == 12
    with torch.no_grad():
        mine, yours = result.model(held_out), model(held_out)
    prune, mimic = report.steps[2:]
    assert mimic.loss == pytest.approx(float(answers_apart(mine, yours)), rel=1e-4)
    assert mimic.agreement == pytest.approx((mine.argmax(1) == yours.argmax(1)).float().mean())
    assert mimic.loss < prune.loss and report.steps[0].loss is None
    text = str(report)
    assert f"{report.macs:,} MACs" in text and "12 held-out images" in text
    assert all(step.name in text and step.seconds >= 0 for step in report.steps)


def test_repeats_by_seed_where_no_time_limits_it(few_steps: None) -> None:
    one, two = (run(images(), minutes=None) for _ in range(2))
    assert same(weights(one.model), weights(two.model))


def test_a_latency_is_measured_and_bounded(
    few_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_by_macs(monkeypatch)
    result = run(images(), macs=None, latency=0.6, minutes=None, seed=3)
    assert result.plan.budget == {"latency": 0.6}
    assert result.plan.macs < 0.7 * result.report.dense_macs
    assert [step.name for step in result.report.steps][:3] == ["trace", "measure", "search"]


def test_minutes_bound_it() -> None:
    run(images())  # what is imported, or compiled, once
    begun = time.perf_counter()
    result = run(images(), minutes=0.03)
    assert time.perf_counter() - begun < 4
    assert run(images(), minutes=0).report.steps[-1].loss == result.report.steps[-2].loss


def test_images_come_in_many_forms_and_labels_are_not_used() -> None:
    x = images(16)
    pairs = TensorDataset(x, torch.arange(16))
    expected = run(x, minutes=0).report.steps[-1].loss
    for form in (TensorDataset(x), pairs, [x], [(x, torch.arange(16))], DataLoader(pairs, 16)):
        assert run(form, minutes=0).report.steps[-1].loss == pytest.approx(expected, rel=1e-4)


def test_named_arguments_and_several_outputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = dense()[:6], nn.Conv2d(12, 3, 1)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            y = self.body(image)
            return {"map": self.head(y)}

    result = run({"image": images()}, Named().eval(), minutes=0.02)
    assert result.report.steps[-1].agreement is None
    assert result.report.steps[-1].loss <= result.report.steps[-2].loss


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images(count: int) -> None:
    report = run(images(count)).report
    assert report.held_out == 1 and report.steps[-1].loss <= report.steps[-2].loss


def test_a_frozen_network_is_mimicked_and_stays_frozen(few_steps: None) -> None:
    model = dense().requires_grad_(False)
    result = run(images(), model, macs=0.2, minutes=None, seed=3)
    assert not any(p.requires_grad for p in [*result.model.parameters(), *model.parameters()])
    assert result.report.steps[-1].loss < result.report.steps[-2].loss


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="compress: model: expected a torch.nn.Module, got int"):
        compress(3, images())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compress: images: expected finite numbers"):
        run(images() * float("nan"))
    with pytest.raises(ValueError, match="compress: images: expected at least one batch"):
        run([])
    with pytest.raises(TypeError, match="compress: images: expected"):
        run(3)
    with pytest.raises(ValueError, match="minutes: expected a number from 0"):
        run(images(), minutes=float("nan"))
