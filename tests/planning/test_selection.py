"""Which channels stay: quotas, coverage of clusters, ties, and the loss table built from them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.planning.clustering import cluster_numbers
from mdcp_fast.planning.descriptors import Descriptors
from mdcp_fast.planning.loss_table import GRID, loss_table, ridge_table
from mdcp_fast.planning.selection import (
    RULES,
    Clustered,
    Clusters,
    Nested,
    Selection,
    SelectionRule,
    select,
)
from mdcp_fast.pruning.reconstruction import ReconstructionError, ridge_losses


def described(sizes: list[int], dimensions: int = 3, seed: int = 0) -> Descriptors:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(sum(sizes), dimensions, generator=generator)
    norms = torch.rand(sum(sizes), generator=generator) + 0.5
    return Descriptors(points, torch.tensor([0, *sizes]).cumsum(0), norms)


def jobs(selection: Selection) -> list[tuple[Tensor, Tensor]]:
    """(kept, clusters) of every job."""
    kept = selection.kept.split(selection.widths.tolist())
    return list(zip(kept, selection.clusters.split(selection.channels.tolist()), strict=True))


@pytest.mark.parametrize("channels_per_cluster", [1.0, 1.7, 4.0])
def test_every_width_is_exact_and_every_cluster_is_covered(channels_per_cluster: float) -> None:
    descriptors = described([24, 7, 1])
    axis = torch.tensor([0] * 24 + [1] * 7 + [2])
    width = torch.cat([torch.arange(1, 25), torch.arange(1, 8), torch.tensor([1])])
    found = select(descriptors, axis, width, channels_per_cluster=channels_per_cluster)
    for (kept, clusters), w in zip(jobs(found), width.tolist(), strict=True):
        assert len(kept) == w and (kept.diff() > 0).all()
        assert set(clusters[kept].tolist()) == set(clusters.tolist())
        assert len(set(clusters.tolist())) == math.ceil(w / channels_per_cluster)


def test_quotas_go_by_largest_remainder_of_the_further_channels() -> None:
    """Clusters of 6, 3 and 1 channels share 6: one each, and 3 more as 5 : 2 : 0 -> 2, 1, 0."""
    points = torch.cat(
        [torch.randn(6, 2) * 0.01, torch.randn(3, 2) * 0.01 + 10, -10 * torch.ones(1, 2)]
    )
    descriptors = Descriptors(points, torch.tensor([0, 10]), torch.ones(10))
    found = select(descriptors, torch.tensor([0]), torch.tensor([6]), channels_per_cluster=2.0)
    kept, clusters = jobs(found)[0]
    counts = torch.bincount(clusters[kept])[clusters]
    assert counts.tolist() == [3] * 6 + [2] * 3 + [1]


def test_the_largest_crowding_distance_stays_inside_a_cluster() -> None:
    descriptors = described([40])
    found = select(descriptors, torch.tensor([0]), torch.tensor([20]), channels_per_cluster=5.0)
    kept, clusters = jobs(found)[0]
    for cluster in range(4):
        members = (clusters == cluster).nonzero().flatten()
        distance = crowding_distance(descriptors.points[members], torch.tensor([0, len(members)]))
        stays = torch.isin(members, kept)
        if not stays.all():
            assert distance[stays].min() >= distance[~stays].max()


def test_the_nearest_to_the_centre_stay_as_medoids() -> None:
    descriptors = described([40])
    found = select(
        descriptors,
        torch.tensor([0]),
        torch.tensor([20]),
        channels_per_cluster=5.0,
        rule=RULES["medoid"],
    )
    kept, clusters = jobs(found)[0]
    for cluster in range(4):
        members = (clusters == cluster).nonzero().flatten()
        points = descriptors.points[members]
        distance = (points - points.mean(0)).norm(dim=1)
        stays = torch.isin(members, kept)
        if not stays.all():
            assert distance[stays].max() <= distance[~stays].min() + 1e-5


class Largest:
    """A rule of the caller's own: the largest norm."""

    def scores(self, descriptors: Descriptors, clusters: Clusters) -> Tensor:
        return descriptors.norms[clusters.rows]


