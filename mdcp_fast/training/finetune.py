"""Trains and fine-tunes: mixed precision, distillation, the best epoch kept, resume after a kill.

With a teacher and without labels it mimics: see `mimic`.

Accelerate does the plumbing (devices, mixed precision, gradient accumulation, several processes).
What this package adds is that a run is a function of its arguments: every epoch draws its random
numbers from (seed, epoch), so that a run that was killed and resumed ends with the same weights,
bit for bit, as one that was not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mdcp_fast.modules.calls import eval_mode
from mdcp_fast.modules.files import AnyPath
from mdcp_fast.training.accelerator import fresh_accelerator
from mdcp_fast.training.checkpoint import RandomState, generators_of
from mdcp_fast.training.config import Recipe
from mdcp_fast.training.evaluation import Metric, as_loader, correct, device_of
from mdcp_fast.training.losses import CrossEntropy, Loss, Objective
from mdcp_fast.training.mimic import MimicHistory, MimicRecipe, mimic
from mdcp_fast.training.onednn import strided_by_slices
from mdcp_fast.training.progress import progress_bar
from mdcp_fast.training.run import History, TrainingRun
from mdcp_fast.training.unlabelled import Samples, read_inputs, without_labels

EPOCHS, BATCH, RATE = 30, 64, 0.01
MIMIC_BATCH, MIMIC_RATE = 32, 5e-4  # without labels


def finetune(
    model: nn.Module,
    train: DataLoader[Any] | Dataset[Any] | Tensor | Iterable[Any],
    validation: DataLoader[Any] | Dataset[Any] | Tensor | Iterable[Any] | None = None,
    *,
    teacher: nn.Module | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
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
    checkpoint: AnyPath | None = None,
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

    **Without labels**, `finetune(small, images, teacher=dense)`, a pruned network learns to answer
    as the dense one does. `images` are a tensor [images, ...], a DataLoader or Dataset that gives
    inputs alone, or a list or other iterable of batches (tensors, or dicts of named arguments);
    pairs always count as inputs and labels. At most 4,096 images are read, and kept in memory. A
    quarter is held out, whole batches where there are four or more: what belongs together, such as
    crops of one photograph, goes into one batch. Every sixteenth of the way the held-out loss is
    taken, at the end also for weights between the first and the last ones, and the weights where it
    was lowest are what the model ends with, bit for bit those it came with where nothing was lower,
    also where training diverges or is interrupted.

    The loss there is how far the outputs are apart: for outputs [batch, classes] of two or more
    classes, taken for logits, the Kullback-Leibler divergence from the teacher's; for all others
    (maps, embeddings in a dict, ...) the mean squared error in shares of the teacher's variance;
    averaged where there are several. BatchNorm and dropout are in evaluation mode, images are
    mirrored and shifted at random, and Adam's steps are shares of each tensor's own size.

    Args:
        model: The network, trained in place.
        train: Batches of (inputs, targets) from a DataLoader, or a Dataset to be shuffled into
            batches of `batch_size`. Inputs are a tensor, a tuple of the model's arguments or a
            dict of named ones, which may hold the targets, too, as "targets", "target", "labels" or
            "label". Targets are class indices, or probabilities of the logits' shape, that sum to
            1, unless `loss` says otherwise. With a teacher also inputs
            without labels.
        validation: Likewise, or None. Without labels: the inputs to hold out, of other scenes than
            those in `train`.
        teacher: A network to learn from, on the same device, e.g. the dense one; only read.
        epochs: Passes over `train`; 0 only evaluates. By default 30; without labels as many as
            `minutes` allow, or 400 steps.
        minutes: Without labels, the most that all may take; the result then depends on the
            machine's speed.
        batch_size: For datasets; loaders bring their own. By default 64. Without labels the images
            of a step, by default 32.
        lr: Highest learning rate, by default 0.01. Without labels by default 5e-4, in shares of
            each tensor's root mean square; it is halved whenever the held-out loss gets far worse.
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
        mixed_precision: "no", "bf16" or "fp16" (on a GPU, with labels). The weights themselves keep
            their dtype.
        checkpoint: A folder. After every epoch the whole state goes there, atomically; a run that
            finds its own checkpoint there goes on from it. A finished run's checkpoint gives its
            result again.
        checkpoint_steps: Also save after every so many optimizer steps within an epoch.
        seed: Decides the order of the data and every other random number. On a GPU the result
            repeats bit for bit as far as the kernels do (see `torch.use_deterministic_algorithms`);
            with `persistent_workers`, random augmentation does not.
        progress: Show a progress bar on stderr, where that is a terminal.

    Returns:
        The history; without labels one with held-out losses (`MimicHistory`), whose epochs are the
        looks at the held-out images. Without a progress bar nothing is printed.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range or has no meaning without labels, there is no data
            or nothing to train, images are not finite, the checkpoint belongs to another model or
            recipe or is damaged.
        RuntimeError: The loss became infinite or NaN, with labels; the model is left with the best
            weights so far.

    Warns:
        UserWarning: The loss became infinite or NaN, without labels; likewise.
    """
    options = dict(locals())
    unlabelled = teacher is not None and without_labels(train)
    recipe = Recipe(
        EPOCHS if epochs is None else epochs,
        (MIMIC_BATCH if unlabelled else BATCH) if batch_size is None else batch_size,
        (MIMIC_RATE if unlabelled else RATE) if lr is None else lr,
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
    if unlabelled:
        return _without_labels(recipe, options)
    if minutes is not None:
        raise ValueError(
            "finetune: minutes: expected None where there are labels (or no teacher), got "
            f"{minutes!r}"
        )
    train_loader = as_loader("train", train, recipe.batch_size, shuffle=True)
    validation_loader = (
        None
        if validation is None
        else as_loader("validation", validation, recipe.batch_size, shuffle=False)
    )
    objective = Objective(loss or CrossEntropy(label_smoothing), teacher, distillation, temperature)
    with (
        RandomState.kept(device, generators_of(train_loader)),
        eval_mode(model),  # this and the next: all modes are put back at the end
        eval_mode(teacher if teacher is not None else nn.Module()),
        strided_by_slices(model),
        torch.inference_mode(False),
        torch.enable_grad(),
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
        shown = progress and accelerator.is_main_process
        with progress_bar(shown, recipe.epochs, run.batches) as bar:
            return run.go(checkpoint, checkpoint_steps, bar)


USED_WITHOUT_LABELS = {
    *("model", "train", "validation", "teacher", "epochs", "minutes", "batch_size", "lr"),
    *("mixed_precision", "seed", "progress"),
}


def _without_labels(recipe: Recipe, options: dict[str, Any]) -> MimicHistory:
    """`finetune` where there are inputs alone; `options` are its arguments."""
    for name, parameter in inspect.signature(finetune).parameters.items():
        if name not in USED_WITHOUT_LABELS and options[name] != parameter.default:
            raise ValueError(
                f"finetune: {name}: expected it left out, since train has no labels, got "
                f"{options[name]!r}"
            )
    if recipe.mixed_precision == "fp16":
        raise ValueError(
            "finetune: mixed_precision: expected 'no' or 'bf16' without labels, got 'fp16'"
        )
    learn = Samples(read_inputs("train", options["train"], recipe.batch_size))
    if options["validation"] is None:
        learn, judge = learn.split(recipe.seed)
    else:
        judge = Samples(read_inputs("validation", options["validation"], recipe.batch_size))
    mimicking = MimicRecipe(
        options["epochs"],
        options["minutes"],
        recipe.batch_size,
        recipe.lr,
        recipe.mixed_precision == "bf16",
        recipe.seed,
    )
    return mimic(
        options["model"], options["teacher"], learn, judge, mimicking, progress=options["progress"]
    )


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
