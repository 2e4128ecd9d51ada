"""Trains and fine-tunes: mixed precision, distillation, the best epoch kept, resume after a kill.

Accelerate does the plumbing (devices, mixed precision, gradient accumulation, several processes).
What this module adds is that a run is a function of its arguments: every epoch draws its random
numbers from (seed, epoch), so that a run that was killed and resumed ends with the same weights,
bit for bit, as one that was not.

Schedule: Loshchilov, Hutter, "SGDR", ICLR 2017 (one cosine, no restarts).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mdcp_fast.modules.calls import eval_mode
from mdcp_fast.modules.layer_kinds import is_batch_norm
from mdcp_fast.training.checkpoint import (
    RandomState,
    TrainingState,
    generators_of,
    read_state,
    write_state,
)
from mdcp_fast.training.config import Recipe
from mdcp_fast.training.evaluation import Metric, as_loader, batch_on, correct, device_of, score
from mdcp_fast.training.losses import CrossEntropy, Loss, Objective
from mdcp_fast.training.onednn import strided_by_slices
from mdcp_fast.training.progress import Silent, progress_bar


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: 1 for the first.
        loss: Mean training loss per sample, distillation included.
        accuracy: On the validation data, 0 to 1; None without validation data.
        learning_rate: Of the epoch's last step.
    """

    number: int
    loss: float
    accuracy: float | None
    learning_rate: float


@dataclass(frozen=True)
class History:
    """What `finetune` did.

    Attributes:
        epochs: One entry for each epoch.
        start_accuracy: On the validation data before the first step; None without validation data.
        best_epoch: The epoch whose weights the model ended with: 0 means those it came with.
    """

    epochs: tuple[Epoch, ...]
    start_accuracy: float | None
    best_epoch: int

    @property
    def best_accuracy(self) -> float | None:
        """Validation accuracy of the weights that the model ended with."""
        return self.epochs[self.best_epoch - 1].accuracy if self.best_epoch else self.start_accuracy


def finetune(
    model: nn.Module,
    train: DataLoader[Any] | Dataset[Any],
    validation: DataLoader[Any] | Dataset[Any] | None = None,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 30,
    batch_size: int = 64,
    lr: float = 0.01,
    warmup: float = 0.05,
    weight_decay: float = 1e-4,
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
    loss: Loss | None = None,
    label_smoothing: float = 0.0,
    distillation: float = 0.5,
    temperature: float = 4.0,
    metric: Metric | None = None,
    accumulate: int = 1,
    mixed_precision: str = "no",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Trains `model` in place, where it is, and leaves it with the weights of its best epoch.

    The best epoch is the one with the highest score on `validation` (the latest of equals; the
    weights that the model came with count as epoch 0). Without validation data it is the last one.
    No other data chooses anything.

    Learning rate: linear warm-up, then half a cosine down to zero, both by optimizer step.
    Parameters with one dimension (biases, normalisation) get no weight decay. Frozen parameters
    stay frozen, and a BatchNorm whose parameters are all frozen keeps its statistics as well.
    Dtype, memory format, the modes of all modules and the caller's random number generators are
    afterwards as they were. Under `accelerate launch` the batches are shared out among the
    processes.

    Args:
        model: The network, trained in place.
        train: Batches of (inputs, targets) from a DataLoader, or a Dataset to be shuffled into
            batches of `batch_size`. Inputs are a tensor or a tuple of the model's arguments;
            targets are class indices, unless `loss` says otherwise.
        validation: Likewise, or None.
        teacher: A network to learn from, on the same device, e.g. the dense one; only read.
        epochs: Passes over `train`; 0 only evaluates.
        batch_size: For datasets; loaders bring their own.
        lr: Highest learning rate.
        warmup: Share of all optimizer steps, 0 to 1, in which the learning rate rises.
        weight_decay: Of the default optimizer, SGD with Nesterov momentum 0.9.
        optimizer: Makes another one from parameter groups, e.g. `torch.optim.AdamW`.
        loss: Called with (outputs, targets); by default the cross entropy of the logits, where
            outputs after the first (auxiliary heads) count 0.3 each.
        label_smoothing: Of the default loss, 0 to 1.
        distillation: With a teacher, the weight, 0 to 1, of the Kullback-Leibler divergence from
            the teacher's softened outputs (times temperature squared); the loss has the rest.
        temperature: Softens the logits of teacher and model.
        metric: Called with (outputs, targets) of a validation batch, returns a score per sample,
            [batch], higher is better; by default 1 where the largest logit is the target.
        accumulate: Batches whose gradients are averaged for one step.
        mixed_precision: "no", "bf16" or "fp16" (on a GPU). The weights themselves keep their dtype.
        checkpoint: A folder. After every epoch the whole state goes there, atomically; a run that
            finds its own checkpoint there goes on from it. A finished run's checkpoint gives its
            result again.
        checkpoint_steps: Also save after every so many optimizer steps within an epoch.
        seed: Decides the order of the data and every other random number. On a GPU the result
            repeats bit for bit as far as the kernels do (see `torch.use_deterministic_algorithms`);
            with `persistent_workers`, random augmentation does not.
        progress: Show a progress bar on stderr, where that is a terminal.

    Returns:
        The history. Without a progress bar nothing is printed.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, there is no data or nothing to train, the
            checkpoint belongs to another model or recipe or is damaged.
        RuntimeError: The loss became infinite or NaN; the model is left with the best weights so
            far.
    """
    recipe = Recipe(
        epochs,
        batch_size,
        lr,
        warmup,
        weight_decay,
        label_smoothing,
        distillation,
        temperature,
        accumulate,
        mixed_precision,
        seed,
    )
    if not isinstance(model, nn.Module):
        raise TypeError(f"finetune: model: expected a torch.nn.Module, got {type(model).__name__}")
    if checkpoint_steps is not None and (
        not isinstance(checkpoint_steps, int) or checkpoint_steps < 1
    ):
        raise ValueError(
            f"finetune: checkpoint_steps: expected None or at least 1, got {checkpoint_steps!r}"
        )
    device = device_of("model", model)
    if mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "finetune: mixed_precision: expected 'no' or 'bf16' for a model on the CPU, got 'fp16'"
        )
    if teacher is model:
        raise ValueError("finetune: teacher: expected another network than model, got the same one")
    if teacher is not None and device_of("teacher", teacher) != device:
        raise ValueError(
            f"finetune: teacher: expected it on {device} as the model, "
            f"got it on {device_of('teacher', teacher)}"
        )
    train_loader = as_loader("train", train, batch_size, shuffle=True)
    validation_loader = (
        None
        if validation is None
        else as_loader("validation", validation, batch_size, shuffle=False)
    )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "finetune: model: expected parameters with requires_grad, got none (all are frozen)"
        )
    objective = Objective(loss or CrossEntropy(label_smoothing), teacher, distillation, temperature)
    with (
        RandomState.kept(device, generators_of(train_loader)),
        eval_mode(model),  # this and the next: all modes are put back at the end
        eval_mode(teacher if teacher is not None else nn.Module()),
        strided_by_slices(model),
        _own_accelerator(device, recipe) as accelerator,
    ):
        run = _Run(
            accelerator,
            model,
            train_loader,
            validation_loader,
            objective,
            metric or correct,
            optimizer,
            recipe,
        )
        with progress_bar(progress and accelerator.is_main_process, epochs, run.batches) as bar:
            return run.go(checkpoint, checkpoint_steps, bar)


class _Trainee(nn.Module):
    """Holds the model while Accelerate prepares it, which replaces `forward` of what it gets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)


