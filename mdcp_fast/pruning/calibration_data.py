"""Calibration batches, and what they say of a network's channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.pruning.calibration import calibration_batches, held_out_batches, labelled_batches
from mdcp_fast.pruning.fisher import output_fisher
from mdcp_fast.pruning.input_moments import Consumer, collect_grams
from mdcp_fast.pruning.reconstruction import ReconstructionError, errors_from_inputs
from mdcp_fast.pruning.rotation import Rotation, rotate_streams, why_not_rotated
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
    def parts(self) -> tuple[list[Inputs], list[Inputs]]:
        """The batches without what is held out, and what is: see `held_out_batches`."""
        return held_out_batches(self.batches)

    @cached_property
    def consumers(self) -> list[Consumer]:
        """What layers read in the batches without what is held out."""
        return collect_grams(self._graph, self.parts[0])[0]

    @cached_property
    def reconstruction_errors(self) -> list[list[ReconstructionError]]:
        """For each axis, what the layers that read it cannot predict of channels that go.

        Measured when first asked for; weighted by how much the network's answer depends on it.

        Raises:
            ValueError: What a layer reads is not finite.
        """
        consumers, held_out, parts = self.consumers, self.parts[1], {}
        if held_out:
            others, _ = collect_grams(self._graph, held_out, like=consumers)
            both = zip(consumers, others, strict=True)
            parts = {part.weight: (part, rest) for part, rest in both if part.samples}
            consumers = [part + rest for part, rest in zip(consumers, others, strict=True)]
        for consumer in consumers:
            if consumer.gram is not None and not consumer.usable:
                raise ValueError(
                    "calibration: expected inputs for which what the dense network's layers read "
                    f"is finite, got NaN or infinities at {consumer.weight}"
                )
        fisher = output_fisher(self._graph, consumers, self.batches)
        return errors_from_inputs(self._graph, consumers, fisher, parts)

    def rotation(self, axes: Collection[int] | None = None) -> tuple[Rotation, dict[str, str]]:
        """The network with its linear streams in other bases: see `rotate_streams`.

        Args:
            axes: Which axes are meant; by default all that can be rotated.
        """
        reasons = {axis.name: why_not_rotated(self._graph, axis) for axis in self._graph.axes}
        if all(reasons.values()):
            return Rotation(self._graph, {}), {n: reason for n, reason in reasons.items() if reason}
        return rotate_streams(self._graph, self.reconstruction_errors, self.batches, axes)

    def rotated(self, rotation: Rotation) -> CalibrationData:
        """What the same batches say of the network in other bases."""
        other = CalibrationData(rotation.graph, self.batches, self.labels)
        other.__dict__["reconstruction_errors"] = rotation.errors(self.reconstruction_errors)
        return other
