"""The check of a removal sees what is wrong, and nothing where all is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from blocks import DenseConcatenation, Residual, image
from torch import Tensor, nn

from mdcp_fast.modules.removal import rebuilt, remove
from mdcp_fast.modules.verification import (
    TOLERANCE,
    Gap,
    cropped,
    difference,
    in_float64,
    relative_difference,
    scrambled,
    scrambling,
    zeroed,
)
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing import check
from mdcp_fast.tracing.trace import trace


def test_a_shifted_position_shows() -> None:
    graph = trace(DenseConcatenation(), image(), check=False)
    right = graph.positions([range(0, axis.channels, 2) for axis in graph.axes])
    assert difference(graph.model, right, (image(),), scramble=True).size <= TOLERANCE
    for name, dimension in [("head.weight", 1), ("bn.weight", 0), ("bn.running_mean", 0)]:
        kept = right[name][dimension]
        wrong = {**right, name: {**right[name], dimension: (kept + 1).clamp_max(int(kept[-1]))}}
        wrong[name][dimension][:-1] = kept[:-1]
        wrong[name][dimension][0] = kept[0] + 1
        assert difference(graph.model, wrong, (image(),), scramble=True).size > 1e-6, name


class Counting(nn.Module):
    """Its answer depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(torch.relu(self.a(x)) * self.calls)


def test_a_network_that_counts_its_calls_passes() -> None:
    assert [axis.name for axis in trace(Counting(), image()).axes] == ["a"]


class LargeImages(nn.Module):
    """Has a size written in its source, where only large images come."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 6, 3, bias=False)
        self.head = nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(x.view(len(x), 6, -1).mean(2) if x.shape[-1] > 64 else x.mean((2, 3)))


@pytest.mark.parametrize("few", [check.FEW_MACS, 0])
def test_sizes_are_tried_on_the_whole_of_the_images(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "FEW_MACS", few)
    graph = trace(LargeImages(), image(size=80, batch=1))
    assert [axis.name for axis in graph.axes] == ["a"]
    assert "does not run" in next(one.reason for one in graph.fixed if one.name == "b")


def test_a_corner_is_enough_only_where_the_whole_takes_many_macs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def noted(*args: object, **options: bool) -> Gap:
        sizes.append(args[2][0].shape[-1])  # type: ignore[index]
        return difference(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(check, "difference", noted)
    for few, expected in [(check.FEW_MACS, [80]), (0, [64])]:
        monkeypatch.setattr(check, "FEW_MACS", few)
        sizes.clear()
        assert trace(Residual(), image(size=80, batch=1)).axes
        assert sizes == expected


def test_corners_are_cut_of_large_images_that_have_something_there() -> None:
    large, small = image(size=80), image(size=64)
    cut = cropped((large, small, 3))
    assert cut is not None and torch.equal(cut[0], large[..., :64, :64])
    assert cut[1] is small and cut[2] == 3
    assert cropped({"x": small, "y": torch.zeros(2, 3, 80, 80), "z": torch.zeros(2, 90)}) is None


class MeanOnLargeImages(nn.Module):
    """Averages over channels, where only large images come: pruned, it runs and is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        return self.head(a) / (a.shape[1] if x.shape[-1] > 64 else 8)


def test_what_is_wrong_on_the_whole_of_the_images_shows() -> None:
    """Sizes fit there and a corner is right, but where it takes few MACs all is compared."""
    graph = trace(MeanOnLargeImages(), image(size=80, batch=1))
    assert not graph.axes
    assert "differs from the zeroed one" in next(o.reason for o in graph.fixed if o.name == "a")


@dataclass
class Answer:
    logits: Tensor
    others: tuple[Tensor, ...] = ()


def test_outputs_in_dataclasses_are_seen() -> None:
    one, other = Answer(torch.ones(2)), Answer(torch.ones(2), (torch.ones(2),))
    assert relative_difference(one, one) == 0 and relative_difference(one, other) == float("inf")
    assert relative_difference(one, Answer(2 * torch.ones(2))) == 0.5


