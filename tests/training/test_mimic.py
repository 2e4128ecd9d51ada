"""Training without labels: what a network learns of its teacher, and that it never gets worse."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mdcp_fast.training import mimic as mimicking
from mdcp_fast.training.augmentation import varied
from mdcp_fast.training.finetune import finetune
from mdcp_fast.training.imitation import agreement, answers_apart
from mdcp_fast.training.mimic import MimicHistory
from mdcp_fast.training.unlabelled import Samples, without_labels


def network(width: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 5),
        )


def dense() -> nn.Sequential:
    """A teacher whose statistics fit its inputs and whose answers differ between them."""
    model = network(8, 1)
    with torch.no_grad(), torch.random.fork_rng():
        model[-1].weight.mul_(20)
        model.train()(images(64, 7))
    return model.eval()


def pupil() -> nn.Sequential:
    """The teacher, disturbed."""
    model = dense()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * p.std().nan_to_num(0.0) * torch.randn(p.shape, generator=generator))
    return model


def images(count: int = 24, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 8, 8, generator=generator)


def run(model: nn.Module, train: Any = None, **options: Any) -> Any:
    settings = {"teacher": dense(), "epochs": 8, "batch_size": 8, "progress": False, **options}
    return finetune(model, images() if train is None else train, **settings)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def apart(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float(answers_apart(model.eval()(x), dense()(x)))


def test_learns_what_the_teacher_answers_on_images_it_has_not_seen() -> None:
    model, others = pupil(), images(64, 11)
    before = apart(model, others)
    history = run(model, images(96), epochs=8, lr=1e-2)
    assert isinstance(history, MimicHistory) and history.steps == 8 * 9
    looks = mimicking.CHECKS + len(mimicking.WAY)
    assert len(history.held_out) == len(history.epochs) + 1 == looks + 1
    assert history.best_loss == min(history.held_out) < 0.7 * history.start_loss
    assert apart(model, others) < 0.7 * before
    assert history.best_accuracy is not None and 0 <= history.best_accuracy <= 1


@pytest.mark.parametrize("lr", [1e-3, 0.3, 1e4, 1e30])
def test_never_ends_above_the_held_out_loss_that_it_began_with(lr: float) -> None:
    """Its own images are held out here: the loss can be measured from outside."""
    model, held_out = pupil(), images(16, 9)
    before, loss = weights(model), apart(model, held_out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it diverged
        history = run(model, validation=held_out, lr=lr)
    assert history.start_loss == pytest.approx(loss, rel=1e-5)
    assert history.best_loss == pytest.approx(apart(model, held_out), rel=1e-5)
    assert history.best_loss <= history.start_loss
    assert same(weights(model), before) == (history.best_epoch == 0)


def test_the_start_comes_back_bit_for_bit_where_nothing_helps() -> None:
    model = dense()  # the teacher itself: no step can help
    before = weights(model)
    history = run(model, lr=0.1)
    assert history.best_epoch == 0 and history.best_loss == history.start_loss == 0
    assert history.steps > 0 and same(weights(model), before)


def test_a_network_that_gives_nan_is_handed_back_with_a_warning() -> None:
    class Fragile(nn.Module):
        """Whose answers are NaN once it has been changed."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = pupil()
            self.start = self.inner[0].weight.detach().clone()

        def forward(self, x: Tensor) -> Tensor:
            whole = torch.equal(self.inner[0].weight, self.start)
            return self.inner(x) * (1.0 if whole else float("nan"))

    model = Fragile()
    before = weights(model)
    with pytest.warns(UserWarning, match="training without labels diverged"):
        history = run(model)
    assert history.best_epoch == 0 and same(weights(model), before)
    assert history.steps < 24  # and it gives up


def test_statistics_modes_gradients_flags_and_the_teacher_stay_as_they_were() -> None:
    model, teacher = pupil().train(), dense().train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    gradient = model[0].weight.grad
    before, read = weights(model), weights(teacher)
    torch.manual_seed(3)
    drawn = torch.rand(())
    torch.manual_seed(3)
    history = run(model, teacher=teacher, lr=3e-3)
    assert torch.equal(torch.rand(()), drawn)
    after = weights(model)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert history.best_epoch > 0 and "0.weight" in changed
    assert not changed & {name for name, _ in model.named_buffers()} | changed & {"3.weight"}
    assert model.training and not model[1].training and model[2].training
    assert not model[3].weight.requires_grad and model[0].weight.requires_grad
    assert model[0].weight.grad is gradient and bool((gradient == 1).all())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")
    assert teacher.training and same(weights(teacher), read)


