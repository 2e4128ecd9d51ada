"""What training minimises: the loss, mixed with the divergence from a teacher.

Distillation: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call
from mdcp_fast.training.evaluation import described, kind_of, tensors_of

AUXILIARY = 0.3  # weight of each further output in training, e.g. GoogLeNet's auxiliary heads

Loss = Callable[[Any, Any], Tensor]


class CrossEntropy:
    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        logits = tensors_of(outputs)[0]
        if kind_of(targets, logits) is None:
            raise ValueError(
                "finetune: loss: expected one of your own, such as torch.nn.MSELoss(), since the "
                "default one is for classes, and the targets are neither classes nor probabilities "
                f"of {list(logits.shape)} outputs: {described(targets)}"
            )
        first, *others = (
            F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
            for logits in tensors_of(outputs)
        )
        return first + AUXILIARY * torch.stack(others).sum() if others else first


class Objective:
    """The loss, mixed with the divergence from the teacher where there is one."""

    def __init__(
        self, loss: Loss, teacher: nn.Module | None, weight: float, temperature: float
    ) -> None:
        self.loss, self.teacher, self.weight, self.temperature = loss, teacher, weight, temperature

    def __call__(self, outputs: Any, inputs: Inputs, targets: Any, autocast: Any) -> Tensor:
        loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(
                f"finetune: loss: expected it to return a tensor of one number, got {got}"
            )
        if self.teacher is None or self.weight == 0:
            return loss
        if kind_of(targets, tensors_of(outputs)[0]) is None:
            raise ValueError(
                "finetune: teacher: expected none, or distillation=0, since a divergence of "
                "classes is taken from it, and the targets are neither classes nor probabilities: "
                f"{described(targets)}; a loss of your own may ask the teacher itself"
            )
        with torch.no_grad(), autocast():
            wanted = tensors_of(call(self.teacher, inputs))[0].float()
        logits = tensors_of(outputs)[0].float()
        if wanted.shape != logits.shape:
            raise ValueError(
                f"finetune: teacher: expected outputs of shape {list(logits.shape)}, as the "
                f"model's, got {list(wanted.shape)}"
            )
        divergence = F.kl_div(
            F.log_softmax(logits / self.temperature, 1),
            F.log_softmax(wanted / self.temperature, 1),
            reduction="none",
            log_target=True,
        )
        # Soft gradients shrink with the square of the temperature, which this undoes (Hinton et
        # al., section 2).
        soft = divergence.sum(1).mean() * self.temperature**2
        return (1 - self.weight) * loss + self.weight * soft
