"""What calibration batches say is measured once, and is the same whoever asks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from blocks import image
from fitting import Deep, trained_like
from torch import Tensor, nn

import mdcp_fast
from mdcp_fast.pruning import calibration_data
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.input_moments import collect_grams
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


class Stream(nn.Module):
    """A linear stream between blocks, as in MobileNetV2, and a concatenation of it and others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.wide, self.norm = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)
        self.narrow, self.bn = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.side, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(12, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.bn(self.narrow(self.norm(self.wide(y)).relu()))
        y = self.last(torch.cat([y, self.side(x)], 1)).relu()
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(trained_like(Stream()), image(batch=1))


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return [*image(batch=36).split(12)]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_what_is_shared_gives_the_same_plan_and_network_as_batches(
    graph: ChannelGraph, batches: list[Tensor]
) -> None:
    plan = mdcp_fast.search(graph, macs=0.6, calibration=batches)
    small = mdcp_fast.prune(graph, plan, calibration=batches)
    assert any(axis.rotated for axis in plan.axes)
    data = CalibrationData.read(graph, batches)
    for _ in range(2):  # as often as one likes
        again = mdcp_fast.search(graph, macs=0.6, calibration=data)
        assert again == plan
        assert same(mdcp_fast.prune(graph, again, calibration=data), small)
    one_stream = mdcp_fast.search(graph, macs=0.6, calibration=data, rotate=False)
    assert one_stream == mdcp_fast.search(graph, macs=0.6, calibration=batches, rotate=False)
    assert same(
        mdcp_fast.prune(graph, one_stream, calibration=data),
        mdcp_fast.prune(graph, one_stream, calibration=batches),
    )


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the measurements, each time that one is made."""
    made: list[str] = []

    def counted(name: str, measure: Callable[..., object]) -> Callable[..., object]:
        def count(*given: object, **named: object) -> object:
            made.append(name)
            return measure(*given, **named)

        return count

    for name in ("collect_grams", "output_fisher"):
        measure = counted(name, getattr(calibration_data, name))
        monkeypatch.setattr(calibration_data, name, measure)
    return made


def test_search_and_prune_measure_once(
    graph: ChannelGraph, batches: list[Tensor], passes: list[str]
) -> None:
    data = CalibrationData.read(graph, batches)
    plans = mdcp_fast.search(graph, macs=[0.5, 0.6], calibration=data)
    for plan in plans:
        mdcp_fast.prune(graph, plan, calibration=data)
    # Most of the images, and those that are held out.
    assert passes.count("collect_grams") == 2 and passes.count("output_fisher") == 1


@torch.no_grad()
def test_what_layers_read_in_other_bases_follows_from_what_they_read(
    graph: ChannelGraph, batches: list[Tensor]
) -> None:
    exact = graph.with_model(trained_like(Stream()).double())
    data = CalibrationData(exact, [(batch.double(),) for batch in batches])
    rotation, _ = data.rotation()
    assert rotation.bases
    rotated = data.rotated(rotation)
    anew, _ = collect_grams(rotation.graph, data.parts[0])
    assert [one.weight for one in rotated.consumers] == [one.weight for one in anew]
    for one, other in zip(rotated.consumers, anew, strict=True):
        for centred in (False, True):
            pairs = zip(one.moments(centred), other.moments(centred), strict=True)
            for found, wanted in pairs:
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_flattened_inputs_in_other_bases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 8), nn.ReLU())
    model = model.append(nn.Linear(8, 3)).eval().double()
    x = image(batch=16).double()
    graph = trace(model, x[:1])
    data = CalibrationData.read(graph, [x])
    rotation, _ = data.rotation()
    assert list(rotation.bases) == [0]
    for found, other in zip(
        data.rotated(rotation).consumers,
        collect_grams(rotation.graph, data.parts[0])[0],
        strict=True,
    ):
        wanted = other.moments(True)[0]
        torch.testing.assert_close(found.moments(True)[0], wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_blocks_of_float32_are_as_good_as_float64() -> None:
    """Far from zero, too: what is summed in float32 lies about a pivot."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    model[0].bias.fill_(100.0)
    x = image(batch=64, size=8)
    graph = trace(model, x[:1])
    (one,) = collect_grams(graph, [(part,) for part in x.split(9)])[0]
    rows = model[0](x).movedim(1, -1).flatten(0, -2).double()
    wanted = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)
    scale = wanted.diagonal().sqrt()
    error = (one.moments(True)[0][0] - wanted) / scale / scale.unsqueeze(1)
    assert error.abs().max() < 1e-5
    assert ((one.moments(True)[1][0] - rows.mean(0)) / scale).abs().max() < 1e-5


@torch.no_grad()
def test_of_large_images_positions_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    monkeypatch.setattr("mdcp_fast.pruning.input_moments.POSITIONS", 256)
    x = torch.randn(40, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x[:1])

    one, again = (collect_grams(graph, [(x,)])[0][0] for _ in range(2))
    drawn = one.moments(True)[0]
    assert one.samples == 40 * 256 < 40 * 1600
    assert torch.equal(drawn, again.moments(True)[0])
    rows = model[:2](x).movedim(1, -1).flatten(0, -2).double()
    wanted = torch.cov(rows.T, correction=0)
    assert (drawn[0] - wanted).norm() < 0.03 * wanted.norm()


def test_other_graphs_and_missing_labels_are_refused(
    graph: ChannelGraph, batches: list[Tensor]
) -> None:
    data = CalibrationData.read(graph, batches)
    other = trace(trained_like(Deep()), image(batch=1))
    with pytest.raises(ValueError, match="CalibrationData of this graph"):
        mdcp_fast.search(other, macs=0.5, calibration=data)
    plan = mdcp_fast.search(other, macs=0.5)
    with pytest.raises(ValueError, match="CalibrationData of this graph"):
        mdcp_fast.prune(other, plan, calibration=data)
    with pytest.raises(ValueError, match="expected labels"):
        mdcp_fast.search(
            graph, macs=0.5, calibration=data, evaluator=mdcp_fast.RefitEvaluator(labels=True)
        )
