"""What layers would lose: Gram matrices, Fisher information, ridge losses, elimination."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from blocks import Residual, image
from plans import Functional
from torch import Tensor, nn

from mdcp_fast.planning.elimination import LAZY, elimination_order
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.fisher import SAMPLES, TEMPERATURE, output_fisher
from mdcp_fast.pruning.input_moments import collect_grams
from mdcp_fast.pruning.prune import prune
from mdcp_fast.pruning.reconstruction import (
    ReconstructionError,
    errors_from_inputs,
    errors_from_weights,
    nested_ridge_losses,
    ridge_losses,
)
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

CLASSES = 4


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(6 * 36, CLASSES),
    ).eval()  # fmt: skip


def errors(
    graph: ChannelGraph, x: Tensor, weighted: bool = True
) -> list[list[ReconstructionError]]:
    batches = [(part,) for part in x.split(7)]
    consumers, skipped = collect_grams(graph, batches)
    assert not skipped
    found = output_fisher(graph, consumers, batches) if weighted else None
    return errors_from_inputs(graph, consumers, found)


def random_errors(
    channels: int, size: int = 1, groups: int = 1, count: int = 2
) -> list[ReconstructionError]:
    generator = torch.Generator().manual_seed(channels)

    def psd() -> Tensor:
        n = channels * size
        root = torch.randn(groups, n, n // 2 + 3, generator=generator, dtype=torch.float64)
        return root @ root.transpose(1, 2) / n

    return [ReconstructionError(psd(), psd()) for _ in range(count)]


def prefixes(order: Tensor) -> Tensor:
    """Masks of the first 1, 2, ... channels: bool [channels, channels]."""
    masks = torch.zeros(len(order), len(order), dtype=torch.bool)
    for width in range(len(order)):
        masks[width, order[: width + 1]] = True
    return masks


def solved_directly(own: Sequence[ReconstructionError], kept: Tensor) -> float:
    """The ridge loss by its definition, one dense solve for each group of each error."""
    total = 0.0
    for error in own:
        size = error.gram.shape[1] // len(kept)
        stays = kept.repeat_interleave(size)
        for gram, effect in zip(error.gram, error.effect, strict=True):
            inner = gram[stays][:, stays]
            ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(inner), dtype=torch.float64)
            predicted = gram[~stays][:, stays] @ torch.linalg.solve(
                inner + ridge, gram[stays][:, ~stays]
            )
            left = gram[~stays][:, ~stays] - predicted
            total += float((effect[~stays][:, ~stays] * left).sum())
    return total


@pytest.mark.parametrize(("channels", "size", "groups"), [(9, 1, 1), (6, 3, 1), (7, 1, 2)])
def test_losses_are_those_of_a_direct_solve(channels: int, size: int, groups: int) -> None:
    own = random_errors(channels, size, groups)
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(12, channels, generator=generator) < 0.5
    kept[:, 0] = True
    wanted = torch.tensor([solved_directly(own, mask) for mask in kept], dtype=torch.float64)
    torch.testing.assert_close(ridge_losses(own, kept), wanted, rtol=1e-9, atol=1e-12)
    assert ridge_losses(own, torch.ones(1, channels, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize(
    ("channels", "size", "groups"), [(1, 1, 1), (2, 1, 1), (12, 1, 1), (8, 2, 3), (150, 1, 1)]
)
def test_the_order_is_nested_and_its_losses_are_the_ridge_losses(
    channels: int, size: int, groups: int
) -> None:
    assert channels < LAZY or channels > 2 * LAZY  # updates pending, settled, and forgotten
    own = random_errors(channels, size, groups)
    order, losses = elimination_order(own, channels)
    assert order.sort().values.tolist() == list(range(channels))
    wanted = ridge_losses(own, prefixes(order))
    torch.testing.assert_close(losses, wanted, rtol=1e-7, atol=1e-9)
    assert (losses.diff() <= 0).all() and losses[-1] == 0


@pytest.mark.parametrize(("channels", "size", "groups"), [(1, 1, 1), (9, 1, 1), (6, 3, 2)])
@pytest.mark.parametrize("held_out", [False, True])
def test_one_factor_gives_the_losses_of_all_widths_of_an_order(
    channels: int, size: int, groups: int, held_out: bool
) -> None:
    own = random_errors(channels, size, groups)
    if held_out:
        pairs = zip(own, random_errors(channels, size, groups, count=4)[2:], strict=True)
        own = [one._replace(fitted=one.gram, held_out=r.gram) for one, r in pairs]
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(2))
    wanted = ridge_losses(own, prefixes(order))
    torch.testing.assert_close(nested_ridge_losses(own, order), wanted, rtol=1e-9, atol=1e-12)


def test_losses_of_a_given_order_are_the_ridge_losses() -> None:
    own = random_errors(12)
    order, losses = elimination_order(own, 12, given=True)
    assert torch.equal(order, torch.arange(12))
    torch.testing.assert_close(losses, ridge_losses(own, prefixes(order)), rtol=1e-9, atol=1e-12)


def test_each_step_drops_the_channel_that_costs_least() -> None:
    own = random_errors(10)
    order, _ = elimination_order(own, 10)
    for width in range(10, 1, -1):
        kept = torch.zeros(width, 10, dtype=torch.bool)
        kept[:, order[:width]] = True
        kept[torch.arange(width), order[:width]] = False
        assert order[width - 1] == order[:width][ridge_losses(own, kept).argmin()]


def test_renumbered_channels_give_the_renumbered_order() -> None:
    own = random_errors(20)
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    renumbered = [
        ReconstructionError(
            one.gram[:, shuffle][:, :, shuffle], one.effect[:, shuffle][:, :, shuffle]
        )
        for one in own
    ]
    order, losses = elimination_order(own, 20)
    again, same = elimination_order(renumbered, 20)
    assert torch.equal(shuffle[again], order)
    torch.testing.assert_close(same, losses)


def test_a_channel_that_others_replace_goes_first_whatever_its_size() -> None:
    base = torch.eye(4, dtype=torch.float64)
    mix = torch.cat([base, 30 * (base[:1] + base[1:2])])  # channel 4: a large sum of two others
    own = [ReconstructionError((mix @ mix.T)[None], torch.eye(5, dtype=torch.float64)[None])]
    order, losses = elimination_order(own, 5)
    assert int(order[-1]) in (0, 1, 4) and losses[3] < 1


@torch.no_grad()
def test_readings_are_shares_of_what_a_layer_responds_to() -> None:
    """Dropping all channels costs everything: the layer's weight, which is 1 on average."""
    graph, x = trace(net(), image(batch=1)), image(batch=40)
    for weighted in (False, True):
        totals = []
        for own in errors(graph, x, weighted):
            totals += [float((one.gram * one.effect).sum()) for one in own]
            assert all(torch.linalg.eigvalsh(one.kernel).min() > -1e-9 for one in own)
        assert sum(totals) / len(totals) == pytest.approx(1)
        assert weighted == (totals[0] != pytest.approx(1))


