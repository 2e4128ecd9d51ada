"""Training without labels: a pruned network learns to answer as the dense one does.

It starts close to where it should end, and images are few, so that a plain training run does harm
first. What is different here: BatchNorm keeps its statistics; steps are small in shares of each
tensor's own size; images vary; and held-out images decide which state stays, the first one
included.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import (
    Inputs,
    call,
    eval_mode,
    even_parts,
    preserve_buffers,
    samples_in,
    tensors_in,
)
from mdcp_fast.training.augmentation import varied
from mdcp_fast.training.checkpoint import RandomState
from mdcp_fast.training.imitation import agreement, answers_apart, variances
from mdcp_fast.training.onednn import strided_by_slices
from mdcp_fast.training.progress import Silent, progress_bar
from mdcp_fast.training.run import Epoch, History
from mdcp_fast.training.schedule import WarmupCosine
from mdcp_fast.training.unlabelled import Samples

STEPS = 400
WAY = (0.75, 0.5, 0.25)  # shares of the way from the first weights to the last, tried at the end
CHECKS = 16  # looks at the held-out images
MOST_HELD_OUT = 512  # images of a look
BATCH = 32  # for looking, without gradients
NUMBERS = 1 << 20  # of the inputs that run together on a CPU: memory is then used again
WORSE = 1.1  # times the best held-out loss: the rate is then too high
RETREATS = 6  # to the best state, each at half the rate
WARMUP = 0.1
SCHEDULE = 1000  # parts of the whole that the learning rate knows
SMALLEST = 1e-3  # what a tensor of zeros counts as
TINY = 1e-9  # of a loss: rounding


@dataclass(frozen=True)
class MimicHistory(History):
    """What `finetune` without labels did.

    Attributes:
        epochs: One entry for each look at the held-out images, the last ones for weights part of
            the way back to the first (their `learning_rate` is 0, their `loss` that of the look
            before); `loss` is the mean training loss since the last look, `accuracy` the share of
            held-out images for which the largest logit is the teacher's (None where outputs are no
            logits).
        start_accuracy: That share before the first step.
        best_epoch: The look whose weights the model ended with: 0 means those it came with.
        held_out: The held-out loss before the first step and at every look; NaN or infinite where
            training had diverged.
        steps: Optimizer steps that were made.
        seconds: How long all of it took.
    """

    held_out: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0

    @property
    def start_loss(self) -> float:
        """Held-out loss before the first step."""
        return self.held_out[0]

    @property
    def best_loss(self) -> float:
        """Held-out loss of the weights that the model ended with: never above `start_loss`."""
        return self.held_out[self.best_epoch]


@dataclass(frozen=True)
class MimicRecipe:
    """What decides the result besides networks and images. Where time decides, it repeats roughly.

    Attributes:
        epochs: Passes over the images that are not held out. None: as many as `minutes` allow, or
            make `STEPS` steps.
        minutes: The most that all may take, or None.
        batch_size: Images of a step.
        lr: Highest learning rate: about by which share of its size a tensor changes in a step.
        bf16: Whether layers compute in bfloat16 where torch thinks it safe.
        seed: Of the order of the images, their variations, and which are held out.
    """

    epochs: int | None
    minutes: float | None
    batch_size: int
    lr: float
    bf16: bool
    seed: int

    def __post_init__(self) -> None:
        minutes = self.minutes
        if minutes is None:
            return
        if not isinstance(minutes, (int, float)) or isinstance(minutes, bool):
            raise TypeError(f"finetune: minutes: expected a number, got {type(minutes).__name__}")
        if not 0 <= minutes < math.inf:
            raise ValueError(f"finetune: minutes: expected a number from 0, got {minutes}")


def mimic(
    model: nn.Module,
    teacher: nn.Module,
    learn: Samples,
    judge: Samples,
    recipe: MimicRecipe,
    *,
    progress: bool = False,
) -> MimicHistory:
    """Trains `model` in place to answer as `teacher` does; see `finetune`.

    Args:
        model: The network; trained where its parameters want gradients.
        teacher: Only read.
        learn: The networks' arguments to learn from.
        judge: Those to choose the best state by.
        recipe: The rest.
        progress: Show a bar.

    Returns:
        What it did. The model has the weights of the lowest held-out loss, bit for bit those it
        came with where nothing was lower. So it has when an exception ends it.

    Raises:
        ValueError: Outputs of the two networks differ in shape.
    """
    start = time.perf_counter()
    device = next(model.parameters()).device
    with (
        RandomState.kept(device, []),
        eval_mode(model),
        eval_mode(teacher),
        preserve_buffers(model),
        preserve_buffers(teacher),
        strided_by_slices(model),
        torch.inference_mode(False),
        progress_bar(progress, 1, CHECKS) as bar,
    ):
        RandomState.seed(recipe.seed, 0, device, [])  # for networks that draw numbers
        run = _Run(model, teacher, learn, judge, recipe, start)
        with _best_restored(run):
            run.go(bar)
    return run.history()


@contextmanager
def _best_restored(run: _Run) -> Iterator[None]:
    """Leaves the model with its best weights, and all gradients as they were, whatever happens."""
    gradients = [(p, p.grad) for p in run.model.parameters()]
    try:
        yield
    finally:
        run.restore_best()
        for parameter, gradient in gradients:
            parameter.grad = gradient


class _Run:
    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        learn: Samples,
        judge: Samples,
        recipe: MimicRecipe,
        start: float,
    ) -> None:
        self.model, self.teacher, self.recipe = model, teacher, recipe
        self.learn, self.start = learn, start
        self.generator = torch.Generator("cpu").manual_seed(recipe.seed)
        self.schedule = WarmupCosine(round(WARMUP * SCHEDULE), SCHEDULE)
        self.trained = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
        self.first = self.best = [p.detach().clone() for p in self.trained]
        self.best_epoch, self.epochs, self.held_out = 0, list[Epoch](), list[float]()
        self.factor, self.retreats, self.steps = 1.0, 0, 0
        self.reserve = self.slowest = 0.0  # seconds of a look, and of a step
        self.queue: list[int] = []
        self.total: int | None = None  # steps
        if recipe.epochs is not None:
            self.total = recipe.epochs * math.ceil(len(learn) / recipe.batch_size)
        elif recipe.minutes is None:
            self.total = STEPS
        self.judge = _batches(judge, model, MOST_HELD_OUT)
        with torch.no_grad():
            self.wanted = [call(teacher, batch) for batch in self.judge]
        self.spreads = variances(self.wanted)
        self.start_accuracy = self.look()

    def go(self, bar: Silent) -> None:
        if not self.trained or self.share() >= 1:
            return
        optimizer = _optimizer(self.trained)
        losses, looks = list[Tensor](), 0
        while (share := self.share()) < 1 and self.retreats <= RETREATS:
            begun = time.perf_counter()
            rate = self.recipe.lr * self.factor * self.schedule(int(share * SCHEDULE))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["size"]
            losses.append(self.step(optimizer))
            self.slowest = max(self.slowest, time.perf_counter() - begun)
            done = min(int(self.share() * CHECKS), CHECKS)
            if done > looks or not bool(losses[-1].isfinite()):
                looks = max(done, looks)
                accuracy = self.look()
                mean = float(torch.stack(losses).mean())
                self.epochs.append(Epoch(len(self.epochs) + 1, mean, accuracy, rate))
                losses.clear()
                if self.judged():
                    optimizer.state.clear()
                bar.step(1, looks)
        diverged = not math.isfinite(self.held_out[-1])
        if not diverged:
            self.try_part_of_the_way()
        else:
            warnings.warn(
                "finetune: training without labels diverged; the model has the best weights before "
                "that, and a lower lr may do better",
                stacklevel=4,
            )

    @torch.no_grad()
    def try_part_of_the_way(self) -> None:
        """Judges weights between the first and the last ones.

        What steps learnt of single images cancels there, what many of them agreed on stays.
        Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
        """
        last = [p.detach().clone() for p in self.trained]
        if not self.epochs or not all(bool(value.isfinite().all()) for value in last):
            return
        for share in WAY:
            for parameter, start, end in zip(self.trained, self.first, last, strict=True):
                parameter.copy_(start.lerp(end, share))
            accuracy = self.look()
            self.epochs.append(Epoch(len(self.epochs) + 1, self.epochs[-1].loss, accuracy, 0.0))
            self.keep_if_best()

    def share(self) -> float:
        """How much of the whole is done, by steps or by time."""
        shares = [0.0]
        if self.total is not None:
            shares.append(self.steps / self.total if self.total else 1.0)
        if self.recipe.minutes is not None:
            looks = 1 + len(WAY)  # that come after the last step
            limit = 60 * self.recipe.minutes - looks * self.reserve - self.slowest
            spent = time.perf_counter() - self.start
            shares.append(spent / limit if limit > 0 else 1.0)
        return max(shares)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step; the loss before it."""
        if not self.queue:
            self.queue = torch.randperm(
                len(self.learn), generator=self.generator, device="cpu"
            ).tolist()
        chosen = self.queue[: self.recipe.batch_size]
        del self.queue[: self.recipe.batch_size]
        optimizer.zero_grad()
        losses = []
        for part in _in_parts(chosen, self.learn, self.model):
            batch = varied(self.learn.take(part, self.model), self.generator)
            with torch.enable_grad():
                loss = self.apart(batch) * (len(part) / len(chosen))
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        self.steps += 1
        return torch.stack(losses).sum()

    def apart(self, batch: Inputs) -> Tensor:
        """What is minimised."""
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            with torch.no_grad():
                wanted = call(self.teacher, batch)
            return answers_apart(call(self.model, batch), wanted, self.spreads)

    @torch.no_grad()
    def look(self) -> float | None:
        """Measures the held-out loss; the share of answers that agree, where they are classes."""
        begun = time.perf_counter()
        loss, agreeing, count = 0.0, list[Tensor | None](), 0
        for batch, wanted in zip(self.judge, self.wanted, strict=True):
            outputs, size = call(self.model, batch), samples_in(batch)
            loss += size * float(answers_apart(outputs, wanted, self.spreads))
            agreeing.append(agreement(outputs, wanted))
            count += size
        self.held_out.append(loss / count)
        self.reserve = max(self.reserve, time.perf_counter() - begun)
        known = [one for one in agreeing if one is not None]
        return float(torch.cat(known).double().mean()) if known else None

    def judged(self) -> bool:
        """Keeps the weights if they are the best so far; if they are far worse, takes those back.

        Returns:
            Whether it took them back; the learning rate is then half of what it was.
        """
        self.keep_if_best()
        loss, best = self.held_out[-1], self.held_out[self.best_epoch]
        if loss <= WORSE * best + TINY:
            return False
        self.restore_best()  # NaN, too
        self.factor, self.retreats = self.factor / 2, self.retreats + 1
        return True

    def keep_if_best(self) -> None:
        if self.held_out[-1] < self.held_out[self.best_epoch]:
            self.best_epoch = len(self.epochs)
            self.best = [p.detach().clone() for p in self.trained]

    @torch.no_grad()
    def restore_best(self) -> None:
        for parameter, value in zip(self.trained, self.best, strict=True):
            parameter.copy_(value)

    def history(self) -> MimicHistory:
        return MimicHistory(
            tuple(self.epochs),
            self.start_accuracy,
            self.best_epoch,
            tuple(self.held_out),
            self.steps,
            time.perf_counter() - self.start,
        )


