"""Calibration batches, and what they say of a network's channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.planning.fisher import output_fisher
from mdcp_fast.planning.reconstruction import ReconstructionError, errors_from_inputs
from mdcp_fast.pruning.calibration import calibration_batches, labelled_batches
from mdcp_fast.pruning.input_moments import collect_grams
from mdcp_fast.tracing.graph import ChannelGraph


class CalibrationData:
    """Calibration batches, and what they say of a network's channels.

    Args:
        graph: The traced network.
        batches: The model's arguments, batch after batch, checked and on its device.
        labels: For each batch its labels, [batch, ...]; None where there are none.

    Attributes:
        batches, labels: As given.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        batches: Sequence[Inputs],
        labels: Sequence[Tensor] | None = None,
    ) -> None:
        self._graph, self.batches, self.labels = graph, batches, labels

    @classmethod
    def read(cls, graph: ChannelGraph, batches: Iterable[Any], labelled: bool) -> CalibrationData:
        """Reads what the caller of `search` gave, once.

        Args:
            graph: The traced network.
            batches: As `search` takes them.
            labelled: Whether their labels are wanted.

        Raises:
            TypeError, ValueError: See `calibration_batches` and `labelled_batches`.
        """
        if labelled:
            return cls(graph, *labelled_batches(graph, batches))
        return cls(graph, calibration_batches(graph, batches))

    @cached_property
    def reconstruction_errors(self) -> list[list[ReconstructionError]]:
        """For each axis, what the layers that read it cannot predict of channels that go.

        Measured when first asked for; weighted by how much the network's answer depends on it.

        Raises:
            ValueError: What a layer reads is not finite.
        """
        consumers, _ = collect_grams(self._graph, self.batches)
        for consumer in consumers:
            if consumer.gram is not None and not consumer.usable:
                raise ValueError(
                    "search: calibration: expected inputs for which what the dense network's "
                    f"layers read is finite, got NaN or infinities at {consumer.weight}"
                )
        fisher = output_fisher(self._graph, consumers, self.batches)
        return errors_from_inputs(self._graph, consumers, fisher)
