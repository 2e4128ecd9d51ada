"""What is about a network changes nothing: wrappers, defaults, modes of the caller, compilers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.modules.wrappers import nothing_compiled, unwrapped
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.serialization import load, save
from mdcp_fast.tracing.trace import trace
from mdcp_fast.training.finetune import finetune

IMAGE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
        nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class FakeDistributed(nn.parallel.DistributedDataParallel):
    """One that needs no process group."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


def test_wrappers_are_taken_off() -> None:
    net = network()
    for wrapped in (
        torch.compile(net), nn.DataParallel(net), FakeDistributed(net),
        nn.DataParallel(torch.compile(net)),
    ):  # fmt: skip
        assert unwrapped(wrapped) is net
        graph = trace(wrapped, IMAGE)
        assert graph.model is net and [axis.name for axis in graph.axes] == ["0", "3"]
        assert type(prune(graph, search(graph, macs=0.5))) is nn.Sequential


def test_compiled_parts_run_as_they_were_written() -> None:
    def refuse(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    net = network()
    net[0] = torch.compile(net[0], backend=refuse)
    images = [torch.randn(8, 3, 8, 8)]
    graph = trace(net, IMAGE)
    small = prune(graph, search(graph, macs=0.5, calibration=images), calibration=images)
    with nothing_compiled():
        assert small(IMAGE).shape == (1, 4)


class MakesTensors(nn.Module):
    """Makes a tensor without saying where."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) + torch.ones(1))


@pytest.fixture
def meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("make", [network, MakesTensors])
def test_the_default_device_does_not_matter(
    make: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    net, x, images = make(), IMAGE, torch.randn(8, 3, 8, 8)
    plan = search(trace(net, x), macs=0.5, calibration=[images])
    request.getfixturevalue("meta_by_default")
    graph = trace(net, x)
    again = search(graph, macs=0.5, calibration=[images])
    assert again.to_json() == plan.to_json()
    small = prune(graph, again, calibration=[images])
    assert {p.device.type for p in small.parameters()} == {"cpu"}
    if make is network:
        finetune(small, [images], teacher=net, epochs=1, progress=False)
    save(tmp_path / "small", small, again)
    with torch.device("cpu"):
        dense = make()
    loaded = load(tmp_path / "small", lambda: dense)
    assert torch.equal(loaded(x), small.eval()(x)) if make is network else loaded is not None
    assert torch.get_default_device().type == "meta"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_modes_do_not_matter(mode: Any) -> None:
    images = torch.randn(16, 3, 8, 8)
    data = torch.utils.data.TensorDataset(images, torch.randint(0, 4, (16,)))
    with mode():
        graph = trace(network(), IMAGE)
        small = prune(graph, search(graph, macs=0.5, calibration=[images]), calibration=[images])
        before = small[0].weight.clone()
        finetune(small, data, epochs=1, progress=False)
        assert not torch.equal(small[0].weight, before)
        before = small[0].weight.clone()
        finetune(small, [images], teacher=graph.model, epochs=1, progress=False)
    assert all(p.requires_grad and not p.is_inference() for p in small.parameters())


class TwoModes(nn.Module):
    """Two branches that meet, and more in training mode."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.bn, self.drop = nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.heads = nn.ModuleList([nn.Conv2d(16, 4, 1) for _ in range(2)])
        self.kind, self.loss = kind, torch.zeros(())

    def forward(self, x: Tensor) -> Any:
        f, g = torch.relu(self.bn(self.a(x))), torch.relu(self.b(x))
        if self.kind == "dropout":
            f = nn.functional.dropout(self.drop(f), 0.3, self.training)
        y = self.heads[0](f) + self.heads[1](g)
        if not self.training or self.kind == "dropout":
            return y
        if self.kind == "returns more":
            return y, f
        if self.kind == "returns a loss":
            return y, (f - g).square().mean()
        self.loss = (f - g).square().mean()
        return y


def trained(model: nn.Module, x: Tensor) -> None:
    """One step of training; raises where sizes do not fit."""
    outputs = model.train()(x)
    loss = sum(one.float().sum() for one in (outputs if isinstance(outputs, tuple) else (outputs,)))
    loss.backward()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["returns more", "returns a loss", "keeps a loss", "dropout"])
def test_both_modes_say_what_hangs_together(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    try:
        graph = trace(TwoModes(kind), x)
    except ValueError:  # torch.export refused to have a tensor assigned
        assert kind == "keeps a loss"
        return
    names = {axis.name for axis in graph.axes}
    if kind == "dropout":
        assert names == {"a", "b"}
    if kind == "returns more":
        assert names == {"b"}
    if graph.axes:
        trained(prune(graph, search(graph, macs=0.7), check=False), x)


class DependsOnData(nn.Module):
    """How much it computes depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.heads = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.backbone(x).mean((2, 3))
        return self.heads(found[found[:, 0] > 0]) if (found > 0).any() else found


def test_what_cannot_be_captured_says_so_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"such as model\.backbone$") as caught:
        trace(DependsOnData(), IMAGE)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)
    written = capfd.readouterr()
    assert not written.out and not written.err
