"""Describes every channel of every axis by a few numbers: the points that get clustered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.kmeans import MAX_DIMENSIONS
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.folded_weights import folded_weights
from mdcp_fast.pruning.reconstruction import ReconstructionError, errors_from_weights
from mdcp_fast.tracing.graph import ChannelGraph

NUMBERS = ("mean", "variance", "cosine")  # of `moments`, in the order of channel_statistics
EXACT = 512  # channels up to which all eigenvectors are computed
SWEEPS = 12  # of subspace iteration above


class Descriptors(NamedTuple):
    """The channels of all axes as points, packed axis after axis.

    Points that are there already describe a network, too: they are a `Descriptor`.

    Attributes:
        points: float32 [N, D], N the sum of the axes' channels; columns an axis does not use are 0.
        offsets: int64 [axes + 1], bounds of each axis's points.
        norms: float32 [N], Euclidean norm of each channel's weights over all layers that write it.
    """

    points: Tensor
    offsets: Tensor
    norms: Tensor

    def describe(self, graph: ChannelGraph, calibration: CalibrationData | None) -> Descriptors:
        """Themselves."""
        return self


class Descriptor(Protocol):
    """Describes channels by points, which are then clustered: what `Method.descriptor` takes.

    Any object with this method will do. One that also has `reconstruction_errors`, with the same
    arguments, goes with selection="greedy": see `Reconstructs`.
    """

    def describe(self, graph: ChannelGraph, calibration: CalibrationData | None) -> Descriptors:
        """Describes every channel of every axis of a network.

        Args:
            graph: What `trace` returned; `graph.weights(axis)` are the filters of an axis.
            calibration: Batches and what they say of the channels; None without any.

        Returns:
            Points of dimension D <= 16 for all of `graph.axes`, in their order.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A descriptor that also says what is lost of a channel that others replace."""

    def reconstruction_errors(
        self, graph: ChannelGraph, calibration: CalibrationData | None
    ) -> Sequence[Sequence[ReconstructionError]]:
        """For every axis at least one error."""
        ...


class Moments:
    """The paper's three numbers: see `moments`."""

    def describe(self, graph: ChannelGraph, calibration: CalibrationData | None) -> Descriptors:
        return moments(graph)


class Weights:
    """The filters that write a channel, BatchNorm folded in: see `weights`."""

    def describe(self, graph: ChannelGraph, calibration: CalibrationData | None) -> Descriptors:
        return weights(graph)

    def reconstruction_errors(
        self, graph: ChannelGraph, calibration: CalibrationData | None
    ) -> Sequence[Sequence[ReconstructionError]]:
        return errors_from_weights(graph)


class Responses:
    """What a channel adds to the outputs of the layers that read it: see `responses`."""

    def describe(self, graph: ChannelGraph, calibration: CalibrationData | None) -> Descriptors:
        return responses(graph, self.reconstruction_errors(graph, calibration))

    def reconstruction_errors(
        self, graph: ChannelGraph, calibration: CalibrationData | None
    ) -> Sequence[Sequence[ReconstructionError]]:
        if calibration is None:
            raise ValueError(
                "search: calibration: expected batches, since descriptor='responses' is measured "
                "on them, got None"
            )
        return calibration.reconstruction_errors


DESCRIPTORS: dict[str, Descriptor] = {
    "moments": Moments(),
    "weights": Weights(),
    "responses": Responses(),
}


def moments(graph: ChannelGraph, numbers: Sequence[str] = NUMBERS) -> Descriptors:
    """Mean, variance and cosine distance to the all-ones vector of every channel's weights.

    An axis that several layers write (a residual stream) is described by the numbers of them all.
    Each number is standardised over its axis: zero mean, unit variance, zero where it is constant.
    More than 16 numbers are reduced to 16 by principal components.

    Source: the descriptor of Sun et al., "A Clustering Pruning Method Based on Multidimensional
    Channel Information", Neural Processing Letters 2024.

    Args:
        graph: What `trace` returned.
        numbers: Which of "mean", "variance" and "cosine" to use.

    Returns:
        Points of dimension D <= 16.

    Raises:
        ValueError: A weight is NaN or infinite, or a number is unknown.
    """
    unknown = [name for name in numbers if name not in NUMBERS]
    if unknown or not numbers:
        raise ValueError(
            f"moments: numbers: expected some of {', '.join(NUMBERS)}, got {list(numbers)}"
        )
    columns = [NUMBERS.index(name) for name in numbers]
    matrices = [graph.weights(axis) for axis in graph.axes]
    statistics = iter(channel_statistics([weights for axis in matrices for weights in axis]))
    described = [
        _reduced(torch.cat([_standardised(next(statistics)[:, columns]) for _ in axis], 1))
        for axis in matrices
    ]
    norms = [
        torch.stack([weights.double().square().sum(1) for weights in axis]).sum(0).sqrt().float()
        for axis in matrices
    ]
    return packed(described, norms)


