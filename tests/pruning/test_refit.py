"""Layers of the pruned network give again what the dense ones gave, from what they now read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from blocks import BLOCKS, Residual, SharedLayers, image
from fitting import Deep, error, trained_like
from plans import random_plan, uniform_plan
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mdcp_fast.pruning.calibration import joined_batches, noise_batches
from mdcp_fast.pruning.compensation import compensate
from mdcp_fast.pruning.held_out_ridge import RIDGES
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.refit import refit
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

SEEN = 64  # images to calibrate with: more than any layer here has weights for an output


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(trained_like(Deep()), image(batch=1), check=False)


@pytest.mark.parametrize("recalibrate", [True, False])
def test_outputs_are_nearer_than_with_layers_that_look_at_the_dense_network(
    graph: ChannelGraph, recalibrate: bool
) -> None:
    x = image(batch=SEEN)
    plan = uniform_plan(graph, 0.5)
    parallel = prune(graph, plan, check=False)
    compensate(graph, parallel, plan.positions, [(x,)])
    fitted = prune(graph, plan, calibration=[x], recalibrate=recalibrate, check=False)
    assert error(fitted, graph.model, x) < 0.5 * error(parallel, graph.model, x)


@torch.no_grad()
def test_each_layer_is_a_ridge_regression_of_what_it_reads() -> None:
    """From where compensation leaves it, with a ridge of the path; the mean goes to the bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
    model = model.eval().double()
    x = image(batch=32).double()
    graph = trace(model, x[:1])
    kept = [0, 1, 4, 6]
    plan = PruningPlan.build(graph, [kept])
    small, start = prune(graph, plan), prune(graph, plan)
    compensate(graph, start, plan.positions, [(x,)])
    before = start[2].weight.flatten(1)
    assert refit(graph, small, plan.positions, [(x,)]) == (set(), set(), set())

    hidden = model[1](model[0](x))[:, kept]
    seen = nn.functional.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1)
    seen = seen - seen.mean(0)
    target = model(x).flatten(2).transpose(1, 2).flatten(0, 1)
    gram = seen.T @ seen / len(seen)
    lacking = target - target.mean(0) - seen @ before.T
    one = gram.diagonal().mean() * torch.eye(36, dtype=torch.float64)
    path = [
        before + torch.linalg.solve(gram + share * one, seen.T @ lacking / len(seen)).T
        for share in RIDGES
    ]
    fitted = small[2].weight.flatten(1)
    assert any(torch.allclose(fitted, expected, rtol=1e-9) for expected in path)
    assert (small(x) - model(x)).mean((0, 2, 3)).abs().max() < 1e-12
    assert torch.equal(small[0].weight, model[0].weight[kept])  # it gives what it gave


