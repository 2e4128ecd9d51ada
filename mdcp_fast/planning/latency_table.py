"""Times of layers by width: what `search` bounds a network's latency by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdcp_fast.deployment.timing import NOISY
from mdcp_fast.modules.files import AnyPath, atomic_write
from mdcp_fast.modules.strict_json import parse
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.axes import module_of
from mdcp_fast.tracing.cost import WeightTable
from mdcp_fast.tracing.graph import ChannelGraph

FORMAT = 1
COST = "latency"
NANOSECONDS = 1e6  # in a millisecond
EDGE = 8  # positions between two sizes that a cost tells apart
KINDS = ("pointwise", "spatial", "grouped")  # of layers, whose times are scaled alike
FEATURES = (*KINDS, "outputs", "constant")
PULLS = (0.003, 0.01, 0.03, 0.1, 0.3)  # how strongly all kinds of layers get the same factor
LEAST = 0.1  # share of the time of all layers; a kind below it is pulled as if it had that
APART = 0.05  # of the dense network's time, between it and others that tell a slope
STEEPEST = 10.0  # slope of measured over predicted times that is believed
GAIN = 0.05  # of a layer's time; what gains less did not get faster


@dataclass(frozen=True)
class LayerTimes:
    """How long a layer takes alone, at some sizes of its weight.

    Attributes:
        weight: The parameter.
        kind: One of `KINDS`: with one tap, with several, or in groups.
        first, second: Sizes of the weight's dimensions 0 and 1, increasing; the last are the dense
            ones.
        milliseconds: float64 [first, second].
        outputs: float64 [first, second], how many numbers the layer puts out.
    """

    weight: str
    kind: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    milliseconds: np.ndarray
    outputs: np.ndarray

    def at(self, values: np.ndarray, first: Sequence[int], second: Sequence[int]) -> np.ndarray:
        """One of the two tables at other sizes, linear between those that it has: [first, second].

        Args:
            values: float64 [self.first, self.second].
            first, second: Sizes.
        """
        rows = np.stack([np.interp(second, self.second, row) for row in values])
        return np.stack([np.interp(first, self.first, column) for column in rows.T], 1)


@dataclass(frozen=True)
class NetworkTime:
    """How long a whole network took.

    Attributes:
        widths: Of its axes.
        milliseconds: The fastest of its runs.
        median, p90: Milliseconds in which half and nine of ten of its runs were done.
    """

    widths: tuple[int, ...]
    milliseconds: float
    median: float
    p90: float


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """What the layers of a network take where it will run. Made by `measure_latency`. Print it.

    A network's time is predicted by the sum of what its layers take alone, scaled by a factor for
    each kind of layer, plus so much for each number that a layer puts out (which stands for the
    activations, additions and copies around it), plus a constant. Factors are fitted to whole
    networks of other widths.

    Attributes:
        settings: Where it was measured: "backend", "device", "threads", "batch", "dtype" and
            versions.
        layers: Their times.
        networks: Whole ones; the first is the dense network.
        factors: By feature (`FEATURES`); milliseconds for each output, and milliseconds.
    """

    settings: dict[str, Any]
    layers: tuple[LayerTimes, ...]
    networks: tuple[NetworkTime, ...]
    factors: dict[str, float]

    @classmethod
    def fitted(
        cls,
        graph: ChannelGraph,
        settings: Mapping[str, Any],
        layers: Sequence[LayerTimes],
        networks: Sequence[NetworkTime],
        *,
        weights: Sequence[float] | None = None,
    ) -> LatencyTable:
        """The table whose factors fit these networks best, in shares of their times.

        Args:
            graph: The traced network.
            settings, layers, networks: See the attributes.
            weights: How much each network counts; all the same by default.
        """
        counted = np.ones(len(networks)) if weights is None else np.asarray(weights)
        times = np.array([one.milliseconds for one in networks])
        features = np.stack([_features(graph, layers, one.widths) for one in networks])
        factors = _fitted(features / times[:, None], counted)
        named = dict(zip(FEATURES, factors.tolist(), strict=True))
        return cls(dict(settings), tuple(layers), tuple(networks), named)

    def right_for(self, graph: ChannelGraph, networks: Sequence[NetworkTime]) -> LatencyTable:
        """The table that is right for the dense network, and on average for these.

        A budget is a share of what the dense network takes, so both ends must be right: all
        factors are scaled alike, and the constant makes up for the rest.
        """
        if not networks:
            return self
        pairs = [(self.predict(graph, one.widths), one.milliseconds) for one in networks]
        x, y = (float(np.mean(values)) for values in zip(*pairs, strict=True))
        dense, whole = self.predict(graph, self.networks[0].widths), self.dense_milliseconds
        scale, constant = y / x, 0.0
        if abs(dense - x) > APART * dense and STEEPEST > (whole - y) / (dense - x) > 1 / STEEPEST:
            scale = (whole - y) / (dense - x)
            constant = y - scale * x
        factors = {name: scale * factor for name, factor in self.factors.items()}
        factors["constant"] += constant
        return replace(self, factors=factors)

    @property
    def dense_milliseconds(self) -> float:
        """What the dense network took, measured."""
        return self.networks[0].milliseconds

    def predict(self, graph: ChannelGraph, plan: PruningPlan | Sequence[int]) -> float:
        """Milliseconds that a network should take.

        Args:
            graph: The traced network.
            plan: A plan, or the widths of all axes.
        """
        widths = [axis.width for axis in plan.axes] if isinstance(plan, PruningPlan) else plan
        return float(_features(graph, self.layers, widths) @ self._factors)

    def errors(self, graph: ChannelGraph) -> list[float]:
        """By how much predictions of the measured networks are off, as shares of their times."""
        return [self.predict(graph, one.widths) / one.milliseconds - 1 for one in self.networks]

    def graph_with_cost(self, graph: ChannelGraph) -> ChannelGraph:
        """The traced network with one more cost: "latency", in predicted nanoseconds.

        Raises:
            ValueError: The table is of another network.
        """
        missing = [one.weight for one in self.layers if one.weight not in _sizes(graph)]
        wrong = missing or [
            one.weight
            for one in self.layers
            if _sizes(graph)[one.weight] != (one.first[-1], one.second[-1])
        ]
        if wrong:
            raise ValueError(
                f"search: latency_table: expected one of this network, got one with {wrong[0]} of "
                "another size, or that this network has not"
            )
        tables = {}
        for layer in self.layers:
            first, second = (_edges(sizes) for sizes in (layer.first, layer.second))
            own = self.factors[layer.kind] * layer.at(layer.milliseconds, first, second)
            own += self.factors["outputs"] * layer.at(layer.outputs, first, second)
            values = np.maximum(np.rint(own * NANOSECONDS), 0).astype(np.int64)
            tables[layer.weight] = WeightTable(
                torch.tensor(first), torch.tensor(second), torch.from_numpy(values)
            )
        constant = round(self.factors["constant"] * NANOSECONDS)
        return graph.with_table_cost(COST, constant, tables)

    def explain(self, graph: ChannelGraph, plan: PruningPlan) -> str:
        """A table of predicted times by layer, dense and pruned, and why some gain nothing.

        Args:
            graph: The traced network.
            plan: For it.
        """
        lines = [f"{'layer':40}{'dense':>15}{'pruned':>15}{'ms':>9}{'ms':>9}"]
        widths = torch.tensor([axis.width for axis in plan.axes])
        counts = graph.cost.counts(torch.stack([graph.widths, widths]))
        for layer in self.layers:
            shapes = [_size_of(graph, counts[row], layer) for row in (0, 1)]
            dense, pruned = (
                self.factors[layer.kind] * float(layer.at(layer.milliseconds, [a], [b])[0, 0])
                for a, b in shapes
            )
            why = ""
            if pruned > (1 - GAIN) * dense:
                why = "  not faster" + (
                    ": nothing of it was removed"
                    if shapes[0] == shapes[1]
                    else f": {min(shapes[1])} wide"
                    if min(shapes[1]) % EDGE
                    else ": the removed part is too small to matter"
                )
            named = [" x ".join(map(str, shape)) for shape in shapes]
            lines.append(
                f"{module_of(layer.weight):40}{named[0]:>15}{named[1]:>15}"
                f"{dense:9.3f}{pruned:9.3f}{why}"
            )
        before, after = self.predict(graph, graph.widths.tolist()), self.predict(graph, plan)
        lines.append(f"{'all, with what lies between layers':70}{before:9.3f}{after:9.3f}")
        return "\n".join(lines)

    def save(self, path: AnyPath) -> None:
        """Writes the table to a JSON file, which appears whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        content = {
            "format": FORMAT,
            "settings": self.settings,
            "factors": self.factors,
            "networks": [vars(one) for one in self.networks],
            "layers": [
                {
                    **vars(one),
                    "milliseconds": one.milliseconds.tolist(),
                    "outputs": one.outputs.tolist(),
                }
                for one in self.layers
            ],
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: AnyPath) -> LatencyTable:
        """Reads what `save` wrote.

        Raises:
            ValueError: The file is no such table.
            OSError: It cannot be read.
        """
        text = Path(os.fsdecode(path)).read_text(encoding="utf-8")
        try:
            data = parse(text)
            if data["format"] != FORMAT:
                raise ValueError(f"format {FORMAT}, got {data['format']!r}")
            layers = tuple(
                LayerTimes(
                    str(one["weight"]),
                    str(one["kind"]),
                    tuple(map(int, one["first"])),
                    tuple(map(int, one["second"])),
                    np.array(one["milliseconds"], dtype=float),
                    np.array(one["outputs"], dtype=float),
                )
                for one in data["layers"]
            )
            networks = tuple(
                NetworkTime(
                    tuple(map(int, one["widths"])),
                    *(float(one[name]) for name in ("milliseconds", "median", "p90")),
                )
                for one in data["networks"]
            )
            factors = {name: float(data["factors"][name]) for name in FEATURES}
            return cls(dict(data["settings"]), layers, networks, factors)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"LatencyTable.load: path: expected a table written by save, got "
                f"{type(error).__name__}: {error}"
            ) from error

    def __str__(self) -> str:
        where = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        dense = self.networks[0]
        factors = ", ".join(f"{name} {value:.3g}" for name, value in self.factors.items())
        busy = dense.p90 > NOISY * dense.median
        note = ": the machine had other work, measure again when it has none" if busy else ""
        return "\n".join(
            [
                f"LatencyTable: {len(self.layers)} layers, {len(self.networks)} whole networks",
                f"  measured with {where}",
                f"  the dense network: {dense.milliseconds:.3f} ms at its fastest, median "
                f"{dense.median:.3f}, 90th percentile {dense.p90:.3f}{note}",
                f"  factors: {factors}",
            ]
        )

    @property
    def _factors(self) -> np.ndarray:
        return np.array([self.factors[name] for name in FEATURES])


