"""Fine-tuning: a function of its arguments that leaves nothing behind but better weights."""

from __future__ import annotations

import copy
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_python
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mdcp_fast.training.evaluation import correct, evaluate
from mdcp_fast.training.finetune import finetune

CLASSES = 4


def images(count: int, seed: int) -> TensorDataset:
    """Noisy copies of four patterns: easy, but not at once."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, 2, 6, 6, generator=generator)
    generator.manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 2, 6, 6, generator=generator)
    return TensorDataset(0.5 * patterns[targets] + noise, targets)


def network(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )


TRAIN, VALIDATION = images(90, 1), images(60, 2)


def run(model: nn.Module, train: Any = TRAIN, validation: Any = VALIDATION, **options: Any) -> Any:
    settings = {"epochs": 3, "batch_size": 16, "lr": 0.05, "progress": False, **options}
    return finetune(model, train, validation, **settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_learns_and_reports() -> None:
    model = network()
    before = evaluate(model, VALIDATION)
    history = run(model, epochs=8)
    assert history.start_accuracy == pytest.approx(before)
    assert [epoch.number for epoch in history.epochs] == list(range(1, 9))
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert history.best_accuracy == pytest.approx(evaluate(model, VALIDATION))
    assert history.best_accuracy > before + 0.2


def test_best_epoch_is_restored_and_the_latest_of_equals_wins() -> None:
    model = network()
    # A learning rate that wrecks the network: the weights it came with are the best, and come back.
    run(model, epochs=6)
    good = weights(model)
    history = run(model, lr=500.0, epochs=2, warmup=0.0)
    assert history.best_epoch == 0 and same(weights(model), good)
    constant = run(network(), metric=lambda outputs, targets: torch.ones(len(targets)))
    assert constant.best_epoch == 3


def test_without_validation_the_last_epoch_stays() -> None:
    history = run(network(), validation=None)
    assert history.best_epoch == 3 and history.best_accuracy is None
    assert all(epoch.accuracy is None for epoch in history.epochs)


def test_zero_epochs_only_evaluates() -> None:
    model = network()
    before = weights(model)
    history = run(model, epochs=0)
    assert history.epochs == () and history.best_epoch == 0 and same(weights(model), before)


def test_repeats_and_leaves_the_callers_random_numbers_alone() -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (the global generator is what is protected)
    torch.manual_seed(5)
    first = network()

    def drawn() -> tuple[float, ...]:
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002

    expected = drawn()
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    run(first)
    assert drawn() == expected
    torch.manual_seed(99)
    second, third = network(), network()
    run(second)
    run(third, seed=1)
    assert same(weights(first), weights(second)) and not same(weights(first), weights(third))


def test_a_loaders_own_generator_is_reseeded_and_put_back() -> None:
    results = []
    for offset in (1, 2):
        generator = torch.Generator().manual_seed(offset)
        loader = DataLoader(TRAIN, batch_size=16, shuffle=True, generator=generator)
        before, model = generator.get_state(), network()
        run(model, loader)
        assert torch.equal(generator.get_state(), before)
        results.append(weights(model))
    assert same(*results)


@pytest.mark.parametrize("checkpoint_steps", [None, 2])
def test_killed_in_the_middle_of_an_epoch_and_resumed_ends_the_same(
    tmp_path: Path, checkpoint_steps: int | None
) -> None:
    """The process kills itself by SIGKILL in its third epoch: nothing is tidied up."""
    options = {"accumulate": 2, "teacher": network(3), "checkpoint_steps": checkpoint_steps}
    uninterrupted = network()
    expected = run(uninterrupted, epochs=4, **options)
    script = f"""
import os, signal, sys
import torch.nn.functional as F
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_finetune import network, run
calls = 0
def loss(outputs, targets):
    global calls
    calls += 1
    if calls == 2 * 6 + 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(outputs, targets)
run(network(), epochs=4, loss=loss, accumulate=2, teacher=network(3),
    checkpoint={str(tmp_path)!r}, checkpoint_steps={checkpoint_steps})
