"""How channels are chosen, as a value: `Method`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, get_args

from mdcp_fast.planning.descriptors import DESCRIPTORS, Descriptor, Descriptors, Reconstructs
from mdcp_fast.planning.evaluators import EVALUATORS, Evaluator, TableEvaluator
from mdcp_fast.planning.selection import RULES, SelectionRule
from mdcp_fast.planning.widths import MINIMIZERS, Minimizer

DescriptorName = Literal["moments", "weights", "responses"]
SelectionName = Literal["crowding", "medoid", "greedy"]
WidthsName = Literal["searched", "uniform"]
ClustersName = Literal["width", "searched"]
SeedingName = Literal["ward", "k-means++"]
EvolutionName = Literal["l-shade"]
EvaluatorName = Literal["table", "network", "fitted"]
PresetName = Literal["best", "paper", "quick"]

NAMES: dict[str, tuple[str, ...]] = {
    "descriptor": get_args(DescriptorName),
    "selection": get_args(SelectionName),
    "widths": get_args(WidthsName),
    "clusters": get_args(ClustersName),
    "seeding": get_args(SeedingName),
    "evolution": get_args(EvolutionName),
    "evaluator": get_args(EvaluatorName),
}
ONLY_NAMES = ("widths", "clusters", "seeding")  # of which no object can take the place
PRESETS: tuple[str, ...] = get_args(PresetName)
GREEDY = "greedy"
GIVEN = "given"  # the name of descriptors that the caller made


@dataclass(frozen=True)
class Method:
    """How channels are chosen, and what widths cost: a value that `search` takes.

    Without arguments it is the best one. Change one with `dataclasses.replace`:
    `replace(Method.paper(), selection="medoid")`.

    Attributes:
        descriptor: What describes a channel. "moments": the mean and the variance of its weights
            and their cosine distance to the all-ones vector. "weights": the filters that write it,
            BatchNorm folded in. "responses": what it adds, on calibration batches, to the outputs
            of the layers that read it. None, the default: "responses" where there is calibration,
            else "weights". Or an object of your own: a `Descriptor`, or points for all axes,
            `Descriptors`.
        selection: Which channels stay. Of each cluster "crowding": those with the largest crowding
            distance; "medoid": those nearest to its centre; or those that a rule of your own scores
            highest, a `SelectionRule`. Or, without clusters, "greedy": those that are left after
            dropping, again and again, the one that the others replace best; with "weights" or
            "responses". None, the default: "greedy" where the descriptor allows it, else
            "crowding".
        widths: "searched", or "uniform": the largest share that all axes can keep.
        clusters: "width": as many as channels stay, over `channels_per_cluster`. "searched": chosen
            by differential evolution for the best clustering; with widths="uniform".
        seeding: Of k-means: "ward" or "k-means++".
        channels_per_cluster: Channels kept in a cluster on average, at least 1.
        evolution: What searches widths on the table, and numbers of clusters: "l-shade", or a
            function of your own, a `Minimizer`.
        evaluator: What widths are chosen by: "table", "network" or "fitted", or a `TableEvaluator`,
            `NetworkEvaluator` or `RefitEvaluator` with other options than theirs by default.
        rotate: Whether linear streams, channels that only add up between the layers that write them
            and those that read them (the residual streams of MobileNets and EfficientNets), are
            pruned in the basis of their principal directions, as far as the readers need them, in
            place of the network's own. With calibration and greedy selection only.

    Raises:
        TypeError: An object without the method that it should have.
        ValueError: An unknown name, or options that do not go together.
    """

    descriptor: DescriptorName | Descriptor | None = None
    selection: SelectionName | SelectionRule | None = None
    widths: WidthsName = "searched"
    clusters: ClustersName = "width"
    seeding: SeedingName = "ward"
    channels_per_cluster: float = 1.0
    evolution: EvolutionName | Minimizer = "l-shade"
    evaluator: EvaluatorName | Evaluator = "table"
    rotate: bool = True

    @staticmethod
    def best() -> Method:
        """What the quality benchmark shows to be best; the default where there is calibration.

        It drops, one after the other, the channels that the others replace best (greedy), by their
        responses; without calibration by their weights, some twenty seconds for ResNet-50.
        """
        return Method()

    @staticmethod
    def quick() -> Method:
        """A second for ResNet-50, from weights alone; the default where there is no calibration.

        Clusters of the paper's three numbers, the largest crowding distance, widths that are
        searched.
        """
        return Method(descriptor="moments", selection="crowding", rotate=False)

    @staticmethod
    def paper() -> Method:
        """The method of Sun et al., of which not all is published.

        1. A channel is described by the mean and the variance of its weights and their cosine
           distance to the all-ones vector (published). Each number is standardised over the axis, a
           tied axis has the numbers of all its layers, at most 16 principal components (ours).
        2. Channels of an axis are clustered by k-means++ (published); greedily, with 2 + ln k
           trials for each seed, and Lloyd's iteration to convergence (ours).
        3. An enhanced differential evolution chooses the number of clusters of every axis
           (published; neither how it is enhanced nor what it minimises is). Ours is L-SHADE, and
           minimises 1 minus the Calinski-Harabasz index as a share of the axis's best, summed over
           the axes.
        4. The channels to keep are not said to be searched: every axis keeps the same share of its
           channels, the largest within the budget (ours).
        5. In each cluster the channels with the largest NSGA-II crowding distance stay (published);
           how many of each is not said: one, and the rest by largest remainder of the cluster's
           size, ties by norm, then index (ours).

        Source: Sun, Chen, Wu, Li and Ma, "A Clustering Pruning Method Based on Multidimensional
        Channel Information", Neural Processing Letters 2024.
        """
        return Method(
            descriptor="moments",
            selection="crowding",
            widths="uniform",
            clusters="searched",
            seeding="k-means++",
            rotate=False,
        )

    def __post_init__(self) -> None:
        for name, known in NAMES.items():
            value = getattr(self, name)
            if value not in known if isinstance(value, str) else name in ONLY_NAMES:
                raise ValueError(
                    f"Method: {name}: expected one of {', '.join(known)}, got {value!r}"
                )
        self._check_objects()
        if not self.channels_per_cluster >= 1:
            raise ValueError(
                "Method: channels_per_cluster: expected at least 1, got "
                f"{self.channels_per_cluster}"
            )
        if self.widths == "uniform" and _named(EVALUATORS, self.evaluator).name != "table":
            raise ValueError(
                "Method: widths: expected 'searched' with "
                f"evaluator={_named(EVALUATORS, self.evaluator).name!r}, got 'uniform'"
            )
        if self.clusters == "searched" and self.widths != "uniform":
            raise ValueError(
                "Method: widths: expected 'uniform' where the numbers of clusters are searched, "
                "got 'searched'"
            )

    def _check_objects(self) -> None:
        wanted: dict[str, tuple[str, bool]] = {
            "descriptor": (
                "an object with a method describe",
                self.descriptor is None or hasattr(self.descriptor, "describe"),
            ),
            "selection": (
                "an object with a method scores",
                self.selection is None or hasattr(self.selection, "scores"),
            ),
            "evolution": ("a function", callable(self.evolution)),
            "evaluator": (
                "a TableEvaluator, NetworkEvaluator or RefitEvaluator",
                isinstance(self.evaluator, Evaluator),
            ),
        }
        for name, (kind, fits) in wanted.items():
            value = getattr(self, name)
            if not isinstance(value, str) and not fits:
                raise TypeError(
                    f"Method: {name}: expected a name or {kind}, got {type(value).__name__}"
                )


@dataclass(frozen=True)
class ResolvedMethod:
    """A method with an object for each name.

    Attributes:
        descriptor: Describes the channels.
        rule: Says which of a cluster stay; None for greedy selection, which has no clusters.
        minimize: Searches widths on the table, and numbers of clusters.
        evaluator: What widths are chosen by.
        uniform: Whether all widths are one share of the dense ones.
        search_clusters: Whether the numbers of clusters are searched.
        seeding: Of k-means.
        channels_per_cluster: On average.
        rotate: Whether linear streams are pruned in another basis.
        settings: The method as plain JSON values.
    """

    descriptor: Descriptor
    rule: SelectionRule | None
    minimize: Minimizer
    evaluator: Evaluator
    uniform: bool
    search_clusters: bool
    seeding: str
    channels_per_cluster: float
    rotate: bool
    settings: dict[str, Any]


def choose_method(
    method: Method | None,
    preset: str | None,
    evaluator: str | Evaluator | None,
    calibrated: bool,
    rotate: bool | None = None,
) -> Method:
    """The method that `search` was asked for.

    Args:
        method: The method, or None.
        preset: Its name instead; None for the best with calibration, the quick one without.
        evaluator: In place of the method's.
        calibrated: Whether there are calibration batches.
        rotate: In place of the method's; None for that.

    Raises:
        TypeError, ValueError: An unknown name, another object, both a method and a preset.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"search: preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    if method is not None and preset is not None:
        raise ValueError(f"search: preset: expected None beside a method, got {preset!r}")
    if method is not None and not isinstance(method, Method):
        raise TypeError(
            f"search: method: expected a mdcp_fast.Method, got {type(method).__name__}; names are "
            "given as preset="
        )
    if method is None:
        method = getattr(Method, preset or ("best" if calibrated else "quick"))()
    if rotate is not None:
        method = replace(method, rotate=rotate)
    return method if evaluator is None else replace(method, evaluator=evaluator)


