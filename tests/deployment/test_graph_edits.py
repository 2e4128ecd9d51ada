"""Captured networks compute the same after their graphs were changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mdcp_fast.deployment.capture import capture, module_of, outputs_of
from mdcp_fast.deployment.graph_edits import expand_batch_norms, fold_batch_norms, to_half
from mdcp_fast.modules.verification import relative_difference


class Called(nn.Module):
    """A network whose forward is a function of it and the input."""

    def __init__(self, forward: Any, **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class NormAndRelu(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


def conv(*sizes: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, 3, **options)


def shared(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(m.norm(m.conv(x))))


CASES: dict[str, tuple[Any, tuple[int, ...], int]] = {  # network, input, BatchNorms folded
    "convolution": (lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4)), (2, 3, 6, 6), 1),
    "no bias": (lambda: nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4)), (2, 3, 6, 6), 1),
    "not affine": (
        lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False)), (2, 3, 6, 6), 1,
    ),
    "same padding": (
        lambda: nn.Sequential(conv(4, 4, padding="same", groups=2), nn.BatchNorm2d(4)),
        (2, 4, 6, 6), 1,
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 6), 1,
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (2, 3), 1),
    "linear with rows": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5)), (2, 5, 3), 0),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)), (2, 3, 6, 6), 1,
    ),
    "transposed in groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)),
        (2, 4, 6, 6), 0,
    ),
    "with its activation": (lambda: nn.Sequential(conv(3, 4), NormAndRelu(4)), (2, 3, 6, 6), 1),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), conv(3, 4)), (2, 3, 6, 6), 0),
    "shared": (lambda: Called(shared, conv=conv(3, 3), norm=nn.BatchNorm2d(3)), (2, 3, 6, 6), 0),
    "read twice": (
        lambda: Called(
            lambda m, x: (m.norm(y := m.conv(x)), y), conv=conv(3, 4), norm=nn.BatchNorm2d(4)
        ),
        (2, 3, 6, 6), 0,
    ),
    "computed weight": (
        lambda: nn.Sequential(weight_norm(conv(3, 4)), nn.BatchNorm2d(4)), (2, 3, 6, 6), 0,
    ),
    "no statistics": (
        lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, track_running_stats=False)),
        (2, 3, 6, 6), 0,
    ),
    "functions": (
        lambda: Called(
            lambda m, x: m.b(torch.conv2d(m.a(torch.conv2d(x, m.one)), m.two)),
            one=nn.Parameter(torch.randn(4, 3, 2, 2)), two=nn.Parameter(torch.randn(5, 4, 2, 2)),
            a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(5),
        ),
        (2, 3, 6, 6), 2,
    ),
}  # fmt: skip


def network(make: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor in (module.running_mean, module.bias):
                    if tensor is not None:
                        nn.init.normal_(tensor)
                for tensor in (module.running_var, module.weight):
                    if tensor is not None:
                        nn.init.uniform_(tensor, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_batch_norms_are_folded_where_that_is_right(case: str) -> None:
    make, shape, count = CASES[case]
    model, x = network(make), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = outputs_of(model, (x,))
    captured = capture(model, (x,), False)
    names = set(captured.program.state_dict)
    graph = module_of(captured.program)
    assert fold_batch_norms(graph) == count
    assert relative_difference(outputs_of(graph, (x,)), expected) < 1e-5
    folded = capture(graph, (x,), False)
    assert relative_difference(outputs_of(folded.program.module(), (x,)), expected) < 1e-5
    added = set(folded.program.state_dict) - names
    assert all(name.endswith("bias") for name in added) and len(added) <= count
    expand_batch_norms(graph)
    assert relative_difference(outputs_of(graph, (x,)), expected) < 1e-5
    kept = [str(node.target) for node in graph.graph.nodes if "batch_norm" in str(node.target)]
    assert bool(kept) == (case == "no statistics")


def test_half_reaches_everything_inside_and_nothing_outside() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.linear(x.to(torch.float32) + torch.ones(3, dtype=torch.float32) * m.offset)
        return {"y": y.softmax(1, dtype=torch.float32), "index": y.argmax(1)}

    model = network(lambda: Called(forward, linear=nn.Linear(3, 4), offset=torch.full((3,), 0.5)))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    expected = outputs_of(model, (x,))  # capturing copies no tensor
    half = capture(model, (x,), False).edited(to_half)
    seen: list[Any] = []

    class Spy(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            result = super().call_function(target, args, kwargs)
            seen.extend([result.dtype] if isinstance(result, Tensor) else [])
            return result

    found = outputs_of(half.program.module(), (x,))
    Spy(module_of(half.program)).run(x)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.int64]
    assert set(seen[:-1]) == {torch.float16, torch.int64} and seen[-1] is torch.float32
    assert {tensor.dtype for tensor in half.program.state_dict.values()} == {torch.float16}
    assert relative_difference(found, expected) < 1e-2
