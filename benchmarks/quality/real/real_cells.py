"""What the benchmark of real networks measures, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from real_methods import BEST, DROPPED, METHODS, MIMICKED, OURS, RIVAL
from real_networks import NETWORKS

KEY = ("network", "method", "budget", "treatment", "split", "crops")


@dataclass(frozen=True)
class Batch:
    """Cells that share a plan's search: a method on a split, at several budgets.

    Attributes:
        network, method, split: What is measured.
        crops: How many calibration images there are.
        budgets: The largest first.
        treatments: Of each plan.
    """

    network: str
    method: str
    split: int
    crops: int
    budgets: tuple[float, ...]
    treatments: tuple[str, ...]

    def cells(self) -> Iterator[tuple[Any, ...]]:
        for budget in self.budgets:
            for treatment in self.treatments:
                yield self.key(budget, treatment)

    def key(self, budget: float, treatment: str) -> tuple[Any, ...]:
        return self.network, self.method, budget, treatment, self.split, self.crops


def in_order(networks: Sequence[str], splits: Sequence[int], crops: Sequence[int]) -> list[Batch]:
    """All there is to measure, the most important first.

    Args:
        networks: Names in `NETWORKS`.
        splits: Numbers; the first one is measured first.
        crops: Calibration images: of the main tables, then of the table of other numbers. Empty for
            the networks' own.
    """
    ours = [name for name, one in METHODS.items() if one.first and one.family == OURS]
    rivals = [name for name, one in METHODS.items() if one.first and one.family == RIVAL]
    rest = [name for name, one in METHODS.items() if not one.first]
    main, *others = splits
    made = []

    def add(names: Iterable[str], numbers: Sequence[int], slow: bool = False) -> None:
        for split in numbers:
            for name in names:
                kinds = [one for one in METHODS[name].treatments if (one == MIMICKED) == slow]
                for network in networks:
                    settings = NETWORKS[network]
                    count = crops[0] if crops else settings.calibration
                    made.append(Batch(network, name, split, count, settings.budgets, tuple(kinds)))

    add(ours, [main])
    add(rivals, [main])
    for network in networks:
        settings = NETWORKS[network]
        for count in crops[1:] if crops else settings.fewer:
            for name in (*ours, *rivals):
                # Merely dropped channels look at no images.
                kinds = [one for one in METHODS[name].treatments if one not in (DROPPED, MIMICKED)]
                budget = (settings.fewer_at,)
                made.append(Batch(network, name, main, count, budget, tuple(kinds)))
    add(ours, others)
    add([BEST], [main], slow=True)
    add(rivals, others)
    add(rest, splits)
    add([BEST], others, slow=True)
    return made
