"""From a network to a smaller one on a device: times by stage, accuracy on digits, latency.

python benchmarks/device/end_to_end.py [--device cuda|cpu] [--quick] FILE.json

Random weights, but for the digits. Every part is tried by itself, and the file is written anew
after each, so that a run that ends early tells what it found. Plans and fits are compared with the
CPU's by tests/test_pipeline_on_device.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import mdcp_fast
from mdcp_fast.app.demo import run_demo
from mdcp_fast.modules.files import atomic_write

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
import networks  # noqa: E402  # the committed ones

ROUNDS, SECONDS = 30, 0.3  # of a latency, whichever is reached first
CALIBRATION = 256  # images
MINUTE = 60
PRECISIONS = ("tf32", "bfloat16 channels_last")
Timed = Callable[[], Any]


class Report:
    """What was found so far, on disk after every entry."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.entries: dict[str, Any] = {"device": name, "torch": torch.__version__}
        self.failed = False

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """A part of the report; what it raises is noted and stops no other."""
        entry: dict[str, Any] = {}
        start = time.perf_counter()
        try:
            yield entry
        except BaseException as error:  # the interrupt at the limit, too
            self.failed = True
            entry["error"] = f"{type(error).__name__}: {error}"[:500]
            if not isinstance(error, Exception):
                raise
            traceback.print_exc()
        finally:
            entry["seconds"] = time.perf_counter() - start
            self.entries[name] = entry
            print(f"{name}: {json.dumps(entry)}", flush=True)
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(self.entries, indent=2) + "\n", encoding="utf-8")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def network(name: str) -> nn.Module:
    """The committed ResNet-20, or one of torchvision's with random weights."""
    if name == "resnet20":
        return networks.trained(name, networks.default_cache())
    import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None).eval()


def images_of(name: str, count: int, size: int) -> Tensor:
    shape = (1, 28, 28) if name == "resnet20" else (3, size, size)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def stages(entry: dict[str, Any], name: str, device: torch.device, size: int, count: int) -> None:
    """Seconds of every stage, each of which has to do what it says."""
    model = network(name).to(device)
    images = images_of(name, count, size)
    batches = list(images.to(device).split(64))
    now = clock(entry, device)
    with now("trace"):
        graph = mdcp_fast.trace(model, batches[0][:1])
    with now("search, no data"):
        plan = mdcp_fast.search(graph, macs=0.5)
    with now("search, calibration"):
        measured = mdcp_fast.search(graph, macs=0.5, calibration=batches)
    with now("prune, no data"):
        mdcp_fast.prune(graph, plan)
    with now("prune, calibration"):
        small = mdcp_fast.prune(graph, measured, calibration=batches)
    assert mdcp_fast.count_macs(small, batches[0][:1]) == measured.macs <= 0.5 * graph.macs
    with now("save and load"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "small.safetensors")
        mdcp_fast.save(path, small, measured)
        loaded = mdcp_fast.load(path, lambda: network(name).to(device))
        with torch.no_grad(), precise("float32"):
            outputs = [one.eval()(batches[0][:1]) for one in (loaded, small)]
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    with now("finetune, 2 epochs of 64 images, resumed at the end"):
        finetune_twice(small, model, images[:64], "bf16" if device.type == "cuda" else "no")
    for evaluator in (mdcp_fast.NetworkEvaluator, mdcp_fast.RefitEvaluator):
        with now(f"search, {evaluator.__name__}, 5 candidates, 64 images"):
            settings = evaluator(population=5, generations=1)
            mdcp_fast.search(graph, macs=0.5, calibration=batches[:1], evaluator=settings)
    with contextlib.suppress(ImportError), now("torch-pruning by magnitude"):
        torch_pruning(copy.deepcopy(model), batches[0][:1])


def finetune_twice(small: nn.Module, teacher: nn.Module, images: Tensor, precision: str) -> None:
    """Trains with checkpoints, and again from the last one, which has to give the same history."""
    with torch.no_grad():
        device = next(teacher.parameters()).device
        labels = teacher(images.to(device)).argmax(1).cpu()
    data = TensorDataset(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        histories = [
            mdcp_fast.finetune(
                model,
                data,
                data,
                teacher=teacher,
                epochs=2,
                batch_size=32,
                mixed_precision=precision,
                checkpoint=folder,
                progress=False,
            )
            for model in (copy.deepcopy(small), copy.deepcopy(small))
        ]
    assert histories[0] == histories[1]


def clock(
    entry: dict[str, Any], device: torch.device
) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """Writes how long a block took, and what it took of the device's memory at most."""

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        yield
        wait(device)
        entry[stage] = time.perf_counter() - start
        if device.type == "cuda":
            entry[f"{stage}, peak bytes"] = torch.cuda.max_memory_allocated(device)

    return timed


def torch_pruning(model: nn.Module, images: Tensor) -> None:
    """The rival's graph, magnitudes and removal of 30 % of the channels of every layer."""
    import torch_pruning as rival

    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1:]
    rival.pruner.MagnitudePruner(
        model,
        images,
        importance=rival.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.3,
        ignored_layers=last,
    ).step()


