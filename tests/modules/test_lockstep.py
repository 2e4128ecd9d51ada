"""Parts of a batch run through a network layer by layer, and give what they give alone."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.modules.lockstep import OutOfStepError, keeps_step, run_in_lockstep


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class LeavesStateBehind(TwoLayers):
    """Its second layer reads what the first one left on the module."""

    def forward(self, x: Tensor) -> Tensor:
        self.left = self.a(x)
        return self.b(x.new_zeros(len(x), 4)) + self.left[:, :2]


class GoesByTheData(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) if x.shape[0] < 3 else x


class Draws(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + torch.rand(1)


class HoldsALock(TwoLayers):
    """Its first layer runs while the forward holds a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            x = self.a(x)
        return self.b(x)


class GoesOn(TwoLayers):
    """Runs a layer although one before it failed."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.a(x)
        finally:
            self.b(x.new_zeros(1, 4))


def two_parts(*sizes: int) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 3, generator=generator),) for size in sizes]


def test_outputs_are_those_of_parts_alone() -> None:
    model, parts = TwoLayers(), two_parts(2, 5, 1)
    met = list[tuple[nn.Module, list[int]]]()

    def meeting(module: nn.Module, inputs: list[Tensor]) -> None:
        met.append((module, [len(x) for x in inputs]))

    outputs = run_in_lockstep(model, parts, {model.a: meeting, model.b: meeting})
    assert met == [(model.a, [2, 5, 1]), (model.b, [2, 5, 1])]
    for output, part in zip(outputs, parts, strict=True):
        assert torch.equal(output, model(*part)) and not output.requires_grad


def test_what_a_meeting_does_to_a_layer_holds_for_all_parts() -> None:
    model, parts = TwoLayers(), two_parts(2, 3)

    @torch.no_grad()
    def double(module: nn.Module, inputs: list[Tensor]) -> None:
        module.get_parameter("weight").mul_(2)

    outputs = run_in_lockstep(model, parts, {model.b: double})
    assert all(torch.equal(y, model(*part)) for y, part in zip(outputs, parts, strict=True))


@pytest.mark.parametrize(
    ("kind", "keeps"),
    [
        (TwoLayers, True),
        (LeavesStateBehind, False),
        (GoesByTheData, False),
        (Draws, False),
        (HoldsALock, False),
    ],
)
def test_networks_whose_parts_disturb_one_another_are_noticed(
    kind: type[TwoLayers], keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdcp_fast.modules.lockstep.LEAST_PATIENCE", 0.5)
    model, before = kind(), threading.active_count()
    assert keeps_step(model, two_parts(2, 3), [model.a, model.b]) is keeps
    assert threading.active_count() == before


def test_parts_that_go_different_ways() -> None:
    model = GoesByTheData()
    with pytest.raises(OutOfStepError, match="different modules"):
        run_in_lockstep(model, two_parts(2, 3), {model.b: lambda module, inputs: None})


@pytest.mark.parametrize("where", ["forward", "meeting"])
def test_an_error_shows_and_leaves_no_threads_and_no_hooks(where: str) -> None:
    model = TwoLayers()

    def meeting(module: nn.Module, inputs: list[Tensor]) -> None:
        if where == "meeting":
            raise KeyError("no")

    parts = [*two_parts(2, 2), (torch.zeros(2, 3 if where == "meeting" else 7),)]
    before = threading.active_count()
    with pytest.raises(KeyError if where == "meeting" else RuntimeError, match="no|shapes"):
        run_in_lockstep(model, parts, {model.a: meeting, model.b: meeting})
    assert threading.active_count() == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_forward_that_goes_on_after_it_was_stopped_ends() -> None:
    model, before = GoesOn(), threading.active_count()

    def meeting(module: nn.Module, inputs: list[Tensor]) -> None:
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        run_in_lockstep(model, two_parts(2, 3), {model.a: meeting, model.b: meeting})
    assert threading.active_count() == before


def test_parts_have_the_surroundings_of_the_caller() -> None:
    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(1)

    parts = two_parts(2, 3)
    with torch.device("meta"):
        outputs = run_in_lockstep(Makes(), parts, {})
    assert {output.device.type for output in outputs} == {"meta"}
    layer = nn.Linear(3, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        outputs = run_in_lockstep(layer, two_parts(2, 3), {})
    assert all(output.dtype == torch.bfloat16 and output.is_inference() for output in outputs)
