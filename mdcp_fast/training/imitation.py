"""How far a network's answers are from those of a teacher.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mdcp_fast.modules.calls import tensors_in

TINY = 1e-12


def are_logits(answer: Tensor) -> bool:
    """Whether an output looks like logits: [batch, classes] of floating point, two or more."""
    return answer.dim() == 2 and answer.shape[1] > 1 and answer.is_floating_point()


def floating_outputs(outputs: Any) -> list[Tensor]:
    """All floating-point tensors of a network's output, however nested."""
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]


def variances(answers: Sequence[Any]) -> list[Tensor]:
    """The variance of each floating-point output over all batches of answers."""
    outputs = zip(*map(floating_outputs, answers), strict=True)
    joined = [torch.cat([_exact(one).flatten() for one in batches]) for batches in outputs]
    return [(values - values.mean()).square().mean() for values in joined]


def answers_apart(outputs: Any, wanted: Any, spreads: Sequence[Tensor] | None = None) -> Tensor:
    """How far a network's outputs are from a teacher's, averaged over the outputs.

    Of logits, [batch, classes], the Kullback-Leibler divergence from the teacher's, in nats for a
    sample. Of any other output the mean squared error in shares of the teacher's variance.

    Args:
        outputs: The network's.
        wanted: The teacher's, of the same inputs.
        spreads: Variances of the teacher's outputs (see `variances`); by default those of `wanted`.

    Returns:
        A scalar, float32 or better.

    Raises:
        ValueError: The outputs differ in number or shape, or there are none of floating point.
    """
    pairs = [tuple(map(_exact, pair)) for pair in _paired(outputs, wanted)]
    return torch.stack(
        [
            _divergence(mine, yours) if are_logits(yours) else _relative_error(mine, yours, spread)
            for (mine, yours), spread in zip(pairs, spreads or variances([wanted]), strict=True)
        ]
    ).mean()


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _paired(outputs: Any, wanted: Any) -> list[tuple[Tensor, Tensor]]:
    mine, yours = floating_outputs(outputs), floating_outputs(wanted)
    shapes = [[list(x.shape) for x in xs] for xs in (mine, yours)]
    if not yours or shapes[0] != shapes[1]:
        raise ValueError(
            f"finetune: teacher: expected floating-point outputs of shapes {shapes[0]}, as the "
            f"model's, got {shapes[1]}"
        )
    return list(zip(mine, yours, strict=True))


def _divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.kl_div(
        F.log_softmax(logits, 1), F.log_softmax(wanted, 1), reduction="batchmean", log_target=True
    )


def _relative_error(mine: Tensor, yours: Tensor, spread: Tensor) -> Tensor:
    return (mine - yours).square().mean() / spread.clamp_min(TINY)


def agreement(outputs: Any, wanted: Any) -> Tensor | None:
    """bool [batch], where the largest logit of the first output is the teacher's; None without."""
    mine, yours = floating_outputs(outputs), floating_outputs(wanted)
    if not yours or not are_logits(yours[0]):
        return None
    return mine[0].argmax(1) == yours[0].argmax(1)
