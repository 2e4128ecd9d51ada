"""What is known of a network's channels: which stay at a width, and what that loses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.planning.descriptors import Descriptors, moments, responses, weights
from mdcp_fast.planning.fisher import output_fisher
from mdcp_fast.planning.loss_table import loss_table, ridge_table
from mdcp_fast.planning.method import Method
from mdcp_fast.planning.reconstruction import (
    ReconstructionError,
    errors_from_inputs,
    errors_from_weights,
)
from mdcp_fast.planning.selection import Chooser, Clustered, Nested
from mdcp_fast.pruning.input_moments import collect_grams
from mdcp_fast.tracing.graph import ChannelGraph


class ChannelScorer:
    """What is known of a network's channels: which stay at a width, and what that loses.

    Args:
        graph: The traced network.
        how: The method.
        batches: Calibration batches, or None.
        own: The points, where `how.descriptor` is "given".
        seed: Of seeding and of selection at random.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        how: Method,
        batches: Sequence[Inputs] | None,
        own: Descriptors | None = None,
        seed: int = 0,
    ) -> None:
        self.graph, self.method = graph, how
        self.descriptors: Descriptors | None = None
        self._errors: list[list[ReconstructionError]] | None = None
        measured = how.descriptor == "responses" or how.widths == "searched"
        if batches is not None and measured:
            self._errors = errors_from_batches(graph, batches)
        if how.selection == "greedy":
            from_weights = how.descriptor == "weights"
            errors = errors_from_weights(graph) if from_weights else self._errors
            assert errors is not None
            self.choose: Chooser = Nested(errors, graph.widths)
        else:
            self.descriptors = self._described(own)
            self.choose = Clustered(
                self.descriptors, how.channels_per_cluster, how.selection, how.seeding, seed
            )

    def _described(self, own: Descriptors | None) -> Descriptors:
        if own is not None:
            _check_points(self.graph, own)
            return own
        if self.method.descriptor == "responses":
            assert self._errors is not None
            return responses(self.graph, self._errors)
        return weights(self.graph) if self.method.descriptor == "weights" else moments(self.graph)

    def losses(self, choices: Sequence[Tensor]) -> LossTable:
        """What every axis loses at every width.

        From calibration batches where there are some; else from what chooses the channels.

        Args:
            choices: For each axis the widths that may be chosen.
        """
        by_order = isinstance(self.choose, Nested) and (
            self._errors is None or self.method.descriptor == "responses"
        )
        if by_order:
            return self.choose.table()  # type: ignore[attr-defined]
        if self._errors is not None:
            return ridge_table(self._errors, self.graph.widths, choices, self.choose)
        assert self.descriptors is not None
        return loss_table(self.descriptors, choices, self.choose)


def errors_from_batches(
    graph: ChannelGraph, batches: Sequence[Inputs]
) -> list[list[ReconstructionError]]:
    """What calibration batches say of every axis: see `errors_from_inputs`."""
    consumers, _ = collect_grams(graph, batches)
    for consumer in consumers:
        if consumer.gram is not None and not consumer.usable:
            raise ValueError(
                "search: calibration: expected inputs for which what the dense network's layers "
                f"read is finite, got NaN or infinities at {consumer.weight}"
            )
    return errors_from_inputs(graph, consumers, output_fisher(graph, consumers, batches))


def _check_points(graph: ChannelGraph, own: Descriptors) -> None:
    wanted = graph.widths.tolist()
    if own.offsets.diff().tolist() != wanted or len(own.points) != sum(wanted):
        raise ValueError(
            f"search: descriptor: expected points for axes of {wanted} channels, got offsets "
            f"{own.offsets.tolist()} for {len(own.points)} points"
        )
    if not bool(torch.isfinite(own.points).all()):
        raise ValueError("search: descriptor: expected finite points, got NaN or infinities")
