"""Runs a network whose later layers change without what comes before them, which is known.

Modules that have ended before the first changed one begins are answered for: they return copies of
what they returned. The largest such modules are, so that a network of blocks keeps little more than
what goes from block to block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call, eval_mode, preserve_buffers, tensors_in
from mdcp_fast.modules.hooks import forward_hooks

Known = Mapping[nn.Module, Tensor]


@dataclass
class _Call:
    """When a module ran, and whether its answer can be given for it.

    Attributes:
        begin, end: Counted over all modules.
        count: How often it ran.
        plain: Whether it has no hooks, changes no input in place and returns a tensor of its own.
        numbers: Of the tensor that it returned.
    """

    begin: int
    end: int = 0
    count: int = 0
    plain: bool = False
    numbers: int = 0


class KnownStart:
    """Which parts of a network come before others.

    Args:
        model: The network; only its way through `inputs` is looked at.
        inputs: Its arguments.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model = model
        self._calls: dict[nn.Module, _Call] = {}
        versions: dict[nn.Module, list[int]] = {}
        clock, hooked = 0, {m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks}

        def enter(module: nn.Module, *arguments: Any) -> None:
            nonlocal clock
            clock += 1
            self._calls.setdefault(module, _Call(clock)).count += 1
            versions[module] = _versions(arguments)

        def leave(module: nn.Module, *arguments: Any) -> None:
            nonlocal clock
            clock += 1
            one, (*given, output) = self._calls[module], arguments
            one.end = clock
            if not isinstance(output, Tensor):
                return
            one.numbers = output.numel()
            unchanged = -1 not in versions[module] and versions[module] == _versions(given)
            shared = {x.untyped_storage()._cdata for x in tensors_in(given)}
            own = output.untyped_storage()._cdata not in shared
            one.plain = module not in hooked and unchanged and own

        modules = list(model.modules())
        with (
            forward_hooks([(module, enter) for module in modules], before=True),
            forward_hooks([(module, leave) for module in modules], before=False),
            eval_mode(model),
            preserve_buffers(model),
            torch.no_grad(),
        ):
            call(model, inputs)

    def before(self, names: Collection[str]) -> list[nn.Module]:
        """The largest modules that have ended before any module with one of these tensors begins.

        Args:
            names: Of parameters and buffers.

        Returns:
            Those that can be answered for; none where one of the tensors is of a module that is not
            called, since it is not known what uses it.
        """
        changed = [self._model.get_submodule(name.rpartition(".")[0]) for name in names]
        if any(module not in self._calls for module in changed):
            return []
        first = min((self._calls[module].begin for module in changed), default=0)
        found: dict[nn.Module, None] = {}

        def look(module: nn.Module) -> None:
            one = self._calls.get(module)
            if one is not None and one.plain and one.count == 1 and one.end < first:
                found[module] = None
            elif one is None or one.begin < first:
                for child in module.children():
                    look(child)

        look(self._model)
        return list(found)

    def begin(self, names: Collection[str]) -> int:
        """When the first module with one of these tensors begins; 0 where that is not known."""
        changed = [self._model.get_submodule(name.rpartition(".")[0]) for name in names]
        calls = [self._calls.get(module) for module in changed]
        return min((0 if one is None else one.begin for one in calls), default=0)

    def numbers(self, modules: Collection[nn.Module]) -> int:
        """How many numbers these modules returned."""
        return sum(self._calls[module].numbers for module in modules)


def _versions(arguments: Any) -> list[int]:
    """How often each tensor in them was changed in place; -1 for those that do not count it."""
    return [-1 if x.is_inference() else x._version for x in tensors_in(arguments)]


@contextmanager
def remembered(modules: Collection[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What modules return meanwhile: copies, since what follows may change it in place."""
    known: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, arguments: Any, named: Any, output: Tensor) -> None:
        known[module] = output.clone()

    with forward_hooks([(module, see) for module in modules], before=False):
        yield known


@contextmanager
def answered(known: Known) -> Iterator[None]:
    """Modules return copies of what is known of them, and do not run."""
    with ExitStack() as stack:
        for module, output in known.items():
            stack.enter_context(_answering(module, output))
        yield


@contextmanager
def _answering(module: nn.Module, output: Tensor) -> Iterator[None]:
    own = vars(module).get("forward")
    vars(module)["forward"] = lambda *_, **__: output.clone()
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own
