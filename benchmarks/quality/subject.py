"""What a method of the quality benchmark is given: a trained network, its graph, its data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from networks import NETWORKS, data_of, tensors, trained
from torch import Tensor, nn

from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

CALIBRATION_IMAGES, CALIBRATION_BATCH = 1000, 125
MIN_KEEP = 0.1  # of the channels of every axis, for all methods
HELD_OUT = 5000  # images of the validation and of the test data that are scored, the first ones

Part = tuple[Tensor, Tensor]  # images [N, C, H, W], classes [N]


@dataclass(frozen=True)
class Subject:
    """A trained network and its data.

    Attributes:
        name: In `networks.NETWORKS`.
        graph: The traced dense network.
        labelled: 1,000 training images and their classes, in batches. Only criteria that need
            gradients may look at the classes.
        train: To fine-tune on.
        validation: To choose settings by.
        test: To report.
        flips: Whether mirrored images are good training data.
        weights: The first digits of a hash of the network's weights.
    """

    name: str
    graph: ChannelGraph
    labelled: list[Part]
    train: Part
    validation: Part
    test: Part
    flips: bool
    weights: str

    @property
    def calibration(self) -> list[Tensor]:
        """The same 1,000 images without their classes."""
        return [images for images, _ in self.labelled]


def load_subject(name: str, cache: Path) -> Subject:
    """Loads, or trains, a network of the benchmark."""
    model, data = trained(name, cache), data_of(name, cache)
    train = tensors(data.train)
    chosen = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))
    chosen = chosen[:CALIBRATION_IMAGES]
    batches = [(train[0][b], train[1][b]) for b in chosen.split(CALIBRATION_BATCH)]
    validation, test = (
        (images[:HELD_OUT], classes[:HELD_OUT])
        for images, classes in (tensors(data.validation), tensors(data.test))
    )
    graph = trace(model, torch.zeros(1, *data.input_shape))
    flips = NETWORKS[name].flips
    return Subject(name, graph, batches, train, validation, test, flips, weights_digest(model))


def weights_digest(model: nn.Module) -> str:
    """The first digits of a hash of a network's weights."""
    sha = hashlib.sha256()
    for tensor in model.state_dict().values():
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]


# Makes a plan for each budget, from a subject and a seed.
Planner = Callable[[Subject, list[float], int], Iterable[PruningPlan]]


def uniform_widths(graph: ChannelGraph, macs: float) -> list[int]:
    """The largest widths, all at one share of the dense ones, within a budget."""

    def widths(share: float) -> list[int]:
        return [max(int(share * a.channels), math.ceil(MIN_KEEP * a.channels)) for a in graph.axes]

    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        cost = int(graph.cost.evaluate(torch.tensor(widths(share)))[..., 0])
        low, high = (share, high) if cost <= macs * graph.macs else (low, share)
    return widths(low)
