"""Linear streams are found, take another basis exactly, and lose less when pruned in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from blocks import image
from torch import Tensor, nn

import mdcp_fast
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.rotation import why_not_rotated
from mdcp_fast.pruning.serialization import load, save
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace


class Inverted(nn.Module):
    """An inverted residual block with squeeze-and-excitation, as MobileNetV3 has them."""

    def __init__(self, width: int, expansion: int, inputs: int | None = None) -> None:
        super().__init__()
        self.residual, inputs = inputs is None, inputs or width
        self.expand = nn.Sequential(
            nn.Conv2d(inputs, expansion, 1, bias=False), nn.BatchNorm2d(expansion), nn.Hardswish()
        )
        self.spread = nn.Sequential(
            nn.Conv2d(expansion, expansion, 3, padding=1, groups=expansion, bias=False),
            nn.BatchNorm2d(expansion),
            nn.ReLU6(),
        )
        self.squeeze, self.excite = nn.Conv2d(expansion, 4, 1), nn.Conv2d(4, expansion, 1)
        self.project = nn.Sequential(
            nn.Conv2d(expansion, width, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.spread(self.expand(x))
        y = y * self.excite(self.squeeze(y.mean((2, 3), True)).relu()).sigmoid()
        y = self.project(y)
        return x + y if self.residual else y


class Mobile(nn.Module):
    """Two streams of inverted residuals and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(
            Inverted(12, 16, 8), Inverted(12, 24), Inverted(16, 24, 12), Inverted(16, 32)
        )
        self.last = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class SuperResolution(nn.Module):
    """Residual bodies without BatchNorm between one convolution and a pixel shuffle (EDSR)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.up, self.last = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + 0.1 * self.b(self.a(x).relu())
        return self.last(F.pixel_shuffle(self.up(x), 2))


def trained_like(model: nn.Module) -> nn.Module:
    """Statistics of a training set that is not the calibration images, and scales that differ."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.1, 1)  # type: ignore[union-attr, operator]
            module.weight.data.uniform_(0.3, 2)
            module.bias.data.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def mobile() -> ChannelGraph:
    torch.manual_seed(0)
    return trace(trained_like(Mobile()), image(batch=1))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return image(batch=48)


@pytest.fixture(scope="module")
def plan(mobile: ChannelGraph, x: Tensor) -> PruningPlan:
    return search(mobile, macs=0.5, calibration=[x])


def streams(graph: ChannelGraph) -> list[str]:
    return [axis.name for axis in graph.axes if why_not_rotated(graph, axis) is None]


def test_streams_of_inverted_residuals_are_found(mobile: ChannelGraph) -> None:
    assert streams(mobile) == ["blocks.0.project.0", "blocks.2.project.0"]


def test_streams_without_batch_norm_are_found() -> None:
    graph = trace(SuperResolution().eval(), image(batch=1))
    assert streams(graph) == ["first", "up"]


class Between(nn.Module):
    """Something between a layer that writes 12 channels and one that reads them."""

    def __init__(self, between: Callable[[Tensor], Tensor], norm: bool = False) -> None:
        super().__init__()
        self.write, self.read = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 5, 1)
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.scale, self.between = nn.Parameter(torch.rand(12, 1, 1) + 0.5), between
        self.grouped = nn.Conv2d(12, 12, 1, groups=3)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.prelu, self.norm_2 = nn.PReLU(12), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.between(self, self.norm(self.write(x))))  # type: ignore[call-arg, arg-type]