@pytest.mark.parametrize("rule", [*RULES.values(), Largest()])
def test_all_rules_choose_from_the_same_clusters(rule: SelectionRule) -> None:
    descriptors = described([40])
    job = torch.tensor([0]), torch.tensor([20])
    clusters = select(descriptors, *job).clusters
    found = select(descriptors, *job, rule=rule)
    assert torch.equal(found.clusters, clusters)
    assert len(set(found.clusters[found.kept].tolist())) == 20


def test_in_a_single_cluster_a_rule_is_an_importance() -> None:
    descriptors = described([40, 25])
    axis, width = torch.tensor([1, 0, 1]), torch.tensor([7, 30, 2])
    found = select(descriptors, axis, width, channels_per_cluster=1e9, rule=Largest())
    norms = descriptors.norms.split([40, 25])
    for a, kept in zip(axis.tolist(), found.kept.split(width.tolist()), strict=True):
        assert torch.equal(kept, norms[a].topk(len(kept)).indices.sort().values)


def test_given_numbers_of_clusters_are_kept_to() -> None:
    descriptors = described([40])
    width, clusters = torch.tensor([20, 20]), torch.tensor([3, 9])
    found = select(descriptors, torch.tensor([0, 0]), width, clusters=clusters, init="k-means++")
    for (kept, labels), k in zip(jobs(found), (3, 9), strict=True):
        assert len(kept) == 20 and len(set(labels[kept].tolist())) == k


def made_errors(sizes: list[int]) -> list[list[ReconstructionError]]:
    generator = torch.Generator().manual_seed(0)
    roots = [
        [torch.randn(1, n, n, generator=generator, dtype=torch.float64) for _ in range(2)]
        for n in sizes
    ]
    return [
        [ReconstructionError(*(root @ root.transpose(1, 2) for root in pair))] for pair in roots
    ]


def test_a_nested_order_keeps_more_of_the_same() -> None:
    choose = Nested(made_errors([12, 5]), torch.tensor([12, 5]))
    widths = torch.arange(1, 13)
    found = choose(torch.zeros(12, dtype=torch.int64), widths)
    assert found.clusters is None
    kept = [set(one.tolist()) for one in found.kept.split(widths.tolist())]
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))
    with pytest.raises(ValueError, match=r"width\[1\]: expected 1 to 5, got 6"):
        choose(torch.tensor([0, 1]), torch.tensor([6, 6]))


def test_the_ridge_table_holds_the_losses_of_what_stays() -> None:
    errors, channels = made_errors([10, 6]), torch.tensor([10, 6])
    choices = [torch.arange(1, 11), torch.tensor([2, 4, 6])]
    nested, clustered = Nested(errors, channels), Clustered(described([10, 6]))
    table = ridge_table(errors, channels, choices, nested)
    assert table.offsets.tolist() == [0, 10, 16]
    torch.testing.assert_close(table.values[:10], nested.table().values[:10])
    assert table.values[12] == pytest.approx((table.values[11] + table.values[13]).item() / 2)
    table, falling = ridge_table(errors, channels, choices, clustered), torch.inf
    for width in range(1, 11):
        mask = torch.zeros(1, 10, dtype=torch.bool)
        mask[0, clustered(torch.tensor([0]), torch.tensor([width])).kept] = True
        falling = min(falling, ridge_losses(errors[0], mask).item())
        assert table.values[width - 1] == pytest.approx(falling)
    assert table.values[9] == 0 and table.values[15] == 0


def test_the_best_number_of_clusters_is_that_of_clear_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 50 * torch.randn(5, 3, generator=generator)
    points = centres.repeat_interleave(8, 0) + torch.randn(40, 3, generator=generator)
    same = torch.zeros(4, 3)
    descriptors = Descriptors(torch.cat([points, same]), torch.tensor([0, 40, 44]), torch.ones(44))
    numbers, qualities = cluster_numbers(descriptors, torch.tensor([20, 1]), init="k-means++")
    assert numbers[0].tolist() == list(range(2, 21)) and numbers[1].tolist() == [1]
    assert numbers[0][qualities[0].argmax()] == 5 and qualities[0].max() == 1
    assert qualities[1].tolist() == [0]


