"""From a network to a smaller one where the network lies: the CPU's plans, fits, files.

What looks at weights alone must give the CPU's plan, channel by channel. What is measured on images
is summed in another order on another device, and near ties may then go the other way: there, the
plan must keep to its budget and lose no more than the CPU's.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from mdcp_fast import PruningPlan, count_macs, finetune, load, prune, save, search, trace
from mdcp_fast.tracing.graph import ChannelGraph

IMAGES = 64
# Largest difference of logits fitted on two devices, relative to the largest logit: fits are solved
# in float64 from float32 activations.
FITTED = 1e-2


class Small(nn.Module):
    """Every kind of layer that pruning treats in its own way, in little."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        )
        self.down = nn.Conv2d(16, 24, 3, stride=2)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.hidden = nn.Linear(12 * 4, 32)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.depthwise(x))
        x = torch.relu(self.up(torch.relu(self.down(x))))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.last(torch.relu(self.hidden(x)))


def torchvision_network(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    return getattr(models, name)(weights=None, num_classes=10)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]  # of an image


NETWORKS = {
    "small": Case(Small, (3, 8, 8)),
    "ResNet-20, trained": Case(
        lambda: networks.trained("resnet20", Path("no cache is needed")), (1, 28, 28)
    ),
    "ResNet-18": Case(lambda: torchvision_network("resnet18"), (3, 64, 64)),
    "MobileNetV2": Case(lambda: torchvision_network("mobilenet_v2"), (3, 64, 64)),
    "ResNet-50": Case(lambda: torchvision_network("resnet50"), (3, 64, 64)),
}
# What looks at weights alone.
FROM_WEIGHTS: dict[str, dict[str, Any]] = {
    "table": {},
    "table, two budgets": {"macs": [0.3, 0.6]},
    "uniform": {"widths": "uniform", "round_to": 8},
    "weights, medoid": {"descriptor": "weights", "selection": "medoid"},
    "paper": {"preset": "paper", "population": 16, "generations": 10},
}
MEASURED: dict[str, dict[str, Any]] = {
    "best": {},
    "responses, crowding": {"descriptor": "responses", "selection": "crowding"},
    "network": {"evaluator": "network", "population": 5, "generations": 2},
    "fitted": {"evaluator": "fitted", "population": 5, "generations": 1},
}