def _fitted(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors for which features add up to one, pulled as strongly as left-out networks say.

    Args:
        features: float64 [networks, features], in shares of the networks' times.
        weights: float64 [networks], how much each counts.
    """

    def error_left_out(pull: float) -> float:
        errors = [
            features[out] @ _pulled(np.delete(features, out, 0), np.delete(weights, out), pull) - 1
            for out in range(len(features))
        ]
        return float(np.abs(errors) @ weights)

    strength = min(PULLS, key=error_left_out) if len(features) > 2 else PULLS[-1]
    return _pulled(features, weights, strength)


def _pulled(features: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """`_fitted` with one strength of the pull towards one factor for all kinds of layers."""
    alone = features[:, : len(KINDS)].sum(1)
    start = np.array([1 / np.median(alone)] * len(KINDS) + [0.0, 0.0])
    scale = np.abs(features).mean(0)
    # What takes next to no time has no say in how fast it is.
    scale[: len(KINDS)] = np.maximum(scale[: len(KINDS)], LEAST * alone.mean())
    pull = strength * np.sqrt(weights.sum()) * np.diag(scale)
    left = np.concatenate([features * np.sqrt(weights)[:, None], pull])
    right = np.concatenate([np.sqrt(weights), pull @ start])
    return np.asarray(np.linalg.lstsq(left, right, rcond=None)[0])


def _features(
    graph: ChannelGraph, layers: Sequence[LayerTimes], widths: Sequence[int]
) -> np.ndarray:
    """What factors multiply: the layers' times by kind, their outputs, and 1."""
    found = dict.fromkeys(FEATURES, 0.0)
    counts = graph.cost.counts(torch.tensor([list(widths)]))[0]
    for layer in layers:
        first, second = ([size] for size in _size_of(graph, counts, layer))
        found[layer.kind] += float(layer.at(layer.milliseconds, first, second)[0, 0])
        found["outputs"] += float(layer.at(layer.outputs, first, second)[0, 0])
    found["constant"] = 1.0
    return np.array([found[name] for name in FEATURES])


def _size_of(graph: ChannelGraph, counts: Tensor, layer: LayerTimes) -> tuple[int, int]:
    """The sizes of a layer's weight at these counts: int64 [counts]."""
    own = graph.counts.of.get(layer.weight, {})
    sizes = [
        int(counts[own[dimension]]) if dimension in own else dense
        for dimension, dense in enumerate((layer.first[-1], layer.second[-1]))
    ]
    return sizes[0], sizes[1]


def _sizes(graph: ChannelGraph) -> dict[str, tuple[int, int]]:
    parameters = dict(graph.model.named_parameters())
    return {
        layer.weight: (len(parameters[layer.weight]), parameters[layer.weight][0].size(0))
        for layer in graph.layers.values()
        if layer.weight in parameters
    }


def _edges(sizes: Sequence[int]) -> list[int]:
    """Multiples of `EDGE` from the smallest size that was measured to the largest, and that."""
    first = max(1, sizes[0])
    return sorted({first, *range(-(-first // EDGE) * EDGE, sizes[-1], EDGE), sizes[-1]})
