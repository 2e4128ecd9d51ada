"""What every method's plan goes through, the same for all: removal, repair, fine-tuning."""

from __future__ import annotations

import math
import warnings

import torch
from networks import accuracy, augmented, training_step
from subject import Subject
from torch import nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.training.onednn import strided_by_slices

DROPPED, REESTIMATED, COMPENSATED, HALFWAY, FINETUNED = (
    "dropped",
    "re-estimated",
    "compensated",
    "fine-tuned in half the steps",
    "fine-tuned",
)
BEFORE = (DROPPED, REESTIMATED, COMPENSATED)
STEPS, BATCH = {HALFWAY: 128, FINETUNED: 256}, 64  # each a schedule of its own, down to zero
LEARNING_RATE, WARM_UP, WEIGHT_DECAY = 0.01, 0.05, 5e-4
MARKS = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of the steps, where the curve is read
CURVE_IMAGES = 2000  # test images that it is read on, the first ones


def treated(subject: Subject, plan: PruningPlan, treatment: str) -> nn.Module:
    """The pruned network after one of `BEFORE`, in evaluation mode.

    Raises:
        RuntimeError: It has other MACs than the plan says.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layer that could not be compensated
        small = prune(
            subject.graph,
            plan,
            calibration=None if treatment == DROPPED else subject.calibration,
            compensate=treatment == COMPENSATED,
            check=treatment == DROPPED,
        )
    counted = count_macs(small, subject.graph.example_inputs)
    if counted != plan.macs:
        raise RuntimeError(f"expected {plan.macs} MACs as planned, got {counted}")
    return small.eval()


def finetuned(subject: Subject, small: nn.Module, seed: int, steps: int) -> list[tuple[int, float]]:
    """Trains in place on labels alone, with the same images in the same order for every method.

    SGD with momentum, a short warm-up, then half a cosine down to zero.

    Returns:
        (steps, accuracy on the first test images), from before the first step to after the last.
    """
    images, classes = subject.train
    few = (subject.test[0][:CURVE_IMAGES], subject.test[1][:CURVE_IMAGES])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        small.parameters(),
        lr=LEARNING_RATE,
        momentum=0.9,
        nesterov=True,
        weight_decay=WEIGHT_DECAY,
    )
    rising = max(round(WARM_UP * steps), 1)

    def rate(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(steps - rising, 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    marks = {round(mark * steps) for mark in MARKS}
    curve = []
    with strided_by_slices(small):
        for step in range(steps + 1):
            if step in marks:
                curve.append((step, accuracy(small.eval(), few)))
            if step == steps:
                break
            small.train()
            batch = torch.randint(0, len(images), (BATCH,), generator=generator)
            inputs = augmented(images[batch], subject.flips, generator)
            training_step(small, inputs, classes[batch], optimizer, schedule)
    return curve