def _batches(samples: Samples, model: nn.Module, most: int) -> list[Inputs]:
    """The first samples, for looking at without gradients."""
    count = min(len(samples), most)
    rows = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    return [samples.take(part, model) for row in rows for part in _in_parts(row, samples, model)]


def _in_parts(indices: Sequence[int], samples: Samples, model: nn.Module) -> list[Sequence[int]]:
    """Samples that run together: all on a GPU, on a CPU at most `NUMBERS` numbers.

    32 images of 224 x 224 take less than half the time so, since activations stay small enough for
    memory to be used again, and not fetched from the system for each layer.
    """
    count = 1
    if next(model.parameters()).device.type == "cpu":
        batch = samples.batches[0]
        numbers = sum(tensor.numel() for tensor in tensors_in(batch)) / samples_in(batch)
        count = min(len(indices), math.ceil(len(indices) * numbers / NUMBERS))
    return [indices[part] for part in even_parts(len(indices), count)]


def _optimizer(trained: Sequence[Tensor]) -> torch.optim.Optimizer:
    # Adam moves every number by about the learning rate, which is meant in shares of the tensor's
    # own size here: no rate fits weights of 1e-3 and scales of 1 alike. Eps is small since the
    # gradients of a network this close to its teacher are.
    groups = []
    for parameter in trained:
        size = float(parameter.detach().float().square().mean().sqrt())
        groups.append({"params": [parameter], "size": max(size, SMALLEST)})
    return torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99), eps=1e-12)
