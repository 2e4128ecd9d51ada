"""Runs a network on several parts of a batch layer by layer: all parts meet before a layer runs.

What needs all samples of a layer's input at once, and changes the layer before it runs, could have
them by running all samples as one batch. That takes memory for several activations of all samples,
and time, since memory of that size comes from the system anew for every layer. In lockstep each
part keeps only what it needs later, and scratch space is that of one part.

Several parts run in threads of their own, one at a time, each up to the next layer at which they
meet; a single one runs in the caller's.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call, tensors_in
from mdcp_fast.modules.hooks import forward_hooks, layer_input

LEAST_PATIENCE = 5.0  # seconds

Meeting: TypeAlias = Callable[[nn.Module, list[Tensor]], None]


class OutOfStepError(RuntimeError):
    """The parts of a batch went different ways through the network."""


@torch.no_grad()
def run_in_lockstep(
    model: nn.Module,
    parts: Sequence[Inputs],
    meetings: Mapping[nn.Module, Meeting],
    patience: float | None = None,
) -> list[Any]:
    """Runs the network on each part without gradients.

    Args:
        model: The network.
        parts: Its arguments, of one or more parts.
        meetings: What is called each time before a module runs: with the module and what each part
            is about to feed it.
        patience: Seconds that a part may take from one meeting to the next; None: any time.

    Returns:
        The output of each part.

    Raises:
        OutOfStepError: The parts do not come to the same modules in the same order, or one of them
            takes longer than `patience`, since another one holds a lock that it wants.
    """
    if len(parts) == 1:
        return [_run_alone(model, parts[0], meetings)]
    walks = [_Walk(model, part) for part in parts]
    with forward_hooks([(module, _wait) for module in meetings], before=True), _ended(walks):
        while True:
            for walk in walks:
                walk.advance(patience)
            places = {walk.place for walk in walks}
            if len(places) > 1:
                raise OutOfStepError("the parts of a batch run through different modules")
            (place,) = places
            if place is None:
                return [walk.output for walk in walks]
            meetings[place](place, [walk.x for walk in walks])


def _run_alone(model: nn.Module, part: Inputs, meetings: Mapping[nn.Module, Meeting]) -> Any:
    """The only part, in this thread."""

    def meet(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        meetings[module](module, [layer_input(arguments, named)])

    with forward_hooks([(module, meet) for module in meetings], before=True):
        return call(model, part)


def keeps_step(model: nn.Module, parts: Sequence[Inputs], modules: Sequence[nn.Module]) -> bool:
    """Whether parts in lockstep give what they give alone, bit for bit.

    They do not where a forward leaves tensors on modules for its later layers to read, where the
    way through the network depends on the data, where numbers are drawn, or where a forward holds a
    lock while layers run.

    Args:
        model: The network.
        parts: Its arguments, of two or more parts.
        modules: Where they meet.
    """
    begun = time.perf_counter()
    with torch.no_grad():
        alone = [call(model, part) for part in parts]
    patience = LEAST_PATIENCE + 10 * (time.perf_counter() - begun)
    nothing = dict.fromkeys(modules, lambda module, inputs: None)
    try:
        together = run_in_lockstep(model, parts, nothing, patience)
    except Exception:  # alone they raise nothing
        return False
    pairs = [tuple(map(tensors_in, pair)) for pair in zip(together, alone, strict=True)]
    return all(
        len(mine) == len(yours) and all(map(torch.equal, mine, yours)) for mine, yours in pairs
    )


class _Stopped(BaseException):
    """Unwinds a walk whose result nobody waits for any more."""


class _Walk(threading.Thread):
    """One part's way through the network.

    Attributes:
        place: The module that it is about to run; None once it has ended.
        x: What that is about to read.
        output: The network's output, in the end.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__(daemon=True)
        self.place: nn.Module | None = None
        self.x: Any = None
        self.output: Any = None
        self._model, self._inputs = model, inputs
        self._error: BaseException | None = None
        self._stopped = False
        self._turn, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._context, self._surroundings = contextvars.copy_context(), _surroundings()

    def advance(self, patience: float | None) -> None:
        """Runs up to the next meeting or the end.

        Raises:
            OutOfStepError: It is not there in time.
            BaseException: Whatever the network raised.
        """
        if self.ident is None:
            self.start()
        self._turn.release()
        if not self._waits.acquire(timeout=patience):
            raise OutOfStepError("a part of a batch waits for what another one holds")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Makes it end at its next meeting; whoever waits for it calls `join`."""
        self._stopped = True
        self._turn.release()

    def run(self) -> None:
        self._turn.acquire()
        try:
            if not self._stopped:
                self._context.run(self._walk)
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        self.place = self.x = None
        self._waits.release()

    def _walk(self) -> None:
        with self._surroundings(), torch.no_grad():
            self.output = call(self._model, self._inputs)

    def wait(self, module: nn.Module, x: Tensor) -> None:
        if self._stopped:
            raise _Stopped
        self.place, self.x = module, x
        self._waits.release()
        self._turn.acquire()
        self.x = None
        if self._stopped:
            raise _Stopped


def _wait(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    walk = threading.current_thread()
    if isinstance(walk, _Walk):
        walk.wait(module, layer_input(arguments, named))


@contextmanager
def _ended(walks: Sequence[_Walk]) -> Iterator[None]:
    try:
        yield
    finally:
        running = [walk for walk in walks if walk.is_alive()]
        for walk in running:
            walk.stop()
        for walk in running:  # once all are told: one may hold what another one waits for
            walk.join()


def _surroundings() -> Callable[[], ExitStack]:
    """Default device, stream, autocast and inference mode, which torch keeps for each thread."""
    device = torch.empty(0).device  # torch 2.6 cannot be asked once it was set and taken back
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    inference = torch.is_inference_mode_enabled()
    casts = {
        kind: torch.get_autocast_dtype(kind)
        for kind in ("cpu", "cuda")
        if torch.is_autocast_enabled(kind)
    }

    def enter() -> ExitStack:
        stack = ExitStack()
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))
        if device.type != "cpu":
            stack.enter_context(device)
        if inference:
            stack.enter_context(torch.inference_mode())
        for kind, dtype in casts.items():
            stack.enter_context(torch.autocast(kind, dtype))
        return stack

    return enter
