"""The ways to choose channels, by name, and what a preset stands for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from mdcp_fast.ops.evolution import LShade, PlainDE
from mdcp_fast.planning.descriptors import Descriptors
from mdcp_fast.planning.selection import RULES

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
ALGORITHMS = {"l-shade": LShade, "plain": PlainDE}


def resolve_method(preset: str | None, data: bool, **options: Any) -> Method:
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


def settings(how: Method) -> dict[str, Any]:
    """The method as plain JSON values."""
    return asdict(how)
