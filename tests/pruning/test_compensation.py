"""Consumers absorb what removed channels carried, wholly where others can predict it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from blocks import Residual, SeveralInputs, SharedWeights, image
from plans import Functional, random_plan
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mdcp_fast.modules.calls import call
from mdcp_fast.pruning.batch_norm import recalibrate
from mdcp_fast.pruning.calibration import calibration_batches
from mdcp_fast.pruning.compensation import compensate
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

REDUNDANT = 1e-2  # what the ridge leaves of a loss that it could predict wholly


class Consumers(nn.Module):
    """One producer of channels, of which the last ones are combinations of the first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.other = nn.Conv2d(3, 4, 1)
        if kind == "linear":
            self.b: nn.Module = nn.Linear(8 * 36, 5)
        elif kind == "grouped":
            self.b = nn.Conv2d(8, 6, 3, groups=2)
        elif kind == "transposed":
            self.b = nn.ConvTranspose2d(8, 5, 3)
        elif kind == "concatenation":
            self.b = nn.Conv2d(12, 5, 3)
        else:
            self.b = nn.Conv2d(8, 5, 3, bias=kind != "batch norm")
        self.c = nn.Conv2d(8, 4, 1)
        self.bn = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        if self.kind == "linear":
            return self.b(a.flatten(1))
        if self.kind == "concatenation":
            return self.b(torch.cat([self.other(x), a], 1))
        if self.kind == "several":
            return self.b(a), self.c(a)
        return self.bn(self.b(a)) if self.kind == "batch norm" else self.b(a)


def redundant(kind: str) -> Consumers:
    """Channels 1, 3, 5 and 7 of `a` are affine combinations of its others."""
    torch.manual_seed(3)
    model = Consumers(kind).eval()
    with torch.no_grad():
        mix = torch.randn(4, 4)
        if kind == "grouped":  # each group predicts from its own channels
            mix[:2, 2:] = mix[2:, :2] = 0
        model.a.weight[1::2] = torch.einsum("ij,jcxy->icxy", mix, model.a.weight[::2])
        model.a.bias[1::2] = mix @ model.a.bias[::2]
        if kind != "transposed":  # a constant input does not make a constant output there
            model.a.bias[1::2] += torch.randn(4)
        model.bn.running_mean.normal_()
        model.bn.running_var.uniform_(0.5, 2)
    return model


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    found = model(x)
    return torch.cat([part.flatten() for part in (found if isinstance(found, tuple) else (found,))])


@pytest.mark.parametrize(
    "kind", ["plain", "batch norm", "grouped", "linear", "several", "concatenation", "transposed"]
)
@torch.no_grad()
def test_combinations_of_kept_channels_are_recovered(kind: str) -> None:
    model, x = redundant(kind), image(batch=64)
    graph = trace(model, image(batch=1))
    (axis,) = (axis for axis in graph.axes if axis.name == "a")
    grouped = axis.channels == 4  # channel i and i + 4 go together
    kept = [range(a.channels) if a is not axis else [0, 2] if grouped else [0, 2, 4, 6]
            for a in graph.axes]  # fmt: skip
    plan = PruningPlan.build(graph, kept)
    dense = outputs(model, x)
    dropped = outputs(prune(graph, plan), x)
    recovered = outputs(prune(graph, plan, calibration=[x], recalibrate=False), x)
    assert (recovered - dense).norm() < REDUNDANT * (dropped - dense).norm()


