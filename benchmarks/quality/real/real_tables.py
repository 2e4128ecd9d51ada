"""The records of the benchmark of real networks, as its tables ask for them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from real_methods import METHODS
from real_networks import NETWORKS
from scores import Shown

DENSE = "dense"
Record = dict[str, Any]


def networks_in(records: Iterable[Record]) -> list[str]:
    measured = {one["network"] for one in records}
    return [name for name in NETWORKS if name in measured]


class Tables:
    """The records of one network.

    Args:
        records: All records.
        network: In `NETWORKS`.
    """

    def __init__(self, records: Iterable[Record], network: str) -> None:
        own = [one for one in records if one["network"] == network]
        self.settings = NETWORKS[network]
        self.dense = sorted((o for o in own if o["method"] == DENSE), key=lambda o: o["split"])
        self.pruned = [one for one in own if one["method"] != DENSE]
        self.budgets = sorted({one["budget"] for one in self.pruned}, reverse=True)
        measured = {one["method"] for one in self.pruned}
        self.methods = [name for name in METHODS if name in measured]
        counts = Counter(one["crops"] for one in self.pruned)
        self.crops: int = counts.most_common(1)[0][0] if counts else 0
        self.splits = sorted({one["split"] for one in self.pruned})

    def cell(
        self, shown: Shown, method: str, budget: float, treatment: str, crops: int | None = None
    ) -> list[float]:
        """A score on every split that was measured; with other numbers of crops on the first."""
        return [
            one[shown.name]
            for one in self.pruned
            if (one["method"], one["budget"], one["treatment"]) == (method, budget, treatment)
            and one["crops"] == (crops or self.crops)
            and (crops is None or one["split"] == self.splits[0])
            and shown.name in one
        ]

    def best(
        self, names: Iterable[str], budget: float, treatment: str
    ) -> tuple[str, float, float] | None:
        """The method with the best headline score, and the mean of both headline scores."""
        first, second = self.settings.shown[:2]
        found = []
        for name in names:
            scores = self.cell(first, name, budget, treatment)
            if scores:
                other = statistics.mean(self.cell(second, name, budget, treatment))
                found.append((name, statistics.mean(scores), other))
        sign = 1 if first.higher else -1
        return max(found, key=lambda one: sign * one[1], default=None)
