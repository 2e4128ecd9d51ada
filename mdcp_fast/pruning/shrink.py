"""Makes the network that a plan leaves: channels removed, layers fitted, statistics estimated."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from mdcp_fast.modules.removal import Positions, remove
from mdcp_fast.pruning.batch_norm import recalibrate_relatively
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.refit import Refit, refit
from mdcp_fast.tracing.graph import ChannelGraph


class Shrunk(NamedTuple):
    """A smaller network.

    Attributes:
        network: The module, of the same class as the dense one.
        refit: Which layers could be fitted, and which not.
    """

    network: nn.Module
    refit: Refit


def shrink_and_fit(
    graph: ChannelGraph,
    positions: Positions,
    calibration: CalibrationData | None,
    *,
    compensate: bool = True,
    recalibrate: bool = True,
) -> Shrunk:
    """Removes channels and makes up for them: what `prune` does, and what candidates are judged by.

    Args:
        graph: The traced dense network; not changed.
        positions: Kept positions by parameter and dimension. Where nothing goes, nothing is fitted.
        calibration: Of this graph, or None to remove only.
        compensate: Fit the layers whose inputs changed.
        recalibrate: Re-estimate the statistics of BatchNorm.

    Raises:
        ValueError: A BatchNorm gets a single value per channel.
    """
    small, done = remove(graph.model, positions), Refit(set(), set(), set())
    if calibration is None or not positions:
        return Shrunk(small, done)
    batches = list(calibration.batches)
    if compensate or recalibrate:
        done = refit(
            graph,
            small,
            positions,
            batches,
            consumers=calibration.all_consumers if compensate else (),
            compensation=compensate,
            recalibrate=recalibrate,
        )
    if recalibrate:
        recalibrate_relatively(graph.model, small, positions, batches, without=done.norms)
    return Shrunk(small, done)