@torch.no_grad()
def test_grams_are_the_second_moments_of_what_a_layer_reads() -> None:
    model, x = net(), image(batch=40)
    graph = trace(model, image(batch=1))
    consumers, _ = collect_grams(graph, [(part,) for part in x.split(7)])
    rows = model[:2](x).movedim(1, -1).flatten(0, -2).double()
    (found,) = (one for one in consumers if one.weight == "2.weight")
    gram, mean = found.moments(centred=False)
    torch.testing.assert_close(gram[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mean[0], rows.mean(0), rtol=1e-5, atol=1e-6)
    assert found.samples == len(rows)
    flat = next(one for one in consumers if one.weight == "5.weight")
    assert flat.gram is not None and flat.gram.shape == (1, 6, 6)  # a flattened input's channels


def test_the_fisher_matrix_is_that_of_the_answer() -> None:
    """Behind the last layer it is known: that of the softmax, averaged over samples."""
    model, x = net(), image(batch=SAMPLES + 3)
    graph = trace(model, x[:1])
    consumers, _ = collect_grams(graph, [(x,)])
    found = torch.stack(
        [output_fisher(graph, consumers, [(x,)], seed)["5.weight"] for seed in range(300)]
    ).mean(0)
    with torch.no_grad():
        p = F.softmax(model(x).double() / TEMPERATURE, 1)
    wanted = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.01)


def test_a_fisher_matrix_is_that_of_what_a_layer_puts_out() -> None:
    """Also where an activation changes it in place: a linear network's is known exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Hardtanh(-9, 9, inplace=True))
    model.append(nn.Flatten()).append(nn.Linear(16, CLASSES)).eval()
    x = image(batch=12, size=2) / 10
    graph = trace(model, x[:1])
    consumers, _ = collect_grams(graph, [(x,)])
    found = output_fisher(graph, consumers, [(x,)])
    head = model[4].weight.detach().double().view(CLASSES, 4, 4)  # [classes, channels, positions]
    wanted = torch.einsum("kcs,kl,lds->cd", head, found["4.weight"], head)
    torch.testing.assert_close(found["1.weight"], wanted, rtol=1e-4, atol=1e-7)


def test_nothing_of_the_network_changes() -> None:
    model, x = net(), image(batch=5)
    model.train()
    graph = trace(model, x[:1])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    errors(graph, x)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_frozen_networks_have_fisher_matrices_too() -> None:
    model, x = net().requires_grad_(False), image(batch=5)
    graph = trace(model, x[:1])
    consumers, _ = collect_grams(graph, [(x,)])
    assert set(output_fisher(graph, consumers, [(x,)])) == {"2.weight", "5.weight"}


@torch.no_grad()
def test_layers_that_are_no_modules_are_read_by_their_weights() -> None:
    graph = trace(Functional(), image())
    consumers, skipped = collect_grams(graph, [(image(batch=4),)])
    assert skipped == ["weight"]
    (own,), (free,) = errors_from_inputs(graph, consumers), errors_from_weights(graph)
    assert torch.equal(own[0].gram, free[0].gram) and torch.equal(own[0].effect, free[0].effect)


def test_a_residual_stream_is_read_by_all_that_read_it() -> None:
    graph = trace(Residual(), image(batch=1))
    for axis, own, free in zip(
        graph.axes, errors(graph, image(batch=16)), errors_from_weights(graph), strict=True
    ):
        assert len(own) == len(free) == len(axis.consumers)
        assert all(one.gram.shape[1] == axis.channels for one in [*own, *free])


class Tied(nn.Module):
    """One weight writes the hidden channels and reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.head = nn.Linear(6, 5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.code(x).relu(), self.code.weight.t()))


def test_what_a_tied_weight_writes_is_read_by_its_rows() -> None:
    graph = trace(Tied(), torch.randn(8, 6))
    (hidden,) = [axis for axis in graph.axes if axis.name == "code"]
    assert not hidden.consumers
    (error,) = errors_from_weights(graph)[graph.axes.index(hidden)]
    assert error.effect.shape == (1, 5, 5) and error.effect.diagonal(dim1=1, dim2=2).min() > 0
    batches = [torch.randn(32, 6)]
    plan = search(graph, macs=0.6, calibration=batches, round_to=1)
    small = prune(graph, plan, calibration=batches)
    assert small.code.out_features < 5 and small(batches[0]).shape == (32, 2)