def test_scrambled_weights_let_every_channel_matter() -> None:
    model = Residual()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    double = scrambled(model)
    assert all(p.dtype == torch.float64 and bool(p.any()) for p in double.parameters())
    assert all(bool((b > 0).all()) for n, b in double.named_buffers() if n.endswith("var"))
    assert not any(bool(p.any()) for p in model.parameters())
    again = scrambled(model)
    pairs = zip(double.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_scrambled_weights_are_made_for_what_is_kept() -> None:
    """In one step they are those of the smaller network."""
    graph = trace(DenseConcatenation(), image(), check=False)
    kept = graph.positions([range(0, axis.channels, 2) for axis in graph.axes])
    at_once = remove(graph.model, kept, scrambling()).state_dict()
    after = scrambled(remove(graph.model, kept)).state_dict()
    assert at_once.keys() == after.keys()
    assert all(torch.equal(at_once[name], tensor) for name, tensor in after.items())


def test_a_zeroed_copy_leaves_the_model() -> None:
    graph = trace(Residual(), image(), check=False)
    model = graph.model.half().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = graph.positions([range(0, axis.channels, 2) for axis in graph.axes])
    small = rebuilt(remove(model, kept), in_float64)
    double = zeroed(model, small, kept, in_float64)
    assert not double.training and model.training
    assert all(torch.equal(model.state_dict()[name], old) for name, old in before.items())
    for name, parameter in double.named_parameters():
        dense, wanted = before[name].double(), kept.get(name, {})
        for dimension, positions in wanted.items():
            gone = torch.ones(dense.shape[dimension]).index_fill_(0, positions, 0).bool()
            dense = dense.index_fill(dimension, gone.nonzero().flatten(), 0)
        assert torch.equal(parameter, dense), name
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert double.bn.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (torch.ones(3), torch.ones(3), 0.0),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        (torch.ones(3), torch.ones(4), float("inf")),
        (torch.tensor([float("nan")]), torch.ones(1), float("inf")),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), 0.0),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 2j]), 0.5),
        ({"a": torch.ones(1), "b": (torch.zeros(0), None)}, {"a": torch.ones(1), "b": ()}, None),
        (
            {"a": torch.ones(1), "b": [torch.ones(1)]},
            {"a": torch.ones(1), "b": (torch.ones(1),)},
            0,
        ),
        # A small output has its own scale; one of rounding noise beside others has not.
        ((torch.ones(1), torch.tensor([1e-3])), (torch.ones(1), torch.tensor([2e-3])), 0.5),
        ((torch.ones(1), torch.tensor([1e-18])), (torch.ones(1), torch.zeros(1)), 1e-12),
    ],
)
def test_relative_difference(left: object, right: object, expected: float | None) -> None:
    expected = float("inf") if expected is None else expected
    assert relative_difference(left, right) == pytest.approx(expected)


def test_culprits_are_found_alone_and_together() -> None:
    def trial(indices: Sequence[int]) -> str | None:
        chosen = set(indices)
        if 5 in chosen:
            return "five"
        return "two and nine" if {2, 9} <= chosen else None

    def near(indices: Sequence[int]) -> list[int]:
        return [i for i in (4, 5) if i in indices]

    wanted = {5: "five", 9: "two and nine"}
    assert check.found_failures(12, trial, "five") == wanted
    assert check.found_failures(12, trial, "five", near) == wanted
    assert check.found_failures(2, trial, None) == {}
    assert check.found_failures(0, lambda _: "never", "never") == {}