@torch.no_grad()
def test_zeros_of_the_padding_hide_what_a_border_does_not_see() -> None:
    """A lost channel that is constant is not constant under padding; kept ones can tell where."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1)).eval()
    model[0].weight[1:] = 0  # of these constants one stays
    x = image(batch=SEEN)
    graph = trace(model, x[:1])
    plan = PruningPlan.build(graph, [[0, 1]])
    parallel = prune(graph, plan)
    compensate(graph, parallel, plan.positions, [(x,)])
    small = prune(graph, plan, calibration=[x])
    assert error(small, model, x) < 0.05 * error(parallel, model, x)


@torch.no_grad()
def test_nothing_pruned_changes_nothing(graph: ChannelGraph) -> None:
    deep, x = graph.model, image(batch=8)
    plan = PruningPlan.build(graph, [range(axis.channels) for axis in graph.axes])
    small = prune(graph, plan, calibration=[x])
    again = copy.deepcopy(deep)
    refit(graph, again, {}, [(x,)], recalibrate=False)
    for network in (small, again):
        state = network.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in deep.state_dict().items())


@torch.no_grad()
def test_outputs_of_batch_norm_have_the_moments_that_the_dense_ones_have(
    graph: ChannelGraph,
) -> None:
    """On the calibration images, up to what is shrunk, whatever the dense statistics are."""
    x = image(batch=256)
    plan = uniform_plan(graph, 0.5)
    small = prune(graph, plan, calibration=[x], compensate=False, check=False)
    dropped = prune(graph, plan, check=False)

    def moments(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                kept = plan.kept(f"{name}.weight", 0) if network is graph.model else None

                def note(
                    norm: Any, i: Any, out: Tensor, name: str = name, kept: Any = kept
                ) -> None:
                    out = out if kept is None else out[:, kept]
                    variance, mean = torch.var_mean(out, (0, 2, 3))
                    seen[name] = mean, variance.sqrt()

                hook = module.register_forward_hook(note)
                network(x)
                hook.remove()
        return seen

    wanted, got, without = moments(graph.model), moments(small), moments(dropped)
    assert any((without[n][0] - wanted[n][0]).abs().max() > 0.1 for n in wanted)
    for name, (mean, deviation) in wanted.items():
        assert (got[name][0] - mean).abs().max() < 0.03
        assert ((got[name][1] - deviation) / deviation.clamp_min(0.1)).abs().max() < 0.1


def same(left: nn.Module, right: nn.Module) -> bool:
    state = right.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in left.state_dict().items())


def test_a_loader_a_list_and_an_iterator_give_the_same(graph: ChannelGraph) -> None:
    x = image(batch=24)
    plan = uniform_plan(graph, 0.5)

    def generated() -> Iterator[Tensor]:
        yield from x.split(8)

    by_list, *others = (
        prune(graph, plan, calibration=calibration, check=False)
        for calibration in (
            list(x.split(8)),
            generated(),
            DataLoader(TensorDataset(x, torch.arange(24)), batch_size=8),
        )
    )
    assert all(same(by_list, other) for other in others)
    at_once = prune(graph, plan, calibration=x, check=False)
    for a, b in zip(by_list.parameters(), at_once.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


KINDS = ["dense concatenation", "C2f", "channel shuffle", "grouped", "depthwise with multiplier",
         "squeeze-and-excitation, linear", "shared weights", "transposed, grouped",
         "transposed, depthwise", "U-Net", "flatten and linear", "named inputs", "functional",
         "one dimension", "three dimensions", "recurrent", "reparametrised"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:prune:UserWarning")
@pytest.mark.parametrize("name", KINDS)
def test_networks_of_every_kind_run_and_the_dense_one_stays(name: str) -> None:
    torch.manual_seed(0)
    block = BLOCKS[name]
    model = block.make().train()
    graph = trace(model, block.inputs, check=False)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    small = prune(graph, random_plan(graph), calibration=[block.inputs] * 3, check=False)
    assert all(bool(t.isfinite().all()) for t in small.state_dict().values())
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    for network in (model, small):
        modules = list(network.modules())
        assert all(module.training for module in modules)
        assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules] == hooks
        assert all(p.grad is None for p in network.parameters())


def test_without_data_layers_are_fitted_on_smooth_noise(graph: ChannelGraph) -> None:
    plan, x = uniform_plan(graph, 0.7), image(batch=SEEN)
    small = prune(graph, plan, calibration="noise", check=False)
    assert error(small, graph.model, x) < 0.5 * error(
        prune(graph, plan, check=False), graph.model, x
    )
    assert same(small, prune(graph, plan, calibration="noise", check=False))


def test_noise_is_smooth_standardised_and_of_the_inputs_shapes() -> None:
    inputs = {"y": image(2, size=16), "x": image(size=16), "scale": 0.5}
    network = BLOCKS["named inputs"].make()
    (batch,) = noise_batches(trace(network, inputs, check=False))
    assert isinstance(batch, dict) and list(batch) == ["y", "x", "scale"]
    assert batch["scale"] == 0.5 and batch["x"].shape == (256, 3, 16, 16)
    assert abs(float(batch["x"].mean())) < 1e-3 and abs(float(batch["x"].std()) - 1) < 1e-3
    neighbours = float((batch["x"][..., 1:] * batch["x"][..., :-1]).mean())
    assert neighbours > 0.8


def test_noise_fills_tensors_in_nested_arguments() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.b(self.a(images[0] + images[1]).relu())

    graph = trace(Sum().eval(), ([image(batch=1), image(batch=1)],), check=False)
    ((left, right),) = noise_batches(graph)[0]
    assert left.shape == right.shape == (256, 3, *left.shape[2:])
    assert not torch.equal(left, right)
    prune(graph, random_plan(graph), calibration="noise")


def test_noise_cannot_stand_for_integers() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.words(x)).relu())

    graph = trace(Embedded().eval(), torch.zeros(1, 4, dtype=torch.int64), check=False)
    with pytest.raises(ValueError, match="floating point, for 'noise', got .*int64"):
        prune(graph, random_plan(graph), calibration="noise")


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.Identity()])
def test_a_bias_that_is_computed_stays(norm: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3), norm)
    nn.utils.parametrize.register_parametrization(model[2], "bias", Twice())
    model, x = trained_like(model), image(batch=SEEN)
    graph = trace(model, x[:1], check=False)
    plan = PruningPlan.build(graph, [range(5)])
    small = prune(graph, plan, calibration=[x], recalibrate=False, check=False)
    assert torch.equal(small[2].bias, model[2].bias)
    assert error(small, model, x) < 0.5 * error(prune(graph, plan, check=False), model, x)


def test_layers_called_several_times_are_left_and_named() -> None:
    graph = trace(SharedLayers().eval(), image())
    plan = random_plan(graph)
    small = prune(graph, plan)
    compensate(graph, small, plan.positions, [(image(batch=8),)])
    before = small.shared.weight.clone()
    again = prune(graph, plan)
    assert refit(graph, again, plan.positions, [(image(batch=8),)]).alone == {"shared.weight"}
    assert torch.equal(again.shared.weight, before)
    assert not torch.equal(again.head.weight, small.head.weight)
    with pytest.warns(UserWarning, match="as if nothing had changed before.*: shared.weight$"):
        prune(graph, plan, calibration=[image(batch=8)])


def test_layers_wider_than_a_gram_matrix_are_fitted() -> None:
    model = nn.Sequential(nn.Linear(3, 8300), nn.ReLU(), nn.Linear(8300, 2)).eval()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x[:1], check=False)
    plan = PruningPlan.build(graph, [range(8250)])
    small = prune(graph, plan, calibration=[x], check=False)  # without a warning
    assert error(small, model, x) < 0.1 * error(prune(graph, plan, check=False), model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_stays(dtype: torch.dtype) -> None:
    model = trained_like(Residual()).to(dtype)
    x = image(batch=16).to(dtype)
    graph = trace(model, x[:1], check=False)
    plan = uniform_plan(graph, 0.5)
    small = prune(graph, plan, calibration=[x], check=False)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert error(small, model, x) < error(prune(graph, plan, check=False), model, x)


class Fails(nn.Module):
    """Fails where the pruned network runs on many samples, after its first layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)
        self.wide = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.a(x))
        if x.shape[1] < 6 and x.shape[0] > 8:
            raise RuntimeError("no more than 8")
        return self.b(x)


