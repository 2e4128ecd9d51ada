"""From a trained network and some images to a smaller network, in one call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mdcp_fast.deployment.backends import BackendName
from mdcp_fast.modules.calls import count_macs
from mdcp_fast.planning.latency import calibrate_latency, measure_latency
from mdcp_fast.planning.latency_table import LatencyTable
from mdcp_fast.planning.method import PresetName
from mdcp_fast.planning.rounding import RoundTo
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.trace import trace
from mdcp_fast.training.finetune import MIMIC_BATCH, MIMIC_RATE
from mdcp_fast.training.mimic import MimicRecipe, mimic
from mdcp_fast.training.unlabelled import Samples, read_inputs

CALIBRATION = 512  # images that search and prune measure on, at most
BATCH = 64
MACS = 0.7  # share that may remain where nothing is asked for
CORRECTIONS = (
    3  # of a table of latencies by the time of the network that was found with it, at most
)
CLOSE = 0.02  # share of its time that a network's prediction may be off


@dataclass(frozen=True)
class CompressionStep:
    """What one step of `compress` did.

    Attributes:
        name: "trace", "measure", "search", "prune" or "mimic".
        seconds: How long it took.
        loss: How far the network that it gave is from the dense one on held-out images (see
            `finetune`); None where it gave none.
        agreement: The share of held-out images, 0 to 1, for which its largest logit is the dense
            network's; None where it gave none, or outputs are no logits.
    """

    name: str
    seconds: float
    loss: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class CompressionReport:
    """What `compress` did. Print it.

    Attributes:
        steps: One after another.
        held_out: How many images the losses are taken on. Nothing was fitted to them; they only
            decided when to stop.
        macs: Multiply-accumulates of the network for one image.
        dense_macs: Those of the dense network.
        params: The network's number of parameters.
        dense_params: That of the dense network.
    """

    steps: tuple[CompressionStep, ...]
    held_out: int
    macs: int
    dense_macs: int
    params: int
    dense_params: int

    def __str__(self) -> str:
        sizes = [
            f"{now:,} {name}, {now / max(dense, 1):.1%} of the dense network's"
            for name, now, dense in (
                ("MACs", self.macs, self.dense_macs),
                ("parameters", self.params, self.dense_params),
            )
        ]
        lines = [
            *sizes,
            f"Against the dense network, on {self.held_out} held-out images:",
            f"{'step':8}{'seconds':>9}{'loss':>10}{'agreement':>11}",
        ]
        for step in self.steps:
            loss = "" if step.loss is None else f"{step.loss:.4f}"
            same = "" if step.agreement is None else f"{step.agreement:.1%}"
            lines.append(f"{step.name:8}{step.seconds:9.1f}{loss:>10}{same:>11}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True)
class Compressed:
    """What `compress` returns.

    Attributes:
        model: The smaller network, an ordinary module.
        plan: What was pruned; with it `save` writes a file that `load` reads.
        report: What each step did.
    """

    model: nn.Module
    plan: PruningPlan
    report: CompressionReport


def compress(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    backend: BackendName = "onnxruntime",
    minutes: float | None = None,
    preset: PresetName | None = None,
    ignore: Iterable[str | nn.Module] = (),
    round_to: RoundTo = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Compressed:
    """Makes a trained network smaller with images alone: trace, search, prune and mimic.

    A quarter of the images is held out of all of it: they say which state of the mimicking stays,
    and what the report says is measured on them.

    Args:
        model: A trained network; not changed.
        images: A tensor [images, ...], or batches: tensors, dicts of named arguments, or
            (inputs, labels) pairs, whose labels are not used; a DataLoader, a Dataset, a list. A
            few hundred are enough; at most 4,096 are read. From four batches on whole batches are
            held out: crops of one photograph, say, go into one batch.
        macs: The most multiply-accumulates that may remain, as a fraction of the dense network's;
            0.7 where nothing else is bounded.
        params: The same for parameters; None: any number.
        latency: The same for the time of one image on one thread in `backend`, which is measured
            here (see `measure_latency`); None: any.
        backend: Where the network will run, if `latency` is given.
        minutes: The most that all of it may take; mimicking gets what search and pruning leave,
            which take their time in any case. None: mimicking makes 400 steps.
        preset: See `search`.
        ignore: See `trace`.
        round_to: See `search`.
        seed: Of everything random.
        progress: Show a progress bar on stderr while mimicking, where that is a terminal.

    Returns:
        The network, its plan and a report. The network has the training mode, the frozen
        parameters, the dtype and the device of the dense one.

    Raises:
        TypeError, ValueError: See `trace`, `search`, `prune` and, for the images, `finetune`.
        ImportError: The backend is not installed.
    """
    clock = _Clock()
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model: expected a torch.nn.Module, got {type(model).__name__}")
    recipe = MimicRecipe(None, minutes, MIMIC_BATCH, MIMIC_RATE, False, seed)
    samples = Samples(read_inputs("images", _without_their_labels(images), BATCH, op="compress"))
    learn, judge = samples.split(seed)
    example = samples.take([0], model)
    with clock("trace"):
        graph = trace(model, example, ignore=ignore)
    calibration = CalibrationData.read(graph, _calibration(learn, model))
    if macs is None and params is None and latency is None:
        macs = MACS

    def searched(table: LatencyTable | None) -> PruningPlan:
        with clock("search"):
            return search(
                graph,
                macs=macs,
                params=params,
                latency=latency,
                latency_table=table,
                preset=preset,
                calibration=calibration,
                round_to=round_to,
                seed=seed,
            )

    if latency is None:
        plan = searched(None)
    else:
        with clock("measure"):
            table = measure_latency(graph, backend=backend, seed=seed)
        plan = searched(table)
        for _ in range(CORRECTIONS):
            with clock("measure"):
                corrected = calibrate_latency(graph, table, plan)
            off = corrected.predict(graph, plan) / table.predict(graph, plan) - 1
            table = corrected
            if abs(off) <= CLOSE:
                break  # the plan is as fast as its search thought
            plan = searched(table)
    with clock("prune"):
        small = prune(graph, plan, calibration=calibration)
    if minutes is not None:
        recipe = replace(recipe, minutes=max(0.0, minutes - clock.passed() / 60))
    with clock("mimic"), _trainable(small):
        history = mimic(small, model, learn, judge, recipe, progress=progress)
    measured = {
        "prune": (history.start_loss, history.start_accuracy),
        "mimic": (history.best_loss, history.best_accuracy),
    }
    report = CompressionReport(
        tuple(
            CompressionStep(name, seconds, *measured.get(name, ()))
            for name, seconds in clock.seconds.items()
        ),
        len(judge),
        count_macs(small, example),
        graph.macs,
        sum(parameter.numel() for parameter in small.parameters()),
        graph.params,
    )
    return Compressed(small, plan, report)


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def passed(self) -> float:
        return time.perf_counter() - self.start

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _without_their_labels(images: Any) -> Any:
    """Batches without the labels of pairs, which cannot be told from two arguments of a network."""
    if isinstance(images, (Tensor, Mapping)):
        return images
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        images = DataLoader(images, batch_size=BATCH)
    if not isinstance(images, Iterable):
        return images  # which is then refused
    return (
        batch[:1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
        for batch in images
    )


def _calibration(samples: Samples, model: nn.Module) -> list[Any]:
    """Batches to search and prune by, as `search` and `prune` take them."""
    count = min(len(samples), CALIBRATION)
    rows = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    return [samples.take(row, model) for row in rows]


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """Lets a network that was frozen as a whole, as for inference, be trained meanwhile."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    frozen = not any(parameter.requires_grad for parameter in parameters)
    try:
        for parameter in parameters if frozen else ():
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters if frozen else ():
            parameter.requires_grad_(False)