@torch.no_grad()
def test_what_cannot_be_predicted_is_predicted_best() -> None:
    """The compensated layer is the ridge regression of the dense outputs on the kept inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval().double()
    x = image(batch=32).double()
    graph = trace(model, x[:1])
    kept = [0, 1, 4, 6]
    plan = PruningPlan.build(graph, [kept])
    small = prune(graph, plan).eval()
    compensate(graph, small, plan.positions, [(x,)])
    hidden = model[1](model[0](x)).movedim(1, -1).flatten(0, -2)
    inputs = hidden[:, kept] - hidden[:, kept].mean(0)
    target = model[2](model[1](model[0](x))).movedim(1, -1).flatten(0, -2)
    gram = inputs.T @ inputs / len(inputs)
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    own = model[2].weight[:, kept, 0, 0]
    residual = target - target.mean(0) - inputs @ own.T
    expected = own + torch.linalg.solve(gram + ridge, inputs.T @ residual / len(inputs)).T
    assert torch.allclose(small[2].weight[..., 0, 0], expected, rtol=1e-9)
    mean = (small(x) - model(x)).mean((0, 2, 3))
    assert mean.abs().max() < 1e-9  # the bias absorbs the mean


@torch.no_grad()
def test_batches_add_up() -> None:
    model, x = redundant("plain"), image(batch=12)
    graph = trace(model, image(batch=1))
    plan = PruningPlan.build(graph, [[0, 1, 5]])
    at_once = prune(graph, plan, calibration=[x])
    in_parts = prune(graph, plan, calibration=list(x.split(5)))
    assert torch.allclose(at_once.b.weight, in_parts.b.weight, atol=1e-5)
    assert torch.allclose(at_once.b.bias, in_parts.b.bias, atol=1e-5)


def test_layers_that_are_no_modules_are_named() -> None:
    graph = trace(Functional(), image())
    plan = PruningPlan.build(graph, [[0, 3]])
    small = prune(graph, plan)
    assert compensate(graph, small, plan.positions, [(image(),)]) == ("weight",)


def test_weights_shared_by_layers_are_compensated_together() -> None:
    graph = trace(SharedWeights().eval(), image())
    plan = PruningPlan.build(graph, [[0, 2, 3], range(4)])
    with pytest.warns(UserWarning, match="as if nothing had changed before them.*: b.weight"):
        small = prune(graph, plan, calibration=[image(batch=8)])
    assert small.c.weight is small.b.weight and small(image()).shape == (2, 2, 6, 6)


@torch.no_grad()
def test_recalibration_is_the_cumulative_average() -> None:
    torch.manual_seed(0)
    model = Residual().train()
    model.bn_a.eval()
    batches = [(image(batch=n),) for n in (4, 4, 4)]
    batches = [(torch.randn(4, 3, 6, 6),) for _ in batches]
    recalibrate(model, batches)
    values = [model.stem(x) for (x,) in batches]
    means = torch.stack([value.mean((0, 2, 3)) for value in values])
    variances = torch.stack([value.var((0, 2, 3)) for value in values])
    assert torch.allclose(model.bn.running_mean, means.mean(0), atol=1e-6)
    assert torch.allclose(model.bn.running_var, variances.mean(0), atol=1e-5)
    assert model.bn.momentum == 0.1 and model.bn.num_batches_tracked == 3
    assert model.bn.training and not model.bn_a.training


@torch.no_grad()
def test_a_failing_batch_leaves_everything_as_it_was() -> None:
    model = Residual().train()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate(model, [(image(),), (image(5),)])
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert model.bn.momentum == 0.1 and model.training

    graph = trace(model, image())
    plan = PruningPlan.build(graph, [range(4), range(3)])
    with pytest.raises(RuntimeError):
        compensate(graph, prune(graph, plan), plan.positions, [(image(5),)])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_networks_without_batch_norm_need_no_recalibration() -> None:
    recalibrate(nn.Conv2d(3, 4, 1), [])


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return trace(Residual(), image(batch=1))


def generated() -> Iterator[Tensor]:
    yield from image(batch=6).split(2)


@pytest.mark.parametrize(
    "calibration",
    [
        image(batch=6),
        [image(), image(), image()],
        generated(),
        DataLoader(TensorDataset(image(batch=6), torch.arange(6)), batch_size=2),
        [(image(), torch.arange(2))] * 3,
        [[image(), "label"]] * 3,
        [image(batch=6).double()],
    ],
    ids=["tensor", "list", "iterator", "DataLoader", "pairs", "lists", "another dtype"],
)
def test_batches_of_all_kinds(graph: ChannelGraph, calibration: Any) -> None:
    batches = calibration_batches(graph, calibration)
    assert sum(len(batch[0]) for batch in batches) == 6
    assert all(len(batch) == 1 and batch[0].dtype == torch.float32 for batch in batches)


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        (3, TypeError, "calibration: expected an iterable of batches, got int"),
        ("nose", TypeError, "calibration: expected an iterable of batches, got 'nose'"),
        ([], ValueError, "calibration: expected at least one batch, got none"),
        (iter(()), ValueError, "used up"),
        (["image"], TypeError, "calibration: expected batches of tensors, got str"),
        ([image(4)], ValueError, r"shape \[batch, 3, 6, 6\] .* got \[2, 4, 6, 6\]"),
        ([image()[0]], ValueError, r"got \[3, 6, 6\]"),
        ([image(size=8)], ValueError, r"got \[2, 3, 8, 8\]"),
        ([image(batch=0)], ValueError, r"got \[0, 3, 6, 6\]"),
        ([()], ValueError, "calibration: expected batches of 1 inputs, got 0"),
    ],
)
def test_bad_calibration(
    graph: ChannelGraph, calibration: Any, error: type[Exception], message: str
) -> None:
    plan = PruningPlan.build(graph, [range(4), range(3)])
    with pytest.raises(error, match=message):
        prune(graph, plan, calibration=calibration)


def test_bad_named_calibration() -> None:
    inputs = {"x": image(), "y": image(2)}
    graph = trace(SeveralInputs(), inputs)
    batches = calibration_batches(graph, [{**inputs, "label": 1}])
    assert set(batches[0]) == {"x", "y"} and call(graph.model, batches[0]).shape[0] == 2
    with pytest.raises(TypeError, match="expected dicts of named arguments"):
        calibration_batches(graph, [image()])
    with pytest.raises(ValueError, match=r"expected batches with \['y'\], got \['x'\]"):
        calibration_batches(graph, [{"x": image()}])


def test_batches_that_are_not_finite_are_refused() -> None:
    graph = trace(Residual(), image())
    with pytest.raises(ValueError, match="calibration: expected batches of finite numbers"):
        prune(graph, random_plan(graph), calibration=[torch.full_like(image(), torch.nan)])
