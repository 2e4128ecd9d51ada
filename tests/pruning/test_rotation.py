"""Linear streams in other bases: the same function at full width; their first channels stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdcp_fast.planning.search import search
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

X = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Bottlenecks(nn.Module):
    """A linear residual stream of 12 channels, written with a BatchNorm behind and without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.up, self.down = nn.Conv2d(12, 20, 1), nn.Conv2d(20, 12, 3, padding=1, bias=False)
        self.last, self.head = nn.Conv2d(12, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x))
        x = x + self.down(F.relu(self.up(x)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def bottlenecks() -> Bottlenecks:
    torch.manual_seed(0)
    model = Bottlenecks()
    nn.init.uniform_(model.bn.weight, 0.5, 2)
    nn.init.normal_(model.bn.bias)
    for _ in range(20):
        model(X)  # statistics that fit
    return model.eval()


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return trace(bottlenecks(), X[:1])


def test_only_the_linear_stream_is_rotated_and_the_function_stays(graph: ChannelGraph) -> None:
    state = copy.deepcopy(graph.model.state_dict())
    rotation, reasons = CalibrationData(graph, [(X,)]).rotation()
    assert [graph.axes[index].name for index in rotation.bases] == ["stem"]
    assert set(reasons) == {axis.name for axis in graph.axes} - {"stem"}
    assert all("relu" in reason for reason in reasons.values())
    (basis,) = rotation.bases.values()
    torch.testing.assert_close(basis.forward @ basis.inverse, torch.eye(12).double())
    with torch.no_grad():
        torch.testing.assert_close(rotation.graph.model(X), graph.model(X), rtol=1e-4, atol=1e-5)
    assert not torch.equal(rotation.graph.model.stem.weight, graph.model.stem.weight)
    assert all(torch.equal(v, state[n]) for n, v in graph.model.state_dict().items())


def test_a_plan_says_what_is_rotated_and_prune_follows(graph: ChannelGraph) -> None:
    plan = search(graph, macs=0.5, calibration=[X])
    turned = [axis for axis in plan.axes if axis.rotated]
    assert [axis.name for axis in turned] == ["stem"]
    assert turned[0].kept == tuple(range(turned[0].width))
    assert PruningPlan.from_json(plan.to_json()) == plan
    small = prune(graph, plan, calibration=[X])
    assert small.stem.out_channels == turned[0].width
    with pytest.raises(ValueError, match="since this plan rotates stem, got None"):
        prune(graph, plan)
    optimizer = torch.optim.SGD(graph.model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"rotates no axis.*got stem rotated"):
        plan.apply_to_optimizer(optimizer, graph.model, small)
    plain = search(graph, macs=0.5, calibration=[X], rotate=False)
    assert not any(axis.rotated for axis in plain.axes)


def test_a_stream_that_nothing_reads_with_weights_keeps_its_basis() -> None:
    """Readers that start as zeros give no directions."""
    model = bottlenecks()
    for layer in (model.up, model.last):
        nn.init.zeros_(layer.weight)
    graph = trace(model, X[:1])
    _, reasons = CalibrationData(graph, [(X,)]).rotation()
    assert "zeros" in reasons["stem"]
    assert search(graph, macs=0.5, calibration=[X]).macs <= 0.5 * graph.macs
