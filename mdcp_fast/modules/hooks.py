"""Hooks on modules for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

Hook: TypeAlias = Callable[..., Any]


def layer_input(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """What a layer of torch.nn reads, from the arguments that its hook gets."""
    x: Tensor = arguments[0] if arguments else named["input"]
    return x


@contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, Hook]], *, before: bool) -> Iterator[None]:
    """Calls hooks before or after modules run; they are taken off again whatever happens.

    Args:
        hooks: Modules, each with its hook. Before a module runs, that gets the module, its
            arguments and its named arguments, and may return both kinds changed; afterwards it gets
            the output, too.
        before: Which of the two.
    """
    handles = []
    try:
        for module, hook in hooks:
            handles.append(
                module.register_forward_pre_hook(hook, with_kwargs=True)
                if before
                else module.register_forward_hook(hook, with_kwargs=True)
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
