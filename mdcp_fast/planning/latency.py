"""Measures what a network's layers take where it will run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mdcp_fast.deployment.backends import BackendName, backend
from mdcp_fast.deployment.capture import with_batch
from mdcp_fast.deployment.timing import measure_in_turns
from mdcp_fast.modules.calls import Inputs, call, eval_mode, preserve_buffers
from mdcp_fast.modules.hooks import forward_hooks, layer_input
from mdcp_fast.modules.layer_kinds import Layer
from mdcp_fast.modules.locks import alone_with_its_network
from mdcp_fast.modules.removal import remove
from mdcp_fast.planning.latency_table import LatencyTable, LayerTimes, NetworkTime
from mdcp_fast.planning.rounding import allowed_widths, preferred_multiple
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.tracing.graph import ChannelGraph

SHARES = (0.1, 0.3, 0.6, 1.0)  # of the dense widths, at which layers are measured
LOWEST = 0.2  # share of the dense widths of the smallest random networks
SPREAD = 0.3  # standard deviation of the logarithm of their widths
ROUNDS = 5  # turns that every time is the best of, at least
CLOSE = 10.0  # how much more the dense network counts than a random one


@alone_with_its_network
def measure_latency(
    graph: ChannelGraph,
    *,
    backend: BackendName = "onnxruntime",
    batch: int = 1,
    threads: int = 1,
    networks: int = 20,
    seconds: float = 20.0,
    seed: int = 0,
) -> LatencyTable:
    """Measures a network's layers, and some whole networks of random widths, where it will run.

    Takes from half a minute to some minutes: for each distinct layer up to 16 sizes are run alone,
    and whole networks together. Close other programs. Times are the fastest of several runs, which
    other work of the machine disturbs least.

    Args:
        graph: What `trace` returned. Its network and its example inputs say the dtype and, "cpu" or
            "cuda", the device.
        backend: What will run it: "torch", "torch-compile", "onnxruntime", "openvino" or
            "tensorrt".
        batch: How many inputs it will be given at once: the example inputs, over and over.
        threads: Of the CPU.
        networks: How many of random widths, beside the dense one, factors are fitted to.
        seconds: How long the whole networks are run, at least.
        seed: Of the random widths.

    Returns:
        A table for `search(graph, latency=..., latency_table=...)`. It can be saved.

    Raises:
        TypeError: `graph` is something else.
        ValueError: A number out of range, or no backend of that name.
        ImportError: The backend is not installed; the message says what to install.
    """
    if not isinstance(graph, ChannelGraph):
        raise TypeError(
            f"measure_latency: graph: expected what mdcp_fast.trace returns, got "
            f"{type(graph).__name__}"
        )
    for name, value, least in (
        ("batch", batch, 1), ("threads", threads, 1), ("networks", networks, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"measure_latency: {name}: expected a whole number from {least}, got {value!r}"
            )
    stopwatch = _Stopwatch(graph, backend, batch, threads)
    shares = torch.tensor(SHARES, dtype=torch.float64)
    layers = stopwatch.layers(_rounded(graph, shares.unsqueeze(1).expand(-1, len(graph.axes))))
    wanted = torch.cat([graph.widths.unsqueeze(0), _random_widths(graph, networks, seed)])
    times = stopwatch.networks(wanted.tolist(), seconds)
    weights = [CLOSE, *[1.0] * networks]  # budgets are shares of what the dense network takes
    return LatencyTable.fitted(graph, stopwatch.settings, layers, times, weights=weights)


@alone_with_its_network
def calibrate_latency(
    graph: ChannelGraph,
    table: LatencyTable,
    plans: PruningPlan | Sequence[PruningPlan],
    *,
    seconds: float = 5.0,
) -> LatencyTable:
    """Measures the networks of plans, and makes the table right for them.

    Its factors are scaled alike, and its constant changes, so that it is right for the dense
    network and, on average, for these. A plan found with the new table is as fast as it says, where
    the one found with the old table was off by some percent; where that was much, correct once
    more.

    Args:
        graph: The traced network.
        table: Of `measure_latency`; measured where this runs.
        plans: One or several, for this network.
        seconds: How long they are run, at least.

    Returns:
        Another table, which holds the plans' times, too.

    Raises:
        ImportError: The table's backend is not installed.
    """
    several = [plans] if isinstance(plans, PruningPlan) else list(plans)
    dense, *measured = time_plans(graph, table, several, seconds=seconds)
    # Whatever the machine does now, it does to the dense network, too.
    pace = table.dense_milliseconds / dense.milliseconds
    first, *others = table.networks  # the first is the dense one, and stays so
    new = {
        one.widths: NetworkTime(
            one.widths, one.milliseconds * pace, one.median * pace, one.p90 * pace
        )
        for one in measured
        if one.widths != first.widths
    }
    known = [one for one in others if one.widths not in new]
    # Not fitted anew: a search finds what new factors are wrong about as it found what the old ones
    # were wrong about. With the same factors, scaled, it goes on along the same path.
    corrected = table.right_for(graph, list(new.values()))
    return replace(corrected, networks=(first, *known, *new.values()))


@alone_with_its_network
def time_plans(
    graph: ChannelGraph,
    table: LatencyTable,
    plans: Sequence[PruningPlan],
    *,
    seconds: float = 5.0,
) -> list[NetworkTime]:
    """Measures the networks of plans where a table was measured, after the dense one.

    Args:
        graph: The traced network.
        table: Says where.
        plans: For this network.
        seconds: How long they are run, at least.

    Returns:
        The dense network's time, and one for each plan, taken in turns.
    """
    stopwatch = _Stopwatch(
        graph, table.settings["backend"], table.settings["batch"], table.settings["threads"]
    )
    widths = [[axis.width for axis in plan.axes] for plan in plans]
    return stopwatch.networks([graph.widths.tolist(), *widths], seconds)


class _Stopwatch:
    """Times layers and networks in a backend."""

    def __init__(self, graph: ChannelGraph, name: BackendName, batch: int, threads: int) -> None:
        self._graph, self._threads = graph, threads
        self._backend = backend(name)
        self._inputs = with_batch(graph.example_inputs, batch)
        first = next(graph.model.parameters())
        # Of a single thread CPU time is the time it takes without other programs' turns.
        self._cpu = threads == 1 and first.device.type == "cpu"
        self.settings: dict[str, Any] = {
            "backend": name,
            "device": str(first.device),
            "threads": threads,
            "batch": batch,
            "dtype": str(first.dtype).removeprefix("torch."),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }

    def networks(self, widths: Sequence[Sequence[int]], seconds: float) -> list[NetworkTime]:
        """Times of whole networks, taken in turns.

        Args:
            widths: Of each one's axes. Which channels stay does not matter.
            seconds: How long they are run, at least.
        """
        calls = []
        for row in widths:
            small = remove(self._graph.model, self._graph.positions([range(w) for w in row]))
            calls.append(self._prepared(small, self._inputs))
        timings = measure_in_turns(calls, seconds=seconds, rounds=ROUNDS, cpu=self._cpu)
        return [
            NetworkTime(tuple(row), timing.fastest, timing.median, timing.p90)
            for row, timing in zip(widths, timings, strict=True)
        ]

    def layers(self, widths: Tensor) -> list[LayerTimes]:
        """Times of all layers, each alone, at every pair of sizes that these widths give it.

        Args:
            widths: int64 [rows, axes].
        """
        graph, known = self._graph, dict[str, np.ndarray]()
        counts = graph.cost.counts(widths)
        found: dict[str, LayerTimes] = {}
        for layer, x in self._calls():
            module: Any = graph.model.get_submodule(layer.path)
            own = graph.counts.of.get(layer.weight, {})
            weight = module.weight
            first, second = (
                sorted(set(counts[:, own[dimension]].tolist()))
                if dimension in own
                else [weight.size(dimension)]
                for dimension in (0, 1)
            )
            key = f"{module} {tuple(x.shape)} {first} {second}"
            if key not in known:
                known[key] = self._alone(layer, module, x, first, second)
            milliseconds, outputs = known[key]
            before = found.get(layer.weight)
            if before is not None:  # a layer that is called again
                milliseconds = milliseconds + before.milliseconds
                outputs = outputs + before.outputs
            grouped = layer.kind.groups(module) > 1
            kind = (
                "grouped" if grouped else "spatial" if layer.kind.taps(module) > 1 else "pointwise"
            )
            found[layer.weight] = LayerTimes(
                layer.weight, kind, tuple(first), tuple(second), milliseconds, outputs
            )
        return list(found.values())

    def _calls(self) -> list[tuple[Layer, Tensor]]:
        """The layers that the network calls, each with what it reads."""
        graph = self._graph
        calls: list[tuple[Layer, Tensor]] = []

        def hook_of(layer: Layer) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
                calls.append((layer, layer_input(arguments, named).detach()))

            return hook

        hooks = [
            (graph.model.get_submodule(path), hook_of(layer))
            for path, layer in graph.layers.items()
        ]
        with (
            torch.no_grad(), eval_mode(graph.model), preserve_buffers(graph.model),
            forward_hooks(hooks, before=True),
        ):  # fmt: skip
            call(graph.model, self._inputs)
        return calls

    def _alone(
        self, layer: Layer, module: Any, x: Tensor, first: Sequence[int], second: Sequence[int]
    ) -> np.ndarray:
        """A layer's times and numbers of outputs: float64 [2, first, second]."""
        dimension = layer.kind.channel_dimension(x, module.weight)
        calls, outputs = [], []
        for a in first:
            for b in second:
                weight = {0: torch.arange(a), 1: torch.arange(b)}
                kept = {"weight": weight}
                if module.bias is not None:
                    rows = layer.kind.kept_outputs(module, weight)
                    kept["bias"] = {} if rows is None else {0: rows}
                small: Any = remove(module, kept)
                read = x.narrow(dimension, 0, layer.kind.inputs(small)).clone(
                    memory_format=torch.preserve_format
                )
                with torch.no_grad():
                    outputs.append(float(small(read).numel()))
                calls.append(self._prepared(small, (read,)))
        timings = measure_in_turns(calls, seconds=0.0, rounds=2 * ROUNDS, cpu=self._cpu)
        times = [timing.fastest for timing in timings]
        return np.array([times, outputs]).reshape(2, len(first), len(second))

    def _prepared(self, model: nn.Module, inputs: Inputs) -> Callable[[], None]:
        arguments = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
        if isinstance(inputs, dict):
            model = _ByName(model, list(inputs))
        return self._backend.prepare(model, arguments, threads=self._threads)


class _ByName(nn.Module):
    """A network that takes its named arguments by place."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *arguments: Any) -> Any:
        return self.model(**dict(zip(self.names, arguments, strict=True)))


def _random_widths(graph: ChannelGraph, count: int, seed: int) -> Tensor:
    """Networks of all sizes, with axes of different shares: int64 [count, axes]."""
    generator = torch.Generator().manual_seed(seed)
    sizes = LOWEST + (1 - LOWEST) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, len(graph.axes), generator=generator, dtype=torch.float64)
    return _rounded(graph, (sizes * (SPREAD * noise).exp()).clamp_max(1.0))


def _rounded(graph: ChannelGraph, shares: Tensor) -> Tensor:
    """The allowed widths next to shares of the dense ones: float64 -> int64 [rows, axes]."""
    allowed = allowed_widths(
        graph.axes, "auto", 1, multiple=preferred_multiple(graph.model)
    ).choices
    columns = [
        choices[(share.unsqueeze(1) * axis.channels - choices).abs().argmin(1)]
        for axis, choices, share in zip(graph.axes, allowed, shares.unbind(1), strict=True)
    ]
    return torch.stack(columns, 1)
