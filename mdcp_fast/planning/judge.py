"""Scores pruning candidates by what the network answers: what all ways to run them share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from mdcp_fast.modules.calls import call, eval_mode, preserve_buffers, samples_in, tensors_in
from mdcp_fast.ops.evaluate_population import LossTable, PopulationFitness
from mdcp_fast.planning.selection import Chooser
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.tracing.graph import ChannelGraph

CEILING = 1e6  # the most that a feasible candidate can score; any other scores more


class KeptChannels:
    """Which channels of an axis stay at a width, each found once.

    Args:
        channels: int64 [axes].
        choose: Says which stay.
    """

    def __init__(self, channels: Tensor, choose: Chooser) -> None:
        self._channels, self._choose = channels, choose
        self._known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, widths: Tensor) -> list[Tensor]:
        """Masks of every axis, bool [candidates, channels].

        Args:
            widths: int64 [candidates, axes].
        """
        wanted = {(a, int(w)) for row in widths.tolist() for a, w in enumerate(row)}
        jobs = sorted(wanted - self._known.keys())
        if jobs:
            axis, width = torch.tensor(jobs).unbind(1)
            found = self._choose(axis, width)
            sizes = self._channels[axis].tolist()
            for job, size, kept in zip(jobs, sizes, found.kept.split(width.tolist()), strict=True):
                mask = torch.zeros(size, dtype=torch.bool)
                mask[kept] = True
                self._known[job] = mask
        return [
            torch.stack([self._known[a, w] for w in column])
            for a, column in enumerate(widths.T.tolist())
        ]


class AnswerJudge(ABC):
    """Fitness of candidates by what a network says on calibration batches.

    A candidate within its run's budgets scores the mean over the samples of the divergence
    KL(dense || candidate) of its class probabilities, or of the cross entropy with the labels. Any
    other candidate is not run, and scores `CEILING` plus its excesses as fractions of the budgets:
    feasible beats infeasible, and less excess beats more, as in `evaluate_population`.

    Args:
        graph: The traced network; not changed.
        kept: Which channels stay at a width.
        limits: int64 [runs, costs], the most of each cost.
        calibration: The batches to score on. With labels, as `torch.nn.functional.cross_entropy`
            takes them, these are scored by; without, the divergence.

    Attributes:
        together: How many candidates run at a time.
        forwards: Candidates that were run so far, each on all batches.
        samples: In all batches.

    Raises:
        TypeError: The network's output holds no tensor.
        ValueError: Its first tensor is not [batch, classes, ...] with two classes or more, or not
            finite; labels do not fit it.
    """

    together = 1

    def __init__(
        self,
        graph: ChannelGraph,
        kept: KeptChannels,
        limits: Tensor,
        calibration: CalibrationData,
    ) -> None:
        self._graph, self._kept = graph, kept
        self._batches, self._labels = calibration.batches, calibration.labels
        self._scores: dict[tuple[int, ...], float] = {}
        widths = graph.widths
        offsets = torch.cat([widths.new_zeros(1), widths.cumsum(0)])
        no_loss = LossTable(torch.zeros(int(offsets[-1]), dtype=torch.float64), offsets)
        self._excess = PopulationFitness(no_loss, graph.cost, limits)
        self.forwards = 0
        with torch.no_grad(), eval_mode(graph.model), preserve_buffers(graph.model):
            self._dense = [answers(call(graph.model, batch)).clone() for batch in self._batches]
        self.samples = sum(len(dense) for dense in self._dense)
        for batch, dense in zip(self._batches, self._dense, strict=True):
            samples = samples_in(batch)
            if len(dense) != samples:
                raise ValueError(
                    f"search: evaluator: expected logits for each of the {samples} samples "
                    f"of a batch, got shape {list(dense.shape)}"
                )
            if not bool(dense.isfinite().all()):
                raise ValueError(
                    "search: calibration: expected inputs for which the dense network's output "
                    "is finite, got NaN or infinities"
                )
        self._check_labels()

    def __call__(self, widths: Tensor) -> Tensor:
        """Scores candidates, lower is better.

        Args:
            widths: int64 [runs, candidates, axes].

        Returns:
            float64 [runs, candidates].
        """
        excess = self._excess(widths)
        feasible = widths[excess == 0].tolist()
        fresh = [one for one in dict.fromkeys(map(tuple, feasible)) if one not in self._scores]
        for at in range(0, len(fresh), self.together):
            group = fresh[at : at + self.together]
            scores = self._run(torch.tensor(group)) / self.samples
            scores = scores.nan_to_num(CEILING, CEILING, CEILING).clamp_max(CEILING)
            self._scores.update(zip(group, scores.tolist(), strict=True))
            self.forwards += len(group)
        fitness = CEILING + excess
        fitness[excess == 0] = torch.tensor(
            [self._scores[tuple(one)] for one in feasible], dtype=torch.float64
        )
        return fitness

    @abstractmethod
    def _run(self, widths: Tensor) -> Tensor:
        """Sum over all samples of every candidate's loss, float64 [candidates].

        Args:
            widths: int64 [candidates, axes], at most `together` of them.
        """

    def _loss(self, index: int, logits: Tensor) -> Tensor:
        """Sum over a batch's samples of the loss of a candidate's logits, float64 []."""
        labels = None if self._labels is None else self._labels[index]
        return logits_loss(logits, self._dense[index], labels)

    def _check_labels(self) -> None:
        for dense, labels in zip(self._dense, self._labels or [], strict=False):
            try:
                logits_loss(dense, dense, labels)
            except (RuntimeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"search: calibration: expected labels for outputs of shape "
                    f"{list(dense.shape)}, as cross entropy takes them, got {labels.dtype} of "
                    f"shape {list(labels.shape)}: {error}"
                ) from error


def answers(output: object) -> Tensor:
    """The first tensor of a network's output, found to be logits: [batch, classes, ...]."""
    found = tensors_in(output)
    if not found:
        raise TypeError(
            "search: evaluator: expected a network whose output holds logits, got "
            f"{type(output).__name__} without a tensor"
        )
    logits = found[0]
    if logits.dim() < 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            "search: evaluator: expected logits of shape [batch, classes, ...], two classes or "
            f"more, as the network's first output, got {logits.dtype} of shape "
            f"{list(logits.shape)}"
        )
    return logits


def logits_loss(logits: Tensor, dense: Tensor, labels: Tensor | None = None) -> Tensor:
    """Sum over the samples, float64: divergence from the dense logits, or cross entropy.

    Where a sample has many places (segmentation), their mean counts.
    """
    places = logits[0, 0].numel()
    if labels is not None:
        return F.cross_entropy(logits.double(), _double(labels), reduction="sum") / places
    ours, theirs = (F.log_softmax(one.double(), 1) for one in (logits, dense))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / places


def _double(labels: Tensor) -> Tensor:
    return labels.double() if labels.is_floating_point() else labels