def digits(entry: dict[str, Any], device: torch.device, epochs: int) -> None:
    """The demo: trained, pruned to 40 % of its MACs, fitted, fine-tuned; accuracies on test data.

    Its latencies are the CPU's.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(
            macs=0.4,
            out=folder,
            epochs=epochs,
            device=str(device),
            console=Console(file=io.StringIO()),
            progress=False,
        )
    for stage in ("dense", "pruned", "compensated", "finetuned"):
        entry[stage] = result[stage]["accuracy"]
    entry["of the MACs"] = result["finetuned"]["macs"] / result["dense"]["macs"]
    entry["seconds by stage"] = result["seconds"]
    total = sum(result["seconds"].values())
    if device.type == "cuda" and total >= MINUTE:
        raise RuntimeError(f"expected the digits in under a minute, got {total:.0f} s")


def latencies(
    entry: dict[str, Any], name: str, device: torch.device, size: int, batches: tuple[int, ...]
) -> None:
    """Milliseconds of the dense and of a half-sized network, taking turns; medians."""
    dense = network(name).to(device)
    x = images_of(name, max(batches), size).to(device)
    graph = mdcp_fast.trace(dense, x[:1])
    for round_to in (1, 8):
        plan = mdcp_fast.search(graph, macs=0.5, round_to=round_to)
        small = mdcp_fast.prune(graph, plan, check=False)
        for precision in PRECISIONS:
            for batch in batches:
                for captured in (False, True) if device.type == "cuda" else (False,):
                    with precise(precision):
                        runs = [
                            prepared(one, x[:batch], precision, captured) for one in (dense, small)
                        ]
                        times = in_turns(runs, device)
                    how = "CUDA graph" if captured else "eager"
                    key = f"{precision}, batch {batch}, {how}, widths in multiples of {round_to}"
                    entry[key] = dict(zip(("dense ms", "pruned ms"), times, strict=True))
                    entry[key]["times faster"] = times[0] / times[1]


@contextlib.contextmanager
def precise(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def prepared(model: nn.Module, x: Tensor, precision: str, captured: bool) -> Timed:
    """What runs the network once on the batch; as a CUDA graph it was recorded before."""
    model = copy.deepcopy(model).eval()
    if precision.startswith("bfloat16"):
        model = model.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(x)

    if not captured:
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            expected = run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    torch.testing.assert_close(replay(), expected, rtol=0.05, atol=0.05)
    replay.needs = run  # type: ignore[attr-defined]  # a graph keeps addresses, not the tensors there
    return replay


def in_turns(runs: list[Timed], device: torch.device) -> list[float]:
    """Median milliseconds of each."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        for _ in range(3):
            run()
    end = time.perf_counter() + SECONDS
    while len(times[0]) < 3 or (len(times[0]) < ROUNDS and time.perf_counter() < end):
        for run, found in zip(runs, times, strict=True):
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            found.append(1e3 * (time.perf_counter() - start))
    return [median(found) for found in times]


def main() -> int:
    parser = argparse.ArgumentParser(description="The whole way on a device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: all parts, fast")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    device, quick = torch.device(arguments.device), arguments.quick
    if device.type == "cpu":
        torch.set_num_threads(1)  # threads that wait for a core would be all that is measured
    report = Report(arguments.file, device)
    size, count = (32, 64) if quick else (224, CALIBRATION)
    names = ("resnet20", "resnet18", "mobilenet_v2", "resnet50")[: 1 if quick else None]
    with report.part("digits to 40 % of the MACs") as entry:
        digits(entry, device, epochs=1 if quick else 15)
    for name in names:
        with report.part(f"{name}, stages") as entry:
            stages(entry, name, device, size, count)
        with report.part(f"{name}, latency") as entry:
            latencies(entry, name, device, size, (1, 4) if quick else (1, 256))
    return int(report.failed)


if __name__ == "__main__":
    raise SystemExit(main())