@functools.cache
def dense(name: str) -> nn.Module:
    """The network on the CPU, with statistics of its images where it is not trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name].make()
        if "trained" not in name:
            with torch.no_grad():
                model.train()(images(name))
    return model.eval()


@functools.cache
def images(name: str) -> Tensor:
    return torch.randn(IMAGES, *NETWORKS[name].shape, generator=torch.Generator().manual_seed(1))


@functools.cache
def traced(name: str, device: str) -> ChannelGraph:
    model = dense(name) if device == "cpu" else copy.deepcopy(dense(name)).to(device)
    return trace(model, images(name)[:1].to(device))


@functools.cache
def plan_of(name: str, device: str) -> PruningPlan:
    plan = search(traced(name, device), macs=0.5)
    assert isinstance(plan, PruningPlan)
    return plan


def kept(plan: PruningPlan) -> list[list[int]]:
    return [list(axis.kept) for axis in plan.axes]


def devices_of(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]}


def on_devices(*names: str) -> pytest.MarkDecorator:
    """The small network everywhere, the others on a CUDA device alone.

    On the CPU these tests say little: they keep this file from rotting.
    """
    return pytest.mark.parametrize(
        ("name", "device"),
        [
            pytest.param(name, "cuda", marks=pytest.mark.needs_cuda, id=f"{name}, CUDA")
            for name in ("small", *names)
        ]
        + [pytest.param("small", "cpu", id="small, CPU")],
    )


LARGE = ("ResNet-18", "MobileNetV2", "ResNet-50")
on_every_network = on_devices("ResNet-20, trained", *LARGE)


@on_every_network
def test_trace_finds_the_same_axes(name: str, device: str) -> None:
    there, here = traced(name, device), traced(name, "cpu")
    assert str(there) == str(here)
    assert (there.macs, there.params) == (here.macs, here.params)
    assert devices_of(there.model) == {device}


@on_every_network
@pytest.mark.parametrize("how", FROM_WEIGHTS)
def test_plans_from_weights_are_the_cpus(name: str, device: str, how: str) -> None:
    options = {"macs": 0.5, **FROM_WEIGHTS[how]}
    there, here = (search(traced(name, where), **options) for where in (device, "cpu"))
    plans = (there, here) if isinstance(there, list) else ([there], [here])
    for plan, expected in zip(*plans, strict=True):
        assert kept(plan) == kept(expected)
        assert plan.to_json() == expected.to_json()


@on_devices("ResNet-20, trained", "ResNet-18", "MobileNetV2")
@pytest.mark.parametrize("how", MEASURED)
def test_measured_plans_lose_no_more_than_the_cpus(name: str, device: str, how: str) -> None:
    batches = list(images(name).split(IMAGES // 2))
    there, here = (
        search(
            traced(name, where),
            macs=0.5,
            calibration=[batch.to(where) for batch in batches],
            **MEASURED[how],
        )
        for where in (device, "cpu")
    )
    assert there.macs <= 0.5 * traced(name, "cpu").macs
    if there.history:
        assert there.history[-1] <= 1.05 * here.history[-1] + 1e-6
    chosen = [set(one) for one in kept(there)]
    shared = sum(len(a & set(b)) for a, b in zip(chosen, kept(here), strict=True))
    print(f"{name}, {how}: {shared / sum(map(len, chosen)):.1%} of the channels kept are the CPU's")


@on_every_network
@pytest.mark.parametrize("calibration", [None, "noise", "images"])
def test_prune_gives_the_cpus_network(name: str, device: str, calibration: str | None) -> None:
    plan, x = plan_of(name, "cpu"), images(name)
    logits = []
    for where in (device, "cpu"):
        data: Any = [x.to(where)] if calibration == "images" else calibration
        small = prune(traced(name, where), plan, calibration=data, check=calibration is None)
        assert devices_of(small) == {where}
        assert count_macs(small, x[:1].to(where)) == plan.macs
        with torch.no_grad():
            logits.append(small.double()(x.double().to(where)).cpu())
    gap = (logits[0] - logits[1]).abs().max() / logits[1].abs().max()
    assert gap <= (1e-9 if calibration is None else FITTED)


@on_devices("ResNet-20, trained", "MobileNetV2")
def test_finetune_resumes_in_bfloat16(name: str, device: str, tmp_path: Path) -> None:
    """A run that was ended half-way goes on to the same losses, within the kernels' noise."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    data = TensorDataset(images(name), labels)
    graph, plan = traced(name, device), plan_of(name, "cpu")

    class Ended(Exception):
        pass

    def run(checkpoint: Path, steps: int | None = None) -> Any:
        small, seen = prune(graph, plan, check=False), 0

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            nonlocal seen
            seen += 1
            if steps is not None and seen > steps:
                raise Ended
            return F.cross_entropy(outputs.float(), targets)

        done = finetune(
            small,
            data,
            data,
            teacher=graph.model,
            epochs=2,
            batch_size=16,
            mixed_precision="bf16",
            loss=loss,
            checkpoint=checkpoint,
            checkpoint_steps=2,
            progress=False,
        )
        assert devices_of(small) == {device}
        return done

    whole = run(tmp_path / "whole")
    with pytest.raises(Ended):
        run(tmp_path / "ended", steps=6)
    resumed = run(tmp_path / "ended")
    for one, other in zip(whole.epochs, resumed.epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0 if device == "cpu" else 1e-2)


@on_devices("ResNet-18", "MobileNetV2")
def test_files_go_from_device_to_device(name: str, device: str, tmp_path: Path) -> None:
    small = prune(traced(name, device), plan_of(name, "cpu"), check=False)
    save(tmp_path / "small.safetensors", small, plan_of(name, "cpu"))
    x = images(name)[:4].double()
    for where in (device, "cpu"):
        loaded = load(tmp_path / "small.safetensors", lambda to=where: NETWORKS[name].make().to(to))
        assert devices_of(loaded) == {where}
        with torch.no_grad():
            expected = copy.deepcopy(small).to(where).double()(x.to(where))
            torch.testing.assert_close(loaded.double()(x.to(where)), expected)
