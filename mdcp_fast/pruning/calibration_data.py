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
from mdcp_fast.pruning.rotation import (
    OutputCovariances,
    Rotation,
    rotate_streams,
    why_not_rotated,
)
from mdcp_fast.tracing.graph import ChannelGraph


class CalibrationData:
    """Calibration batches, and what they say of a network's channels.

    `search` and `prune` take one in place of batches. What it says is measured when it is first
    asked for, and then known: what both need is measured once.

    ```python
    data = mdcp_fast.CalibrationData.read(graph, batches)
    plan = mdcp_fast.search(graph, macs=0.45, calibration=data)
    small = mdcp_fast.prune(graph, plan, calibration=data)
    ```

    It holds the batches and second moments of what every layer reads, so long as it lives. The
    network's weights must not change meanwhile.

    Args:
        graph: The traced network.
        batches: The model's arguments, batch after batch, checked and on its device: see `read`.
        labels: For each batch its labels, [batch, ...]; None where there are none.

    Attributes:
        graph, batches, labels: As given.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        batches: Sequence[Inputs],
        labels: Sequence[Tensor] | None = None,
    ) -> None:
        self.graph, self.batches, self.labels = graph, batches, labels
        self._rotations: dict[frozenset[int] | None, tuple[Rotation, dict[str, str]]] = {}
        self._rotated: dict[int, tuple[Rotation, CalibrationData]] = {}

    @classmethod
    def read(
        cls,
        graph: ChannelGraph,
        batches: Iterable[Any] | CalibrationData,
        labelled: bool = False,
    ) -> CalibrationData:
        """Reads what the caller of `search` or `prune` gave, once.

        Args:
            graph: The traced network.
            batches: As `search` takes them; such an object itself is returned.
            labelled: Whether their labels are wanted.

        Raises:
            TypeError, ValueError: See `calibration_batches` and `labelled_batches`; or an object
                that was made for another graph, or without the labels that are wanted.
        """
        if isinstance(batches, CalibrationData):
            batches._check(graph, labelled)
            return batches
        if labelled:
            return cls(graph, *labelled_batches(graph, batches))
        return cls(graph, calibration_batches(graph, batches))

    def _check(self, graph: ChannelGraph, labelled: bool) -> None:
        if self.graph is not graph:
            raise ValueError(
                "calibration: expected a CalibrationData of this graph, got one of another "
                f"({len(self.graph.axes)} axes; this has {len(graph.axes)})"
            )
        if labelled and self.labels is None:
            raise ValueError(
                "calibration: expected labels, since they are asked for, got a CalibrationData "
                "without (CalibrationData.read(..., labelled=True) reads them)"
            )

    @cached_property
    def parts(self) -> tuple[list[Inputs], list[Inputs]]:
        """The batches without what is held out, and what is: see `held_out_batches`."""
        return held_out_batches(self.batches)

    @cached_property
    def _seen(self) -> tuple[list[Consumer], list[Consumer], dict[str, Tensor]]:
        """One pass: what layers read of both parts, and what writers of linear streams put out."""
        outputs = OutputCovariances(self.graph)
        most, held_out = self.parts
        consumers, _ = collect_grams(self.graph, most, watched=outputs.hooks)
        others: list[Consumer] = []
        if held_out:
            others, _ = collect_grams(self.graph, held_out, like=consumers, watched=outputs.hooks)
        return consumers, others, outputs.by_weight()

    @cached_property
    def consumers(self) -> list[Consumer]:
        """What layers read in the batches without what is held out."""
        return self._seen[0]

    @cached_property
    def all_consumers(self) -> list[Consumer]:
        """What layers read in all batches."""
        most, others, _ = self._seen
        if not others:
            return most
        return [part + rest for part, rest in zip(most, others, strict=True)]

    @cached_property
    def reconstruction_errors(self) -> list[list[ReconstructionError]]:
        """For each axis, what the layers that read it cannot predict of channels that go.

        Weighted by how much the network's answer depends on it.

        Raises:
            ValueError: What a layer reads is not finite.
        """
        most, others, _ = self._seen
        both = zip(most, others, strict=True) if others else ()
        parts = {part.weight: (part, rest) for part, rest in both if part.samples}
        self.check_finite()
        fisher = output_fisher(self.graph, self.all_consumers, self.batches)
        return errors_from_inputs(self.graph, self.all_consumers, fisher, parts)

    def check_finite(self) -> None:
        """Finds all that layers read finite, or raises ValueError: fits would be of nothing."""
        for consumer in self.all_consumers:
            if consumer.gram is not None and not consumer.usable:
                raise ValueError(
                    "calibration: expected inputs for which what the dense network's layers read "
                    f"is finite, got NaN or infinities at {consumer.weight}"
                )

    def rotation(self, axes: Collection[int] | None = None) -> tuple[Rotation, dict[str, str]]:
        """The network with its linear streams in other bases: see `rotate_streams`.

        Args:
            axes: Which axes are meant; by default all that can be rotated.
        """
        reasons = {axis.name: why_not_rotated(self.graph, axis) for axis in self.graph.axes}
        if all(reasons.values()):
            return Rotation(self.graph, {}), {n: reason for n, reason in reasons.items() if reason}
        wanted = None if axes is None else frozenset(axes)
        if wanted not in self._rotations:
            found = rotate_streams(self.graph, self.reconstruction_errors, self._seen[2], wanted)
            self._rotations[wanted] = self._rotations[frozenset(found[0].bases)] = found
        return self._rotations[wanted]

    def rotated(self, rotation: Rotation) -> CalibrationData:
        """What the same batches say of the network in other bases.

        Nothing is measured anew: what layers read there are combinations of what they read here.
        """
        if not rotation.bases:
            return self
        known = self._rotated.get(id(rotation))
        if known is None:
            other = CalibrationData(rotation.graph, self.batches, self.labels)
            most, others, _ = self._seen
            other.__dict__ |= {  # where cached properties lie
                "_seen": (rotation.consumers(most), rotation.consumers(others), {}),
                "parts": self.parts,
                "reconstruction_errors": rotation.errors(self.reconstruction_errors),
            }
            known = self._rotated[id(rotation)] = rotation, other
        return known[1]