class _Run:
    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        train: DataLoader[Any],
        validation: DataLoader[Any] | None,
        objective: Objective,
        metric: Metric,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        recipe: Recipe,
    ) -> None:
        self.accelerator, self.model, self.recipe = accelerator, model, recipe
        self.objective, self.metric = objective, metric
        self.device = device_of("model", model)
        self.generators = generators_of(train)
        groups = _parameter_groups(model, recipe.weight_decay)
        if make_optimizer is None:
            inner: torch.optim.Optimizer = torch.optim.SGD(
                groups, lr=recipe.lr, momentum=0.9, nesterov=True
            )
        else:
            inner = make_optimizer(groups)
            for group in inner.param_groups:
                group["lr"] = recipe.lr
        self.net = accelerator.prepare_model(_Trainee(model), device_placement=False)
        self.optimizer = accelerator.prepare_optimizer(inner, device_placement=False)
        self.train = accelerator.prepare_data_loader(train, device_placement=False)
        self.validation = (
            None
            if validation is None
            else accelerator.prepare_data_loader(validation, device_placement=False)
        )
        self.batches = len(self.train)
        steps = recipe.epochs * math.ceil(self.batches / recipe.accumulate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            inner, _WarmupCosine(round(recipe.warmup * steps), steps)
        )
        self.state = TrainingState()

    def go(
        self, checkpoint: str | os.PathLike[str] | None, checkpoint_steps: int | None, bar: Silent
    ) -> History:
        state, identity = self.state, self.identity()
        path = None if checkpoint is None else os.path.join(checkpoint, "finetune.pt")
        if path is not None and self.accelerator.is_main_process:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        random: RandomState | None = None
        if path is not None and os.path.exists(path):
            random = read_state(
                path,
                identity,
                state,
                self.model,
                self.optimizer,
                self.schedule,
                self.accelerator.scaler,
            )
        elif self.validation is not None:
            state.start_accuracy = state.best_accuracy = self.score()
            state.best = _weights(self.model)

        def save(random: RandomState | None = None) -> None:
            if path is not None and self.accelerator.is_main_process:
                write_state(
                    path,
                    identity,
                    state,
                    self.model,
                    self.optimizer,
                    self.schedule,
                    self.accelerator.scaler,
                    random,
                )

        while state.epoch < self.recipe.epochs:
            try:
                self.one_epoch(random, save, checkpoint_steps, bar)
            except FloatingPointError as error:
                if state.best:
                    self.model.load_state_dict(state.best)
                raise RuntimeError(str(error)) from None
            random = None
            save()
        if state.best:
            self.model.load_state_dict(state.best)
        return History(
            tuple(Epoch(*entry) for entry in state.epochs),
            state.start_accuracy,
            state.best_epoch if self.validation is not None else state.epoch,
        )

    def one_epoch(
        self,
        resumed: RandomState | None,
        save: Callable[[RandomState | None], None],
        checkpoint_steps: int | None,
        bar: Silent,
    ) -> None:
        """One pass over the training data, or, with `resumed`, what is left of one."""
        state, recipe = self.state, self.recipe
        number = state.epoch + 1
        RandomState.seed(recipe.seed, state.epoch, self.device, self.generators)
        _training_mode(self.model)
        done = state.batch
        for index, batch in enumerate(self.train):
            if index < done:
                # Batches before the checkpoint are drawn again, so that the loader is where it was;
                # only then come the generators, since drawing has moved them.
                if index == done - 1 and resumed is not None:
                    resumed.restore(self.device, self.generators)
                continue
            inputs, targets = batch_on("finetune: train", batch, self.model, self.device)
            with self.accelerator.accumulate(self.net):
                value = self.objective(
                    self.net(*inputs), inputs, targets, self.accelerator.autocast
                )
                # Accelerate divides by `accumulate`; the last window of an epoch may be shorter.
                first = index - index % recipe.accumulate
                window = min(recipe.accumulate, self.batches - first)
                self.accelerator.backward(value * (recipe.accumulate / window))
                self.optimizer.step()
                self.optimizer.zero_grad()
            size = len(inputs[0])
            state.loss = state.loss + value.detach().float().reshape(()) * size
            state.samples += size
            learning_rate = float(self.optimizer.param_groups[0]["lr"])
            if self.accelerator.sync_gradients:
                if not self.accelerator.optimizer_step_was_skipped:
                    self.schedule.step()
                state.batch = index + 1
                steps = math.ceil(state.batch / recipe.accumulate)
                if (
                    checkpoint_steps
                    and steps % checkpoint_steps == 0
                    and state.batch < self.batches
                ):
                    save(RandomState.now(self.device, self.generators))
            bar.step(number, index + 1)
        loss = self.accelerator.reduce(
            torch.stack([state.loss, torch.tensor(float(state.samples), device=self.device)])
        ).tolist()
        mean = loss[0] / loss[1]
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"finetune: the loss became {mean} in epoch {number} with learning rate "
                f"{recipe.lr:g}; a lower one, or mixed_precision='no', may help"
            )
        accuracy = None if self.validation is None else self.score()
        state.epochs.append((number, mean, accuracy, learning_rate))
        best = state.best_accuracy
        if accuracy is not None and (best is None or accuracy >= best):
            state.best_accuracy, state.best_epoch = accuracy, number
            state.best = _weights(self.model)
        state.epoch, state.batch, state.samples = number, 0, 0
        state.loss = torch.zeros((), device=self.device)
        bar.epoch(number, mean, accuracy)

    def score(self) -> float:
        """The mean validation score, over all processes, in the precision of training."""
        assert self.validation is not None
        with eval_mode(self.net):
            return score(
                self.net,
                self.validation,
                self.metric,
                self.device,
                self.accelerator.gather_for_metrics,
            )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run: plain values, and shapes by name."""
        shapes = {name: list(t.shape) for name, t in self.model.state_dict().items()}
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        return {
            "model": shapes,
            "trained parameters": trained,
            "optimizer": type(self.optimizer.optimizer).__name__,
            "batches of an epoch": self.batches,
            "validation": self.validation is not None,
            "teacher": self.objective.teacher is not None,
            **vars(self.recipe),
        }


class _WarmupCosine:
    """Factor of the learning rate at a step: linear up to 1, then half a cosine down to 0."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps = warmup, steps

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        share = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@contextmanager
def _own_accelerator(device: torch.device, recipe: Recipe) -> Iterator[Any]:
    """An Accelerator of our own.

    Accelerate keeps its settings in class attributes: the caller's are put back.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(values) for values in shared]
    for values in shared:
        values.clear()
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            device_placement=False,
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.accumulate),
        )
    finally:
        for values, old in zip(shared, before, strict=True):
            values.clear()
            values.update(old)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _training_mode(model: nn.Module) -> None:
    model.train()
    for module in model.modules():
        if is_batch_norm(module):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def _weights(model: nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
