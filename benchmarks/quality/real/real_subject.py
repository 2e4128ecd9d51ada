"""What is computed once: the traced network, and, for each split, images and dense answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from photographs import Split, centre, digest, split_of
from real_networks import NETWORKS, RealNetwork
from scores import Scores, hits
from subjects import CLASSES
from torch import Tensor, nn

from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

HELD_OUT_SCENES = 4  # one photograph of so many only judges mimicking


def traced(name: str) -> ChannelGraph:
    """The graph of a network of `NETWORKS`.

    Raises:
        NotInstalled: A package is missing.
    """
    network = NETWORKS[name]
    return trace(network.load(), torch.zeros(1, 3, network.size, network.size))


@torch.inference_mode()
def answers(model: nn.Module, inputs: Tensor, batch: int) -> Tensor:
    """What a network in evaluation mode says to inputs."""
    return torch.cat([model(part) for part in inputs.split(batch)]).clone()


@dataclass(frozen=True)
class Given:
    """What a method is given, as the subjects of the small networks.

    Attributes:
        graph: The traced dense network.
        calibration: Images without labels, in batches.
        labelled: There are none.
    """

    graph: ChannelGraph
    calibration: list[Tensor]
    labelled: tuple[()] = ()


class RealSubject:
    """A network and one split of the photographs.

    Args:
        name: In `NETWORKS`.
        graph: Of the network, the same for all splits.
        files: All photographs.
        number: Of the split.
        most: The largest number of calibration images that will be wanted.
    """

    def __init__(
        self, name: str, graph: ChannelGraph, files: Sequence[Path], number: int, most: int
    ) -> None:
        self.name, self.graph, self.files, self.most = name, graph, files, most
        self.split: Split = split_of(files, number)
        self.network: RealNetwork = NETWORKS[name]

    @cached_property
    def calibration(self) -> Tensor:
        """uint8 [most, 3, size, size]."""
        network, seed = self.network, f"calibration {self.split.number}"
        return network.images(self.split.calibration, self.most, network.size, seed)

    @cached_property
    def held_out(self) -> Tensor:
        """uint8 [held_out, 3, size, size], of other subjects than the calibration images."""
        network, seed = self.network, f"held out {self.split.number}"
        return network.images(self.split.held_out, network.held_out, network.size, seed)

    @property
    def digest(self) -> str:
        """Tells which images are scored."""
        return digest(self.held_out)

    @cached_property
    def dense(self) -> Tensor:
        """The dense network's answers to the held-out images."""
        return self._answers(self.graph.model.eval(), self.held_out)

    @cached_property
    def animals(self) -> tuple[Tensor, list[tuple[int, ...]]]:
        """Middles of the photographs of animals, uint8, and the classes that are right for each."""
        shown = [path for path in self.files if path.stem in CLASSES]
        size = self.network.size
        images = [centre(path, size) for path in shown]
        stacked = torch.stack(images) if images else torch.empty(0, 3, size, size).byte()
        return stacked, [CLASSES[path.stem] for path in shown]

    def given(self, count: int) -> Given:
        """What methods get that may use `count` calibration images."""
        images = self.network.standardised(self.calibration[:count])
        return Given(self.graph, list(images.split(self.network.batch)))

    def scenes(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` calibration images, those of a quarter of the photographs apart."""
        place = torch.arange(count) % len(self.split.calibration)
        # Four neighbours stay together: every fourth image may be of another kind.
        apart = place // 4 % HELD_OUT_SCENES == HELD_OUT_SCENES - 1
        images = self.network.standardised(self.calibration[:count])
        return images[~apart], images[apart]

    def scores(self, model: nn.Module) -> Scores:
        """How a pruned network's answers agree with the dense one's."""
        model.eval()
        scores = self.network.scores(self._answers(model, self.held_out), self.dense)
        images, right = self.animals
        if self.network.classes and right:
            scores |= {"hits": hits(self._answers(model, images), right), "animals": len(right)}
        return scores

    def _answers(self, model: nn.Module, images: Tensor) -> Tensor:
        parts = images.split(self.network.batch)
        return torch.cat(
            [answers(model, self.network.standardised(part), len(part)) for part in parts]
        )
