"""Half of the time instead of half of the MACs: what is left of trained networks at equal latency.

python benchmarks/quality/real latency resnet20 vgg mobilenet_v2

Each method's plan is the largest, out of a grid of budgets, whose network takes at most half of the
dense one's time (for "by latency", the plan that `search` finds under that budget, its table
corrected three times by what it had found). All plans are fitted as `prune` does it; what is
reported is the divergence of their answers from the dense network's, on the calibration images and
on others, and the time of the fitted networks, all of them taken in turns: one image, one thread,
the fastest run in CPU time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from real_ranks import Given, given
from records import Records, environment
from rivals import CannotPlan, Rival

import mdcp_fast
from mdcp_fast.deployment.backends import BackendName, backend
from mdcp_fast.deployment.timing import measure_in_turns
from mdcp_fast.planning.method import Method
from mdcp_fast.planning.probes import answer_difference, float_outputs
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan

KEY = ("network", "backend", "method")
PACKAGES = ("torch", "onnxruntime", "openvino", "torch-pruning")
HALF = 0.5
CORRECTIONS = 3
SHARES = [round(0.2 + 0.02 * step, 2) for step in range(31)]  # of the MACs, or of channels
SECONDS = 10.0
BY_LATENCY, BY_MACS, UNIFORM = "ours, by latency", "ours, by MACs", "ours, uniform widths"
RIVALS = ("l1", "l2")


class Halving:
    """A network, its calibration data, and how plans of half of its latency are found."""

    def __init__(self, one: Given, where: BackendName) -> None:
        self.given, self.graph, self.where = one, one.graph, where
        self.data = CalibrationData.read(one.graph, one.calibration)
        self.table = mdcp_fast.measure_latency(one.graph, backend=where, seconds=SECONDS)

    def by_latency(self) -> PruningPlan:
        def found() -> PruningPlan:
            return mdcp_fast.search(
                self.graph, latency=HALF, latency_table=self.table, calibration=self.data
            )

        for _ in range(CORRECTIONS):
            plan = found()
            self.table = mdcp_fast.calibrate_latency(self.graph, self.table, plan, seconds=SECONDS)
        return found()

    def by_macs(self, method: Method) -> PruningPlan:
        plans = mdcp_fast.search(self.graph, macs=SHARES, method=method, calibration=self.data)
        return self._largest(plans)

    def rival(self, criterion: str) -> PruningPlan:
        """torch-pruning with the same share of every group, and `round_to=8`."""
        one = Rival(criterion, False, round_to=8)
        model = one.prepared(self.graph, [])
        kept = [one.kept(self.graph, model, 1 - share) for share in SHARES]
        return self._largest([PruningPlan.build(self.graph, k, budget={}) for k in kept])

    def _largest(self, plans: Sequence[PruningPlan]) -> PruningPlan:
        """The one of most MACs that takes at most half of the time."""
        dense, *times = mdcp_fast.time_plans(self.graph, self.table, plans, seconds=SECONDS)
        fast = [
            plan
            for plan, time in zip(plans, times, strict=True)
            if time.milliseconds <= HALF * dense.milliseconds
        ]
        return max(fast or plans[:1], key=lambda plan: plan.macs)

    @torch.no_grad()
    def divergence(self, small: torch.nn.Module, batches: Sequence[torch.Tensor]) -> float:
        total, samples = 0.0, 0
        for batch in batches:
            pair = (float_outputs(one, (batch,)) for one in (self.graph.model, small))
            total += answer_difference(*pair)
            samples += len(batch)
        return total / samples


def compare(one: Given, where: BackendName) -> dict[str, dict[str, Any]]:
    """What each method leaves at half of the latency."""
    halving = Halving(one, where)
    methods: dict[str, Callable[[], PruningPlan]] = {
        BY_LATENCY: halving.by_latency,
        BY_MACS: lambda: halving.by_macs(Method()),
        UNIFORM: lambda: halving.by_macs(Method(widths="uniform")),
    }
    for name in RIVALS:
        methods[f"torch-pruning, {name}"] = partial(halving.rival, name)
    plans = {}
    for name, make in methods.items():
        try:
            plans[name] = make()
        except CannotPlan as error:
            print(f"  {name}: {error}", flush=True)
    fitted = {
        name: mdcp_fast.prune(one.graph, plan, calibration=halving.data).eval()
        for name, plan in plans.items()
    }
    prepare = backend(where).prepare
    models = (one.graph.model, *fitted.values())
    calls = [prepare(model, one.graph.example_inputs, threads=1) for model in models]
    dense, *times = measure_in_turns(calls, seconds=SECONDS, rounds=15, cpu=True)
    scored = one.scored.split(len(one.calibration[0]))
    return {
        name: {
            "latency": round(time.fastest / dense.fastest, 4),
            "macs": round(plans[name].macs / one.graph.macs, 4),
            "calibration": round(halving.divergence(small, one.calibration), 4),
            "held out": round(halving.divergence(small, scored), 4),
        }
        for (name, small), time in zip(fitted.items(), times, strict=True)
    }


def halve(
    networks: Sequence[str],
    backends: Sequence[BackendName],
    results: Path,
    *,
    images: int,
    cache: Path,
    photos: Path,
) -> None:
    """Measures networks of both benchmarks, and adds them to the results.

    Args:
        networks: Their names.
        backends: Where they run.
        results: A JSON file.
        images: That calibrate a network trained by others.
        cache: Of weights of our own networks.
        photos: The folder of the photographs.
    """
    records = Records(results, KEY, lambda: environment(PACKAGES))
    for name in networks:
        one = given(name, cache, photos, images)
        for where in backends:
            if (name, where, BY_LATENCY) in records:
                continue
            for method, measured in compare(one, where).items():
                records.add((name, where, method), measured)
                print(name, where, method, measured, flush=True)


def table_of(path: Path) -> list[str]:
    """The results as a table in Markdown; nothing if there are none."""
    records = Records(path, KEY).records
    if not records:
        return []
    lines = [
        "## Half of the latency",
        "",
        " ".join((__doc__ or "").split("\n\n")[2].split()),
        "",
        "| network | backend | method | time | MACs | KL, calibrating | KL, held out |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for one in records:
        lines.append(
            f"| {one['network']} | {one['backend']} | {one['method']} | {one['latency']:.1%} | "
            f"{one['macs']:.1%} | {one['calibration']:.4f} | {one['held out']:.4f} |"
        )
    return [*lines, ""]
