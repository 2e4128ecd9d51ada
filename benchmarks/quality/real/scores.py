"""What of a network's answers is left after pruning, measured against the dense network's alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from text_boxes import Box, boxes, f1
from torch import Tensor


@dataclass(frozen=True)
class Shown:
    """How a score is written.

    Attributes:
        name: Its key.
        title: For the head of a table.
        percent: Whether it is a share.
        digits: Behind the point.
        higher: Whether more is better.
    """

    name: str
    title: str
    percent: bool = False
    digits: int = 1
    higher: bool = True

    def written(self, value: float) -> str:
        return f"{100 * value if self.percent else value:.{self.digits}f}"


# The first two are the headline.
CLASSIFIER = (
    Shown("agreement", "top-1 agreement with the dense network, %", percent=True),
    Shown("kl", "KL(dense, pruned), nats", digits=2, higher=False),
    Shown("sure", "agreement where the dense network is sure (p > 0.5), %", percent=True),
    Shown("hits", "animals named right", digits=1),
)
DETECTOR = (
    Shown("f1", "F1 of the boxes of words, the dense network's being right, %", percent=True),
    Shown("error", "error of the heat maps, in shares of their variance", digits=3, higher=False),
    Shown("mse", "mean squared error of the heat maps", digits=5, higher=False),
)
SURE = 0.5  # the probability from which on the dense network is sure

Scores = dict[str, float]


def agreement(logits: Tensor, dense: Tensor) -> Scores:
    """How a classifier's answers agree with the dense network's.

    Args:
        logits: Of the pruned network, [images, classes].
        dense: Of the dense network.

    Returns:
        "agreement": the share of images to which both give the same class; "sure": the same where
        the dense network gives its class more than `SURE`; "kl": KL(dense || pruned) in nats.
    """
    wanted = dense.double().log_softmax(1)
    answer = logits.double().log_softmax(1)
    top, classes = wanted.max(1)
    same = (answer.argmax(1) == classes).double()
    sure = top.exp() > SURE
    return {
        "agreement": same.mean().item(),
        "sure": same[sure].mean().item() if sure.any() else 1.0,
        "kl": (wanted.exp() * (wanted - answer)).sum(1).mean().item(),
    }


def hits(logits: Tensor, right: Sequence[Sequence[int]]) -> int:
    """How many images get a class that is right for them.

    Args:
        logits: [images, classes].
        right: Of every image, the classes that are.
    """
    answers = logits.argmax(1).tolist()
    return sum(answer in classes for answer, classes in zip(answers, right, strict=True))


def found(maps: Tensor) -> list[Box]:
    """The boxes of words in an image's heat maps, [height, width, 2]."""
    letters, links = maps.unbind(2)
    return boxes(letters.numpy(), links.numpy())


def heat_maps(maps: Tensor, dense: Tensor) -> Scores:
    """How a text detector's heat maps agree with the dense network's.

    Args:
        maps: Of the pruned network, [images, height, width, 2]: letters and links.
        dense: Of the dense network.

    Returns:
        "mse": the mean squared difference; "error": the same over the variance of the dense maps,
        mean over the two; "f1": of the boxes of words.
    """
    maps, dense = maps.double(), dense.double()
    squares = (maps - dense).square().mean((0, 1, 2))  # [2]
    variance = dense.var((0, 1, 2), unbiased=False)
    pairs = [(found(one), found(other)) for one, other in zip(maps, dense, strict=True)]
    return {
        "mse": squares.mean().item(),
        "error": (squares / variance).mean().item(),
        "f1": f1(pairs),
    }
