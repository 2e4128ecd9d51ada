"""Describes every channel of every axis by a few numbers: the points that get clustered."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdcp_fast.graph import ChannelGraph
from mdcp_fast.ops._arguments import MAX_DIMENSIONS
from mdcp_fast.ops.statistics import channel_statistics


class Descriptors(NamedTuple):
    """The channels of all axes as points, packed axis after axis.

    Attributes:
        points: float32 [N, D], N the sum of the axes' channels; columns an axis does not use are 0.
        offsets: int64 [axes + 1], bounds of each axis's points.
        norms: float32 [N], Euclidean norm of each channel's weights over all layers that write it.
    """

    points: Tensor
    offsets: Tensor
    norms: Tensor


def moments(graph: ChannelGraph) -> Descriptors:
    """Mean, variance and cosine distance to the all-ones vector of every channel's weights.

    An axis that several layers write (a residual stream) is described by the numbers of them all.
    Each number is standardised over its axis: zero mean, unit variance, zero where it is constant.
    More than 16 numbers are reduced to 16 by principal components.

    Source: the descriptor of Sun et al., "A Clustering Pruning Method Based on Multidimensional
    Channel Information", Neural Processing Letters 2024.

    Args:
        graph: What `trace` returned.

    Returns:
        Points of dimension D <= 16.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    matrices = [graph.weights(axis) for axis in graph.axes]
    statistics = iter(channel_statistics([weights for axis in matrices for weights in axis]))
    described = [
        _reduced(torch.cat([_standardised(next(statistics)) for _ in axis], 1)) for axis in matrices
    ]
    norms = [
        torch.stack([weights.double().square().sum(1) for weights in axis]).sum(0).sqrt().float()
        for axis in matrices
    ]
    width = max((points.shape[1] for points in described), default=1)
    padded = [torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in described]
    sizes = torch.tensor([0] + [len(points) for points in described])
    return Descriptors(torch.cat(padded), sizes.cumsum(0), torch.cat(norms))


def _standardised(columns: Tensor) -> Tensor:
    """Columns of zero mean and unit variance, in float64; a constant one becomes zeros."""
    columns = columns.double()
    centred = columns - _column_means(columns)
    deviation = _column_means(centred.square()).sqrt()
    # Rounding alone makes a constant column vary by a few units in the last place of float32.
    varies = deviation > 1e-6 * columns.abs().amax(0)
    return torch.where(
        varies, centred / deviation.where(varies, torch.ones((), dtype=torch.float64)), 0.0
    )


def _column_means(columns: Tensor) -> Tensor:
    """Means of correctly rounded sums: the same bits at any number of threads and SIMD width."""
    sums = [math.fsum(column) for column in columns.T.tolist()]
    return torch.tensor(sums, dtype=torch.float64) / max(len(columns), 1)


def _reduced(points: Tensor) -> Tensor:
    """float64 [C, D] -> float32 [C, at most 16]: the principal components of largest variance."""
    if points.shape[1] > MAX_DIMENSIONS:
        # einsum without BLAS adds in one thread: the same bits whatever the number of threads.
        matrix = points.numpy()
        covariance = np.einsum("cd,ce->de", matrix, matrix, optimize=False)
        _, vectors = np.linalg.eigh(covariance)
        vectors = vectors[:, ::-1][:, :MAX_DIMENSIONS]
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
        points = torch.from_numpy(
            np.einsum("cd,de->ce", matrix, vectors * np.sign(largest), optimize=False)
        )
    return points.float()
