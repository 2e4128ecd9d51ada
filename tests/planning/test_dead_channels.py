"""Filters that are zero go before all others, whatever chooses the channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.planning.method import Method
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.folded_weights import dead_channels
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.trace import trace

DEAD = [1, 4, 5, 11]
INPUT = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(norm: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 12), (12, 12)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.ReLU())
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 64, 4)).eval()
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d):
                module.weight[DEAD] = 0
                if module.bias is not None:
                    module.bias[DEAD] = 0
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_var.uniform_(0.5, 1.5)
    return model


def check(plan: PruningPlan) -> None:
    for axis in plan.axes:
        stays = set(axis.kept) & set(DEAD)
        assert not stays or axis.width > axis.channels - len(DEAD), f"{axis.name}: {axis.kept}"
        assert stays == set(sorted(DEAD)[: len(stays)]) or axis.width > 8


METHODS: dict[str, dict[str, Any]] = {
    "quick": {"preset": "quick"},
    "paper": {"preset": "paper"},
    "medoid": {"method": Method(descriptor="moments", selection="medoid")},
    "moments by crowding": {"method": Method(descriptor="moments", selection="crowding")},
    "weights by crowding": {"method": Method(descriptor="weights", selection="crowding")},
    "default": {},
}


@pytest.mark.parametrize("norm", [False, True], ids=["bias", "batch norm"])
@pytest.mark.parametrize("method", METHODS)
def test_dead_filters_go_first(method: str, norm: bool) -> None:
    graph = trace(net(norm), INPUT)
    for macs in (0.15, 0.3, 0.45, 0.8):
        check(search(graph, macs=macs, round_to=1, **METHODS[method]))


@pytest.mark.parametrize("selection", ["greedy", "crowding"])
def test_on_images_too(selection: str) -> None:
    graph = trace(net(False), INPUT)
    options = {"calibration": [torch.randn(16, 3, 8, 8)], "method": Method(selection=selection)}
    for macs in (0.2, 0.45):
        check(search(graph, macs=macs, round_to=1, **options))


def test_where_they_are_enough_nothing_is_lost() -> None:
    """Without BatchNorm and biases, the network that loses dead filters alone answers the same."""
    graph = trace(net(False), INPUT)
    for method in METHODS.values():
        plan = search(graph, macs=0.5, round_to=1, **method)
        if all(axis.width >= 8 for axis in plan.axes):
            assert torch.allclose(prune(graph, plan)(INPUT), graph.model(INPUT), atol=1e-5)


def test_what_puts_out_nothing_goes_before_what_puts_out_a_constant() -> None:
    model = net(False)
    with torch.no_grad():
        model[0].bias[[1, 4]] = 1.0
    graph = trace(model, INPUT)
    expected = torch.zeros(12, dtype=torch.int64)
    expected[[5, 11]], expected[[1, 4]] = 2, 1
    assert torch.equal(dead_channels(graph, graph.axes[0]), expected)
    for method in METHODS.values():
        axis = search(graph, macs=0.75, round_to=1, **method).axes[0]
        assert axis.width > 10 or not {5, 11} & set(axis.kept)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.block(x)).relu())


def test_a_stream_is_dead_where_all_that_write_it_are_zero() -> None:
    model = Residual().eval()
    with torch.no_grad():
        for layer, dead in ((model.stem, [1, 4, 5]), (model.block, [4, 5, 7])):
            layer.weight[dead] = 0
            layer.bias[dead] = 0
    graph = trace(model, INPUT)
    assert dead_channels(graph, graph.axes[0]).nonzero().flatten().tolist() == [4, 5]


def test_batch_norm_that_multiplies_by_zero_makes_a_filter_dead() -> None:
    model = net(True)
    with torch.no_grad():
        model[1].weight[7] = 0
        model[1].bias[7] = 0
        model[1].bias[1] = 0.5
        model[1].running_mean[4] = 2.0
    graph = trace(model, INPUT)
    found = dead_channels(graph, graph.axes[0])
    assert found[[5, 7, 11]].tolist() == [2, 2, 2] and found[[1, 4]].tolist() == [1, 1]
    assert int(found.count_nonzero()) == 5


def test_an_axis_of_dead_channels_alone() -> None:
    model = net(False)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    graph = trace(model, INPUT)
    for method in ("quick", "paper"):
        plan = search(graph, macs=0.3, round_to=1, **METHODS[method])
        assert plan.axes[0].kept == tuple(range(plan.axes[0].width))
