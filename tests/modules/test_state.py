"""Tracing, searching and pruning leave a network as it was, whatever its forward writes."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from pictures import picture, same
from torch import Tensor, nn

from mdcp_fast.modules.calls import count_macs
from mdcp_fast.modules.removal import remove
from mdcp_fast.modules.state import unchanged
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.trace import trace

IMAGE = torch.zeros(1, 3, 12, 12)
OLD_EXPORT = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)
GLOBAL: dict[str, Tensor] = {}


@functools.lru_cache
def grid_of(size: int) -> Tensor:
    return torch.arange(size)


class Notes:
    """What a network may hang on itself that is no module."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Writer(nn.Module):
    """Two convolutions; whatever it is asked to write, it writes when it runs."""

    shape: Any = None
    cache: dict[str, Tensor] = {}
    grid = torch.empty(0)

    def __init__(self, write: Callable[[Writer, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 4, 3, padding=1)
        self.write = write
        self.losses: list[Tensor] = []
        self.last: deque[Tensor] = deque(maxlen=2)
        self.by_name: OrderedDict[str, Any] = OrderedDict(nested={"list": [1]})
        self.notes = Notes()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.plain = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        self.write(self, x)
        return self.second(x)


def new_grid(net: Writer, x: Tensor) -> None:
    if net.shape != x.shape:
        net.shape, net.grid = x.shape, x.new_zeros(x.shape[-1])


WRITES: dict[str, Callable[[Writer, Tensor], object]] = {
    "attributes, where the class has defaults": new_grid,
    "a list": lambda net, x: net.losses.append(x),
    "a deque": lambda net, x: net.last.append(x),
    "nested containers": lambda net, x: net.by_name["nested"]["list"].append(x),
    "an object": lambda net, x: net.notes.seen.append(x),
    "a new attribute of an object": lambda net, x: setattr(net.notes, "fresh", x),
    "a class's dictionary": lambda net, x: type(net).cache.update(x=x),
    "a class's attribute": lambda net, x: setattr(type(net), "grid", x),
    "a cached function": lambda net, x: grid_of(x.shape[-1]),
    "a buffer in place": lambda net, x: net.calls.add_(1),
    "a plain tensor in place": lambda net, x: net.plain.add_(1),
    "a buffer anew": lambda net, x: setattr(net, "calls", net.calls + 1),
    "a module of its own": lambda net, x: setattr(net, "extra", nn.Identity()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("ran_before", [False, True], ids=["never run", "run before"])
def test_a_network_is_left_as_it_was(
    write: Callable[[Writer, Tensor], object], ran_before: bool
) -> None:
    net = Writer(write)
    if ran_before:
        net(torch.randn(2, 3, 12, 12))  # leaves tensors that autograd knows
    before = picture(net)
    images = [torch.randn(8, 3, 12, 12)]
    try:
        graph = trace(net, IMAGE)
    except ValueError:  # torch.export refused some of these
        assert OLD_EXPORT
        assert same(picture(net), before)
        return
    assert same(picture(net), before)
    small = prune(graph, search(graph, macs=0.5, calibration=images), calibration=images)
    assert same(picture(net), before)
    assert net.training
    assert small(IMAGE).shape == net(IMAGE).shape == (1, 4, 12, 12)
    assert small.first.out_channels < 16


def test_hooks_and_methods_are_left_with_real_tensors() -> None:
    net, seen = Writer(lambda net, x: GLOBAL.update(x=x)), {}
    net.first.register_forward_hook(lambda module, inputs, output: seen.update(first=output))
    GLOBAL.clear()
    graph = trace(net, IMAGE, check=False)
    assert not seen and not GLOBAL  # a capture has run, and nothing else
    prune(graph, search(graph, macs=0.5), check=False)
    net(IMAGE)
    assert seen["first"].shape == GLOBAL["x"].shape == (1, 16, 12, 12)
    trace(net, IMAGE)
    assert not any(x.is_meta or type(x) is not Tensor for x in (seen["first"], GLOBAL["x"]))


def test_what_a_network_logs_elsewhere_stays() -> None:
    calls: list[int] = []
    net = Writer(lambda net, x: None)
    net.first.register_forward_hook(lambda *_: calls.append(1))
    search(trace(net, IMAGE), macs=0.5, calibration=[torch.randn(8, 3, 12, 12)])
    assert calls


def test_an_error_puts_everything_back() -> None:
    net = Writer(new_grid)
    with pytest.raises(RuntimeError), unchanged(net):
        net(torch.randn(2, 3, 12, 12))
        net.losses.append(torch.zeros(1))
        raise RuntimeError
    assert net.shape is None and not net.losses and "grid" not in vars(net)


@pytest.mark.parametrize(
    "thing",
    [threading.Lock(), threading.local(), (n for n in range(3)), [threading.Lock()],
     {"deep": [threading.RLock(), torch.zeros(1, requires_grad=True) * 2]}],
    ids=["lock", "local", "generator", "in a list", "deep"],
)  # fmt: skip
def test_what_cannot_be_copied_is_shared(thing: Any) -> None:
    net = Writer(lambda net, x: None)
    net.thing = thing
    small = remove(net, {"first.weight": {0: torch.arange(8)}, "first.bias": {0: torch.arange(8)},
                         "second.weight": {1: torch.arange(8)}})  # fmt: skip
    assert small(IMAGE).shape == (1, 4, 12, 12)
    assert prune(trace(net, IMAGE), search(trace(net, IMAGE), macs=0.5)).thing is not None


def test_threads_get_what_one_thread_gets() -> None:
    nets = []
    for width in (12, 16, 20):
        torch.manual_seed(width)
        nets.append(
            nn.Sequential(
                nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3)
            )
        )
    images = [torch.randn(16, 3, 12, 12)]

    def chain(net: nn.Module) -> tuple[str, list[Tensor]]:
        graph = trace(net, IMAGE)
        plan = search(graph, macs=0.5, calibration=images)
        small = prune(graph, plan, calibration=images)
        return plan.to_json(), list(small.state_dict().values())

    alone = [chain(net) for net in nets]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(chain, nets * 4))
    for number, (plan, tensors) in enumerate(together):
        wanted, values = alone[number % len(nets)]
        assert plan == wanted
        assert all(map(torch.equal, tensors, values))
    assert all(net.training for net in nets)


def test_counting_leaves_a_network_as_it_was() -> None:
    net = Writer(lambda net, x: net.losses.append(x))
    before = picture(net)
    assert count_macs(net, IMAGE) > 0
    assert same(picture(net), before)


def test_arguments_may_be_named() -> None:
    net = Writer(lambda net, x: net.calls.add_(1))
    before = picture(net)
    graph = trace(example_inputs=IMAGE, model=net)
    search(macs=0.5, graph=graph, calibration=[torch.randn(8, 3, 12, 12)])
    assert same(picture(net), before)
