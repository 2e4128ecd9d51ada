"""What pruning leaves of networks that others have trained, judged without labels.

python benchmarks/quality/real photos UNPACKED   photographs out of Debian's gcompris-qt-data
python benchmarks/quality/real run               all that is missing, most important first: days
python benchmarks/quality/real run --wanted '^mobilenet_v2\\|ours' --splits 0
python benchmarks/quality/real report            tables (the README's too) from the results
python benchmarks/quality/real ranks NETWORKS    how well tables of losses rank widths
python benchmarks/quality/real latency NETWORKS  what is left at half of the time, by method

A run that was killed goes on where it stopped. Keys: network|method|budget|treatment|split|crops.
See `real_networks`, `photographs`, `text_pages`, `real_methods` and `scores` for what these are.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from methods import DoesNotApply
from networks import default_cache
from photographs import default_photos, extract, photographs
from real_cells import KEY, Batch, in_order
from real_latency import halve
from real_methods import DROPPED, FITTED, METHODS, MIMICKED, RIVAL, mimicked, treated
from real_networks import NETWORKS, NotInstalled
from real_ranks import rank
from real_report import write_report
from real_subject import Given, RealSubject, traced
from real_tables import DENSE
from records import PACKAGES, Records, environment, written
from rivals import CannotPlan
from subject import weights_digest

from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.graph import ChannelGraph

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results" / "real.json"


class Run:
    """One call of the benchmark."""

    def __init__(self, records: Records, photos: Path, wanted: str) -> None:
        self.records, self.photos = records, photos
        self.wanted = re.compile(wanted)
        self.most: dict[str, int] = {}  # calibration images, by network
        self._graphs: dict[str, ChannelGraph] = {}
        self._subject: RealSubject | None = None
        self._plans: dict[tuple[Any, ...], PruningPlan] = {}

    def missing(self, key: tuple[Any, ...]) -> bool:
        return bool(self.wanted.search(written(key))) and key not in self.records

    def subject(self, network: str, split: int) -> RealSubject:
        """The network and the split; its dense answers are scored, or known to be the same ones.

        Raises:
            SystemExit: The results are those of other images or weights.
        """
        known = self._subject
        if known is not None and (known.name, known.split.number) == (network, split):
            return known
        graph, files = self._graphs[network], photographs(self.photos)
        # One at a time: thousands of images take memory.
        self._subject = subject = RealSubject(network, graph, files, split, self.most[network])
        key = (network, DENSE, 1.0, DROPPED, split, 0)
        facts = {"images": subject.digest, "weights": weights_digest(graph.model)}
        record = self.records.find(key)
        if record is None:
            self._add(key, subject.scores(graph.model) | facts | {"macs": 1.0})
        elif any(record.get(name) != value for name, value in facts.items()):
            raise SystemExit(
                f"{self.records.path} was measured on other images or another {network}: pass "
                f"another --results, or --redo '^{network}' to measure all of it anew"
            )
        return subject

    def available(self, network: str) -> bool:
        """Whether a network can be loaded; says what to install otherwise."""
        if network not in self._graphs:
            try:
                self._graphs[network] = traced(network)
            except NotInstalled as error:
                how = NETWORKS[network].install
                print(f"{network}: left out: {error}; {how}", flush=True)
                return False
        return True

    def measure(self, batch: Batch) -> None:
        """Measures what is missing of a batch."""
        budgets = [
            budget
            for budget in batch.budgets
            if any(self.missing(batch.key(budget, one)) for one in batch.treatments)
        ]
        if not budgets:
            return
        subject = self.subject(batch.network, batch.split)
        given = subject.given(batch.crops)
        for budget, plan in self.plans(given, batch, budgets):
            if plan.macs > budget * plan.dense_macs:
                raise RuntimeError(f"{batch.method}: {plan.macs} MACs are more than {budget:.0%}")
            for treatment in batch.treatments:
                key = batch.key(budget, treatment)
                if not self.missing(key):
                    continue
                known = self.same(key, plan)
                if known is not None:
                    self._add(key, known, plan)
                    continue
                start = time.process_time()
                if treatment == MIMICKED:
                    fitted = treated(subject, plan, FITTED, given)
                    small = mimicked(subject, fitted, batch.crops)
                else:
                    small = treated(subject, plan, treatment, given)
                seconds = {"seconds": round(time.process_time() - start, 2)}
                self._add(key, subject.scores(small) | seconds, plan)

    def same(self, key: tuple[Any, ...], plan: PruningPlan) -> dict[str, Any] | None:
        """What was measured, by this version of the library, for another method's same plan."""
        others = ("budget", "method")
        wanted = {name: one for name, one in zip(KEY, key, strict=True) if name not in others}
        wanted["plan"] = plan_digest(plan)
        for record in self.records.records:
            alike = all(record.get(name) == one for name, one in wanted.items())
            if alike and self.records.environments[record["environment"]] == where():
                given = (*KEY, "environment")
                return {name: one for name, one in record.items() if name not in given}
        return None

    def plans(
        self, given: Given, batch: Batch, budgets: list[float]
    ) -> Iterator[tuple[float, PruningPlan]]:
        """The plans of a method, each with its budget; none where the method does not apply."""
        rival = METHODS[batch.method].family == RIVAL
        # What rivals choose depends on the weights alone.
        where = () if rival else (batch.split, batch.crops)
        keys = {budget: (batch.network, batch.method, budget, *where) for budget in budgets}
        unknown = [budget for budget, key in keys.items() if key not in self._plans]
        start = time.process_time()
        try:
            made = iter(METHODS[batch.method].plans(given, unknown, 0)) if unknown else iter(())
            for budget, key in keys.items():
                if key not in self._plans:
                    self._plans[key] = next(made)
                    spent = time.process_time() - start
                    print(
                        f"{batch.network}, {batch.method}: planned after {spent:.0f} s of CPU",
                        flush=True,
                    )
                yield budget, self._plans[key]
                start = time.process_time()
        except (ImportError, DoesNotApply, CannotPlan) as error:
            print(f"{batch.network}, {batch.method}: left out: {error}", flush=True)

    def _add(
        self, key: tuple[Any, ...], measured: dict[str, Any], plan: PruningPlan | None = None
    ) -> None:
        measured = {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in measured.items()
        }
        if plan is not None:
            measured |= {
                "macs": round(plan.macs / plan.dense_macs, 4),
                "params": round(plan.params / plan.dense_params, 4),
                "widths": [axis.width for axis in plan.axes],
                "plan": plan_digest(plan),
            }
        self.records.add(key, measured)
        shown = {name: value for name, value in measured.items() if name != "widths"}
        print(f"{written(key)}: {shown}", flush=True)


