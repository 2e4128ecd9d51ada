"""Accuracy against MACs of pruned networks: mdcp_fast and its rivals under one recipe.

python benchmarks/quality run --quick   the digits network, every method, minutes
python benchmarks/quality run           ResNet-20 and a VGG on Fashion-MNIST, no fine-tuning
python benchmarks/quality run --tune    with fine-tuning, after all the rest
python benchmarks/quality report        tables (the README's too) and figures from the results

A run that was killed goes on where it stopped. See `subject`, `methods`, `rivals`,
`ablations` and `treatment` for what each of these is.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from pathlib import Path
from typing import Any

import torch
from methods import METHODS, OURS, DoesNotApply, Method
from networks import NETWORKS, accuracy, default_cache
from quality_report import write_report
from records import Records, written
from subject import Subject, load_subject
from torch import nn
from treatment import (
    BEFORE,
    COMPENSATED,
    DROPPED,
    HALFWAY,
    REESTIMATED,
    STEPS,
    finetuned,
    treated,
)

from mdcp_fast.pruning.plan import PruningPlan

BUDGETS = (0.60, 0.45, 0.30, 0.15)
RESULTS = Path(__file__).parents[1] / "results"
DENSE = "dense"


class Run:
    """One call of the benchmark."""

    def __init__(self, records: Records, cache: Path, wanted: str) -> None:
        self.records = records
        self.cache = cache
        self.wanted = re.compile(wanted)
        self._subjects: dict[str, Subject] = {}
        self._plans: dict[tuple[str, str, float, int], PruningPlan] = {}
        self._compensated: dict[tuple[str, str, float, int], nn.Module] = {}

    def subject(self, network: str) -> Subject:
        if network not in self._subjects:
            self._subjects[network] = load_subject(network, self.cache)
        return self._subjects[network]

    def missing(self, key: tuple[Any, ...]) -> bool:
        return bool(self.wanted.search(written(key))) and key not in self.records

    def dense(self, network: str) -> None:
        """Measures the dense network.

        Raises:
            SystemExit: The results are those of other weights.
        """
        key = (network, DENSE, 1.0, DROPPED, 0)
        subject = self.subject(network)
        known = self.records.find(key)
        if known is None:
            scores = self._scores(subject, subject.graph.model.eval())
            self._add(key, scores | {"weights": subject.weights}, 1.0)
        elif known.get("weights") != subject.weights:
            raise SystemExit(
                f"{self.records.path} was measured on another {network}: pass another --results, "
                f"or --redo '^{network}' to measure all of it anew"
            )

    def before(self, network: str, name: str, budgets: list[float]) -> None:
        """Measures a method with every treatment but fine-tuning.

        Merely dropped channels leave little in any network: that is measured for the main methods
        alone.
        """
        treatments = BEFORE if METHODS[name].tuned else (REESTIMATED, COMPENSATED)
        for seed in METHODS[name].seeds:
            for budget in budgets:
                keys = [(network, name, budget, treatment, seed) for treatment in treatments]
                for key in keys:
                    if not self.missing(key):
                        continue
                    plan = self.plan(network, name, budget, seed, budgets)
                    if plan is None:
                        return
                    subject = self.subject(network)
                    start = time.process_time()
                    small = treated(subject, plan, key[3])
                    if key[3] == COMPENSATED:
                        self._compensated[network, name, budget, seed] = small
                    seconds = time.process_time() - start
                    measured = self._scores(subject, small, METHODS[name], key[3])
                    self._add(key, measured | {"seconds": round(seconds, 2)}, plan)

    def after(
        self,
        network: str,
        name: str,
        budget: float,
        treatment: str,
        seed: int,
        budgets: list[float],
    ) -> None:
        """Fine-tunes a method's compensated network; in half the steps only those of ours."""
        method = METHODS[name]
        if treatment == HALFWAY and method.family != OURS:
            return
        key = (network, name, budget, treatment, seed)
        if not self.missing(key):
            return
        # Where the choice of channels is by lot, each seed has its own.
        choice = (network, name, budget, seed if len(method.seeds) > 1 else 0)
        plan = self.plan(*choice, budgets)
        if plan is None:
            return
        subject = self.subject(network)
        if choice not in self._compensated:
            self._compensated[choice] = treated(subject, plan, COMPENSATED)
        small = copy.deepcopy(self._compensated[choice])
        curve = finetuned(subject, small, seed, STEPS[treatment])
        measured = {"test": accuracy(small, subject.test), "curve": curve}
        self._add(key, measured, plan)

    def plan(
        self, network: str, name: str, budget: float, seed: int, budgets: list[float]
    ) -> PruningPlan | None:
        """The plan of a method; all budgets are planned at once. None if it cannot be made."""
        key = (network, name, budget, seed)
        if key not in self._plans:
            try:
                plans = list(METHODS[name].plans(self.subject(network), budgets, seed))
            except (ImportError, DoesNotApply) as error:
                print(f"{network}, {name}: left out: {error}", flush=True)
                return None
            for wanted, plan in zip(budgets, plans, strict=True):
                if plan.macs > wanted * plan.dense_macs:
                    raise RuntimeError(f"{name}: {plan.macs} MACs are more than {wanted:.0%}")
                self._plans[network, name, wanted, seed] = plan
        return self._plans[key]

    def _scores(
        self,
        subject: Subject,
        small: nn.Module,
        method: Method | None = None,
        treatment: str = COMPENSATED,
    ) -> dict[str, Any]:
        """Test accuracy; that on the validation data where it may choose among our settings."""
        scores = {"test": accuracy(small, subject.test)}
        if treatment == COMPENSATED and (method is None or method.family == OURS):
            scores["validation"] = accuracy(small, subject.validation)
        return scores

    def _add(
        self, key: tuple[Any, ...], measured: dict[str, Any], plan: PruningPlan | float
    ) -> None:
        if isinstance(plan, PruningPlan):
            measured = measured | {
                "macs": round(plan.macs / plan.dense_macs, 4),
                "params": round(plan.params / plan.dense_params, 4),
                "widths": [axis.width for axis in plan.axes],
            }
        else:
            measured = measured | {"macs": plan}
        self.records.add(key, measured)
        print(f"{written(key)}: {measured['test']:.2%}", flush=True)


