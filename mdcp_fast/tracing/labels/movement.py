"""Rules of ops that move data: most are run, as they are, on the labels.

No index rule is written for them, so none can be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

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
SELECT = (
    "slice select split split_with_sizes unbind narrow tensor_split unsafe_chunk unsafe_split "
    "hsplit vsplit dsplit"
)
ALONG_POSITIONS = (
    "gather topk sort argsort msort kthvalue cumsum cumprod cummax cummin logcumsumexp "
    "index_select unfold diff"
)
EXACT_SUMS = ("sum", "norm", "linalg_vector_norm")  # in which a zero more or less is nothing
MIXING = ["mean", "amax", "amin", "max", "min", "std", "var", "logsumexp", "std_mean", "var_mean"]
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
    source = walk.labels(call.source)
    if call.name == "expand_as" and not varying(source):
        return walk.labels(call["other"])  # its size follows that of the other
    return source.expand(call.shape)


def along_dims(walk: Walk, call: Call) -> Any:
    """Ops along given dimensions, which move nothing where labels do not differ there."""
    source = walk.labels(call.source)
    dims = call["dims"] if call["dims"] is not None else call["dim"]
    if several_vary(source, as_dims(dims, source.dim())):
        return walk.unknown(call, "channels moved by positions written in the source")
    return compact(source).expand(call.shape)


def along_positions(walk: Walk, call: Call) -> Any:
    """Ops that work along a dimension of positions, each channel by itself."""
    source, value = walk.labels(call.source), call.value
    dim = (-1 if call["dim"] is None else call["dim"]) % source.dim()
    if varies(source, dim):
        return walk.unknown(call, "channels moved by positions that are computed")
    small = compact(source)
    if isinstance(call["index"], Node) and call.name == "gather":
        index = walk.labels(call["index"])
        if varying(index):
            walk.classes.merge(small, index.narrow(dim, 0, 1), f"met a constant, {call.where}")
        else:
            walk.doubt(source, f"sizes written in the source: gather, {call.where}")
    if call.name == "unfold":
        small = small.unsqueeze(-1)
    shaped = [
        small.expand(v.shape) for v in (value if isinstance(value, tuple | list) else [value])
    ]
    return shaped if isinstance(value, (list, tuple)) else shaped[0]


def index(walk: Walk, call: Call) -> Any:
    """x[:, :, rows]: one dimension of positions is indexed by a tensor."""
    source, indices = walk.labels(call.source), call["indices"]
    given = [d for d, one in enumerate(indices) if one is not None]
    chosen = indices[given[0]].meta["val"]
    if len(given) > 1 or chosen.dtype in (torch.bool, torch.uint8) or varies(source, given[0]):
        return walk.unknown(call)
    small = compact(source)
    at = [1] * chosen.dim()
    return small.reshape(*small.shape[: given[0]], *at, *small.shape[given[0] + 1 :]).expand(
        call.shape
    )


def im2col(walk: Walk, call: Call) -> Any:
    """Every channel becomes as many as the patches have positions."""
    source, shape = walk.labels(call.source), call.shape
    dim = len(shape) - 2
    channels = walk.channels(source, dim)
    return spread(channels.repeat_interleave(shape[dim] // len(channels)), shape, dim)


def col2im(walk: Walk, call: Call) -> Any:
    source, shape = walk.labels(call.source), call.shape
    dim = len(shape) - 3
    channels = walk.channels(source, source.dim() - 2).view(shape[dim], -1)
    walk.classes.merge(channels[:, :1], channels, "patches of fixed channels")
    return spread(channels.amax(1), shape, dim)


def repeat_interleave(walk: Walk, call: Call) -> Any:
    source, repeats = walk.labels(call.source), call["repeats"]
    if not isinstance(repeats, int) or call["dim"] is None:
        return along_dims(walk, call)
    dim = call["dim"] % source.dim()
    small = compact(source)
    if varies(source, dim):
        small = small.repeat_interleave(repeats, dim)
    return small.expand(call.shape)


def repeat(walk: Walk, call: Call) -> Any:
    shape = call.shape
    small = compact(walk.labels(call.source))
    small = small[(None,) * (len(shape) - small.dim())]
    times = list(call["repeats"] or call["dims"])
    times = [1] * (len(shape) - len(times)) + times
    return small.repeat([r if small.shape[d] > 1 else 1 for d, r in enumerate(times)]).expand(shape)


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
            equal_parts(walk, source, dim, chunks)
    return list(torch.chunk(source, chunks, dim))


def equal_parts(walk: Walk, source: Tensor, dim: int, count: int) -> None:
    """Channels fall into equal parts, of which each loses the same positions."""
    parts = compact(source).unflatten(dim, (count, -1))
    walk.classes.merge(parts.narrow(dim, 0, 1), parts, "chunks of which one is fixed")


def select(walk: Walk, call: Call) -> Any:
    """Ops that take out parts: equal ones, as chunks, or at positions written in the source."""
    source, value = walk.labels(call.source), call.value
    dim = split_dimension(call, source.dim())
    whole = isinstance(value, Tensor) and value.shape == source.shape
    if varies(source, dim) and not whole:
        small, count = compact(source), parts_of(call, source.shape[dim], dim)
        written = f"sizes written in the source: {call.name}, {call.where}"
        if any(d != dim for d in varying(source)):
            # The channels go on along another dimension: this one must keep its size.
            walk.classes.merge(small.narrow(dim, 0, 1), small, "parts of which one is fixed")
        elif count is not None:
            equal_parts(walk, source, dim, count)
            walk.doubt(source, written)
        else:
            walk.fix(source, written)
    return rerun(call, source)


def split_dimension(call: Call, rank: int) -> int:
    if call.name in ("hsplit", "vsplit", "dsplit"):
        return {"hsplit": min(1, rank - 1), "vsplit": 0, "dsplit": 2}[call.name]
    return int(call["dim"] or 0) % rank


def parts_of(call: Call, size: int, dim: int) -> int | None:
    """Of how many equal parts an op gives one or all; None where they are not equal."""
    value = call.value
    if isinstance(value, (list, tuple)):
        sizes = {part.shape[dim] for part in value}
        return len(value) if len(sizes) == 1 and call.name != "unbind" else None
    if call.name not in ("slice", "narrow") or (call["step"] or 1) != 1:
        return None
    length = value.shape[dim]
    start = call["start"] or 0
    start += size if start < 0 else 0
    equal = length > 0 and start % length == 0 and size % length == 0
    return size // length if equal else None


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
            reason = f"reduced over channels: {call.name}, {call.where}"
            walk.classes.bend(labels, reason)
            if call.name not in (*EXACT_SUMS, *MIXING):
                walk.fix(labels, reason)
            elif call.name in MIXING or call.source not in walk.zeros:
                walk.classes.mix(labels, reason)
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
    **ops("flip roll", along_dims),
    **ops("repeat_interleave", repeat_interleave),
    **ops("repeat tile", repeat),
    **ops(ALONG_POSITIONS, along_positions),
    **ops("index", index),
    **ops("im2col", im2col),
    **ops("col2im", col2im),
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