def where() -> dict[str, Any]:
    """See `records.environment`."""
    return environment((*PACKAGES, "pillow"))


def plan_digest(plan: PruningPlan) -> str:
    """The first digits of a hash of what stays."""
    kept = [(axis.kept, axis.rotated) for axis in plan.axes]
    return hashlib.sha256(repr(kept).encode()).hexdigest()[:12]


def run(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    records = Records(arguments.results, KEY, where)
    if arguments.redo:
        print(f"{records.forget(arguments.redo)} records are measured anew")
    this = Run(records, arguments.photos, arguments.wanted)
    batches = [
        batch
        for batch in in_order(arguments.networks, arguments.splits, arguments.crops)
        if any(this.missing(key) for key in batch.cells())
    ]
    for batch in batches:
        this.most[batch.network] = max(this.most.get(batch.network, 0), batch.crops)
    there = {name for name in this.most if this.available(name)}
    for batch in batches:
        if batch.network in there:
            this.measure(batch)


def whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    taker = commands.add_parser("photos", help="take photographs out of gcompris-qt-data")
    taker.add_argument("unpacked", type=Path, help="the package, unpacked by dpkg -x")
    taker.add_argument("folder", type=Path, nargs="?", default=default_photos())
    runner = commands.add_parser("run", help="measure what is missing in the results file")
    runner.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    runner.add_argument("--wanted", default="", metavar="REGEX", help="keys, e.g. 'craft.*0.5'")
    runner.add_argument("--redo", metavar="REGEX", help="keys that are measured anew")
    runner.add_argument("--splits", type=whole_numbers, default=[0, 1, 2], metavar="0,1,2")
    runner.add_argument(
        "--crops",
        type=whole_numbers,
        default=[],
        metavar="N,N",
        help="calibration images, then others for one budget; by default the networks' own",
    )
    runner.add_argument("--photos", type=Path, default=default_photos(), help="their folder")
    drawer = commands.add_parser("report", help="tables from the results file")
    drawer.add_argument("--out", type=Path, help="their folder; by default that of the results")
    ranker = commands.add_parser("ranks", help="how well tables of losses rank widths")
    ranker.add_argument("ranked", nargs="+", metavar="NETWORK", help="of either benchmark")
    ranker.add_argument("--macs", type=float, default=0.6, help="of random plans")
    ranker.add_argument("--plans", type=int, default=60, help="how many of them")
    halver = commands.add_parser("latency", help="what is left at half of the time, by method")
    halver.add_argument("networks", nargs="+", metavar="NETWORK", help="of either benchmark")
    halver.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"])
    for command in (ranker, halver):
        command.add_argument(
            "--images", type=int, default=120, help="that calibrate a real network"
        )
        command.add_argument("--cache", type=Path, default=default_cache(), help="trained networks")
        command.add_argument("--photos", type=Path, default=default_photos(), help="their folder")
    for command in (runner, drawer, ranker, halver):
        command.add_argument("--results", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.command == "photos":
        count = extract(arguments.unpacked, arguments.folder)
        print(f"{count} photographs in {arguments.folder}")
        return
    if arguments.command == "latency":
        halve(
            arguments.networks,
            arguments.backends,
            arguments.results or RESULTS.with_name("latency.json"),
            images=arguments.images,
            cache=arguments.cache,
            photos=arguments.photos,
        )
        return
    if arguments.command == "ranks":
        rank(
            arguments.ranked,
            arguments.results or RESULTS.with_name("ranks.json"),
            macs=arguments.macs,
            plans=arguments.plans,
            images=arguments.images,
            cache=arguments.cache,
            photos=arguments.photos,
        )
        return
    # The README shows the committed results, not those of another file.
    readme = None if arguments.results else ROOT / "README.md"
    arguments.results = arguments.results or RESULTS
    if arguments.command == "report":
        records = Records(arguments.results, KEY)
        write_report(records, arguments.out or arguments.results.parent, readme)
        return
    run(arguments)
