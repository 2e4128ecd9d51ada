"""Label tensors stay small views of what the real op gives; classes remember their reasons."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mdcp_fast.tracing.labels import Walk, walk_program
from mdcp_fast.tracing.labels.label_tensors import (
    compact,
    none,
    reshaped,
    settled,
    spread,
    varies,
    varying,
)
from mdcp_fast.tracing.labels.union_find import Classes

SHAPES = [
    # source, dimension of the channels, target: splits, merges, flattening, moved ones
    ((2, 6, 4, 4), 1, (2, 2, 3, 4, 4)),
    ((2, 6, 4, 4), 1, (2, 96)),
    ((2, 6, 4, 4), 1, (12, 4, 4)),
    ((2, 6, 4, 4), 1, (2, 6, 16)),
    ((2, 16, 6), 2, (2, 4, 4, 3, 2)),
    ((6, 5), 0, (3, 10)),
    ((2, 6, 1, 1), 1, (2, 6)),
    ((1, 6), 1, (6,)),
]


@pytest.mark.parametrize(("source", "dim", "target"), SHAPES)
def test_reshaping_labels_is_reshaping(
    source: tuple[int, ...], dim: int, target: tuple[int, ...]
) -> None:
    labels = spread(torch.arange(1, source[dim] + 1), source, dim)
    found = reshaped(labels, target)
    assert torch.equal(found, labels.contiguous().reshape(target))
    assert compact(found).numel() <= labels.contiguous().numel()


def test_reshaping_writes_out_no_images() -> None:
    labels = spread(torch.arange(1, 65), (1, 64, 224, 224), 1)
    assert reshaped(labels, (1, 8, 8, 224, 224)).untyped_storage().nbytes() == 64 * 8


def test_labels_that_do_not_differ_take_no_memory() -> None:
    written_out = torch.arange(1, 4).view(1, 3, 1).expand(5, 3, 7).contiguous()
    assert compact(written_out).shape == (1, 3, 1)
    assert torch.equal(settled(written_out, (5, 3, 7)), written_out)
    assert varying(written_out) == [1]
    assert not varies(none((4, 4)), 0)


def test_merged_labels_share_a_root_and_a_reason() -> None:
    classes = Classes()
    a, b, c = classes.fresh(4), classes.fresh(4), classes.fresh(4)
    classes.merge(a, b, "")
    classes.merge(b.flip(0), c, "")
    classes.fix(c[:1], "because")
    classes.mix(a[:1], "mixed")
    resolved = classes.resolve()
    assert torch.equal(resolved.roots[a], resolved.roots[b])
    assert torch.equal(resolved.roots[b].flip(0), resolved.roots[c])
    assert resolved.fixed == {int(resolved.roots[a[3]]): "because"}
    assert resolved.mixed == {int(resolved.roots[a[0]]): "mixed"}
    assert len(resolved.roots[a].unique()) == 4


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_those_of_merging_one_by_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes, count = Classes(), 200
    own = classes.fresh(count)
    expected = list(range(count + 1))  # the smallest label of each one's class
    for _ in range(8):
        left, right = (own[torch.randint(count, (15,), generator=generator)] for _ in range(2))
        classes.merge(left, right, "")
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            ends = {expected[a], expected[b]}
            expected = [min(ends) if label in ends else label for label in expected]
        assert classes.resolve().roots.tolist() == expected


@pytest.mark.parametrize("step", [1, -1])
def test_a_chain_merged_at_once_is_one_class(step: int) -> None:
    classes = Classes()
    chain = classes.fresh(100)[torch.arange(100) * step]
    classes.merge(chain[:-1], chain[1:], "")
    assert classes.resolve().roots.unique().tolist() == [0, 1]
    assert classes.roots(torch.tensor([[7, 0]])).tolist() == [[1, 0]]


def test_the_first_reason_of_a_class_counts() -> None:
    classes = Classes()
    a, b = classes.fresh(2), classes.fresh(2)
    classes.fix(b[1:], "first")
    classes.fix(a, "second")
    classes.merge(a, b, "")
    assert classes.resolve().fixed == {int(a[0]): "second", int(a[1]): "first"}
    assert classes.resolve().bent == {}


def test_meeting_no_channel_fixes() -> None:
    classes = Classes()
    a = classes.fresh(3)
    classes.merge(a, torch.tensor([0, a[1], 0]), "padding")
    assert classes.resolve().fixed == {int(a[0]): "padding", int(a[2]): "padding"}


def test_merging_many_pairs_is_merging_each() -> None:
    classes = Classes()
    a = classes.fresh(200)
    classes.merge(a.view(2, 100)[:1], a.view(2, 100), "")
    assert torch.equal(classes.resolve().roots[a], a.view(2, 100)[0].repeat(2))


class Moves(nn.Module):
    """Data movement of all sorts between one layer and another."""

    def __init__(self, move: object) -> None:
        super().__init__()
        self.a, self.move = nn.Conv2d(3, 8, 1), move

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.move(self.a(x))  # type: ignore[operator]
        return moved


MOVES = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 3),
    "movedim": lambda x: x.movedim(1, -1),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 4)),
    "shuffle": lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
    "cat": lambda x: torch.cat([x, x * 2], 1),
    "cat of rows": lambda x: torch.cat([x, x], 2),
    "stack": lambda x: torch.stack([x, x], 2),
    "repeat": lambda x: x.repeat(1, 2, 3, 1),
    "expand": lambda x: x.unsqueeze(1).expand(-1, 5, -1, -1, -1),
    "pad": lambda x: nn.functional.pad(x, (0, 0, 0, 0, 2, 3)),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "slice": lambda x: x[:, 2:7:2],
    "select": lambda x: x[:, :, 1],
    "unbind": lambda x: x.unbind(1)[3],
    "roll of rows": lambda x: x.roll(1, 2),
    "flip of rows": lambda x: x.flip(3),
    "mean of rows": lambda x: x.mean(2),
    "mean, kept": lambda x: x.mean((2, 3), keepdim=True),
    "pixel unshuffle": lambda x: nn.functional.pixel_unshuffle(x, 2),
    "squeeze": lambda x: x[:1].squeeze(0),
}


@pytest.mark.parametrize("name", MOVES)
def test_data_movement_is_run_on_labels(name: str) -> None:
    """The label at each place of the output is that of the channel whose value stands there."""
    move = MOVES[name]
    program = torch.export.export(Moves(move), (torch.randn(2, 3, 4, 4),))
    walk = Walk()
    walk_program(walk, program)
    *_, output = program.graph.nodes
    found = walk.labels(output.args[0][0])
    own = walk.uses["a.weight", 0].labels
    expected = move(spread(own, (2, 8, 4, 4), 1).double().contiguous()).round().long()
    if name == "cat":
        expected[:, 8:] //= 2  # the values are doubled there, the labels are not
    assert torch.equal(found, expected)


def test_a_pixel_shuffle_makes_one_channel_of_four() -> None:
    walk = Walk()
    model = Moves(lambda x: nn.functional.pixel_shuffle(x, 2))
    walk_program(walk, torch.export.export(model, (torch.randn(2, 3, 4, 4),)))
    roots = walk.finish().roots[walk.uses["a.weight", 0].labels]
    assert torch.equal(roots, roots[::4].repeat_interleave(4)) and len(roots.unique()) == 2


def test_reasons_name_the_line() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:, 2:]

    walk = Walk()
    walk_program(walk, torch.export.export(Sliced(), (torch.randn(1, 3, 4, 4),)))
    (reason,) = set(walk.finish().fixed.values())
    assert "sizes written in the source: slice, `return self.inner(x)[:, 2:]`" in reason
