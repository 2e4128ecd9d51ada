"""Multiply-accumulates of the ops that torch's own counter does not know, and what none knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Shape = Sequence[int]


def _matrix_vector(matrix: Shape, vector: Shape, *rest: Any, **_: Any) -> int:
    return math.prod(matrix)


def _added_matrix_vector(added: Shape, matrix: Shape, *rest: Any, **_: Any) -> int:
    return math.prod(matrix)


def _dot(left: Shape, right: Shape, **_: Any) -> int:
    return math.prod(left)


def _added_products(added: Shape, left: Shape, right: Shape, *rest: Any, **_: Any) -> int:
    return math.prod(left) * right[-1]


def _distances(left: Shape, right: Shape, *rest: Any, **_: Any) -> int:
    return math.prod(left) * right[-2]


def _bilinear(left: Shape, weight: Shape, right: Shape, *rest: Any, **_: Any) -> int:
    """Of an einsum of three tensors in general; here y = left^T weight right, once per sample."""
    return math.prod(left) // max(left[-1], 1) * math.prod(weight)


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _deformed(x: Shape, weight: Shape, *rest: Any, out_shape: Shape, **_: Any) -> int:
    return math.prod(out_shape) * math.prod(weight[1:])


def _rnn_layer(x: Shape, weight_ih: Shape, weight_hh: Shape, *rest: Any, **_: Any) -> int:
    """One direction of one layer: [length, batch, inputs], every gate at every step."""
    return x[0] * x[1] * (math.prod(weight_ih) + math.prod(weight_hh))


def _rnn(x: Shape, weights: Sequence[Shape], *rest: Any, **_: Any) -> int:
    """All layers and directions at once, as cuDNN has them."""
    return math.prod(x[:-1]) * sum(math.prod(one) for one in weights if len(one) == 2)


def _heads(query: Shape, key: Shape, value: Shape, embed_dim: int, *rest: Any, **_: Any) -> int:
    """Projections in and out of multi-head attention, and the attention."""
    batch, length, _channels = query
    return batch * length * embed_dim * (4 * embed_dim + 2 * key[1])


def _encoder_layer(x: Shape, embed_dim: int, *rest: Any, **_: Any) -> int:
    weights = [one for one in rest if isinstance(one, Sequence) and len(one) == 2]
    projections = sum(math.prod(one) for one in weights if all(isinstance(n, int) for n in one))
    return x[0] * x[1] * (projections + 2 * embed_dim * x[1])


# By namespace and name; of shapes.
FORMULAS: dict[str, Callable[..., int]] = {
    "aten.mv": _matrix_vector,
    "aten.addmv": _added_matrix_vector,
    "aten.dot": _dot,
    "aten.vdot": _dot,
    "aten.addbmm": _added_products,
    "aten._cdist_forward": _distances,
    "aten._trilinear": _bilinear,
    "aten.mkldnn_rnn_layer": _rnn_layer,
    "aten._cudnn_rnn": _rnn,
    "aten.miopen_rnn": _rnn,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_fused_attention_overrideable": _attention,
    "aten._native_multi_head_attention": _heads,
    "aten._transformer_encoder_layer_fwd": _encoder_layer,
    "torchvision.deform_conv2d": _deformed,
}

# Ops of other libraries that multiply nothing, or have a formula.
COUNTED = ("deform_conv2d", "nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
FREE_ALGEBRA = ("norm", "diagonal", "cross", "matmul", "multi_dot", "vecdot", "tensorinv")
ALGEBRA = (
    *("inverse", "pinverse", "cholesky", "cholesky_inverse", "cholesky_solve", "triangular_solve"),
    *("lu_solve", "svd", "qr", "matrix_exp", "matrix_power", "logdet", "slogdet", "det", "lstsq"),
    *("stft", "istft"),
)


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """What `torch.utils.flop_counter` takes: of a multiply-accumulate it counts two."""
    found: dict[Any, Callable[..., int]] = {}
    for name, formula in FORMULAS.items():
        namespace, _, op = name.partition(".")
        packet = getattr(getattr(torch.ops, namespace), op, None)
        if packet is not None:
            found[packet] = _doubled(formula)
    return found


def _doubled(formula: Callable[..., int]) -> Callable[..., int]:
    return lambda *shapes, **options: 2 * formula(*shapes, **options)


def is_counted(target: Any) -> bool:
    """Whether an op multiplies nothing that counts, or has a formula.

    Args:
        target: Of a node in a captured graph.
    """
    schema = getattr(target, "_schema", None)
    if schema is None:  # Python's own, or an op that calls graphs
        return True
    namespace, _, name = schema.name.partition("::")
    if namespace not in ("aten", "prim", "prims"):
        return name in COUNTED
    if name.startswith("linalg_"):
        return any(free in name for free in FREE_ALGEBRA)
    return not (name.startswith("fft_") or name in ALGEBRA)
