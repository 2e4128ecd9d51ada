"""Networks over backends in one table: how fast, how large, how much memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mdcp_fast.app.models import make_model
from mdcp_fast.deployment import onnx_runtime, open_vino
from mdcp_fast.deployment.backends import BACKENDS, Backend, FileBackend, backend
from mdcp_fast.deployment.onnx_bytes import onnx_bytes
from mdcp_fast.deployment.resident_memory import peak_resident
from mdcp_fast.deployment.timing import Timing, measure_in_turns
from mdcp_fast.modules.calls import eval_mode, tensors_in
from mdcp_fast.modules.threads import torch_threads
from mdcp_fast.modules.verification import relative_difference
from mdcp_fast.pruning.serialization import load

DEFAULT_BACKENDS = ("torch", "onnxruntime", "openvino")
FILES = (".onnx", ".xml")
ROUNDS = 5
TOLERANCE = 1e-4  # of the largest output, by which a backend may differ from the module
OUTPUTS: dict[str, Callable[..., list[Tensor]]] = {
    "onnxruntime": onnx_runtime.outputs,
    "openvino": open_vino.outputs,
}


@dataclass(frozen=True)
class BenchRow:
    """One network in one backend.

    Attributes:
        network: As it was named.
        backend: Its name.
        timing: Milliseconds for the whole batch.
        disk: Bytes of its file; for a module without one, of its parameters and buffers.
        memory: Bytes by which the process grew while the network was loaded and run once, at most;
            None where that cannot be read.
    """

    network: str
    backend: str
    timing: Timing
    disk: int
    memory: int | None


@dataclass(frozen=True)
class _Network:
    """What was named: a module, or a file of another program.

    Attributes:
        name: As it was named.
        module: Or None.
        file: The file it came from, or None.
    """

    name: str
    module: nn.Module | None
    file: Path | None

    def runs_in(self, runner: Backend) -> bool:
        if self.module is not None:
            return True
        assert self.file is not None
        return isinstance(runner, FileBackend) and self.file.suffix in runner.suffixes


def run_bench(
    models: Sequence[str],
    *,
    backends: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    input: str = "3x224x224",
    seconds: float = 10.0,
    console: Console | None = None,
) -> list[BenchRow]:
    """Measures networks over backends side by side on the CPU, and prints a table.

    Everything is loaded into one process, and takes turns there. What ONNX Runtime and OpenVINO
    compute is compared with the module first.

    Args:
        models: Names for `make_model`, with random weights; FILE@NAME for a FILE that `save` wrote
            of a pruned NAME; .onnx or .xml files.
        backends: Names for `backend`, with commas between; None: torch, onnxruntime and openvino,
            as far as they are installed.
        batch: How many samples at a time.
        threads: How many threads compute; None: as many as torch uses.
        input: One sample's shape, as in "3x224x224".
        seconds: How long to measure, all together; every row at least five times.
        console: Where to print; by default standard output.

    Returns:
        The table's rows.

    Raises:
        ValueError: An argument is out of range, or a name unknown.
        FileNotFoundError: There is no such file.
        ImportError: A backend that was named, or a model, needs a package that is not installed.
        RuntimeError: A backend cannot run a network, or puts out something else.
    """
    shape = _shape(input)
    threads = torch.get_num_threads() if threads is None else threads
    _check(models, batch, threads, seconds)
    console = console or Console()
    runners = [backend(name) for name in _names(backends)]
    networks = [_network(name) for name in models]
    for network in networks:
        if not any(network.runs_in(runner) for runner in runners):
            raise ValueError(
                f"bench: backends: expected one that runs {network.name}, got "
                f"{', '.join(runner.name for runner in runners)}"
            )
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    with torch_threads(threads), TemporaryDirectory(prefix="mdcp_fast_bench_") as folder:
        runners = _installed(runners, backends is not None, x, threads, console)
        rows: list[tuple[str, str, int, int | None]] = []
        calls: list[Callable[[], None]] = []
        for index, network in enumerate(networks):
            exported = Path(folder) / f"{index}.onnx"
            for runner in runners:
                if network.runs_in(runner):
                    console.print(f"Loading {network.name} in {runner.name} ...", highlight=False)
                    call, disk, memory = _loaded(network, runner, exported, x, threads)
                    rows.append((network.name, runner.name, disk, memory))
                    calls.append(call)
        console.print(f"Measuring {len(calls)} in turns, {seconds:g} s ...", highlight=False)
        timings = measure_in_turns(calls, seconds=seconds, rounds=ROUNDS)
        calls.clear()  # before their files go
    result = [
        BenchRow(name, runner, timing, disk, memory)
        for (name, runner, disk, memory), timing in zip(rows, timings, strict=True)
    ]
    console.print(_table(result, f"{batch}x{input}", threads))
    if timings[0].noisy:
        console.print(
            f"This machine is busy with other things: a tenth of the runs of {result[0].network} "
            f"took {timings[0].p90 / timings[0].median:.1f} times the median or longer. Smaller "
            "differences than that mean little.",
            highlight=False,
        )
    return result


def _loaded(
    network: _Network, runner: Backend, exported: Path, x: Tensor, threads: int
) -> tuple[Callable[[], None], int, int | None]:
    """A call that runs the network, its size on disk, and the memory that it took."""
    module, file = network.module, network.file

    def from_file() -> Callable[[], None]:
        assert isinstance(runner, FileBackend)
        call = runner.load(exported if module is not None else file, (x,), threads=threads)  # type: ignore[arg-type]
        call()
        return call

    def from_module() -> Callable[[], None]:
        assert module is not None
        call = runner.prepare(module, (x,), threads=threads)
        call()
        return call

    try:
        if module is None:
            assert file is not None
            call, memory = peak_resident(from_file)
            return call, sum(each.stat().st_size for each in _with_weights(file)), memory
        if not isinstance(runner, FileBackend):
            call, memory = peak_resident(from_module)
            return call, file.stat().st_size if file else _bytes(module), memory
        if not exported.exists():
            exported.write_bytes(onnx_bytes(f"bench: {network.name}", module, (x,)))
        _compare(network, runner.name, exported, x)
        call, memory = peak_resident(from_file)
        return call, exported.stat().st_size, memory
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever the network, or another library, raises
        said = " ".join(str(error).split())
        raise RuntimeError(
            f"bench: {network.name}: expected a network that {runner.name} can run with input "
            f"{'x'.join(map(str, x.shape))}, got {type(error).__name__}: {said[:300]}"
        ) from error


def _compare(network: _Network, name: str, exported: Path, x: Tensor) -> None:
    """Refuses to measure what does not compute the same."""
    if name not in OUTPUTS:
        return
    assert network.module is not None
    with eval_mode(network.module), torch.inference_mode():
        expected = tensors_in(network.module(x))
    gap = relative_difference(OUTPUTS[name](exported, (x,)), expected)
    if not gap <= TOLERANCE:
        raise ValueError(
            f"outputs that differ from the module's by {gap:.1e} of the largest one, where "
            f"{TOLERANCE:.0e} is allowed"
        )


def _network(name: str) -> _Network:
    path = Path(name)
    if path.suffix in FILES:
        if not path.is_file():
            raise FileNotFoundError(f"bench: model: expected a file, got {name!r}")
        return _Network(name, None, path)
    saved, at, dense = name.rpartition("@")
    if at:
        return _Network(name, load(saved, lambda: make_model(dense)), Path(saved))
    if path.suffix in (".safetensors", ".pt"):
        raise ValueError(
            f"bench: model: expected {name}@MODEL, with the network that it was pruned from, as in "
            f"{name}@torchvision:resnet50, got {name!r}"
        )
    return _Network(name, make_model(name), None)


def _names(backends: str | None) -> Sequence[str]:
    if backends is None:
        return DEFAULT_BACKENDS
    names = [name.strip() for name in backends.split(",")]
    for name in names:
        if name not in BACKENDS or names.count(name) > 1:
            raise ValueError(
                f"bench: backends: expected some of {', '.join(BACKENDS)}, each once, got "
                f"{backends!r}"
            )
    return names


def _installed(
    runners: list[Backend], named: bool, x: Tensor, threads: int, console: Console
) -> list[Backend]:
    """The backends that are there, each of which has run something, so that it is loaded."""
    found = []
    for runner in runners:
        try:
            if not named or isinstance(runner, FileBackend):
                runner.prepare(nn.ReLU(), (x[:1],), threads=threads)()
        except ImportError as error:
            if named:
                raise
            console.print(f"Left out: {error}", highlight=False, markup=False)
            continue
        found.append(runner)
    return found


def _shape(input: str) -> tuple[int, ...]:
    parts = input.split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(
            f"bench: input: expected one sample's sizes with an x between, as in 3x224x224, got "
            f"{input!r}"
        )
    return tuple(map(int, parts))


def _check(models: Sequence[str], batch: int, threads: int, seconds: float) -> None:
    if not models:
        raise ValueError("bench: models: expected at least one, got none")
    for name, value in (("batch", batch), ("threads", threads)):
        if value < 1:
            raise ValueError(f"bench: {name}: expected at least 1, got {value}")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"bench: seconds: expected a finite number of at least 0, got {seconds}")


def _bytes(module: nn.Module) -> int:
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.nbytes
        for tensor in module.state_dict().values()
    }
    return sum(storages.values())


def _with_weights(file: Path) -> list[Path]:
    """A file, and the one beside it that holds its weights, if there is one."""
    beside = [file.with_suffix(".bin") if file.suffix == ".xml" else Path(f"{file}.data")]
    return [file, *(path for path in beside if path.is_file())]


def _table(rows: list[BenchRow], input: str, threads: int) -> Table:
    table = Table(
        title=f"Input {input} on the CPU, {threads} thread{'s' if threads > 1 else ''}",
        caption="ms: median. Peak MB: growth of the process by loading and running the network.",
    )
    table.add_column("network", overflow="fold")
    table.add_column("backend")
    for column in ("ms", "p90", "MB on disk", "peak MB", "speed-up"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.network,
            row.backend,
            f"{row.timing.median:.2f}",
            f"{row.timing.p90:.2f}",
            f"{row.disk / 1e6:.1f}",
            "?" if row.memory is None else f"{row.memory / 1e6:.0f}",
            f"{rows[0].timing.median / row.timing.median:.2f}x",
        )
    return table
