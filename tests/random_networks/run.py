"""Runs many random networks and counts what became of them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from random_networks.check import PRUNED, REFUSED, WHOLE, Depth, Verdict, examine, kind_of_reason
from random_networks.grammar import Network, Spec, random_spec
from random_networks.shrink import shrunk

CALIBRATED_EVERY, EXPORTED_EVERY = 8, 10


def depth_of(seed: int) -> Depth:
    """Some networks are also calibrated or exported: these take long."""
    return Depth(True, seed % CALIBRATED_EVERY == 3, seed % EXPORTED_EVERY == 7)


@dataclass
class Counts:
    """What became of the networks so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, spec: Spec, verdict: Verdict) -> None:
        self.kinds[verdict.kind] += 1
        if verdict.reason:
            reasons = self.reasons.setdefault(verdict.kind, Counter())
            reasons[kind_of_reason(verdict.reason)] += 1
        partly = self.reasons.setdefault("channels that stay", Counter())
        partly.update({kind_of_reason(reason) for reason in verdict.whole})
        if verdict.failed:
            self.failures.append(
                {"network": str(spec), "kind": verdict.kind, "reason": verdict.reason}
            )

    @property
    def share_pruned(self) -> float:
        return self.kinds[PRUNED] / max(self.kinds.total(), 1)

    def report(self) -> dict[str, Any]:
        return {
            "networks": self.kinds.total(),
            "share pruned": round(self.share_pruned, 4),
            "counts": dict(self.kinds),
            "reasons": {kind: dict(found.most_common()) for kind, found in self.reasons.items()},
            "failures": self.failures,
        }


def run(
    seeds: Iterable[int],
    results: Path | None = None,
    loud: bool = False,
    depth_of: Callable[[int], Depth] = depth_of,
) -> Counts:
    """Examines the networks of some seeds; writes the counts to a file now and then.

    Args:
        seeds: Of the networks.
        results: A JSON file for the counts.
        loud: Prints failures, each with the least network that fails in the same way.
        depth_of: How much is looked at, by seed.
    """
    counts, start, written = Counts(), time.monotonic(), time.monotonic()
    for seed in seeds:
        spec = random_spec(seed)
        verdict = examine(spec, depth_of(seed))
        counts.add(spec, verdict)
        if verdict.failed and loud:
            print(f"seed {seed}: {verdict.kind}: {verdict.reason}\n  {spec}", flush=True)
            depth = depth_of(seed)
            least = shrunk(spec, lambda one, depth=depth: examine(one, depth))
            counts.failures[-1]["least"] = str(least)
            print(f"  least: {least}", flush=True)
        if results is not None and time.monotonic() - written > 60:
            written = time.monotonic()
            _write(results, counts, start)
    if results is not None:
        _write(results, counts, start)
    return counts


def _write(results: Path, counts: Counts, start: float) -> None:
    found = {**counts.report(), "seconds": round(time.monotonic() - start)}
    results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show(text: str) -> Verdict:
    """Prints a network as its modules, and what becomes of it."""
    spec = Spec.parse(text)
    verdict = examine(spec, Depth(calibrated=True, exported=True))
    print(Network(spec))
    print(f"{verdict.kind}: {verdict.reason}")
    for reason in verdict.whole:
        print(f"  stays: {reason}")
    return verdict


def printed(counts: Counts) -> str:
    """The counts in lines."""
    lines = [f"{counts.kinds.total()} networks, {counts.share_pruned:.1%} pruned"]
    lines += [f"  {kind}: {count}" for kind, count in counts.kinds.most_common()]
    for kind in (WHOLE, REFUSED, "channels that stay"):
        found = counts.reasons.get(kind, Counter())
        lines += [f"{kind}:", *(f"  {n:6} {reason}" for reason, n in found.most_common())]
    return "\n".join(lines)
