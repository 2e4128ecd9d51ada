"""A network whose later layers change gives the same with and without what is known before them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blocks import BLOCKS, image
from torch import Tensor, nn

from mdcp_fast.modules.calls import as_inputs, call, tensors_in
from mdcp_fast.modules.known_start import KnownStart, answered, remembered
from mdcp_fast.modules.removal import rebuilt, tensor_of

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Counted(nn.Module):
    """A convolution that counts how often it runs."""

    def __init__(self, inputs: int = 4) -> None:
        super().__init__()
        self.conv, self.runs = nn.Conv2d(inputs, 4, 3, padding=1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.conv(x)


class Awkward(nn.Module):
    """Changes in place, aliases and what is left on modules go past the blocks of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = Counted(3), Counted(), Counted(), Counted()
        self.rectify, self.same = nn.ReLU(inplace=True), nn.Dropout()
        self.left: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.same(x)
        y.mul_(2)  # and so x
        self.left = self.b(self.rectify(x))  # which x then is, rectified
        return self.d(self.c(x) + self.left + y)


def disturbed(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        tensor_of(model, name).add_(0.5)


def with_and_without(
    model: nn.Module, inputs: Any, names: list[str]
) -> tuple[list[Tensor], list[Tensor], list[nn.Module]]:
    """The outputs after these tensors changed, in full and with what is known before them."""
    twin = rebuilt(model.eval(), torch.clone)
    modules = KnownStart(twin, inputs).before(names)
    with torch.no_grad(), remembered(modules) as known:
        call(twin, inputs)
    changed = rebuilt(model, torch.clone)
    for one in (twin, changed):
        for name in names:
            disturbed(one, name)
    with torch.no_grad():
        wanted = tensors_in(call(changed, inputs))
        with answered(known):
            found = tensors_in(call(twin, inputs))
    return wanted, found, modules


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_what_is_known_does_not_run_and_the_answer_is_the_same(name: str) -> None:
    torch.manual_seed(0)
    wanted, found, modules = with_and_without(Awkward(), (X,), [f"{name}.conv.weight"])
    assert torch.equal(wanted[0], found[0])
    runs = {"a": [], "b": [2], "c": [2, 2], "d": [2, 2, 2]}[name]
    assert [type(one) for one in modules] == [Counted] * len(runs)
    assert all(one.runs == 2 for one in modules)  # to look at them, and to remember


@pytest.mark.parametrize("kind", BLOCKS)
def test_networks_of_every_kind(kind: str) -> None:
    torch.manual_seed(0)
    model = BLOCKS[kind].make().eval()
    inputs = as_inputs("test", BLOCKS[kind].inputs)
    for name in [name for name, _ in model.named_parameters()][-3:]:
        wanted, found, _ = with_and_without(model, inputs, [name])
        assert all(map(torch.equal, wanted, found)), name


def test_the_largest_modules_are_known() -> None:
    first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    model = nn.Sequential(first, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).eval()
    start = KnownStart(model, (X,))
    assert start.before(["2.weight"]) == [first, model[1]]
    assert start.before(["1.weight", "2.weight"]) == [first]
    assert start.numbers([first, model[1]]) == 2 * 3 * 4 * 64
    assert start.begin(["2.weight"]) > start.begin(["1.weight"]) > 0


def test_modules_with_hooks_or_several_calls_run() -> None:
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, conv, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    model[2].register_forward_hook(lambda *_: None)
    assert KnownStart(model, (X,)).before(["3.weight"]) == []


def test_nothing_is_known_before_what_is_not_called() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    model[1].inner = nn.Conv2d(3, 3, 1)
    start = KnownStart(model, (X,))
    assert start.before(["1.inner.weight"]) == [] and start.begin(["1.inner.weight"]) == 0


def test_modules_are_as_they_were_afterwards() -> None:
    model = Awkward().eval()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(RuntimeError, match="stop"), answered({model.a: image()}):
        raise RuntimeError("stop")
    assert all(vars(module) == before[name] for name, module in model.named_modules())