"""
    ended = run_python(script, folder=tmp_path, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    state = torch.load(tmp_path / "finetune.pt", weights_only=True)["state"]
    assert state["epoch"] == 2 and state["batch"] == (4 if checkpoint_steps else 0)
    resumed = network(7)  # whatever weights the resuming script builds, the checkpoint's count
    history = run(resumed, epochs=4, checkpoint=tmp_path, **options)
    assert same(weights(resumed), weights(uninterrupted)) and history == expected
    again = network(8)  # and a finished run gives its result again
    assert run(again, epochs=4, checkpoint=tmp_path, **options) == expected
    assert same(weights(again), weights(uninterrupted))


def test_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    run(network(), checkpoint=tmp_path)
    model = network()
    before = weights(model)
    with pytest.raises(ValueError, match="checkpoint: .*epochs: expected 4, got 3"):
        run(model, epochs=4, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="teacher: expected True, got False"):
        run(model, teacher=network(1), checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"0.weight: expected shape \[5, 2, 3, 3\], got \[8, 2"):
        other = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(80, CLASSES))
        run(other, checkpoint=tmp_path)
    whole = (tmp_path / "finetune.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint at all"):
        (tmp_path / "finetune.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint: expected .* to be a whole file"):
            run(model, checkpoint=tmp_path)
    assert same(weights(model), before)
    assert os.listdir(tmp_path) == ["finetune.pt"]


def test_modes_flags_dtype_and_memory_format_survive() -> None:
    model = network().to(torch.float64).to(memory_format=torch.channels_last).eval()
    model[1].train()
    model[6].bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    bias, attributes = model[6].bias.clone(), dict(vars(model))
    run(model)
    assert [module.training for module in model.modules()] == modes
    assert model[0].weight.dtype == torch.float64
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(model[6].bias, bias) and not model[6].bias.requires_grad
    assert vars(model).keys() == attributes.keys()


def test_a_frozen_batchnorm_keeps_its_statistics() -> None:
    model = network()
    model[1].requires_grad_(False)
    before = weights(model[1])
    run(model)
    assert same(weights(model[1]), before)


def test_accumulation_equals_larger_batches() -> None:
    """90 images: the last window of each epoch is a single batch of 10, and is a whole step."""
    model, other = network(dropout=0.0), network(dropout=0.0)
    for one in (model, other):  # statistics of a batch depend on its size
        one[1].requires_grad_(False)
    ordered = [DataLoader(TRAIN, batch_size=size) for size in (20, 10)]
    run(model, ordered[0], validation=None)
    run(other, ordered[1], validation=None, accumulate=2)
    for name, value in weights(model).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-4, atol=1e-5)


def test_schedule_warms_up_and_falls_to_zero() -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    run(network(), optimizer=Watched, lr=0.3, epochs=4, warmup=0.25)
    peak = rates.index(max(rates))
    assert len(rates) == 24 and max(rates) == pytest.approx(0.3) and peak == 6
    assert rates[:7] == sorted(rates[:7]) and rates[6:] == sorted(rates[6:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_distillation_follows_the_teacher_and_only_reads_it() -> None:
    teacher = network(1)
    run(teacher, epochs=10)
    teacher.train()
    before = weights(teacher)
    model = network()
    run(model, validation=None, teacher=teacher, distillation=1.0, temperature=2.0, epochs=15)
    assert teacher.training and same(weights(teacher), before)
    plain, unweighted = network(), network()
    run(plain, validation=None, epochs=15)
    x = VALIDATION.tensors[0]
    wanted = teacher.eval()(x).log_softmax(1)

    def divergence(pupil: nn.Module) -> float:
        logits = pupil.eval()(x).log_softmax(1)
        return nn.functional.kl_div(logits, wanted, reduction="batchmean", log_target=True).item()

    assert divergence(model) < 0.7 * divergence(plain)
    run(plain := network())
    run(unweighted, teacher=teacher, distillation=0.0)
    assert same(weights(plain), weights(unweighted))


def test_own_loss_label_smoothing_and_bf16() -> None:
    smooth, plain, hinge, half = network(), network(), network(), network()
    run(plain)
    run(smooth, label_smoothing=0.2)
    run(hinge, loss=lambda outputs, targets: nn.functional.multi_margin_loss(outputs, targets))
    # Other settings one after the other in one process: Accelerate's shared state must not leak.
    run(half, mixed_precision="bf16", accumulate=3)
    again = network()
    run(again)
    assert same(weights(plain), weights(again))
    assert half[0].weight.dtype == torch.float32
    for other in (smooth, hinge, half):
        assert not same(weights(other), weights(plain))


def test_an_accelerator_of_the_caller_is_left_alone() -> None:
    from accelerate import Accelerator

    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=5)
    run(network(), accumulate=2)
    assert mine.mixed_precision == "bf16" and mine.gradient_accumulation_steps == 5
    assert mine.state.initialized and mine.gradient_state.num_steps == 5


def test_auxiliary_outputs_are_trained() -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.head = network(), nn.Linear(72, CLASSES)

        def forward(self, x: Tensor) -> Any:
            main = self.main(x)
            return (main, self.head(x.flatten(1))) if self.training else main

    model = WithHead()
    before = model.head.weight.clone()
    run(model)
    assert not torch.equal(model.head.weight, before)


def test_correct_scores_plain_dense_and_soft_targets() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert correct(logits, torch.tensor([0, 0])).tolist() == [1.0, 0.0]
    assert correct((logits, None), torch.tensor([[0.9, 0.1], [0.2, 0.8]])).tolist() == [1.0, 1.0]
    pixels = torch.stack([logits, -logits], dim=2)  # [batch, classes, 2 positions]
    assert correct(pixels, torch.tensor([[0, 0], [1, 0]])).tolist() == [0.5, 1.0]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = network()
    before = weights(model)
    with pytest.raises(RuntimeError, match="the loss became nan in epoch 1"):
        run(model, loss=lambda outputs, targets: outputs.sum() * float("nan"))
    assert same(weights(model), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": -1}, ValueError, "epochs: expected an integer of at least 0, got -1"),
        ({"epochs": 1.5}, TypeError, "epochs: expected an integer, got float"),
        ({"lr": 0.0}, ValueError, "lr: expected a number above 0, got 0.0"),
        ({"lr": float("nan")}, ValueError, "lr: expected a number above 0, got nan"),
        ({"warmup": 1.5}, ValueError, "warmup: expected a number from 0 to 1, got 1.5"),
        ({"distillation": -1}, ValueError, "distillation: expected a number from 0 to 1, got -1"),
        ({"temperature": 0}, ValueError, "temperature: expected a number above 0, got 0"),
        ({"accumulate": 0}, ValueError, "accumulate: expected an integer of at least 1, got 0"),
        ({"mixed_precision": "fp8"}, ValueError, "mixed_precision: expected one of no, bf16, fp16"),
        ({"mixed_precision": "fp16"}, ValueError, "mixed_precision: .* on the CPU, got 'fp16'"),
        ({"checkpoint_steps": 0}, ValueError, "checkpoint_steps: expected None or at least 1"),
        ({"train": [1, 2]}, TypeError, "train: expected a torch DataLoader or Dataset, got list"),
        ({"train": images(0, 0)}, ValueError, "train: expected at least one batch, got none"),
        ({"validation": DataLoader(images(0, 0))}, ValueError, "validation: expected at least one"),
        ({"train": TensorDataset(torch.ones(8, 2, 6, 6))}, TypeError, "train: expected batches of"),
        ({"teacher": nn.Linear(6, 9)}, ValueError, "teacher: expected outputs of shape"),
        ({"loss": lambda o, t: o}, TypeError, "loss: expected it to return a tensor of one number"),
        ({"metric": lambda o, t: 1.0}, TypeError, "metric: expected it to return a tensor"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(network(), **change)


def test_nothing_to_train_and_foreign_models() -> None:
    with pytest.raises(ValueError, match="model: expected parameters with requires_grad"):
        run(network().requires_grad_(False))
    with pytest.raises(ValueError, match="model: expected a model with parameters, got none"):
        run(nn.ReLU())
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got int"):
        finetune(3, TRAIN)  # type: ignore[arg-type]
    model = network()
    with pytest.raises(ValueError, match="teacher: expected another network than model"):
        run(model, teacher=model)
    with pytest.raises(ValueError, match="data: expected at least one batch"):
        evaluate(model, images(0, 0))


def test_evaluate_counts_samples_not_batches_and_restores_modes() -> None:
    model = network().train()
    value = evaluate(model, VALIDATION, batch_size=7)
    assert model.training and model[3].training
    twin = copy.deepcopy(model).eval()
    inputs, targets = VALIDATION.tensors
    assert value == pytest.approx((twin(inputs).argmax(1) == targets).float().mean().item())


def test_the_progress_bar_is_for_terminals_and_can_be_switched_off(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(network(), progress=True)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    run(network(), progress=False)
    assert capfd.readouterr() == ("", "")
    run(network(), progress=True)
    out, error = capfd.readouterr()
    assert out == "" and "epoch 3/3" in error
