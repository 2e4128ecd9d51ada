"""The selection table: clusters and crowding distance at every width of every axis, and the loss.

pytest benchmarks/speed/bench_selection.py -s [--threads 2]

No library has its like; beside it stands the same by scikit-learn and pymoo, a job at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pruned_networks import NETWORKS, traced
from torch import Tensor

from mdcp_fast.planning.descriptors import Descriptors, moments
from mdcp_fast.planning.loss_table import loss_table
from mdcp_fast.planning.selection import select

pytestmark = pytest.mark.usefixtures("threads")
Compare = Callable[..., dict[str, Any]]
TWO_TO_A_CLUSTER = 2.0


def every_width(descriptors: Descriptors) -> list[Tensor]:
    return [torch.arange(1, n + 1) for n in descriptors.offsets.diff().tolist()]


@pytest.mark.parametrize("name", NETWORKS)
def test_table(compare: Compare, name: str) -> None:
    """Descriptors and table, as `search` makes them."""
    graph = traced(name)

    def run() -> Any:
        descriptors = moments(graph)
        return loss_table(descriptors, every_width(descriptors))

    values, offsets = run().values, run().offsets
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        own = values[begin:end]
        assert own.min() >= 0 and own[-1] == 0 and (own.diff() <= 0).all()
    compare(run, rounds=5)


def test_one_selection(compare: Compare) -> None:
    """Half of every axis of ResNet-50, two channels to a cluster."""
    descriptors = moments(traced("resnet50"))
    channels = descriptors.offsets.diff()
    axis, width = torch.arange(len(channels)), channels // 2

    def run() -> Any:
        return select(descriptors, axis, width, channels_per_cluster=TWO_TO_A_CLUSTER)

    chosen = run()
    clusters = chosen.clusters.split(channels.tolist())
    for own, kept in zip(clusters, chosen.kept.split(width.tolist()), strict=True):
        assert set(own.tolist()) == set(own[kept].tolist())  # every cluster keeps a channel

    def peers() -> Callable[[], Any]:
        from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
        from sklearn.cluster import KMeans

        tables = [own.numpy() for own in descriptors.points.split(channels.tolist())]

        def one(table: Any, kept: int) -> Any:
            k = int(np.ceil(kept / TWO_TO_A_CLUSTER))
            labels = KMeans(k, n_init=1, random_state=0).fit(table).labels_
            return [calc_crowding_distance(table[labels == own]) for own in range(k)]

        return lambda: [
            one(table, kept) for table, kept in zip(tables, width.tolist(), strict=True)
        ]

    compare(run, {"scikit-learn and pymoo without the quotas": peers})