class Between(nn.Module):
    """Convolutions with something of a user's before and between them."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        between: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.between = before, between
        self.a, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(torch.relu(self.bn(self.a(self.before(x)))))
        return self.head(torch.relu(self.b(x)))


SOUND: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "bytes": {"before": lambda x: x.to(torch.uint8).float() / 255},
    "a pinned dtype": {"between": lambda x: x.float()},
    "a type written out": {"between": lambda x: x.to(torch.float32) * 2},
    "a kernel made in forward": {
        "before": lambda x: F.conv2d(x, torch.ones(3, 1, 3, 3) / 9, padding=1, groups=3)
    },
    "dropout that is always on": {"between": lambda x: F.dropout(x, 0.5, training=True)},
    "noise on the images": {"before": lambda x: x + torch.randn_like(x)},
    "noise that an argument scales": {"before": lambda x: x + 0.1 * torch.rand(x.shape)},
}


@pytest.mark.parametrize("parts", SOUND.values(), ids=SOUND.keys())
def test_networks_that_do_not_run_in_float64_or_draw_numbers_are_sound(
    parts: dict[str, Callable[[Tensor], Tensor]],
) -> None:
    graph = trace(Between(**parts), image(batch=1))
    assert [axis.name for axis in graph.axes] == ["a", "b"]


def test_wrong_positions_show_in_the_networks_own_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(Between(between=lambda x: x.float()), image(batch=1), check=False)
    kept = [range(0, axis.channels, 2) for axis in graph.axes]
    right = graph.positions(kept)
    assert check.failing_axes(graph, kept, scramble=True) == {}
    wrong = {**right, "b.weight": {**right["b.weight"], 1: right["b.weight"][1] + 1}}

    def positions(chosen: Sequence[Sequence[int]]) -> object:
        return wrong if len(chosen[0]) < 16 else {}

    monkeypatch.setattr(type(graph), "positions", lambda _, chosen: positions(chosen))
    assert "differs from the zeroed one" in check.failing_axes(graph, kept, scramble=True)["a"]


class Chaotic(nn.Module):
    """Makes much of what rounding does."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.a, self.head, self.power = nn.Linear(32, 960), nn.Linear(960, 4), power

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.head(torch.relu(self.a(x))) * self.power)


def test_what_rounding_explains_is_no_failure() -> None:
    torch.manual_seed(0)
    model, x = Chaotic(1e8), torch.randn(5, 32)
    assert [axis.name for axis in trace(model, x).axes] == ["a"]
    graph = trace(model, x, check=False)
    gap = difference(graph.model, graph.positions([range(0, 960, 3)]), (x,))
    assert TOLERANCE < gap.size <= gap.rounding


def test_a_network_of_which_rounding_makes_anything_says_nothing() -> None:
    torch.manual_seed(0)
    fixed = trace(Chaotic(1e18), torch.randn(5, 32)).fixed
    assert "differs from the zeroed one" in next(one.reason for one in fixed if one.name == "a")


class Views(nn.Module):
    """Many layers, some of which have sizes written in the source."""

    def __init__(self, wrong: set[int], layers: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv2d(8 if i else 3, 8, 1) for i in range(layers)])
        self.head, self.wrong = nn.Conv2d(8, 2, 1), wrong

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if index in self.wrong:
                x = x.view(len(x), 8, *x.shape[2:])
        return self.head(x)


def test_a_failure_tells_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    trials, run = [], check._Trial.__call__

    def counted(self: object, *arguments: object) -> str | None:
        trials.append(1)
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(check._Trial, "__call__", counted)
    graph = trace(Views({3, 11, 17}), image(size=8, batch=1))
    whole = {one.name for one in graph.fixed} - {"head"}
    assert whole == {"layers.3", "layers.11", "layers.17"}
    assert all("sizes written in its source" in f.reason for f in graph.fixed if f.name in whole)
    assert len(trials) <= 2 + 3 * len(whole)


def test_reasons_do_not_ask_for_sizes_where_it_is_something_else() -> None:
    class Refuses(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            if self.a.out_channels < 16:
                raise RuntimeError("not with me")
            return x

    fixed = trace(Refuses(), image(batch=1)).fixed
    reason = next(one.reason for one in fixed if one.name == "a")
    assert "not with me" in reason and "source" not in reason


class Squeezes(nn.Module):
    """Drops every dimension of size one, and adds what may be stretched."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).squeeze())


def test_axes_that_may_not_be_one_wide_keep_two() -> None:
    graph = trace(Squeezes(), image(batch=2))
    assert {axis.name: axis.least for axis in graph.axes} == {"a": 1, "b": 2}
    plan = search(graph, params=0.2, round_to=1, min_keep=1)
    assert min(axis.width for axis in plan.axes if axis.name == "b") >= 2
    assert prune(graph, plan)(image(batch=2)).shape == (2, 4)
