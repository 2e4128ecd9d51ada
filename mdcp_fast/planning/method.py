"""The ways to choose channels, by name: what a preset stands for, and what then answers jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mdcp_fast.modules.calls import Inputs
from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.planning.descriptors import Descriptors, moments, responses, weights
from mdcp_fast.planning.fisher import output_sensitivity
from mdcp_fast.planning.reconstruction import Reading, measured_readings, weight_readings
from mdcp_fast.planning.selection import RULES, Chooser, Clustered, Nested, loss_table, ridge_table
from mdcp_fast.pruning.input_moments import collect_grams
from mdcp_fast.tracing.graph import ChannelGraph

OWN = "given"  # descriptors that the caller made


@dataclass(frozen=True)
class Method:
    """How channels are chosen, and what widths cost. The fields are options of `search`.

    Attributes:
        descriptor: "moments", "weights", "responses", or "given".
        selection: "crowding", "medoid", "random", or "greedy".
        widths: "searched" or "uniform".
        clusters: "width": as many as channels stay, over `channels_per_cluster`; or "searched".
        seeding: Of k-means: "ward" or "k-means++".
        evolution: "l-shade" or "plain".
        evaluator: "table", "network" or "fitted".
        channels_per_cluster: Channels kept in a cluster on average.
    """

    descriptor: str
    selection: str
    widths: str = "searched"
    clusters: str = "width"
    seeding: str = "ward"
    evolution: str = "l-shade"
    evaluator: str = "table"
    channels_per_cluster: float = 1.0


VALUES = {
    "descriptor": ("moments", "weights", "responses"),
    "selection": (*RULES, "greedy"),
    "widths": ("searched", "uniform"),
    "clusters": ("width", "searched"),
    "seeding": ("ward", "k-means++"),
    "evolution": ("l-shade", "plain"),
    "evaluator": ("table", "network", "fitted"),
}
PAPER = Method("moments", "crowding", "uniform", "searched", "k-means++")
BEST = Method("responses", "greedy")
BEST_WITHOUT_DATA = Method("weights", "greedy")
QUICK = Method("moments", "crowding")  # a second for ResNet-50, where the one above takes twenty
PRESETS = ("best", "paper")


def method(preset: str | None, data: bool, **options: Any) -> Method:
    """The preset's method with the options that are not None in place of its own.

    Args:
        preset: "best", "paper", or None: the best with data, the quick one without.
        data: Whether there are calibration batches to choose by.
        options: Fields of `Method`; a descriptor may also be `Descriptors`.

    Raises:
        TypeError, ValueError: An unknown preset or value, or two that do not go together.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"search: preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    if preset == "paper":
        base = PAPER
    elif data:
        base = BEST
    else:
        base = QUICK if preset is None else BEST_WITHOUT_DATA
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("descriptor"), Descriptors):
        given["descriptor"] = OWN
    for name, known in VALUES.items():
        value = given.get(name)
        if value is not None and value not in known and (name, value) != ("descriptor", OWN):
            raise ValueError(f"search: {name}: expected one of {', '.join(known)}, got {value!r}")
    per_cluster = given.get("channels_per_cluster", 1.0)
    if not per_cluster >= 1:
        raise ValueError(f"search: channels_per_cluster: expected at least 1, got {per_cluster}")
    # Moments and own points have no greedy selection; then clusters take its place.
    if "selection" not in given and given.get("descriptor") in ("moments", OWN):
        given["selection"] = "crowding"
    chosen = replace(base, **given)
    if chosen.widths == "uniform" and chosen.evaluator != "table":
        raise ValueError(
            f"search: widths: expected 'searched' with evaluator={chosen.evaluator!r}, got "
            "'uniform'"
        )
    if chosen.selection == "greedy" and chosen.descriptor in ("moments", OWN):
        raise ValueError(
            "search: selection: expected crowding, medoid or random with these descriptors, since "
            f"greedy takes products of weights or responses, got {chosen.selection!r}"
        )
    if chosen.selection == "greedy" and chosen.clusters == "searched":
        raise ValueError("search: selection: expected one that clusters, got 'greedy'")
    if chosen.clusters == "searched" and chosen.widths == "searched":
        raise ValueError(
            "search: widths: expected 'uniform' where the numbers of clusters are searched, got "
            "'searched'"
        )
    if chosen.evaluator != "table" and not data:
        raise ValueError(
            f"search: calibration: expected batches, since evaluator={chosen.evaluator!r} runs the "
            "network on them, got None"
        )
    if chosen.descriptor == "responses" and not data:
        raise ValueError(
            "search: calibration: expected batches, since descriptor='responses' is measured on "
            "them, got None"
        )
    return chosen


class Channels:
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
        self._readings: list[list[Reading]] | None = None
        measured = how.descriptor == "responses" or how.widths == "searched"
        if batches is not None and measured:
            self._readings = readings_from(graph, batches)
        if how.selection == "greedy":
            from_weights = how.descriptor == "weights"
            readings = weight_readings(graph) if from_weights else self._readings
            assert readings is not None
            self.choose: Chooser = Nested(readings, graph.widths)
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
            assert self._readings is not None
            return responses(self.graph, self._readings)
        return weights(self.graph) if self.method.descriptor == "weights" else moments(self.graph)

    def losses(self, choices: Sequence[Tensor]) -> LossTable:
        """What every axis loses at every width.

        From calibration batches where there are some; else from what chooses the channels.

        Args:
            choices: For each axis the widths that may be chosen.
        """
        by_order = isinstance(self.choose, Nested) and (
            self._readings is None or self.method.descriptor == "responses"
        )
        if by_order:
            return self.choose.table()  # type: ignore[attr-defined]
        if self._readings is not None:
            return ridge_table(self._readings, self.graph.widths, choices, self.choose)
        assert self.descriptors is not None
        return loss_table(self.descriptors, choices, self.choose)


def readings_from(graph: ChannelGraph, batches: Sequence[Inputs]) -> list[list[Reading]]:
    """What calibration batches say of every axis: see `measured_readings`."""
    consumers, _ = collect_grams(graph, batches)
    for consumer in consumers:
        if consumer.gram is not None and not consumer.usable:
            raise ValueError(
                "search: calibration: expected inputs for which what the dense network's layers "
                f"read is finite, got NaN or infinities at {consumer.weight}"
            )
    return measured_readings(graph, consumers, output_sensitivity(graph, consumers, batches))


def settings(how: Method) -> dict[str, Any]:
    """The method as plain JSON values."""
    return asdict(how)


def _check_points(graph: ChannelGraph, own: Descriptors) -> None:
    wanted = graph.widths.tolist()
    if own.offsets.diff().tolist() != wanted or len(own.points) != sum(wanted):
        raise ValueError(
            f"search: descriptor: expected points for axes of {wanted} channels, got offsets "
            f"{own.offsets.tolist()} for {len(own.points)} points"
        )
    if not bool(torch.isfinite(own.points).all()):
        raise ValueError("search: descriptor: expected finite points, got NaN or infinities")