def test_a_failure_shows_and_leaves_no_hooks() -> None:
    model = Fails().train()
    graph = trace(model, image(), check=False)
    plan = random_plan(graph)
    small = prune(graph, plan, check=False)
    with pytest.raises(RuntimeError, match="no more than 8"):
        refit(graph, small, plan.positions, [(image(batch=9),)])
    for network in (model, small):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert all(module.training for module in network.modules())


def test_a_single_value_per_channel_says_nothing_of_statistics() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    x = torch.randn(1, 3)
    graph = trace(model, x)
    small = prune(graph, PruningPlan.build(graph, [range(3)]), calibration=[x], compensate=False)
    assert torch.equal(small[1].running_var, model[1].running_var[:3])
    assert torch.equal(small[1].running_mean, model[1].running_mean[:3])


def test_batches_that_cannot_be_joined() -> None:
    x, table = image(batch=4), torch.arange(3.0)
    two = [(x, 1.0), (x, 1.0)]
    joined = joined_batches(two, 6)
    assert joined is not None and torch.equal(joined[0], torch.cat([x, x[:2]])) and joined[1] == 1
    assert joined_batches([(x, 1.0), (x, 2.0)], 8) is None
    assert joined_batches([(x, table)], 8) is None
    named = joined_batches([{"x": x}, {"x": x}], 3)
    assert isinstance(named, dict) and torch.equal(named["x"], x[:3])