def test_repeats_by_seed() -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(results))
        model = pupil()
        run(model, seed=seed, lr=1e-3)
        results.append(weights(model))
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_an_interruption_leaves_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    model, before, calls, best = pupil(), weights(pupil()), 0, {}
    look = mimicking._Run.judged

    def interrupting(self: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 6:
            with torch.no_grad():  # wherever a step had got to
                model[0].weight.fill_(7.0)
            raise KeyboardInterrupt
        result = look(self)
        best.update(zip(dict(model.named_parameters()), self.best, strict=True))
        return result

    monkeypatch.setattr(mimicking._Run, "judged", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(model, lr=1e-3, epochs=20)
    assert same({name: value for name, value in model.named_parameters()}, best)
    assert not same(weights(model), before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_are_enough(count: int) -> None:
    model = pupil()
    history = run(model, images(count))
    assert history.best_loss <= history.start_loss and history.steps == 8


class Unlabelled(Dataset[Any]):
    def __init__(self, make: Any) -> None:
        self.make = make

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        if index >= 24:
            raise IndexError
        return self.make(images()[index])


@pytest.mark.parametrize(
    "train",
    [
        images(),
        list(images().split(8)),
        iter(images().split(8)),
        TensorDataset(images()),
        DataLoader(TensorDataset(images()), batch_size=8),
        Unlabelled(lambda x: x),
        DataLoader(Unlabelled(lambda x: x), batch_size=8),
        [{"input": x} for x in images().split(8)],
        Unlabelled(lambda x: {"input": x}),
    ],
)
def test_inputs_without_labels_come_in_many_forms(train: Any) -> None:
    model, plain = pupil(), pupil()
    run(plain, validation=images(8, 9))
    run(model, train, validation=images(8, 9))
    assert same(weights(model), weights(plain))


def test_pairs_stay_labelled_and_label_free_options_are_told_apart() -> None:
    pairs = TensorDataset(images(), torch.zeros(24, dtype=torch.int64))
    assert not without_labels(pairs) and not without_labels(DataLoader(pairs))
    history = run(pupil(), pairs, epochs=1)
    assert not isinstance(history, MimicHistory) and history.best_epoch == 1
    with pytest.raises(
        TypeError, match=r"train: expected batches of inputs without labels .* of 2"
    ):
        run(pupil(), [(images(), torch.zeros(24))])
    with pytest.raises(ValueError, match="minutes: expected None where there are labels"):
        run(pupil(), pairs, minutes=1)
    with pytest.raises(ValueError, match="label_smoothing: expected it left out, since train has"):
        run(pupil(), label_smoothing=0.1)
    with pytest.raises(ValueError, match="'no' or 'bf16' without labels, got 'fp16'|on the CPU"):
        run(pupil(), mixed_precision="fp16")
    with pytest.raises(
        TypeError, match="train: expected a torch DataLoader or Dataset, got Tensor"
    ):
        run(pupil(), teacher=None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": images() * float("nan")}, ValueError, "train: expected finite numbers"),
        ({"train": []}, ValueError, "train: expected at least one batch of images, got none"),
        ({"train": images(0)}, ValueError, "train: expected at least one batch of images"),
        (
            {"train": [images(), images()[:, :, 1:]]},
            ValueError,
            "differ in their number of samples",
        ),
        ({"minutes": -1}, ValueError, "minutes: expected a number from 0, got -1"),
        ({"minutes": "1"}, TypeError, "minutes: expected a number, got str"),
        ({"teacher": nn.Conv2d(2, 3, 3)}, ValueError, "teacher: expected floating-point outputs"),
    ],
)
def test_bad_arguments_leave_the_network_alone(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = pupil()
    before = weights(model)
    with pytest.raises(error, match=message):
        run(model, **change)
    assert same(weights(model), before)


def test_minutes_bound_it() -> None:
    model = pupil()
    begun = time.perf_counter()
    history = run(model, images(256), epochs=None, minutes=0.02)
    assert time.perf_counter() - begun < 5 and history.seconds < 3
    assert run(model, minutes=0.0).steps == 0


def test_outputs_that_are_no_logits_are_compared_by_their_variance() -> None:
    class Maps(nn.Module):
        """Two maps in a tuple, as a text detector gives them."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.body, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.body(x).relu()
            return self.head(y), y

    teacher, model = Maps(1), Maps(1)
    with torch.no_grad():
        model.head.weight.mul_(0.8)
    history = run(model, teacher=teacher, lr=3e-3, epochs=20)
    assert history.best_loss < 0.6 * history.start_loss
    assert history.start_accuracy is None and history.best_accuracy is None
    x = images(4)
    (a, b), (c, d) = model(x), teacher(x)
    wanted = [((m - y).square().mean() / y.var(correction=0)) for m, y in ((a, c), (b, d))]
    torch.testing.assert_close(answers_apart((a, b), (c, d)), torch.stack(wanted).mean())
    scaled = answers_apart((10 * a, b), (10 * c, d))
    torch.testing.assert_close(scaled, answers_apart((a, b), (c, d)))


def test_logits_are_compared_by_their_divergence() -> None:
    mine, yours = torch.randn(6, 4), torch.randn(6, 4)
    p = yours.softmax(1)
    expected = (p * (p.log() - mine.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(answers_apart(mine, yours), expected)
    assert torch.equal(agreement({"out": mine}, {"out": yours}), mine.argmax(1) == yours.argmax(1))
    assert agreement(mine[:, :1], yours[:, :1]) is None


def test_images_that_run_one_after_another_teach_what_they_teach_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mimicking, "varied", lambda inputs, generator: inputs)
    results = []
    for numbers in (1 << 20, 300):  # all at once; two images of 128 numbers
        monkeypatch.setattr(mimicking, "NUMBERS", numbers)
        model = pupil()
        history = run(model, lr=1e-3, epochs=2)
        results.append((weights(model), history.held_out))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-3, atol=1e-5)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-3)


def test_errors_are_shares_of_the_variance_of_all_held_out_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not of the few that run together, which may be a single number."""
    monkeypatch.setattr(mimicking, "NUMBERS", 1)

    class One(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:, :1]

    model, teacher, held_out = One(pupil()), One(dense()), images(16, 9)
    with torch.no_grad():
        expected = float(answers_apart(model.eval()(held_out), teacher(held_out)))
    history = run(model, teacher=teacher, validation=held_out, epochs=1)
    assert history.start_loss == pytest.approx(expected, rel=1e-4)


def test_weights_between_the_first_and_the_last_may_be_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look, shares = mimicking._Run.look, list[float]()

    def looking(self: Any) -> float | None:
        result: float | None = look(self)
        if self.steps == 24:  # the last look, and those after it
            self.held_out[-1] = [9.0, 0.5, 1e-9, 0.5][len(shares) % 4]
            shares.append(0.0)
            if len(shares) == 3:
                self.kept = [p.detach().clone() for p in self.trained]
        return result

    monkeypatch.setattr(mimicking._Run, "look", looking)
    monkeypatch.setattr(mimicking, "WORSE", 1e9)
    model, first = pupil(), list(pupil().parameters())
    history = run(model, epochs=8)
    assert history.best_epoch == len(history.epochs) - 1 and history.best_loss == 1e-9
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), first, strict=True))


def test_held_out_samples_are_a_quarter_and_whole_batches_where_there_are_several() -> None:
    learn, judge = Samples([(images(24),)]).split(0)
    assert (len(learn), len(judge)) == (18, 6)
    learn, judge = Samples([(images(3),)] * 8).split(0)
    assert (len(learn), len(judge)) == (18, 6)
    assert not {int(b) for b in learn.picks[:, 0]} & {int(b) for b in judge.picks[:, 0]}
    learn, judge = Samples([(images(100),), (images(1),), (images(1),), (images(1),)]).split(0)
    assert len(learn) + len(judge) == 103 and 0 < len(judge) <= 51


def test_variations_keep_shape_and_range_and_touch_images_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = images(8)
    (changed,) = varied((x,), generator)
    assert changed.shape == x.shape and not torch.equal(changed, x)
    assert changed.min() >= x.min() and changed.max() <= x.max()
    rows = x.to(memory_format=torch.channels_last)
    assert varied((rows,), generator)[0].is_contiguous(memory_format=torch.channels_last)
    several = (x, torch.ones(8, 2))
    assert varied(several, generator) is several
    numbers = {"ids": torch.ones(8, 3, dtype=torch.int64)}
    assert varied(numbers, generator) is numbers
