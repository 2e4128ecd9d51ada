"""In which order a network's weights lie in memory, told from strides.

A weight of a 1x1 or of a depthwise convolution is contiguous in both formats at once, but its
strides still say which one is meant, and torch chooses kernels by them: such a weight that has lost
the strides of channels_last makes its layer two to four times slower.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of dimensions


def prefers_channels_last(tensors: Iterable[Tensor]) -> bool:
    """Whether a network is meant to be in channels_last: more of its tensors are than are not.

    Only those that are contiguous in one format alone count, if there are any: the strides of the
    others get lost on the way (in files, by indexing).
    """
    told = [one for one in tensors if one.dim() in CHANNELS_LAST]
    sure = [one for one in told if not _fits_both(one)]
    found = [_is_channels_last(one) for one in sure or told]
    return 2 * sum(found) > len(found)


def in_format_of(like: Tensor, tensor: Tensor, *, channels_last: bool = False) -> Tensor:
    """The tensor in the memory format of another one.

    Args:
        like: Says the format, by its strides.
        tensor: Of as many dimensions; returned as it is where its strides are right.
        channels_last: Whether the network prefers that: it decides where `like` fits both formats.
    """
    wanted = torch.contiguous_format
    if _is_channels_last(like) or (
        channels_last and like.dim() in CHANNELS_LAST and _fits_both(like)
    ):
        wanted = CHANNELS_LAST[like.dim()]
    if tensor.stride() == _strides(tensor.shape, wanted):
        return tensor
    # `contiguous` and `to` leave a tensor as it is that is contiguous in both formats.
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=wanted)
    return made.copy_(tensor)


def _is_channels_last(tensor: Tensor) -> bool:
    wanted = CHANNELS_LAST.get(tensor.dim(), torch.contiguous_format)
    last, plain = (_strides(tensor.shape, one) for one in (wanted, torch.contiguous_format))
    return tensor.stride() == last != plain


def _fits_both(tensor: Tensor) -> bool:
    """Whether a tensor of such a shape is contiguous in both formats at once."""
    return tensor.shape[1] == 1 or tensor.shape[2:].numel() == 1


def _strides(shape: torch.Size, memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(shape, device="meta", memory_format=memory_format).stride()
