"""Rules of ops that move data: most are run, as they are, on the labels.

No index rule is written for them, so none can be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mdcp_fast.tracing.labels.elementwise import broadcasting
from mdcp_fast.tracing.labels.label_tensors import (
    compact,
    reshaped,
    settled,
    spread,
    varies,
    varying,
)
from mdcp_fast.tracing.labels.state import Call, Rules, Walk, as_dims, ops, several_vary

# Channels are carried over one by one; the number is how many dimensions follow them.
SPATIAL = {
    **{
        f"{kind}_pool{n}d": n
        for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp")
        for n in (1, 2, 3)
    },
    **{f"{kind}_pool{n}d_with_indices": n for kind in ("max", "adaptive_max") for n in (2, 3)},
    **{f"upsample_nearest{n}d": n for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": n for n in (1, 2, 3)},
    **{f"{mode}_pad{n}d": n for mode in ("reflection", "replication") for n in (1, 2, 3)},
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "_upsample_bilinear2d_aa": 2,
    "upsample_bicubic2d": 2,
    "_upsample_bicubic2d_aa": 2,
    "upsample_trilinear3d": 3,
    "grid_sampler": 2,
    "grid_sampler_2d": 2,
}
RESHAPE = (
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as _reshape_copy"
)
REORDER = "permute transpose t numpy_T movedim moveaxis swapaxes swapdims mT mH adjoint"
SELECT = "slice select split split_with_sizes unbind narrow tensor_split unsafe_chunk unsafe_split"
EXACT_SUMS = ("sum", "norm", "linalg_vector_norm")  # in which a zero more or less is nothing
REDUCE = (
    "mean sum amax amin max min prod std var norm linalg_vector_norm logsumexp argmax argmin "
    "any all median std_mean var_mean"
)


def spatial(walk: Walk, call: Call) -> Any:
    source, value = walk.labels(call.source), call.value
    for other in call.node.all_input_nodes[1:]:  # a sampling grid, say
        walk.fix(walk.labels(other), f"used as positions: {call.name}, {call.where}")
    dim = source.dim() - SPATIAL[call.name] - 1
    channels = walk.channels(source, dim)
    if isinstance(value, (list, tuple)):
        return [spread(channels, v.shape, dim) for v in value]
    return spread(channels, value.shape, dim)


def rerun(call: Call, labels: Tensor) -> Any:
    """The op itself, on labels."""
    op: Any = call.node.target
    result = op(labels, *call.node.args[1:], **call.node.kwargs)
    return list(result) if isinstance(result, (list, tuple)) else result


def reshape(walk: Walk, call: Call) -> Any:
    return walk.split_view(reshaped(walk.labels(call.source), call.shape))


def reorder(walk: Walk, call: Call) -> Any:
    return rerun(call, walk.labels(call.source))


def expand(walk: Walk, call: Call) -> Any:
    return walk.labels(call.source).expand(call.shape)


def along_dims(walk: Walk, call: Call) -> Any:
    """Ops along given dimensions, which move nothing where labels do not differ there."""
    source = walk.labels(call.source)
    dims = call["dims"] if call["dims"] is not None else call["dim"]
    if several_vary(source, as_dims(dims, source.dim())):
        return walk.unknown(call, "channels moved by positions written in the source")
    return compact(source).expand(call.shape)


def repeat(walk: Walk, call: Call) -> Any:
    shape = call.shape
    small = compact(walk.labels(call.source))
    small = small[(None,) * (len(shape) - small.dim())]
    repeats = [r if small.shape[d] > 1 else 1 for d, r in enumerate(call["repeats"])]
    return small.repeat(repeats).expand(shape)


def concatenate(walk: Walk, call: Call) -> Any:
    shape = call.shape
    parts = [walk.labels(part) for part in call["tensors"]]
    parts = [part for part in parts if part.dim() == len(shape)]  # the empty tensor of old
    return joined(walk, parts, call["dim"] % len(shape), shape)


def stack(walk: Walk, call: Call) -> Any:
    dim = call["dim"] % len(call.shape)
    parts = [walk.labels(part).unsqueeze(dim) for part in call["tensors"]]
    return walk.split_view(joined(walk, parts, dim, call.shape))


def joined(walk: Walk, parts: list[Tensor], dim: int, shape: Sequence[int]) -> Tensor:
    sizes = [part.shape[dim] for part in parts]
    small = [compact(part) for part in parts]
    along_positions = all(part.shape[dim] == 1 for part in small)
    if along_positions and any(part.numel() > 1 for part in small):
        # Joined along positions, not channels: the pieces' channels are the same channels.
        merged = small[0]
        for part in small[1:]:
            walk.classes.merge(merged, part, "joined with a constant")
            merged = torch.maximum(*torch.broadcast_tensors(merged, part))
        return merged.expand(tuple(shape))
    wide = [max(part.shape[d] for part in small) for d in range(len(shape))]
    pieces = [
        part.expand([size if d == dim else n for d, n in enumerate(wide)])
        for part, size in zip(small, sizes, strict=True)
    ]
    return settled(torch.cat(pieces, dim), shape)


def chunk(walk: Walk, call: Call) -> Any:
    source, chunks = walk.labels(call.source), call["chunks"]
    dim = call["dim"] % source.dim()
    if varies(source, dim):
        if source.shape[dim] % chunks:
            walk.fix(source, f"unequal chunks, {call.where}")
        else:
            parts = compact(source).unflatten(dim, (chunks, -1))
            walk.classes.merge(parts.narrow(dim, 0, 1), parts, "chunks of which one is fixed")
    return list(torch.chunk(source, chunks, dim))


def select(walk: Walk, call: Call) -> Any:
    """Ops that take out parts at positions written in the source."""
    source, value = walk.labels(call.source), call.value
    dim = (call["dim"] or 0) % source.dim()
    whole = isinstance(value, Tensor) and value.shape == source.shape
    if varies(source, dim) and not whole:
        small = compact(source)
        if any(d != dim for d in varying(source)):
            # The channels go on along another dimension: this one must keep its size.
            walk.classes.merge(small.narrow(dim, 0, 1), small, "parts of which one is fixed")
        else:
            walk.fix(source, f"sizes written in the source: {call.name}, {call.where}")
    return rerun(call, source)


def getitem(walk: Walk, call: Call) -> Any:
    source, index = walk.labels(call.source), call["1"]
    return source[index] if isinstance(source, list) else walk.no_labels(call)


def pad(walk: Walk, call: Call) -> Any:
    """Padding in channels has label 0; pairs of amounts are given from the last dimension on."""
    source, shape, amounts = walk.labels(call.source), call.shape, list(call["pad"])
    small = compact(source)
    for i in range(len(amounts) // 2):
        if small.shape[-1 - i] == 1:  # no channels there
            amounts[2 * i] = amounts[2 * i + 1] = 0
    if not any(amounts):
        return small.expand(shape)
    if min(amounts) < 0 or (call["mode"] or "constant") != "constant":
        return walk.unknown(call, "channels cut off or padded by other channels")
    return settled(nn.functional.pad(small, amounts), shape)


def pixel_shuffle(walk: Walk, call: Call) -> Any:
    source, shape = walk.labels(call.source), call.shape
    channels = walk.channels(source, source.dim() - 3).view(shape[-3], -1)
    walk.classes.merge(channels[:, :1], channels, "a pixel shuffle of fixed channels")
    return spread(channels.amax(1), shape, len(shape) - 3)


def pixel_unshuffle(walk: Walk, call: Call) -> Any:
    source, shape = walk.labels(call.source), call.shape
    channels = walk.channels(source, source.dim() - 3)
    return spread(channels.repeat_interleave(call["downscale_factor"] ** 2), shape, len(shape) - 3)


def channel_shuffle(walk: Walk, call: Call) -> Any:
    source, groups = walk.labels(call.source), call["groups"]
    channels = walk.channels(source, 1)
    walk.tie(channels, groups)
    return spread(channels.view(groups, -1).t().reshape(-1), source.shape, 1)


def reduce(walk: Walk, call: Call) -> Any:
    """Reductions over positions; over a part of a split channel dimension they tie channels."""
    if call["other"] is not None:  # max(x, y)
        return broadcasting(walk, call)
    labels = walk.labels(call.source)
    dims = as_dims(call["dim"], labels.dim())
    if several_vary(labels, dims):
        if all(d in dims for d in varying(labels)):
            walk.fix(labels, f"reduced over channels: {call.name}, {call.where}")
            return walk.no_labels(call)
        small = compact(labels)
        for d in dims:
            walk.classes.merge(small.narrow(d, 0, 1), small, "a maximum over channels, some fixed")
    for d in sorted(dims, reverse=True):
        labels = labels.narrow(d, 0, 1) if call["keepdim"] else labels.select(d, 0)
    return [labels, labels] if isinstance(call.value, (list, tuple)) else labels


RULES: Rules = {
    **ops(" ".join(SPATIAL), spatial),
    **ops(RESHAPE, reshape),
    **ops(REORDER, reorder),
    **ops("expand expand_as", expand),
    **ops("flip roll repeat_interleave", along_dims),
    **ops("repeat", repeat),
    **ops("cat concat concatenate", concatenate),
    **ops("stack", stack),
    **ops("chunk", chunk),
    **ops(SELECT, select),
    **ops("getitem", getitem),
    **ops("pad constant_pad_nd", pad),
    **ops("pixel_shuffle", pixel_shuffle),
    **ops("pixel_unshuffle", pixel_unshuffle),
    **ops("channel_shuffle native_channel_shuffle", channel_shuffle),
    **ops(REDUCE, reduce),
}
