"""Whether a network computes something else in training mode than in evaluation mode."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mdcp_fast.modules.calls import Inputs, call, eval_mode, map_tensors, tensors_in
from mdcp_fast.modules.removal import rebuilt
from mdcp_fast.modules.verification import NothingDropped


def modes_differ(model: nn.Module, inputs: Inputs) -> bool:
    """Whether other operations run in training mode, dropout and statistics of BatchNorm apart.

    Networks whose classes do not mention the mode are not run; others are, without data. True where
    that cannot be done.

    Args:
        model: Not changed.
        inputs: Example inputs.
    """
    if not any(_mentions_mode(cls) for cls in _classes(model)):
        return False

    def sizes(tensor: Tensor) -> Tensor:
        return tensor.to("meta")

    try:
        twin, given = rebuilt(model, sizes), map_tensors(inputs, sizes)
        return _computed(twin, given, False) != _computed(twin, given, True)
    except Exception:  # whatever the user's forward raises without data
        return True


def _classes(model: nn.Module) -> set[type]:
    found = {cls for module in model.modules() for cls in type(module).__mro__}
    return {cls for cls in found if cls.__module__.split(".")[0] not in ("torch", "builtins")}


def _mentions_mode(cls: type) -> bool:
    functions = [
        getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(cls).values()
    ]
    return any(
        "training" in code.co_names
        for function in functions
        if isinstance(function, types.FunctionType)
        for code in _codes(function.__code__)
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _computed(model: nn.Module, inputs: Inputs, training: bool) -> tuple[Counter[int], list[int]]:
    """What is computed from the inputs, each operation by a hash of all that leads to it."""
    seen = _Operations(model, inputs)
    with torch.no_grad(), eval_mode(model, training), NothingDropped(), _PlainNorms(), seen:
        outputs = call(model, inputs)
    return Counter(seen.found), [seen.hash_of(tensor) for tensor in tensors_in(outputs)]


class _PlainNorms(TorchFunctionMode):
    """BatchNorm, whose mode is a matter of its own, copies what it reads."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.nn.functional.batch_norm:
            return (args[0] if args else (kwargs or {})["input"]).clone()
        return function(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Gives every tensor a hash of how it was computed."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.found: list[int] = []
        self._alive: list[Any] = []  # so that ids stay theirs
        named = [*model.named_parameters(), *model.named_buffers()]
        self._hashes = {id(tensor): hash(name) for name, tensor in named}
        self._from_inputs = {id(tensor) for tensor in tensors_in(inputs)}
        for place, tensor in enumerate(tensors_in(inputs)):
            self._hashes[id(tensor)] = hash(("input", place))

    def hash_of(self, value: Any) -> int:
        if isinstance(value, Tensor):
            return self._hashes.get(id(value), hash(("constant", tuple(value.shape))))
        return hash(repr(value))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        values = tree_flatten((args, kwargs or {}))[0]
        reached = any(id(v) in self._from_inputs for v in values if isinstance(v, Tensor))
        own = hash((str(function), *map(self.hash_of, values)))
        outputs = function(*args, **(kwargs or {}))
        if reached:
            self.found.append(own)
        for place, tensor in enumerate(tensors_in(outputs)):
            self._hashes[id(tensor)] = hash((own, place))
            self._alive.append(tensor)
            if reached:
                self._from_inputs.add(id(tensor))
        return outputs
