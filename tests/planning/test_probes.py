"""Probes: losses of different axes compare as the network's answers do when each is cut alone."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdcp_fast.modules.calls import samples_in
from mdcp_fast.modules.known_start import KnownStart
from mdcp_fast.modules.removal import remove
from mdcp_fast.ops.evaluate_population import LossTable
from mdcp_fast.planning.evaluators import TableEvaluator
from mdcp_fast.planning.probes import (
    UNSEEN,
    WORST,
    _first,
    _probed_widths,
    _scaled,
    answer_difference,
    probed_losses,
)
from mdcp_fast.planning.search import search
from mdcp_fast.planning.selection import Selection
from mdcp_fast.pruning.calibration import calibration_batches
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.compensation import compensate
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


class Branches(nn.Module):
    """Two branches of the same size, of which the answers listen to one a hundred times more."""

    def __init__(self) -> None:
        super().__init__()
        self.loud = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
        self.quiet = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.head.weight[:, :4] *= 10
            self.head.weight[:, 4:] *= 0.1

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x).mean((2, 3)) for branch in (self.loud, self.quiet)]
        return self.head(torch.cat(branches, 1))


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(Branches().eval(), torch.randn(1, 3, 8, 8))


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return list(torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def first_channels(axis: Tensor, width: Tensor) -> Selection:
    kept = torch.cat([torch.arange(int(one)) for one in width])
    return Selection(kept, None, width, width)


def level(graph: ChannelGraph) -> LossTable:
    """A table that says the same of all axes."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), graph.widths.cumsum(0)])
    values = [1 - torch.arange(1, n + 1, dtype=torch.float64) / n for n in graph.widths.tolist()]
    return LossTable(torch.cat(values), offsets)


def probed(graph: ChannelGraph, batches: list[Tensor], probes: int = 2) -> LossTable:
    choices = [torch.arange(1, n + 1) for n in graph.widths.tolist()]
    data = CalibrationData(graph, calibration_batches(graph, batches))
    return probed_losses(graph, level(graph), choices, first_channels, data, probes)


def test_what_the_answers_listen_to_costs_more(graph: ChannelGraph, batches: list[Tensor]) -> None:
    table = probed(graph, batches)
    by_name = {
        axis.name: table.values[int(start) + axis.channels // 2 - 1]
        for axis, start in zip(graph.axes, table.offsets, strict=False)
    }
    assert by_name["loud.0"] > 50 * by_name["quiet.0"]


def test_a_probe_is_the_network_with_that_axis_alone_cut_and_compensated(
    graph: ChannelGraph, batches: list[Tensor]
) -> None:
    table = probed(graph, batches, probes=1)
    fitted = calibration_batches(graph, [b[torch.arange(16) % 4 > 0] for b in batches])
    scored = torch.cat([batch[::4] for batch in batches])
    for index, axis in enumerate(graph.axes):
        width = round(axis.channels * 3 / 4)
        kept = [list(range(n)) for n in graph.widths.tolist()]
        kept[index] = kept[index][:width]
        positions = graph.positions(kept)
        small = remove(graph.model, positions)
        compensate(graph, small, positions, fitted)
        with torch.no_grad():
            ours, dense = (model(scored).double().log_softmax(1) for model in (small, graph.model))
        wanted = float(F.kl_div(ours, dense, reduction="batchmean", log_target=True))
        found = float(table.values[int(table.offsets[index]) + width - 1])
        assert found == pytest.approx(max(wanted, UNSEEN), rel=1e-6)


def test_what_is_known_before_a_cut_changes_nothing(
    graph: ChannelGraph, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probed(graph, batches)
    monkeypatch.setattr(KnownStart, "before", lambda self, names: [])
    assert torch.equal(probed(graph, batches).values, found.values)


class Leaving(nn.Conv2d):
    """Leaves the mean of what it puts out behind."""

    left: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.left = y.mean((1, 2, 3), keepdim=True)
        return y


class ReadsWhatIsLeft(nn.Module):
    """A layer reads what an earlier one left behind, and may take it away."""

    def __init__(self, takes_away: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), Leaving(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.last, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 5)
        self.takes_away = takes_away

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(x).relu()).relu()).relu()
        x = self.last(x * self.b.left).relu()
        if self.takes_away:
            self.b.left = None
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("takes_away", [False, True])
def test_what_layers_leave_behind_is_that_of_the_images_at_hand(
    batches: list[Tensor], monkeypatch: pytest.MonkeyPatch, takes_away: bool
) -> None:
    torch.manual_seed(0)
    model = ReadsWhatIsLeft(True).eval()
    model.head.weight.data *= 1000  # answers differ
    own = trace(model, torch.randn(1, 3, 8, 8), check=False)
    model.takes_away = takes_away
    monkeypatch.setattr("mdcp_fast.planning.probes.KNOWN", 4000)  # few images at a time
    known = list[Collection[str]]()
    found = probed(own, batches)

    def before(self: KnownStart, names: Collection[str]) -> list[nn.Module]:
        known.append(names)
        return []

    monkeypatch.setattr(KnownStart, "before", before)
    torch.testing.assert_close(probed(own, batches).values, found.values, rtol=1e-5, atol=1e-9)
    assert known


