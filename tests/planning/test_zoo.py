"""torchvision's networks: searched to half of the MACs, pruned, and still what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from plans import random_plan
from torch import Tensor, nn

from mdcp_fast.modules.calls import count_macs, tensors_in
from mdcp_fast.modules.verification import TOLERANCE, difference
from mdcp_fast.planning.evaluators import TableEvaluator
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

# The smallest input that each takes whole (Inception's auxiliary head wants 299).
NETWORKS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "ResNet-18": (zoo.resnet18, 32),
    "ResNet-50": (zoo.resnet50, 32),
    "VGG16-BN": (zoo.vgg16_bn, 32),
    "MobileNetV2": (zoo.mobilenet_v2, 32),
    "MobileNetV3-small": (zoo.mobilenet_v3_small, 32),
    "MobileNetV3-large": (zoo.mobilenet_v3_large, 32),
    "DenseNet-121": (zoo.densenet121, 32),
    "EfficientNet-B0": (zoo.efficientnet_b0, 32),
    "GoogLeNet": (lambda **options: zoo.googlenet(init_weights=False, **options), 64),
    "Inception-v3": (lambda **options: zoo.inception_v3(init_weights=False, **options), 299),
    "RegNet-Y-400MF": (zoo.regnet_y_400mf, 32),
    "ResNeXt-50": (zoo.resnext50_32x4d, 32),
    "MNASNet": (zoo.mnasnet1_0, 32),
    "SqueezeNet": (zoo.squeezenet1_1, 32),
    "ConvNeXt-T": (zoo.convnext_tiny, 32),
    "ShuffleNetV2": (zoo.shufflenet_v2_x0_5, 32),
}


def small_swin() -> nn.Module:
    return zoo.SwinTransformer([4, 4], 16, [2, 2], [2, 4], window_size=[4, 4], num_classes=5)


def small_vit() -> nn.Module:
    return zoo.VisionTransformer(32, 8, 2, 2, 16, 48, num_classes=5)


def deeplab() -> nn.Module:
    return zoo.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5)


def image(size: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def checked(graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """The pruned network, equal to the zeroed one in float64 and of exactly the cost foretold."""
    small = prune(graph, plan, check=False)
    assert difference(graph.model, plan.positions, graph.example_inputs).size <= TOLERANCE
    assert count_macs(small, graph.example_inputs) == plan.macs
    assert sum(p.numel() for p in small.parameters()) == plan.params
    return small


def backward(model: nn.Module, *inputs: Tensor) -> None:
    found = model(*inputs)
    outputs: list[Any] = list(found) if isinstance(found, tuple) else tensors_in(found)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_macs(name: str) -> None:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make(weights=None), image(size)
    graph = trace(model, x)
    checked(graph, random_plan(graph))  # the cost model at any widths

    plan = search(graph, macs=0.5, evaluator=TableEvaluator(generations=10))
    small = checked(graph, plan)
    assert 0.97 * 0.5 * graph.macs <= plan.macs <= 0.5 * graph.macs
    assert min(axis.width for axis in plan.axes) >= 1
    backward(small.train(), image(size, batch=2))

    program = torch.export.export(small.eval(), (x,))
    expected = small(x)
    assert torch.allclose(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None and len(onnx.model.graph.outputs) == 1


@pytest.mark.parametrize("make", [small_swin, small_vit])
def test_transformers_lose_what_lies_inside_their_mlps(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    graph = trace(make(), image(32))
    assert all("mlp" in axis.name for axis in graph.axes) and graph.axes
    reasons = " ".join(one.reason for one in graph.fixed)
    assert "LayerNorm normalises over these channels" in reasons and "matrix product" in reasons
    backward(checked(graph, random_plan(graph)), image(32, batch=2))

    opened = trace(graph.model, image(32), allow_inexact=True)
    small = prune(opened, random_plan(opened), check=True)
    assert small(image(32)).shape == (1, 5)


def test_a_segmentation_network() -> None:
    torch.manual_seed(0)
    graph = trace(deeplab(), image(64))
    plan = search(graph, macs=0.5, evaluator=TableEvaluator(generations=10))
    small = checked(graph, plan)
    assert 0.97 * 0.5 * graph.macs <= plan.macs <= 0.5 * graph.macs
    assert small.eval()(image(64))["out"].shape == (1, 5, 64, 64)
