"""Trains and fine-tunes: mixed precision, distillation, the best epoch kept, resume after a kill.

Accelerate does the plumbing (devices, mixed precision, gradient accumulation, several processes).
What this package adds is that a run is a function of its arguments: every epoch draws its random
numbers from (seed, epoch), so that a run that was killed and resumed ends with the same weights,
bit for bit, as one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mdcp_fast.modules.calls import eval_mode
from mdcp_fast.training.accelerator import fresh_accelerator
from mdcp_fast.training.checkpoint import RandomState, generators_of
from mdcp_fast.training.config import Recipe
from mdcp_fast.training.evaluation import Metric, as_loader, correct, device_of
from mdcp_fast.training.losses import CrossEntropy, Loss, Objective
from mdcp_fast.training.onednn import strided_by_slices
from mdcp_fast.training.progress import progress_bar
from mdcp_fast.training.run import History, TrainingRun


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
    device = _checked_device(model, teacher, mixed_precision, checkpoint_steps)
    train_loader = as_loader("train", train, batch_size, shuffle=True)
    validation_loader = (
        None
        if validation is None
        else as_loader("validation", validation, batch_size, shuffle=False)
    )
    objective = Objective(loss or CrossEntropy(label_smoothing), teacher, distillation, temperature)
    with (
        RandomState.kept(device, generators_of(train_loader)),
        eval_mode(model),  # this and the next: all modes are put back at the end
        eval_mode(teacher if teacher is not None else nn.Module()),
        strided_by_slices(model),
        fresh_accelerator(device, recipe) as accelerator,
    ):
        run = TrainingRun(
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


def _checked_device(
    model: nn.Module,
    teacher: nn.Module | None,
    mixed_precision: str,
    checkpoint_steps: int | None,
) -> torch.device:
    """The device that the model is trained on.

    Raises:
        TypeError, ValueError: See `finetune`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"finetune: model: expected a torch.nn.Module, got {type(model).__name__}")
    if checkpoint_steps is not None and (
        not isinstance(checkpoint_steps, int) or checkpoint_steps < 1
    ):
        raise ValueError(
            f"finetune: checkpoint_steps: expected None or at least 1, got {checkpoint_steps!r}"
        )
    device = device_of("model", model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "finetune: model: expected parameters with requires_grad, got none (all are frozen)"
        )
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
    return device