@pytest.mark.parametrize("numbers", [1, 2000])
def test_with_little_room_less_is_known_at_a_time(
    graph: ChannelGraph, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    found = probed(graph, batches)
    monkeypatch.setattr("mdcp_fast.planning.probes.KNOWN", numbers)
    torch.testing.assert_close(probed(graph, batches).values, found.values, rtol=1e-4, atol=1e-9)


def test_a_budget_of_everything_probes_nothing(
    graph: ChannelGraph, batches: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdcp_fast.planning.search.probed_losses", None)
    assert search(graph, macs=1.0, calibration=batches).positions == {}


def test_losses_fall_to_nothing(graph: ChannelGraph, batches: list[Tensor]) -> None:
    table = probed(graph, batches)
    for values in table.values.split(graph.widths.tolist()):
        assert bool((values.diff() <= 0).all())
        assert values[-1] == 0 and bool((values[:-1] > 0).all())


def test_the_model_stays_as_it_is(graph: ChannelGraph, batches: list[Tensor]) -> None:
    before = {name: value.clone() for name, value in graph.model.state_dict().items()}
    probed(graph, batches)
    assert all(torch.equal(value, before[n]) for n, value in graph.model.state_dict().items())


def test_searches_cut_what_the_answers_do_not_listen_to(
    graph: ChannelGraph, batches: list[Tensor]
) -> None:
    plan = search(graph, macs=0.6, calibration=batches)
    widths = {axis.name: axis.width for axis in plan.axes}
    assert widths["loud.0"] > widths["quiet.0"]


def test_few_images_and_one_are_enough(graph: ChannelGraph, batches: list[Tensor]) -> None:
    """Where nothing can be held out, all images compensate and score."""
    for count in (1, 3):
        table = probed(graph, [batches[0][:count]])
        assert bool(table.values.isfinite().all())


def test_scaled_losses_pass_through_what_was_measured() -> None:
    losses = torch.linspace(1, 0, 11, dtype=torch.float64)
    scaled = _scaled(losses, torch.tensor([8, 4]), torch.tensor([0.02, 3.0], dtype=torch.float64))
    assert scaled[7] == pytest.approx(0.02) and scaled[3] == pytest.approx(3.0)
    assert bool((scaled.diff() <= 0).all()) and scaled[-1] == 0
    # Beyond them the factor is that of the nearest.
    assert scaled[0] == pytest.approx(3.0 / losses[3] * losses[0])


@pytest.mark.parametrize("losses", [torch.zeros(8), torch.tensor([1e-9, *[0.0] * 7])])
def test_losses_that_say_nothing_are_a_slope(losses: Tensor) -> None:
    measured = torch.tensor([0.1, 0.2], dtype=torch.float64)
    scaled = _scaled(losses.double(), torch.tensor([6, 3]), measured)
    assert bool(scaled.isfinite().all()) and bool((scaled.diff() <= 0).all())
    assert scaled[5] == pytest.approx(0.1) and scaled[2] == pytest.approx(0.2)
    assert float(scaled.max()) < 1000


@pytest.mark.parametrize(
    ("choices", "probes", "wanted"),
    [
        (torch.arange(1, 65), 2, [48, 24]),
        (torch.arange(8, 65, 8), 2, [48, 24]),
        (torch.tensor([64]), 2, []),
        (torch.tensor([1, 2]), 3, [1]),
        (torch.arange(1, 9), 0, []),
    ],
)
def test_widths_that_are_probed(choices: Tensor, probes: int, wanted: list[int]) -> None:
    assert _probed_widths(choices, probes) == wanted


def test_answers_of_classifiers_differ_by_their_divergence_and_others_by_their_variance() -> None:
    logits, other = torch.randn(2, 6, 10)
    wanted = F.kl_div(other.log_softmax(1), logits.log_softmax(1), reduction="sum", log_target=True)
    assert answer_difference([logits], [other]) == pytest.approx(float(wanted), rel=1e-5)
    maps = torch.randn(6, 2, 4, 4) * 100 + 7
    zero = torch.full_like(maps, float(maps.mean()))
    assert answer_difference([maps], [zero]) == pytest.approx(6, rel=1e-5)
    both = answer_difference([maps, logits], [zero, other])
    assert both == pytest.approx(6 + float(wanted), rel=1e-5)
    assert answer_difference([maps, logits], [maps, logits]) == 0
    assert answer_difference([logits], [torch.full_like(logits, math.nan)]) == WORST


def test_samples_are_taken_from_the_first_batches(graph: ChannelGraph) -> None:
    batches = calibration_batches(graph, [torch.randn(4, 3, 8, 8)] * 3)
    assert [samples_in(one) for one in _first(batches, 6)] == [4, 2]
    assert [samples_in(one) for one in _first(batches, 99)] == [4, 4, 4]


def test_numbers_of_probes_are_checked() -> None:
    with pytest.raises(ValueError, match="probes: expected at least 0, got -1"):
        TableEvaluator(probes=-1)
    with pytest.raises(TypeError, match="probes: expected an int, got float"):
        TableEvaluator(probes=0.5)  # type: ignore[arg-type]