def weights(graph: ChannelGraph) -> Descriptors:
    """The filters that write each channel, BatchNorm's scale folded in, as principal components.

    An axis that several layers write (a residual stream) is described by the filters of them all,
    each layer's scaled to the same spread.

    Args:
        graph: What `trace` returned.

    Returns:
        Points of dimension D <= 16: distances are those of the filters, as far as so many
        dimensions can hold them.

    Raises:
        ValueError: A weight or a statistic of BatchNorm is NaN or infinite.
    """
    described, norms = [], []
    for axis in graph.axes:
        kernel = torch.zeros(axis.channels, axis.channels, dtype=torch.float64)
        total = torch.zeros(axis.channels, dtype=torch.float64)
        for rows in folded_weights(graph, axis):
            if not bool(rows.isfinite().all()):
                raise ValueError(
                    f"search: descriptor: expected finite weights in {axis.name}, got NaN or "
                    "infinities"
                )
            centred = rows - _column_means(rows)
            with _one_thread():
                product = centred @ centred.T
            kernel += product / product.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
            total += rows.square().sum(1)
        described.append(embedded(kernel))
        norms.append(total.sqrt().float())
    return packed(described, norms)


def responses(graph: ChannelGraph, errors: Sequence[Sequence[ReconstructionError]]) -> Descriptors:
    """What each channel adds to the outputs of the layers that read it, as principal components.

    Distances are those of the channels' contributions on the calibration batches, weighted by how
    much each output matters where that was measured, and summed over the layers.

    Args:
        graph: What `trace` returned.
        errors: Of every axis, at least one each.

    Returns:
        Points of dimension D <= 16.
    """
    described, norms = [], []
    for axis, own in zip(graph.axes, errors, strict=True):
        kernel = torch.stack([_by_channel(one, axis.channels) for one in own]).sum(0)
        described.append(embedded(kernel))
        norms.append(kernel.diagonal().clamp_min(0).sqrt().float())
    return packed(described, norms)


def _by_channel(error: ReconstructionError, channels: int) -> Tensor:
    """Its kernel with a channel's entries added up: float64 [channels, channels]."""
    kernel = error.kernel.cpu()
    return kernel.view(channels, len(kernel) // channels, channels, -1).sum((1, 3))


def packed(described: Sequence[Tensor], norms: Sequence[Tensor]) -> Descriptors:
    """Descriptors from the points [channels, any D] and norms [channels] of each axis."""
    width = max((points.shape[1] for points in described), default=1)
    padded = [torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in described]
    sizes = torch.tensor([0] + [len(points) for points in described])
    return Descriptors(torch.cat(padded), sizes.cumsum(0), torch.cat(list(norms)))


def embedded(kernel: Tensor) -> Tensor:
    """Points whose inner products are the kernel's, as far as 16 dimensions can hold them.

    Args:
        kernel: float64 [C, C], positive semidefinite.

    Returns:
        float32 [C, min(C, 16)], each coordinate signed such that its largest entry is positive.
    """
    dimensions = min(len(kernel), MAX_DIMENSIONS)
    with _one_thread():
        if len(kernel) <= EXACT:
            values, vectors = torch.linalg.eigh(kernel)
        else:
            values, vectors = _leading(kernel, 2 * dimensions)
    values, vectors = values.flip(0)[:dimensions], vectors.flip(1)[:, :dimensions]
    points = vectors * values.clamp_min(0).sqrt()
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    return torch.where(largest < 0, -points, points).float()


def _leading(kernel: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, increasing, and their vectors, by subspace iteration."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(kernel), count, generator=generator, dtype=torch.float64)
    for _ in range(SWEEPS):
        basis, _ = torch.linalg.qr(kernel @ basis)
    values, rotation = torch.linalg.eigh(basis.T @ kernel @ basis)
    return values, basis @ rotation


@contextmanager
def _one_thread() -> Iterator[None]:
    """BLAS adds in another order with other numbers of threads; so the bits stay the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        if len(matrix) < matrix.shape[1]:  # a deep stream of few channels: the smaller side
            return embedded(torch.from_numpy(np.einsum("cd,bd->cb", matrix, matrix)))
        covariance = np.einsum("cd,ce->de", matrix, matrix, optimize=False)
        _, vectors = np.linalg.eigh(covariance)
        vectors = vectors[:, ::-1][:, :MAX_DIMENSIONS]
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
        points = torch.from_numpy(
            np.einsum("cd,de->ce", matrix, vectors * np.sign(largest), optimize=False)
        )
    return points.float()