LINEAR = {
    "nothing": lambda m, y: y,
    "dropout": lambda m, y: F.dropout(y, 0.5, m.training),
    "average pooling": lambda m, y: F.avg_pool2d(y, 2),
    "interpolation": lambda m, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "zero padding": lambda m, y: F.pad(y, (1, 2, 1, 0)),
    "a number": lambda m, y: y * 0.5 - y / 3,
    "a mask of positions": lambda m, y: y * y.new_ones(1, 1, y.shape[2], 1),
    "channels last": lambda m, y: y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "a sum": lambda m, y: y + F.avg_pool2d(y, 3, 1, 1),
}
BENT = {
    "an activation": lambda m, y: y.relu(),
    "an activation on one branch": lambda m, y: y + y.sigmoid(),
    "maximum pooling": lambda m, y: F.max_pool2d(y, 2),
    "a scale for each channel": lambda m, y: y * m.scale,
    "a shift for each channel": lambda m, y: y + m.scale,
    "a number added": lambda m, y: y + 1,
    "padding that is not zero": lambda m, y: F.pad(y, (1, 1, 1, 1), value=1.0),
    "a product": lambda m, y: y * y.mean((2, 3), True),
    "a grouped layer": lambda m, y: y + m.grouped(y),
    "a depthwise layer": lambda m, y: m.depthwise(y),
    "PReLU": lambda m, y: m.prelu(y),
    "BatchNorm behind a sum": lambda m, y: m.norm_2(y + F.avg_pool2d(y, 3, 1, 1)),
    "the same added to all": lambda m, y: y + y.new_ones(1, 1, y.shape[2], 1),
    "dropping": lambda m, y: y.clamp(-1, 1),
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_what_is_linear_and_treats_channels_alike_is_passed(name: str, norm: bool) -> None:
    torch.manual_seed(0)
    model = trained_like(Between(LINEAR[name], norm))
    graph = trace(model, image(batch=1))
    assert streams(graph) == ["write"]
    rotation, reasons = CalibrationData(graph, [(image(batch=8),)]).rotation()
    assert not reasons and list(rotation.bases) == [0]
    with torch.no_grad():
        assert torch.allclose(rotation.graph.model(image()), model(image()), atol=1e-4)


@pytest.mark.parametrize("name", BENT)
def test_what_is_not_keeps_its_basis_and_says_why(name: str) -> None:
    graph = trace(Between(BENT[name]).eval(), image(batch=1))
    assert graph.axes and streams(graph) == []
    rotation, reasons = CalibrationData(graph, [(image(batch=8),)]).rotation()
    assert not rotation.bases and rotation.graph is graph
    assert all(reasons[axis.name] for axis in graph.axes)


@torch.no_grad()
def test_the_network_is_the_same_function_in_other_bases(mobile: ChannelGraph, x: Tensor) -> None:
    exact = mobile.with_model(trained_like(Mobile()).double())
    rotation, _ = CalibrationData(exact, [(x.double(),)]).rotation()
    assert len(rotation.bases) == 2
    wanted, got = exact.model(x.double()), rotation.graph.model(x.double())
    assert (got - wanted).abs().max() <= 1e-10 * wanted.abs().max()
    changed = rotation.graph.model.state_dict()
    assert not torch.equal(
        changed["blocks.0.project.0.weight"], exact.model.state_dict()["blocks.0.project.0.weight"]
    )


@torch.no_grad()
def test_batch_norm_behind_a_writer_has_true_statistics(x: Tensor) -> None:
    """So that training, which normalises by its batches, goes on from the same function."""
    torch.manual_seed(0)
    model = Mobile().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model(x)
    for _ in range(8):  # statistics of layers behind others settle
        model.eval()(x)
    graph = trace(model.eval(), x[:1])
    rotation, _ = CalibrationData(graph, [(x,)]).rotation()
    network = rotation.graph.model
    norm, seen = network.get_submodule("blocks.0.project.1"), []
    hook = norm.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    network(x)
    hook.remove()
    variance, mean = torch.var_mean(seen[0], (0, 2, 3))
    known_mean, known = norm.running_mean, norm.running_var
    assert isinstance(known_mean, Tensor) and isinstance(known, Tensor)
    assert (mean - known_mean).abs().max() < 0.2 * variance.sqrt().max()
    assert torch.allclose(variance, known, rtol=0.3)
    assert torch.allclose(norm.weight, (known + 1e-5).sqrt(), rtol=1e-4)


def test_rotated_axes_keep_their_first_channels(plan: PruningPlan) -> None:
    rotated = [axis for axis in plan.axes if axis.rotated]
    assert rotated and all(axis.kept == tuple(range(axis.width)) for axis in rotated)
    assert "(rotated)" in str(plan) and plan.settings["rotate"] is True


@torch.no_grad()
def test_less_is_lost_than_by_selecting_channels(mobile: ChannelGraph, x: Tensor) -> None:
    kept = [[*range(-(-axis.channels * 2 // 3))] for axis in mobile.axes]
    turned = [i for i, axis in enumerate(mobile.axes) if why_not_rotated(mobile, axis) is None]
    kept = [k if i in turned else range(mobile.axes[i].channels) for i, k in enumerate(kept)]
    test, wanted = image(batch=32, size=8), None
    test = test + 0.1
    wanted = mobile.model(test)
    errors = {}
    for rotated in ((), turned):
        plan = PruningPlan.build(mobile, kept, rotated=rotated)
        small = prune(mobile, plan, calibration=[x], check=False)
        errors[len(rotated)] = float((small(test) - wanted).square().mean())
    assert errors[2] < 0.7 * errors[0]


@torch.no_grad()
def test_a_rotated_plan_lives_on(
    mobile: ChannelGraph, plan: PruningPlan, x: Tensor, tmp_path: Path
) -> None:
    """As JSON, in a file, in the user's own class, exported, traced and pruned again."""
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    small = prune(mobile, again, calibration=[x])
    save(tmp_path / "small.safetensors", small, again)
    loaded = load(tmp_path / "small.safetensors", Mobile)
    assert type(loaded) is Mobile and torch.equal(loaded(x), small(x))
    exported = torch.export.export(small, (x,)).module()
    assert torch.allclose(exported(x), small(x), atol=1e-5)
    second = trace(small, x[:1])
    smaller = prune(second, search(second, macs=0.7, calibration=[x]), calibration=[x])
    assert smaller(x).isfinite().all() and not torch.equal(smaller(x), small(x))


def test_an_optimizer_cannot_follow(mobile: ChannelGraph, plan: PruningPlan, x: Tensor) -> None:
    small = prune(mobile, plan, calibration=[x], check=False)
    optimizer = torch.optim.Adam(mobile.model.parameters())
    with pytest.raises(ValueError, match="rotates no axis.*blocks.0.project.0"):
        plan.apply_to_optimizer(optimizer, mobile.model, small)


def test_a_rotated_plan_needs_images(mobile: ChannelGraph, plan: PruningPlan) -> None:
    with pytest.raises(ValueError, match="calibration: expected batches.*rotate=False"):
        prune(mobile, plan)
    assert prune(mobile, plan, calibration="noise", check=False)


def test_other_images_give_another_basis_and_the_same_sizes(
    mobile: ChannelGraph, plan: PruningPlan, x: Tensor
) -> None:
    left, right = (prune(mobile, plan, calibration=[b], check=False) for b in (x, x.flip(3)))
    assert [p.shape for p in left.parameters()] == [p.shape for p in right.parameters()]


def test_rotation_can_be_turned_off(mobile: ChannelGraph, x: Tensor) -> None:
    plain = search(mobile, macs=0.5, calibration=[x], rotate=False)
    assert not any(axis.rotated for axis in plain.axes) and plain.settings["rotate"] is False
    assert prune(mobile, plain, check=False)


@pytest.mark.parametrize("images", [1, 24])
def test_nothing_pruned_is_nothing_changed(mobile: ChannelGraph, x: Tensor, images: int) -> None:
    """Bit for bit, whatever the images."""
    noise = 5 * torch.randn(images, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    whole = search(mobile, macs=1.0, calibration=[noise])
    assert not whole.positions
    for calibration in ([noise], "noise"):
        small = prune(mobile, whole, calibration=calibration)
        state = small.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in mobile.model.state_dict().items())


def test_the_same_in_a_fresh_process(
    mobile: ChannelGraph, plan: PruningPlan, x: Tensor, tmp_path: Path
) -> None:
    small = prune(mobile, plan, calibration=[x], check=False)
    save(tmp_path / "small.safetensors", small, plan)
    with torch.no_grad():
        torch.save((x, small(x)), tmp_path / "answers.pt")
    code = (
        "import sys, torch, mdcp_fast; sys.path.insert(0, sys.argv[2])\n"
        "from test_rotation import Mobile\n"
        "x, y = torch.load(sys.argv[1] + '/answers.pt')\n"
        "small = mdcp_fast.load(sys.argv[1] + '/small.safetensors', Mobile)\n"
        "assert torch.allclose(small(x), y, atol=1e-6)\n"
    )
    here, library = Path(__file__).parent, Path(mdcp_fast.__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path), str(here)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(library), str(here.parent)])}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_onnx_computes_the_same(
    mobile: ChannelGraph, plan: PruningPlan, x: Tensor, tmp_path: Path
) -> None:
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    small = prune(mobile, plan, calibration=[x], check=False).eval()
    program = torch.onnx.export(small, (x[:1],), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "small.onnx"))
    session = reference.ReferenceEvaluator(str(tmp_path / "small.onnx"))
    (found,) = session.run(None, {session.input_names[0]: x[:1].numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), small(x[:1]), rtol=1e-3, atol=1e-5)


def test_a_stream_whose_readers_are_all_zeros_keeps_its_basis(x: Tensor) -> None:
    """They give no directions."""
    torch.manual_seed(0)
    model = trained_like(Between(LINEAR["nothing"]))
    nn.init.zeros_(model.read.weight)  # type: ignore[arg-type]
    graph = trace(model, x[:1])
    _, reasons = CalibrationData(graph, [(x,)]).rotation()
    assert "zeros" in reasons["write"]
    assert search(graph, macs=0.5, calibration=[x]).macs <= 0.5 * graph.macs
