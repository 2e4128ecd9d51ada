"""Layers are fitted to all images, which go through the network in parts."""

from __future__ import annotations

import pytest
import torch
from blocks import image
from fitting import Deep, error, trained_like
from plans import uniform_plan
from torch import Tensor, nn

from mdcp_fast.pruning.compensation import compensate
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.refit import refit
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

SEEN = 64  # images to calibrate with


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(trained_like(Deep()), image(batch=1), check=False)


@torch.no_grad()
def test_parts_of_the_images_are_fitted_together(
    graph: ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of each layer's inputs are used, in whatever parts they run: the same fit."""
    monkeypatch.setattr("mdcp_fast.pruning.refit.FEWEST", 1 << 15)  # no row is left out
    x, plan, fitted = image(batch=SEEN), uniform_plan(graph, 0.5), []
    for size in (SEEN, 5):
        monkeypatch.setattr("mdcp_fast.pruning.refit.TOGETHER", size)
        fitted.append(prune(graph, plan, calibration=list(x.split(10)), check=False).state_dict())
    for name, tensor in fitted[0].items():
        torch.testing.assert_close(fitted[1][name], tensor, rtol=1e-3, atol=1e-4)


class Squeezes(nn.Module):
    """Loses the batch dimension where it has one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x).relu().mean((2, 3), keepdim=True).squeeze())


class Frames(nn.Module):
    """A layer sees the frames of all films as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.flatten(0, 1)).relu()).unflatten(0, x.shape[:2])


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "x"), [(Squeezes, image(batch=17)), (Frames, image(batch=60).unflatten(0, (20, 3)))]
)
def test_any_number_of_samples_is_parted(kind: type[nn.Module], x: Tensor) -> None:
    torch.manual_seed(0)
    graph = trace(kind().eval(), x[:2], check=False)
    plan = uniform_plan(graph, 0.5)
    small, parallel = (prune(graph, plan, check=False) for _ in range(2))
    compensate(graph, parallel, plan.positions, [(x,)])
    assert refit(graph, small, plan.positions, [(x,)]).alone == set()
    assert error(small, graph.model, x) <= 1.001 * error(parallel, graph.model, x)


@torch.no_grad()
def test_rows_are_bounded_where_a_sample_is_several(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, seen = image(batch=60).unflatten(0, (20, 3)), list[int]()
    graph = trace(Frames().eval(), x[:2], check=False)
    plan = uniform_plan(graph, 0.5)

    def ridge(patches: Tensor, lacking: Tensor, images: Tensor) -> Tensor:
        assert len(images.unique()) == 20 and int(images.max()) == 19
        seen.append(patches.shape[1])
        return lacking.new_zeros(len(patches), lacking.shape[2], patches.shape[2])

    monkeypatch.setattr("mdcp_fast.pruning.refit.held_out_ridge", ridge)
    monkeypatch.setattr("mdcp_fast.pruning.refit.ROWS", 100)
    refit(graph, prune(graph, plan, check=False), plan.positions, [(x,)])
    assert seen and all(100 <= rows <= 110 for rows in seen)


class Slices(Deep):
    """Begins with a view of its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :3])


@torch.no_grad()
@pytest.mark.parametrize("kind", [Deep, Slices])
def test_as_many_samples_as_memory_has_room_for(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    graph = trace(trained_like(kind()), image(batch=1), check=False)
    used, plan, x = list[int](), uniform_plan(graph, 0.5), image(batch=512)

    def ridge(patches: Tensor, lacking: Tensor, images: Tensor) -> Tensor:
        used.append(int(images.max()) + 1)
        return lacking.new_zeros(len(patches), lacking.shape[2], patches.shape[2])

    monkeypatch.setattr("mdcp_fast.pruning.refit.held_out_ridge", ridge)
    for memory in (1 << 19, 1 << 30):
        monkeypatch.setattr("mdcp_fast.pruning.refit.MEMORY", memory)
        refit(graph, prune(graph, plan, check=False), plan.positions, [(x,)])
    assert 64 < min(used) < len(x) == max(used)


class Holder:
    """What a forward leaves for its later layers."""

    left: Tensor | None = None


class LeavesStateBehind(Deep):
    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def forward(self, x: Tensor) -> Tensor:
        x = self.holder.left = self.bn_a(self.a(x)).relu()
        x = self.bn_b(self.b(x)).relu() + self.holder.left.mean()
        self.holder.left = None
        x = self.c(self.dw(self.bn_up(self.up(x)).relu())).relu()
        return self.head(self.fc(x.flatten(1)).relu())


@torch.no_grad()
def test_images_run_together_where_parts_would_disturb_one_another() -> None:
    torch.manual_seed(0)
    graph = trace(trained_like(LeavesStateBehind()), image(batch=1), check=False)
    x, plan = image(batch=SEEN), uniform_plan(graph, 0.5)
    small, parallel = (prune(graph, plan, check=False) for _ in range(2))
    assert refit(graph, small, plan.positions, [(x,)]).alone == set()
    compensate(graph, parallel, plan.positions, [(x,)])
    assert error(small, graph.model, x) < 0.75 * error(parallel, graph.model, x)
