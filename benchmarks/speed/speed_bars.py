"""What the speed benchmark was asked to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from speed_cases import (
    CONDENSED,
    GAP,
    ONE_THREAD,
    READ,
    SCIKIT,
    Cases,
    Record,
    ratio,
    seconds,
    theirs,
)


class Bar(NamedTuple):
    """Something to reach: `value` of the cases, None where it was not measured."""

    what: str
    sign: str  # ">=" or "<="
    bound: float
    unit: str
    value: Callable[[Cases], float | None]

    def met(self, value: float) -> bool:
        return value >= self.bound if self.sign == ">=" else value <= self.bound


def least(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known or not known else min(known)  # type: ignore[type-var]


def share_of_inertia(record: Record | None) -> float | None:
    if record is None or SCIKIT not in record.get("inertia", {}):
        return None
    return record["inertia"]["ours"] / record["inertia"][SCIKIT]


def times_faster(suite: str, case: str, *peers: str) -> Callable[[Cases], float | None]:
    """Than the fastest of these peers; of all those measured, where none is named."""

    def value(cases: Cases) -> float | None:
        record = cases.get(suite, case)
        return least(ratio(record, peer) for peer in peers or (theirs(record) if record else ()))

    return value


def duration(suite: str, case: str, threads: int = 1) -> Callable[[Cases], float | None]:
    def value(cases: Cases) -> float | None:
        record = cases.get(suite, case, threads)
        return record and seconds(record)

    return value


def gap_beside_the_best_peer(cases: Cases) -> float | None:
    record = cases.get("evolution", "beside_peers")
    if record is None:
        return None
    gaps = dict(record[GAP])
    own = gaps.pop("ours")
    return own / min(gaps.values()) if gaps else None


def share_of_all_distances(cases: Cases) -> float | None:
    peak = (cases.get("ward", "growth[4096-3]") or {}).get("peak bytes", {}).get("ours")
    return None if peak is None else peak / CONDENSED


FASTCLUSTER = ("fastcluster linkage", "fastcluster linkage_vector")
WARD_SIZES = (512, 1024, 2048, 4096)
BARS = [
    *(
        bar
        for name, faster in (("a", 50), ("b", 400), ("c", 1000))
        for bar in (
            Bar(
                f"k-means ({name}), against scikit-learn's k-means++",
                ">=",
                faster,
                "times faster",
                times_faster("kmeans", f"workload[{name}]", SCIKIT),
            ),
            Bar(
                f"k-means ({name}), its inertia",
                "<=",
                1,
                "of scikit-learn's",
                lambda cases, name=name: share_of_inertia(cases.get("kmeans", f"workload[{name}]")),
            ),
        )
    ),
    Bar("k-means (d), every k of every layer", "<=", 2, "s", duration("kmeans", "workload[d]")),
    *(
        Bar(
            f"k-means ({name}), two threads",
            ">=",
            1.8,
            "times faster than one",
            lambda cases, name=name: ratio(cases.get("kmeans", f"workload[{name}]", 2), ONE_THREAD),
        )
        for name in "bd"
    ),
    *(
        Bar(
            f"Ward, {n:,} points, against the faster of fastcluster's two",
            ">=",
            3,
            "times faster",
            times_faster("ward", f"growth[{n}-3]", *FASTCLUSTER),
        )
        for n in WARD_SIZES
    ),
    Bar(
        "Ward, 4,096 points, memory on top",
        "<=",
        0.05,
        "of all distances'",
        share_of_all_distances,
    ),
    Bar(
        "crowding distance, against pymoo",
        ">=",
        40,
        "times faster",
        times_faster("crowding_distance", "groups[500]", "pymoo"),
    ),
    Bar(
        "statistics",
        ">=",
        0.85,
        "of the read bandwidth",
        lambda cases: ratio(cases.get("channel_statistics", "layers[random]"), READ),
    ),
    Bar("evolution, its gap", "<=", 1, "of the best peer's", gap_beside_the_best_peer),
    Bar(
        "evolution, against the fastest peer",
        ">=",
        1,
        "times faster",
        times_faster("evolution", "beside_peers"),
    ),
    Bar(
        "kernel unit, all 26,560 filters, two threads",
        "<=",
        15,
        "s",
        duration("kernel_unit", "network", 2),
    ),
    Bar(
        "ResNet-50 from end to end, two threads",
        "<=",
        2.5,
        "s",
        duration("end_to_end", "network[resnet50]", 2),
    ),
]


def bars(cases: Cases) -> str:
    lines = ["| what | asked | measured | |", "|---|---:|---:|---|"]
    for bar in BARS:
        value = bar.value(cases)
        measured = "not measured" if value is None else f"{value:.3g}"
        verdict = "" if value is None else "met" if bar.met(value) else "missed"
        lines.append(
            f"| {bar.what} | {bar.sign} {bar.bound:,} {bar.unit} | {measured} | {verdict} |"
        )
    return "\n".join(lines)


# How cost grows.
