"""Runs a network on several parts of a batch layer by layer: all parts meet before a layer runs.

What needs all samples of a layer's input at once, and changes the layer before it runs, could have
them by running all samples as one batch. That takes memory for several activations of all samples,
and time, since memory of that size comes from the system anew for every layer. In lockstep each
part keeps only what it needs later, and scratch space is that of one part.

Parts run in threads of their own, one at a time, each up to the next layer at which they meet.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call, tensors_in
from mdcp_fast.modules.hooks import forward_hooks, layer_input

Meeting: TypeAlias = Callable[[nn.Module, list[Tensor]], None]


class OutOfStepError(RuntimeError):
    """The parts of a batch went different ways through the network."""


@torch.no_grad()
def run_in_lockstep(
    model: nn.Module, parts: Sequence[Inputs], meetings: Mapping[nn.Module, Meeting]
) -> list[Any]:
    """Runs the network on each part without gradients.

    Args:
        model: The network.
        parts: Its arguments, of one or more parts.
        meetings: What is called each time before a module runs: with the module and what each part
            is about to feed it.

    Returns:
        The output of each part.

    Raises:
        OutOfStepError: The parts do not come to the same modules in the same order.
    """
    walks = [_Walk(model, part) for part in parts]
    with forward_hooks([(module, _wait) for module in meetings], before=True), _ended(walks):
        while True:
            for walk in walks:
                walk.advance()
            places = {walk.place for walk in walks}
            if len(places) > 1:
                raise OutOfStepError("the parts of a batch run through different modules")
            (place,) = places
            if place is None:
                return [walk.output for walk in walks]
            meetings[place](place, [walk.x for walk in walks])


def keeps_step(model: nn.Module, parts: Sequence[Inputs], modules: Sequence[nn.Module]) -> bool:
    """Whether parts in lockstep give what they give alone, bit for bit.

    They do not where a forward leaves tensors on modules for its later layers to read, where the
    way through the network depends on the data, or where numbers are drawn.

    Args:
        model: The network.
        parts: Its arguments, of two or more parts.
        modules: Where they meet.
    """
    with torch.no_grad():
        alone = [call(model, part) for part in parts]
    try:
        together = run_in_lockstep(
            model, parts, dict.fromkeys(modules, lambda module, inputs: None)
        )
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

    def advance(self) -> None:
        """Runs up to the next meeting or the end.

        Raises:
            BaseException: Whatever the network raised.
        """
        if self.ident is None:
            self.start()
        self._turn.release()
        self._waits.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends it, wherever it is."""
        if self.is_alive():
            self._stopped = True
            self._turn.release()
            self.join()

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
        for walk in walks:
            walk.stop()


def _surroundings() -> Callable[[], ExitStack]:
    """What torch keeps for each thread, as it is in this one."""
    device = torch.get_default_device()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def enter() -> ExitStack:
        stack = ExitStack()
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))
        if device.type != "cpu":
            stack.enter_context(device)
        return stack

    return enter
