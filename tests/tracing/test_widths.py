"""Numbers that repeat a width follow it: of layers without tensors, and of the user's modules."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from blocks import conv, image
from plans import pruned_right, random_plan
from torch import Tensor, nn

from mdcp_fast.modules.removal import remove
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.trace import trace


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


BARE = {
    "instance": lambda: nn.InstanceNorm2d(8),
    "batch": lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False),
    "groups of one": lambda: nn.GroupNorm(8, 8, affine=False),
}


@pytest.mark.parametrize("norm", BARE)
def test_a_norm_without_tensors_follows_what_it_normalises(norm: str) -> None:
    model = nn.Sequential(conv(3, 8), BARE[norm](), nn.ReLU(), conv(8, 2))
    graph = pruned_right(model, image(), {"0": 8})
    plan = random_plan(graph, 3)
    small = prune(graph, PruningPlan.from_json(plan.to_json()))
    width = plan.axes[0].width
    assert width < 8 == len(model[0].weight)
    norm = small[1]
    assert getattr(norm, "num_features", None) == width or norm.num_channels == width
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # InstanceNorm warns where it was made for other channels
        small(image())


def test_each_norm_follows_its_own_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = conv(3, 8), conv(8, 8), conv(16, 2)
            self.norm, self.both = nn.InstanceNorm2d(8), nn.InstanceNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            a = self.norm(self.a(x))
            return self.head(self.both(torch.cat([a, self.b(a)], 1)))

    graph = pruned_right(Two(), image(), {"a": 8, "b": 8})
    small = prune(graph, PruningPlan.build(graph, [range(5), range(2)]))
    assert (small.norm.num_features, small.both.num_features) == (5, 7)


def test_layer_norm_without_affine_is_pruned_on_request() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, elementwise_affine=False))
    model.append(nn.Linear(8, 2))
    graph = trace(model.eval(), torch.randn(3, 4), allow_inexact=True)
    small = prune(graph, PruningPlan.build(graph, [range(3)]))
    assert small[1].normalized_shape == (3,)


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_loses_whole_groups(affine: bool) -> None:
    model = nn.Sequential(conv(3, 12), nn.GroupNorm(4, 12, affine=affine), nn.ReLU(), conv(12, 2))
    if affine:
        nn.init.uniform_(model[1].weight)
    graph = pruned_right(model, image(), {"0": 4})
    small = prune(graph, PruningPlan.build(graph, [[0, 2, 3]]))
    assert (small[1].num_groups, small[1].num_channels) == (3, 9)
    tied = trace(model, image(), allow_inexact=True)
    small = prune(tied, PruningPlan.build(tied, [[0, 2]]))
    assert (small[1].num_groups, small[1].num_channels) == (4, 8)


def test_a_single_group_mixes_its_channels() -> None:
    model = nn.Sequential(conv(3, 8), nn.GroupNorm(1, 8), nn.ReLU(), conv(8, 2))
    graph = trace(model.eval(), image())
    assert not graph.axes and "GroupNorm normalises over these channels" in str(graph)


def test_rms_norm_is_pruned_as_layer_norm_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 2)).eval()
    assert "RMSNorm normalises over these channels" in str(trace(model, torch.randn(3, 4)))
    graph = trace(model, torch.randn(3, 4), allow_inexact=True)
    assert prune(graph, PruningPlan.build(graph, [range(3)]))[1].normalized_shape == (3,)


@pytest.mark.parametrize("reader", ["linear", "convolution"])
def test_an_embedding_writes_channels(reader: str) -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(11, 6)
            self.b = nn.Linear(6, 5) if reader == "linear" else nn.Conv1d(6, 5, 3)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.rows(x)
            y = self.b(rows) if reader == "linear" else self.b(rows.mT).mT
            return self.head(F.relu(y))

    graph = pruned_right(Looked(), torch.randint(11, (2, 7)), {"rows": 6, "b": 5})
    assert prune(graph, PruningPlan.build(graph, [range(4), range(5)])).rows.embedding_dim == 4


class Backbone(nn.Module):
    """As timm's: a new classifier is made of the number of features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.fc = conv(3, 8), conv(8, 8), nn.Linear(8, 2)
        self.num_features = self.planes = 8

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.body(F.relu(self.stem(x)))).mean((2, 3)))


def test_known_numbers_follow_and_others_are_named() -> None:
    model = Backbone().eval()
    graph = trace(model, image())
    plan = PruningPlan.build(graph, [range(7), range(3)])
    small = prune(graph, plan)
    assert (small.num_features, small.planes) == (3, 8)
    assert (model.num_features, model.planes) == (8, 8)
    assert "Attributes that keep a dense width: planes" in str(plan)
    assert "planes" in str(PruningPlan.from_json(plan.to_json()))
    assert remove(model, plan.positions).num_features == 3
    whole = PruningPlan.build(graph, [range(8), range(8)])
    assert "dense width" not in str(whole)