def test_infinite_crowding_is_ordered_by_norm_then_index() -> None:
    points = torch.tensor([[0.0], [1.0], [0.0], [1.0]])  # two pairs: everything is an end
    norms = torch.tensor([1.0, 5.0, 2.0, 5.0])
    descriptors = Descriptors(points, torch.tensor([0, 4]), norms)
    kept, clusters = jobs(select(descriptors, torch.tensor([0]), torch.tensor([2])))[0]
    assert clusters[0] == clusters[2] and clusters[1] == clusters[3]
    assert kept.tolist() == [1, 2]


def test_equal_channels_leave_clusters_empty_but_the_width_exact() -> None:
    descriptors = Descriptors(torch.zeros(9, 3), torch.tensor([0, 9]), torch.arange(9.0))
    for width in range(1, 10):
        found = select(descriptors, torch.tensor([0]), torch.tensor([width]))
        kept, _ = jobs(found)[0]
        assert len(kept) == width


def test_the_same_answer_at_every_thread_count_and_in_any_company() -> None:
    descriptors = described([64, 33])
    axis, width = torch.tensor([0, 1, 0, 1]), torch.tensor([20, 11, 50, 3])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = select(descriptors, axis, width)
        torch.set_num_threads(3)
        three = select(descriptors, axis, width)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    for j, (kept, clusters) in enumerate(jobs(one)):
        alone = select(descriptors, axis[j : j + 1], width[j : j + 1])
        assert torch.equal(alone.kept, kept) and torch.equal(alone.clusters, clusters)


def test_the_loss_is_the_share_of_spread_that_the_kept_channels_do_not_cover() -> None:
    descriptors = described([10, 30])
    choices = [torch.arange(1, 11), torch.arange(3, 31)]
    table = loss_table(descriptors, choices)
    assert table.offsets.tolist() == [0, 10, 40]
    points = descriptors.points[:10].double()
    total = (points - points.mean(0)).square().sum()
    falling = torch.inf
    for width in range(1, 11):
        found = select(descriptors, torch.tensor([0]), torch.tensor([width]))
        gaps = (points.unsqueeze(1) - points[found.kept]).square().sum(2).amin(1)
        falling = min(falling, float(gaps.sum() / total))
        assert table.values[width - 1] == pytest.approx(falling, rel=1e-5, abs=1e-6)


def test_losses_fall_with_the_width_and_end_at_zero() -> None:
    descriptors = described([200, 64])
    table = loss_table(descriptors, [torch.arange(20, 201), torch.arange(8, 65, 8)])
    for values in table.values.split([200, 64]):
        assert (values.diff() <= 0).all() and values[-1] == 0 and values[0] > 0
    assert len(table.values[19:200].diff().diff().abs().gt(1e-9).nonzero()) < GRID


def test_an_axis_of_equal_channels_loses_nothing() -> None:
    descriptors = Descriptors(torch.zeros(5, 3), torch.tensor([0, 5]), torch.ones(5))
    assert torch.equal(
        loss_table(descriptors, [torch.arange(1, 6)]).values, torch.zeros(5, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), r"score for each of 8 channels, got torch.float32 of shape \[3\]"),
        (torch.zeros(8, dtype=torch.int64), "floating-point score .* got torch.int64"),
        (torch.full((8,), torch.nan), "scores that are numbers, got NaN"),
    ],
)
def test_scores_that_do_not_go_are_named(scores: Tensor, message: str) -> None:
    class Rule:
        def scores(self, descriptors: Descriptors, clusters: Clusters) -> Tensor:
            return scores

    with pytest.raises(ValueError, match=f"selection: expected .*{message}"):
        select(described([8]), torch.tensor([0]), torch.tensor([2]), rule=Rule())


@pytest.mark.parametrize(
    ("width", "per_cluster", "message"),
    [
        (0, 1.0, r"width\[0\]: expected 1 to 8, got 0"),
        (9, 1.0, r"width\[0\]: expected 1 to 8, got 9"),
        (4, 0.5, "channels_per_cluster: expected at least 1, got 0.5"),
        (4, float("nan"), "channels_per_cluster: expected at least 1, got nan"),
    ],
)
def test_bad_input_is_named(width: int, per_cluster: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(
            described([8]),
            torch.tensor([0]),
            torch.tensor([width]),
            channels_per_cluster=per_cluster,
        )
