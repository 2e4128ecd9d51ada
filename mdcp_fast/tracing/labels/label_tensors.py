"""Label tensors: int64, of a value's full shape, kept as stride-0 views of their smallest form.

Label 0 means "no channel of its own": padding, constants, the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def none(shape: Sequence[int]) -> Tensor:
    """Labels of a value without channels."""
    return torch.zeros((), dtype=torch.int64).expand(tuple(shape))


def spread(labels: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Labels of a value of `shape` whose channels, `labels` [shape[dim]], lie along `dim`."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(tuple(shape))


def unexpanded(labels: Tensor) -> Tensor:
    """Undoes `expand`: size 1 along every stride-0 dimension."""
    for d, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(d, 0, 1)
    return labels


def varies(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along `dim`."""
    if labels.shape[dim] < 2 or labels.stride(dim) == 0:
        return False
    small = unexpanded(labels)
    return not bool((small == small.narrow(dim, 0, 1)).all())


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which labels differ."""
    return [d for d in range(labels.dim()) if varies(labels, d)]


def compact(labels: Tensor) -> Tensor:
    """The smallest tensor that expands to `labels`: size 1 wherever they do not differ."""
    labels = unexpanded(labels)
    for d in range(labels.dim()):
        if not varies(labels, d):
            labels = labels.narrow(d, 0, min(1, labels.shape[d]))
    return labels


def settled(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """`labels` as a view of their compact form, expanded to `shape`."""
    return compact(labels).expand(tuple(shape))


def reshaped(labels: Tensor, target: Sequence[int]) -> Tensor:
    """`labels.reshape(target)`, leaving alone the dimensions that both shapes begin or end with.

    A reshape of a stride-0 view would otherwise write out labels for every position of an image.
    """
    source, small, target = labels.shape, compact(labels), tuple(target)
    if math.prod(source) == 0:
        return none(target)
    limit = min(len(source), len(target))
    front = 0
    while front < limit and source[front] == target[front] and small.shape[front] == 1:
        front += 1
    back = 0
    while (
        back < limit - front
        and source[-1 - back] == target[-1 - back]
        and small.shape[-1 - back] == 1
    ):
        back += 1
    inner = slice(front, len(source) - back)
    middle = small.reshape(small.shape[inner]).expand(source[inner])
    middle = middle.reshape(target[front : len(target) - back])
    return settled(middle.reshape((1,) * front + tuple(middle.shape) + (1,) * back), target)
