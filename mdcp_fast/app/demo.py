"""The whole way from a dense network to a pruned and fine-tuned one, with table and figures.

Data choose as little as possible: training data fit weights, validation data pick the best epoch,
and the test data are read only for the accuracies of the table.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mdcp_fast.app import figures
from mdcp_fast.app.datasets import Data, load_data
from mdcp_fast.app.models import load_weights, make_model
from mdcp_fast.deployment.backends import backend
from mdcp_fast.deployment.timing import measure_in_turns
from mdcp_fast.modules.calls import count_macs
from mdcp_fast.modules.files import AnyPath, atomic_write
from mdcp_fast.modules.threads import torch_threads
from mdcp_fast.planning.evaluators import TableEvaluator
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.serialization import save
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace
from mdcp_fast.training.evaluation import evaluate
from mdcp_fast.training.finetune import finetune

EPOCHS = 15
BATCH = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 128
LATENCY_SECONDS, LATENCY_ROUNDS = 2.0, 7
# Below so many MACs a second thread waits longer than it works, and one image's latency is noise.
SMALL_NETWORK = 10_000_000


@dataclass(frozen=True)
class Stage:
    """What one network of the demo comes to.

    Attributes:
        accuracy: On the test data, 0 to 1.
        macs: Multiply-accumulates for one image.
        params: Number of parameters.
        latency_ms: Median time for a batch on the CPU.
    """

    accuracy: float
    macs: int
    params: int
    latency_ms: float


class _Clock:
    """Seconds by stage, and a line on the console when each begins."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        self.console.print(f"{text} ...", highlight=False)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run_demo(
    *,
    macs: float = 0.4,
    out: AnyPath = "mdcp-fast-demo",
    model: str = "digits-resnet",
    data: str = "digits",
    epochs: int = EPOCHS,
    seed: int = 0,
    weights: AnyPath | None = None,
    device: str = "cpu",
    console: Console | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a network, prunes it, compensates, fine-tunes; prints a table and writes files.

    Files in `out`, each of which appears whole or not at all: result.json, plan.json,
    model.safetensors, and the figures widths.png, convergence.png, descriptors.png and
    accuracy.png. On the CPU all but the times repeats exactly, given the seed, the machine and the
    number of threads.

    Args:
        macs: The share of the dense network's multiply-accumulates that may remain, in (0, 1].
        out: The folder, made if it is not there.
        model: A name for `make_model`.
        data: A name for `load_data`.
        epochs: Of the dense training, and of the fine-tuning.
        seed: Of weights, data order and search.
        weights: A state_dict (.safetensors or .pt) of the dense network, which is then not trained.
        device: Where to train: "cpu", "cuda", "cuda:1", ... Latency is always measured on the CPU.
        console: Where to print; by default standard output.
        progress: Show progress bars while training.

    Returns:
        What result.json holds: "dense", "pruned" (channels merely dropped), "compensated" and
        "finetuned", each with the fields of `Stage`; "budget"; "seconds" by stage; and the
        settings.

    Raises:
        ValueError: An argument is out of range, a name unknown, or the budget cannot be met.
        OSError: `out` cannot be written.
        ImportError: The model or the data need a package that is not installed.
    """
    _check(macs, epochs, seed, device)
    out = _writable(out)
    console = console or Console()
    clock = _Clock(console)
    parts = load_data(data)
    dense = _dense_model(model, parts, seed).to(device)
    if weights is not None:
        load_weights(dense, weights)
    with clock("trace", f"Tracing {model}"):
        graph = trace(dense, torch.zeros(1, *parts.input_shape, device=device))
        # What cannot be met should be known before training.
        search(graph, macs=macs, evaluator=TableEvaluator(population=4, generations=1), seed=seed)
    threads = 1 if graph.macs < SMALL_NETWORK else torch.get_num_threads()
    settings: dict[str, Any] = {
        "model": model,
        "data": data,
        "epochs": epochs,
        "seed": seed,
        "weights": None if weights is None else os.fsdecode(weights),
        "device": device,
        "threads": threads,
    }

    with torch_threads(threads):
        networks, plan = _all_stages(dense, graph, parts, settings, macs, clock, progress)
        with clock("measure", "Measuring accuracy on the test data, and latency on the CPU"):
            batch = _latency_batch(parts, BATCH if graph.macs < SMALL_NETWORK else 1)
            stages = _measured(networks, parts, batch)
    console.print(_table(stages, len(batch)))

    fields = {name: asdict(stage) for name, stage in stages.items()}
    with clock("write", f"Writing to {out}"):
        figures.figure_widths(out / "widths.png", plan)
        figures.figure_convergence(out / "convergence.png", plan)
        figures.figure_descriptors(out / "descriptors.png", graph, plan)
        figures.figure_accuracy(out / "accuracy.png", fields)
        save(out / "model.safetensors", networks["finetuned"].cpu(), plan)
        _write(out / "plan.json", plan.to_json())
    settings["latency_batch"] = len(batch)
    result = {**fields, "budget": plan.budget, "seconds": clock.seconds, "settings": settings}
    _write(out / "result.json", json.dumps(result, indent=2))
    return result


def _all_stages(
    dense: nn.Module,
    graph: ChannelGraph,
    parts: Data,
    settings: dict[str, Any],
    macs: float,
    clock: _Clock,
    progress: bool,
) -> tuple[dict[str, nn.Module], PruningPlan]:
    """Trains the dense network where it has no weights yet; the networks by stage, and the plan."""
    epochs, seed = settings["epochs"], settings["seed"]
    training: dict[str, Any] = {
        "validation": parts.validation,
        "epochs": epochs,
        "batch_size": BATCH,
        "lr": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "seed": seed,
        "progress": progress,
    }
    if settings["weights"] is None:
        with clock("train", f"Training it on {settings['data']}, {epochs} epochs"):
            finetune(dense, parts.train, **training)
    with clock("search", f"Searching which channels stay within {macs:.0%} of the MACs"):
        plan = search(graph, macs=macs, seed=seed)
    with clock("prune", "Pruning, and compensating for what was pruned"):
        dropped = prune(graph, plan)
        calibration = _calibration(parts, seed)
        compensated = prune(graph, plan, calibration=calibration, check=False)
    finetuned = copy.deepcopy(compensated)
    with clock("finetune", f"Fine-tuning, taught by the dense network, {epochs} epochs"):
        finetune(finetuned, parts.train, teacher=dense, **training)
    networks = {
        "dense": dense,
        "pruned": dropped,
        "compensated": compensated,
        "finetuned": finetuned,
    }
    return networks, plan


def _measured(networks: dict[str, nn.Module], parts: Data, batch: Tensor) -> dict[str, Stage]:
    """Every number of the table, each taken from the network itself and not from the plan."""
    accuracy = [evaluate(network, parts.test) for network in networks.values()]
    on_cpu = [copy.deepcopy(network).cpu() for network in networks.values()]
    threads = torch.get_num_threads()
    calls = [backend("torch").prepare(network, (batch,), threads=threads) for network in on_cpu]
    timings = measure_in_turns(calls, seconds=LATENCY_SECONDS, rounds=LATENCY_ROUNDS)
    return {
        name: Stage(
            accuracy[i],
            count_macs(on_cpu[i], batch[:1]),
            sum(parameter.numel() for parameter in on_cpu[i].parameters()),
            timings[i].median,
        )
        for i, name in enumerate(networks)
    }


def _check(macs: float, epochs: int, seed: int, device: str) -> None:
    if not 0 < macs <= 1:
        raise ValueError(f"demo: macs: expected a fraction in (0, 1], got {macs}")
    if epochs < 1:
        raise ValueError(f"demo: epochs: expected at least 1, got {epochs}")
    if seed < 0:
        raise ValueError(f"demo: seed: expected an integer of at least 0, got {seed}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from torch built without CUDA
        first = str(error).splitlines()[0]
        raise ValueError(
            f"demo: device: expected one that is here, got {device!r} ({first})"
        ) from None


def _writable(out: AnyPath) -> Path:
    """The folder, made if need be and found to take files."""
    folder = Path(os.fsdecode(out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"demo: out: expected a folder that can be written, got {os.fsdecode(out)!r} "
            f"({error.strerror or error})"
        ) from None
    return folder


def _dense_model(name: str, parts: Data, seed: int) -> nn.Module:
    channels = parts.input_shape[0]
    with torch.random.fork_rng():  # the weights are a function of the seed alone
        torch.manual_seed(seed)
        model = make_model(name, num_classes=parts.classes, in_channels=channels)
    return model.to(memory_format=torch.channels_last)


def _calibration(parts: Data, seed: int) -> list[Tensor]:
    """Batches of training images, without their labels."""
    count = min(CALIBRATION_IMAGES, len(parts.train))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(parts.train), generator=generator)[:count]  # type: ignore[arg-type]
    with torch.random.fork_rng():  # augmentation draws from the global generator
        torch.manual_seed(seed)
        loader = DataLoader(Subset(parts.train, chosen.tolist()), CALIBRATION_BATCH)
        return [images for images, _ in loader]


def _latency_batch(parts: Data, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(count, *parts.input_shape, generator=generator)
    return batch.contiguous(memory_format=torch.channels_last)


def _table(stages: dict[str, Stage], batch: int) -> Table:
    size = "1 image" if batch == 1 else f"{batch} images"
    table = Table(title="Test accuracy, cost and speed by stage")
    table.add_column("network")
    for column in ("accuracy", "MACs", "parameters", f"CPU ms, {size}"):
        table.add_column(column, justify="right")
    dense = stages["dense"]
    for name, stage in stages.items():
        table.add_row(
            figures.TITLES.get(name, name),
            f"{stage.accuracy:.2%}",
            f"{stage.macs:,}\n{stage.macs / dense.macs:.1%}",
            f"{stage.params:,}\n{stage.params / dense.params:.1%}",
            f"{stage.latency_ms:.2f}\n{dense.latency_ms / stage.latency_ms:.2f}x speed",
        )
    return table


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
