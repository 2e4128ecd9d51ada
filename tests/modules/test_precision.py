"""Calibration passes compute in full float32, and leave torch's settings as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast import NetworkEvaluator, RefitEvaluator, TableEvaluator, prune, search, trace
from mdcp_fast.modules.precision import OPERATORS, full_float32


def readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # torch refuses where settings and flags contradict each other
        return "contradictory"


def settings() -> dict[str, Any]:
    """Everything that decides how float32 is multiplied."""
    found = {
        "matmul": readable(torch.get_float32_matmul_precision),
        "cuda": readable(lambda: torch.backends.cuda.matmul.allow_tf32),
        "cudnn": readable(lambda: torch.backends.cudnn.allow_tf32),
    }
    for backend, name in OPERATORS:
        operator = getattr(getattr(torch.backends, backend), name, None)
        if hasattr(operator, "fp32_precision"):
            found[f"{backend}.{name}"] = operator.fp32_precision
    return found


def full(found: dict[str, Any]) -> bool:
    return (
        found["matmul"] == "highest"
        and found["cuda"] is False
        and found["cudnn"] is False
        and all(value == "ieee" for name, value in found.items() if "." in name)
    )


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts torch's defaults back after a test that changed them."""
    yield
    for backend, name in OPERATORS:
        operator = getattr(getattr(torch.backends, backend), name, None)
        if hasattr(operator, "fp32_precision"):
            operator.fp32_precision = "none"
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


class Watched(nn.Module):
    """A small network that notes the settings it is run with, eager runs only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            SEEN.append(settings())
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))


SEEN: list[dict[str, Any]] = []


@pytest.mark.parametrize("evaluator", [TableEvaluator, NetworkEvaluator, RefitEvaluator])
def test_calibration_runs_without_tf32_whatever_is_set(restored: None, evaluator: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    graph = trace(Watched(), images[:1])
    torch.set_float32_matmul_precision("medium")
    before = settings()
    assert not full(before)
    SEEN.clear()
    plan = search(
        graph,
        macs=0.6,
        calibration=[images],
        evaluator=evaluator(population=5, generations=1),
    )
    prune(graph, plan, calibration=[images], check=False)
    assert len(SEEN) >= 4  # second moments, Fisher information, the dense pass, the pruned pass
    assert all(full(found) for found in SEEN)
    assert settings() == before


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("cudnn", [False, True])
def test_flags_are_put_back(restored: None, matmul: str, cudnn: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
    before = settings()
    with pytest.raises(KeyError), full_float32():
        assert full(settings())
        raise KeyError
    assert settings() == before


def test_the_last_to_leave_puts_the_flags_back(restored: None) -> None:
    """As two threads do that overlap: first in, second in, first out, second out."""
    torch.set_float32_matmul_precision("medium")
    before = settings()
    first, second = full_float32(), full_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert full(settings())
    second.__exit__(None, None, None)
    assert settings() == before


@pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="torch has settings by operator since 2.9"
)
@pytest.mark.parametrize("everywhere", ["tf32", "ieee"])
@pytest.mark.parametrize("convolutions", ["tf32", "ieee", "none"])
def test_settings_by_operator_are_put_back(
    restored: None, everywhere: str, convolutions: str
) -> None:
    """Also where they contradict the older flags, which torch then refuses to read."""
    torch.backends.fp32_precision = everywhere
    torch.backends.cudnn.conv.fp32_precision = convolutions
    before = settings()
    with full_float32():
        inside = settings()
        assert all(value == "ieee" for name, value in inside.items() if "." in name)
    assert settings() == before
    torch.backends.fp32_precision = "none"  # what was inherited still is
    assert torch.backends.mkldnn.conv.fp32_precision == "none"