def run(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    records = Records(arguments.results)
    if arguments.redo:
        print(f"{records.forget(arguments.redo)} records are measured anew")
    this = Run(records, arguments.cache, arguments.only)
    budgets = sorted(arguments.budgets, reverse=True)
    for network in arguments.networks:
        this.dense(network)
    for name in METHODS:
        for network in arguments.networks:
            this.before(network, name, budgets)
    if arguments.tune:
        for seed in range(arguments.seeds):
            for budget in reversed(budgets):
                for name in (name for name, method in METHODS.items() if method.tuned):
                    for network in arguments.networks:
                        for treatment in STEPS:
                            this.after(network, name, budget, treatment, seed, budgets)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="measure what is missing in the results file")
    runner.add_argument("--quick", action="store_true", help="the digits network")
    runner.add_argument("--networks", nargs="+", choices=NETWORKS)
    runner.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    runner.add_argument("--tune", action="store_true", help="fine-tune")
    runner.add_argument("--seeds", type=int, default=1, help="of the fine-tuning")
    runner.add_argument("--only", default="", metavar="REGEX", help="keys, e.g. 'vgg.best.*0.3'")
    runner.add_argument("--redo", metavar="REGEX", help="keys that are measured anew")
    runner.add_argument("--cache", type=Path, default=default_cache(), help="trained networks")
    drawer = commands.add_parser("report", help="table and figures from the results file")
    drawer.add_argument("--out", type=Path, help="their folder; by default that of the results")
    for command in (runner, drawer):
        command.add_argument("--results", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.command == "report":
        results = arguments.results or RESULTS / "quality.json"
        # The README shows the committed results, not those of another file.
        readme = None if arguments.results else Path(__file__).parents[2] / "README.md"
        write_report(Records(results), arguments.out or results.parent, readme)
        return
    quick = "quality_quick.json" if arguments.quick else "quality.json"
    arguments.results = arguments.results or RESULTS / quick
    if arguments.networks is None:
        arguments.networks = ["digits-resnet"] if arguments.quick else ["resnet20", "vgg"]
    run(arguments)