def resolve_method(method: Method, calibrated: bool) -> ResolvedMethod:
    """Puts an object in place of each name, and a choice in place of each None.

    Args:
        method: The method.
        calibrated: Whether there are calibration batches to choose by.

    Raises:
        ValueError: Parts of it do not go together, or need calibration.
    """
    wanted = method.descriptor
    if wanted is None:
        wanted = "responses" if calibrated else "weights"
    descriptor = _named(DESCRIPTORS, wanted)
    reconstructs = isinstance(descriptor, Reconstructs)
    selection: str | SelectionRule | None = method.selection
    if selection is None:
        selection = GREEDY if reconstructs else "crowding"
    if selection == GREEDY and not reconstructs:
        raise ValueError(
            f"search: selection: expected {', '.join(RULES)} or a rule with these descriptors, "
            f"since greedy takes products of weights or responses, got {selection!r}"
        )
    if selection == GREEDY and method.clusters == "searched":
        raise ValueError("search: selection: expected one that clusters, got 'greedy'")
    evaluator = _named(EVALUATORS, method.evaluator)
    rotate = method.rotate and calibrated and selection == GREEDY
    if not calibrated and not isinstance(evaluator, TableEvaluator):
        raise ValueError(
            f"search: calibration: expected batches, since evaluator={evaluator.name!r} runs the "
            "network on them, got None"
        )
    return ResolvedMethod(
        descriptor=descriptor,
        rule=None if selection == GREEDY else _named(RULES, selection),
        minimize=_named(MINIMIZERS, method.evolution),
        evaluator=evaluator,
        uniform=method.widths == "uniform",
        search_clusters=method.clusters == "searched",
        seeding=method.seeding,
        channels_per_cluster=method.channels_per_cluster,
        rotate=rotate,
        settings={
            "descriptor": _written(wanted),
            "selection": _written(selection),
            "widths": method.widths,
            "clusters": method.clusters,
            "seeding": method.seeding,
            "evolution": _written(method.evolution),
            "evaluator": evaluator.name,
            "channels_per_cluster": method.channels_per_cluster,
            "rotate": rotate,
        },
    )


def _named(known: Mapping[str, Any], value: Any) -> Any:
    return known[value] if isinstance(value, str) else value


def _written(value: object) -> str:
    """A part of a method as plans write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Descriptors):
        return GIVEN
    if is_dataclass(value):
        return repr(value)  # with its options
    return getattr(value, "__name__", type(value).__name__)
