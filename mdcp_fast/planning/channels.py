"""What is known of a network's channels: which stay at a width, and what that loses."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.planning.descriptors import Descriptors, Reconstructs
from mdcp_fast.planning.loss_table import held_out_losses, loss_table, ridge_table
from mdcp_fast.planning.method import ResolvedMethod
from mdcp_fast.planning.selection import Chooser, Clustered, Nested
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.folded_weights import dead_channels
from mdcp_fast.tracing.graph import ChannelGraph


class ChannelScorer:
    """What is known of a network's channels: which stay at a width, and what that loses.

    Args:
        graph: The traced network.
        how: The method.
        calibration: Batches and what they say, or None.
        seed: Of seeding.
        rotated: Axes whose channels come in order (see `rotate_streams`), by index.

    Attributes:
        choose: Says which channels stay.
        descriptors: The channels as points; None with greedy selection.
        rotated: As given.
        dead: int64 [channels of all axes]: see `dead_channels`.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        how: ResolvedMethod,
        calibration: CalibrationData | None,
        seed: int = 0,
        rotated: Collection[int] = (),
    ) -> None:
        self.graph, self.method, self._calibration = graph, how, calibration
        self.rotated = frozenset(rotated)
        self.choose: Chooser
        dead = [
            torch.zeros(axis.channels, dtype=torch.int64)
            if index in self.rotated
            else dead_channels(graph, axis)
            for index, axis in enumerate(graph.axes)
        ]
        self.dead = torch.cat(dead)
        self.descriptors: Descriptors | None = None
        if how.rule is None:
            assert isinstance(how.descriptor, Reconstructs)
            self._errors = how.descriptor.reconstruction_errors(graph, calibration)
            self.choose = Nested(self._errors, graph.widths, self.rotated, dead)
        else:
            self.descriptors = how.descriptor.describe(graph, calibration)
            _check_points(graph, self.descriptors)
            self.choose = Clustered(
                self.descriptors, how.channels_per_cluster, how.rule, how.seeding, seed, self.dead
            )

    def losses(self, choices: Sequence[Tensor]) -> LossTable:
        """What every axis loses at every width.

        From calibration batches where there are some; else from what chooses the channels.

        Args:
            choices: For each axis the widths that may be chosen.
        """
        measured = None
        if self._calibration is not None:
            measured = self._calibration.reconstruction_errors
        if isinstance(self.choose, Nested) and (measured is None or self._errors is measured):
            return self._nested(self.choose, choices)
        if measured is not None:
            return ridge_table(measured, self.graph.widths, choices, self.choose)
        assert self.descriptors is not None
        return loss_table(self.descriptors, choices, self.choose)

    def _nested(self, choose: Nested, choices: Sequence[Tensor]) -> LossTable:
        """The losses of the elimination; on held-out images where layers see few samples."""
        found = [
            held_out_losses(errors, order, widths)
            if any(error.held_out is not None for error in errors)
            else losses
            for errors, order, losses, widths in zip(
                self._errors, choose.orders, choose.losses, choices, strict=True
            )
        ]
        return LossTable(torch.cat(found), choose.table().offsets)


def _check_points(graph: ChannelGraph, described: Descriptors) -> None:
    wanted = graph.widths.tolist()
    if described.offsets.diff().tolist() != wanted or len(described.points) != sum(wanted):
        raise ValueError(
            f"search: descriptor: expected points for axes of {wanted} channels, got offsets "
            f"{described.offsets.tolist()} for {len(described.points)} points"
        )
    if not bool(torch.isfinite(described.points).all()):
        raise ValueError("search: descriptor: expected finite points, got NaN or infinities")
