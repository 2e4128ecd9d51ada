"""What hangs on a network beside its parameters: found, and put back after a run.

Networks write onto themselves while they run: anchors are cached, losses collected, calls counted;
hooks fill dictionaries. What a capture or a calibration leaves there is not the user's.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# What holds nothing that a run could change.
_ATOMS = (
    str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, torch.dtype,
    torch.device, torch.Size, types.BuiltinFunctionType, types.CodeType,
)  # fmt: skip
_CONTAINERS = (dict, list, set, deque)


class Reachable(NamedTuple):
    """What hangs on a network.

    Attributes:
        containers: Dictionaries (those of attributes, too), lists, sets and deques.
        outside: Those of them that hooks and methods alone know: globals and closures.
        tensors: In any of them, parameters and buffers included.
        classes: Of its modules, those of torch apart.
        caches: Functions with `functools.lru_cache` that its classes have or name.
        others: Anything else; what holds something before the objects that hold it.
    """

    containers: list[Any]
    outside: list[Any]
    tensors: list[Tensor]
    classes: list[type]
    caches: list[Any]
    others: list[Any]


def reachable(model: nn.Module) -> Reachable:
    """What a run of a network could write to by way of its modules, their classes and hooks."""
    found = Reachable([], [], [], [], [], [])
    seen: set[int] = set()
    outside = False
    alive: list[Any] = []  # what is seen keeps its id
    left: list[Any] = [model]
    functions: list[types.FunctionType] = []
    while left or functions:
        if not left:  # all that the network itself holds is seen
            left += _held_by(functions.pop())
            outside = True
            continue
        item = left.pop()
        if isinstance(item, _ATOMS) or id(item) in seen:
            continue
        seen.add(id(item))
        alive.append(item)
        if isinstance(item, Tensor):
            found.tensors.append(item)
        elif isinstance(item, _CONTAINERS):
            (found.outside if outside else found.containers).append(item)
            left += _items(item)
        elif isinstance(item, (tuple, frozenset)):
            left += item
        elif isinstance(item, types.FunctionType):
            functions.append(item)
        elif isinstance(item, types.MethodType):
            left += [item.__self__, item.__func__]
        elif isinstance(item, functools.partial):
            left += [item.func, item.args, item.keywords]
        elif hasattr(item, "cache_clear") and hasattr(item, "cache_info"):
            found.caches.append(item)
        else:
            if not isinstance(item, nn.Module):
                found.others.append(item)
                if _is_torchs(type(item)):
                    continue
            attributes = getattr(item, "__dict__", None)
            if isinstance(attributes, dict):
                left.append(attributes)
            if isinstance(item, nn.Module):
                left += _of_classes(type(item), seen, found)
    found.others.reverse()
    return found


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Puts everything back that a run of a network has written onto it: see `reachable`.

    What hooks and methods write to globals and closures stays, unless it holds tensors without
    data, which a capture leaves. Nor are values of parameters put back: nothing that runs under
    this trains.
    """
    before = reachable(model)
    contents = [(one, _copied(one)) for one in before.containers]
    others = [(one, _copied(one)) for one in before.outside]
    values = [
        (tensor, tensor.detach().clone())
        for tensor in before.tensors
        if not isinstance(tensor, nn.Parameter) and _can_be_put_back(tensor)
    ]
    attributes = [(one, dict(vars(one))) for one in before.classes]
    sizes = [(one, one.cache_info().currsize) for one in before.caches]
    try:
        yield
    finally:
        for container, content in contents:
            _put_back(container, content)
        for container, content in others:
            if any(isinstance(x, Tensor) and _is_fake(x) for x in _items(container)):
                _put_back(container, content)
        for owner, content in attributes:
            _put_back_on_class(owner, content)
        for cache, size in sizes:
            if cache.cache_info().currsize != size:
                cache.cache_clear()
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


def _held_by(function: types.FunctionType) -> list[Any]:
    """What a function's closure and defaults hold, and globals that it names and can write to."""
    named = (function.__globals__.get(name) for name in function.__code__.co_names)
    held: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    held += [one for one in named if _is_store(one)]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return held


def _of_classes(cls: type, seen: set[int], found: Reachable) -> list[Any]:
    """What a module's class and its functions hold, if it can be written to."""
    held: list[Any] = []
    for owner in cls.__mro__:
        if id(owner) in seen or owner is object or _is_torchs(owner):
            continue
        seen.add(id(owner))
        found.classes.append(owner)
        for value in list(vars(owner).values()):
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if isinstance(value, types.FunctionType) or _is_store(value):
                held.append(value)
    return held


def _is_store(value: Any) -> bool:
    return isinstance(value, (*_CONTAINERS, Tensor)) or hasattr(value, "cache_clear")


def _is_torchs(cls: type) -> bool:
    return cls.__module__.split(".")[0] in ("torch", "builtins", "_thread")


def _items(container: Any) -> Any:
    return list(container.values()) if isinstance(container, dict) else list(container)


def _copied(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _put_back(container: Any, content: Any) -> None:
    """Gives a container the items that it had, if it has others now."""
    if isinstance(container, dict):
        same = len(container) == len(content) and all(
            a is b and container[a] is content[b] for a, b in zip(container, content, strict=False)
        )
        if not same:
            container.clear()
            container.update(content)
        return
    now = list(container)
    if len(now) == len(content) and all(a is b for a, b in zip(now, content, strict=True)):
        return
    container.clear()
    if isinstance(container, set):
        container.update(content)
    else:
        container.extend(content)


def _put_back_on_class(owner: type, content: Mapping[str, Any]) -> None:
    now = dict(vars(owner))
    for name in now.keys() - content.keys():
        delattr(owner, name)
    for name, value in content.items():
        if name not in now or now[name] is not value:
            setattr(owner, name, value)


def _can_be_put_back(tensor: Tensor) -> bool:
    """Whether a tensor's values can have been changed, and can be written."""
    return not tensor.is_inference() and tensor.layout == torch.strided and not _is_fake(tensor)


def _is_fake(tensor: Tensor) -> bool:
    return tensor.is_meta or type(tensor).__name__ == "FakeTensor"
