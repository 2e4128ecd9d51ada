"""One training run: its steps and epochs, and the weights that it ends with."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mdcp_fast.modules.calls import call, eval_mode, samples_in
from mdcp_fast.modules.files import AnyPath
from mdcp_fast.modules.layer_kinds import is_batch_norm
from mdcp_fast.training.checkpoint import (
    RandomState,
    TrainingState,
    generators_of,
    read_state,
    write_state,
)
from mdcp_fast.training.config import Recipe
from mdcp_fast.training.evaluation import Metric, batch_on, device_of, score
from mdcp_fast.training.losses import Objective
from mdcp_fast.training.progress import Silent
from mdcp_fast.training.schedule import WarmupCosine


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


class _Trainee(nn.Module):
    """Holds the model while Accelerate prepares it, which replaces `forward` of what it gets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.model(*inputs, **named)


class TrainingRun:
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
            inner, WarmupCosine(round(recipe.warmup * steps), steps)
        )
        self.state = TrainingState()

    def go(self, checkpoint: AnyPath | None, checkpoint_steps: int | None, bar: Silent) -> History:
        state, identity = self.state, self.identity()
        path = None if checkpoint is None else os.path.join(os.fsdecode(checkpoint), "finetune.pt")
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
                    call(self.net, inputs), inputs, targets, self.accelerator.autocast
                )
                # Accelerate divides by `accumulate`; the last window of an epoch may be shorter.
                first = index - index % recipe.accumulate
                window = min(recipe.accumulate, self.batches - first)
                self.accelerator.backward(value * (recipe.accumulate / window))
                self.optimizer.step()
                self.optimizer.zero_grad()
            size = samples_in(inputs)
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
                self.model,
            )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with this run: plain values, and shapes by name."""
        shapes = {
            name: list(value.shape)
            for name, value in self.model.state_dict().items()
            if isinstance(value, Tensor)  # and no extra state
        }
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
