"""How well tables of losses rank widths: their sums beside what the fitted networks answer.

python benchmarks/quality/real ranks resnet20 vgg mobilenet_v2

Random widths within a budget are pruned and fitted as `prune` does it, and the divergence of the
network's answers from the dense one's is taken on images that calibrated nothing. A table is good
for a search if its sums rank plans as these divergences do (Spearman's correlation). Beside them:
the divergence of the plan that `search` finds with each table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from photographs import photographs
from real_networks import NETWORKS as REAL
from real_subject import RealSubject, traced
from scipy.stats import spearmanr
from subject import load_subject
from torch import Tensor

from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.planning.budgets import limits_of, scaled_widths
from mdcp_fast.planning.channels import ChannelScorer
from mdcp_fast.planning.evaluators import TableEvaluator
from mdcp_fast.planning.method import Method, resolve_method
from mdcp_fast.planning.probes import answer_difference, float_outputs, probed_losses
from mdcp_fast.planning.rounding import allowed_widths
from mdcp_fast.planning.widths import WidthProblem, widths_by_table
from mdcp_fast.pruning.calibration import calibration_batches, in_parts
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.shrink import shrink_and_fit
from mdcp_fast.tracing.graph import ChannelGraph

TABLE = TableEvaluator()
SPREAD = 0.4  # standard deviation of the logarithm of a random plan's widths
SMALLEST = 0.1  # share of an axis that stays, as in `search`


@dataclass
class Given:
    """A network, images that calibrate, and others that are scored."""

    graph: ChannelGraph
    calibration: Sequence[Tensor]
    scored: Tensor


def given(name: str, cache: Path, photos: Path, images: int) -> Given:
    if name in REAL:
        graph = traced(name)
        subject = RealSubject(name, graph, photographs(photos), 0, images)
        held_out = subject.network.standardised(subject.held_out)
        return Given(graph, subject.given(images).calibration, held_out)
    trained = load_subject(name, cache)
    return Given(trained.graph, trained.calibration, trained.test[0][:1000])


class Ranking:
    """Random plans of a network, and what tables say of them."""

    def __init__(self, one: Given, macs: float) -> None:
        batches = calibration_batches(one.graph, one.calibration)
        data = CalibrationData(one.graph, batches)
        rotation, _ = data.rotation()
        self.data, self.graph = data.rotated(rotation), rotation.graph
        self.how = resolve_method(Method(), calibrated=True)
        rotated = frozenset(rotation.bases)
        self.scorer = ChannelScorer(self.graph, self.how, self.data, 0, rotated)
        self.choices, notes, _ = allowed_widths(self.graph.axes, 1, SMALLEST)
        self.limits = limits_of(self.graph, [{"macs": macs}], self.choices, notes)
        self.scored = list(in_parts(calibration_batches(self.graph, [one.scored])))
        with torch.no_grad():
            self.dense = [float_outputs(self.graph.model, batch) for batch in self.scored]
        losses = self.scorer.losses(self.choices)
        probed = probed_losses(
            self.graph, losses, self.choices, self.scorer.choose, self.data, TABLE.probes
        )
        self.tables = {"energy": losses, "probed": probed}

    def random_widths(self, plans: int) -> Tensor:
        """int64 [plans, axes], each as large as the budget allows."""
        noise = torch.randn(
            1, plans, len(self.choices), generator=torch.Generator().manual_seed(0)
        ).double()
        shape = (SPREAD * noise).exp() * self.graph.widths
        return scaled_widths(shape, self.graph.cost, self.limits, self.choices)[0]

    def searched(self, table: LossTable) -> Tensor:
        problem = WidthProblem(self.graph, self.limits, self.choices, 0)
        return widths_by_table(
            problem, table, self.how.minimize, TABLE.population, TABLE.generations
        ).best[0]

    @torch.no_grad()
    def divergence(self, widths: Tensor) -> float:
        """Of the fitted network's answers."""
        kept = self.scorer.choose(torch.arange(len(widths)), widths).kept.split(widths.tolist())
        positions = self.graph.positions([one.tolist() for one in kept])
        small = shrink_and_fit(self.graph, positions, self.data).network.eval()
        pairs = zip(self.dense, (float_outputs(small, batch) for batch in self.scored), strict=True)
        total = sum(answer_difference(one, other) for one, other in pairs)
        return total / sum(len(one[0]) for one in self.dense)


def total(table: LossTable, widths: Tensor) -> float:
    return float(table.values[table.offsets[:-1] + widths - 1].sum())


def lines(one: Given, macs: float, plans: int) -> Iterator[dict[str, float | str]]:
    ranking = Ranking(one, macs)
    widths = ranking.random_widths(plans)
    measured = []
    for row in widths:
        measured.append(ranking.divergence(row))
        print(f"  {len(measured)} of {plans}: {measured[-1]:.4f}", flush=True)
    for name, table in ranking.tables.items():
        sums = [total(table, row) for row in widths]
        found = ranking.searched(table)
        yield {
            "table": name,
            "rank correlation": round(float(spearmanr(sums, measured).statistic), 3),
            "searched": round(ranking.divergence(found), 4),
            "best of the random": round(min(measured), 4),
        }


def rank(
    networks: Sequence[str],
    results: Path,
    *,
    macs: float,
    plans: int,
    images: int,
    cache: Path,
    photos: Path,
) -> None:
    """Measures networks of both benchmarks, and adds them to the results.

    Args:
        networks: Their names.
        results: A JSON file.
        macs: The budget of the random plans.
        plans: How many there are.
        images: That calibrate a network trained by others.
        cache: Of weights of our own networks.
        photos: The folder of the photographs.
    """
    known = json.loads(results.read_text()) if results.exists() else {}
    for name in networks:
        one = given(name, cache, photos, images)
        key = f"{name}, {plans} plans at {macs:.0%} of the MACs"
        known[key] = list(lines(one, macs, plans))
        results.write_text(json.dumps(known, indent=1) + "\n")
        print(key, *known[key], sep="\n  ", flush=True)
