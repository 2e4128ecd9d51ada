"""The records of the speed benchmark by suite and case, and what is read off them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from records import Records

Record = dict[str, Any]
SCIKIT, READ, ONE_THREAD = "scikit-learn k-means++", "a plain read", "ours at one thread"
UNCHECKED, GAP = "ours unchecked", "gap to the best known, %"
CONDENSED = 8 * 4096 * 4095 // 2  # bytes of all distances of 4,096 points


class Cases:
    """The records by suite, case and threads."""

    def __init__(self, records: Records) -> None:
        self.found = {(one["suite"], one["case"], one["threads"]): one for one in records.records}

    def get(self, suite: str, case: str, threads: int = 1) -> Record | None:
        return self.found.get((suite, case, threads))

    def __iter__(self) -> Iterator[Record]:
        return iter(self.found.values())


def seconds(record: Record) -> float:
    return record["ours"]["median"]


def ratio(record: Record | None, peer: str) -> float | None:
    """How many times as long as ours the peer took; None where either is missing."""
    if record is None or peer not in record["peers"]:
        return None
    return record["peers"][peer]["median"] / seconds(record)


def theirs(record: Record) -> list[str]:
    """Peers that are no variants of ours, and no limits."""
    return [name for name in record["peers"] if not name.startswith(("ours", "a "))]
