"""Scales a table of losses by what the network answers when one axis at a time is cut.

How much of its input a layer cannot predict says well how the widths of one axis compare, and badly
how axes do: what share of a layer's response is missing says little of where the answers go. In
MobileNetV2 the same share of it costs 25 times as much behind one axis as behind another, since
errors of neighbouring positions add up where they are alike, and layers behind forgive or do not.

So the network is run. Every axis is cut by itself, to a few of its widths; the layers that read it
are compensated from most of the calibration images, as `compensate` does it, and the answers to the
others are compared with the dense network's. The axis's losses are multiplied by a factor that
makes them what was measured at these widths. What cuts do together is about the sum of what each
does alone as long as they are small; so a table can say it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import (
    Inputs,
    call,
    eval_mode,
    map_tensors,
    preserve_buffers,
    samples_in,
    tensors_in,
)
from mdcp_fast.modules.known_start import KnownStart, answered, remembered
from mdcp_fast.modules.removal import rebuilt, removed_meanwhile
from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.planning.judge import logits_loss
from mdcp_fast.planning.loss_table import PLATEAU, piecewise_linear
from mdcp_fast.planning.selection import Chooser
from mdcp_fast.pruning.calibration import TOGETHER, in_parts
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.compensation import absorb_lost_inputs, taking_up
from mdcp_fast.pruning.ridge import TINY
from mdcp_fast.tracing.graph import ChannelGraph

WIDEST = 3 / 4  # of an axis's channels, at the first of its probes
NARROWER = 1 / 2  # of the width before, at each of the others
WORK = 1 << 40  # multiply-accumulates of all probes together that pay for more samples
SAMPLES = (16, 256)  # that a probe is scored on, at least and at most
KNOWN = 1 << 27  # numbers of what runs before the cuts that are kept: 512 MB in float32
UNSEEN = 1e-9  # differences of answers that are rounding
WORST = 1e6  # of answers that are not finite


@torch.no_grad()
def probed_losses(
    graph: ChannelGraph,
    losses: LossTable,
    choices: Sequence[Tensor],
    choose: Chooser,
    calibration: CalibrationData,
    probes: int,
) -> LossTable:
    """A table of losses, scaled by what the network answers when axes are cut.

    Args:
        graph: The traced network; not changed.
        losses: By which the widths of one axis compare.
        choices: For each axis the widths that may be chosen, int64, increasing.
        choose: Says which channels stay.
        calibration: Of this graph. A fourth of the images scores probes, the others compensate for
            what they lack; where nothing can be held out, all do both.
        probes: At how many widths of each axis the network is run.

    Returns:
        For each axis a loss that falls with the width: about how far the answers of the network
        with this axis alone at this width are from the dense ones (see `answer_difference`).
    """
    jobs = [_probed_widths(one, probes) for one in choices]
    if not any(jobs):
        return losses
    most, scored = calibration.parts
    work = graph.macs * sum(map(len, jobs))
    samples = min(max(WORK // max(work, 1), SAMPLES[0]), SAMPLES[1])
    found = _measured(graph, jobs, choose, calibration, _first(scored or most, samples))
    values = []
    for index, widths in enumerate(jobs):
        losses_of_axis = losses.values[int(losses.offsets[index]) : int(losses.offsets[index + 1])]
        differences = torch.tensor([found[index, one] for one in widths], dtype=torch.float64)
        values.append(_scaled(losses_of_axis, torch.tensor(widths), differences))
    return LossTable(torch.cat(values), losses.offsets)


class _Probe(NamedTuple):
    """One axis, cut to one width.

    Attributes:
        job: The axis and the width.
        positions: What stays.
        changed: Names of other tensors that compensation may change.
        known: Modules that run before all that.
        begin: When the first of what changes begins; 0 where that is not known.
    """

    job: tuple[int, int]
    positions: dict[str, dict[int, Tensor]]
    changed: set[str]
    known: list[nn.Module]
    begin: int


def _measured(
    graph: ChannelGraph,
    jobs: Sequence[Sequence[int]],
    choose: Chooser,
    calibration: CalibrationData,
    scored: Sequence[Inputs],
) -> dict[tuple[int, int], float]:
    """What the answers to the scored samples differ by, on average, for each axis and width."""
    twin, parts = rebuilt(graph.model, torch.clone), list(in_parts(scored))
    few = _first(parts, 2)[0]
    start = KnownStart(twin, few)
    probes = [
        _probe(graph, start, (index, width), choose)
        for index, widths in enumerate(jobs)
        for width in widths
    ]
    probes = _certain(twin, probes, few)
    remember = {module: None for probe in probes for module in probe.known}
    together = KNOWN * samples_in(few) // max(start.numbers(remember), 1)
    if together < 1:
        probes, remember = [one._replace(known=[]) for one in probes], {}
    elif together < TOGETHER:
        parts = list(in_parts(scored, together))
    found = dict.fromkeys((probe.job for probe in probes), 0.0)
    for part in parts:
        with remembered(remember) as known:
            dense = float_outputs(twin, part)
        for probe in probes:
            with removed_meanwhile(twin, graph.model, probe.positions, probe.changed):
                absorb_lost_inputs(graph, twin, probe.positions, calibration.consumers)
                with answered({module: known[module] for module in probe.known}):
                    found[probe.job] += answer_difference(dense, float_outputs(twin, part))
    samples = sum(map(samples_in, parts))
    return {job: total / samples for job, total in found.items()}


def _certain(twin: nn.Module, probes: Sequence[_Probe], few: Inputs) -> list[_Probe]:
    """The probes, without what is known before them where the network's answer is another with it.

    So it is where a module leaves something for a later one to read, which is then of the images
    that ran last.

    Args:
        twin: The dense network.
        probes: All.
        few: Some samples.
    """
    with remembered({module: None for probe in probes for module in probe.known}) as known:
        dense = float_outputs(twin, few)
    float_outputs(twin, map_tensors(few, lambda x: x.flip(0) if x.dim() else x))
    right: dict[int, bool] = {}
    # The last to begin comes first: what it does not run has then not seen these samples again.
    for probe in sorted(probes, key=lambda probe: -probe.begin):
        if probe.begin not in right:
            with answered({module: known[module] for module in probe.known}):
                try:
                    right[probe.begin] = all(map(torch.equal, dense, float_outputs(twin, few)))
                except Exception:  # what it reads was taken away again
                    right[probe.begin] = False
    return [one if right[one.begin] else one._replace(known=[]) for one in probes]


def _probe(graph: ChannelGraph, start: KnownStart, job: tuple[int, int], choose: Chooser) -> _Probe:
    kept = [torch.arange(axis.channels) for axis in graph.axes]
    kept[job[0]] = choose(torch.tensor([job[0]]), torch.tensor([job[1]])).kept
    positions = graph.positions([one.tolist() for one in kept])
    changed = taking_up(graph, positions)
    names = {*positions, *changed}
    uses = Counter(one.weight for one in graph.multiplications)
    if any(uses[name] > 1 for name in names):  # which of them comes first, modules do not say
        return _Probe(job, positions, changed, [], 0)
    return _Probe(job, positions, changed, start.before(names), start.begin(names))


def answer_difference(dense: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """How far a network's answers to a batch are from the dense ones, summed over its samples.

    Args:
        dense: The dense network's outputs, those that are floating-point tensors.
        others: The same of another network.

    Returns:
        The sum over the outputs: of [batch, classes] the divergence KL(dense || other) of the class
        probabilities in nats; of any other the squared difference as a share of the dense output's
        variance.
    """
    total = 0.0
    for one, other in zip(dense, others, strict=True):
        if one.dim() == 2 and one.shape[1] > 1:
            difference = logits_loss(other, one)
        else:
            one, other = one.double(), other.double()
            spread = (one - one.mean()).square().mean().clamp_min(torch.finfo(one.dtype).tiny)
            difference = (other - one).square().mean() / spread * (len(one) if one.dim() else 1)
        total += float(difference.nan_to_num(WORST, WORST, WORST).clamp_max(WORST))
    return total


def _probed_widths(choices: Tensor, probes: int) -> list[int]:
    """The choices next to fixed shares of the largest, without it."""
    wanted = float(choices[-1]) * WIDEST * NARROWER ** torch.arange(probes, dtype=torch.float64)
    nearest = (choices.double() - wanted.unsqueeze(1)).abs().argmin(1)
    return sorted({int(choices[i]) for i in nearest} - {int(choices[-1])}, reverse=True)


def _first(batches: Sequence[Inputs], samples: int) -> list[Inputs]:
    """The first samples of all batches: those of the first batches, and of the last a part."""
    chosen = []
    for batch in batches:
        if samples <= 0:
            break
        size, most = samples_in(batch), samples
        chosen.append(
            map_tensors(batch, lambda t, n=size, m=most: t[:m] if t.dim() and len(t) == n else t)
        )
        samples -= size
    return chosen


def float_outputs(model: nn.Module, batch: Inputs) -> list[Tensor]:
    """A network's outputs in evaluation mode, those that are floating-point tensors."""
    with eval_mode(model), preserve_buffers(model):
        return [x for x in tensors_in(call(model, batch)) if x.is_floating_point()]


def _scaled(losses: Tensor, widths: Tensor, differences: Tensor) -> Tensor:
    """An axis's losses times factors that make them what was measured at some widths.

    The logarithm of the factor is linear in that of the loss between these widths, and constant
    outside.

    Args:
        losses: float64 [channels], falling.
        widths: int64 [probes], falling.
        differences: float64 [probes], what was measured.
    """
    if not len(widths):
        return losses
    channels = len(losses)
    slope = 1 - torch.arange(1, channels + 1, dtype=torch.float64) / channels
    # Losses that are level, or nothing, do not say how widths compare.
    sloping = losses + slope * PLATEAU * losses[0].clamp_min(TINY)
    scale = sloping.clamp_min(torch.finfo(sloping.dtype).tiny).log()  # the last is 0
    at = scale[widths - 1]
    factors = piecewise_linear(scale, at, differences.clamp_min(UNSEEN).log() - at)
    scaled = (scale + factors).exp()
    scaled[-1] = 0.0
    return scaled.cummin(0).values
