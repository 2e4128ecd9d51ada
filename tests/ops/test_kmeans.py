"""`kmeans` is Lloyd's iteration, bit for bit the written-out reference, and always the same."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor

from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.kmeans import KMeans, kmeans
from mdcp_fast.ops.reference import kmeans as reference
from mdcp_fast.ops.ward import ward

SCIKIT_TOLERANCE = 1e-6  # relative; our centres are float32, scikit-learn's float64


def bounds(*sizes: int) -> Tensor:
    return torch.tensor((0, *sizes)).cumsum(0)


def cloud(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def one(points: Tensor, k: int, **options: Any) -> KMeans:
    return kmeans(points, bounds(len(points)), torch.tensor([k]), **options)


def assert_same(left: KMeans, right: KMeans, case: object = None) -> None:
    for name, a, b in zip(KMeans._fields, left, right, strict=True):
        assert torch.equal(a, b), (name, case)


def nearest(points: Tensor, centers: Tensor) -> np.ndarray:
    """The smallest index among the nearest centres, from float32 distances summed in order."""
    return reference._assign(points.numpy(), centers.numpy())[0]


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [  # the known answers of Random123
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, int, int, int], seed: int, words: str) -> None:
    assert " ".join(f"{word:08x}" for word in reference.philox(counter, seed)) == words


def points_of_kind(kind: int, random: np.random.Generator) -> np.ndarray:
    """Random, with many ties and duplicates, and with magnitudes whose squares leave float32."""
    count, dimensions = int(random.integers(1, 90)), int(random.integers(1, 17))
    if kind == 0:
        return random.normal(size=(count, dimensions)).astype(np.float32)
    points = random.integers(0, 4 if dimensions < 3 else 2, size=(count, dimensions))
    return (points * (1.0 if kind == 1 else random.choice([1e-30, 1e18, 1e38]))).astype(np.float32)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("init", ["ward", "k-means++", "given"])
def test_equals_the_reference_bit_for_bit(init: str, kind: int) -> None:
    random = np.random.default_rng(kind)
    for case in range(40):
        points = points_of_kind(kind, random)
        k, tensor = int(random.integers(1, len(points) + 1)), torch.from_numpy(points)
        if init == "ward":
            linkage = ward(tensor, bounds(len(points))).numpy()
            centers = reference.ward_centers(points, linkage, k)
        elif init == "k-means++":
            centers = reference.plus_plus_centers(points, k, seed=case)
        else:
            centers = points[random.permutation(len(points))[:k]]
        given: Any = torch.from_numpy(centers) if init == "given" else init
        for max_iter in (0, 1, 100):
            ours = one(tensor, k, init=given, seed=case, max_iter=max_iter)
            wanted = reference.kmeans_reference(points, centers, max_iter)
            np.testing.assert_array_equal(ours.labels, wanted.labels)
            np.testing.assert_array_equal(ours.centers, wanted.centers)
            assert ours.inertia.item() == wanted.inertia
            assert ours.iterations.item() == wanted.iterations


@pytest.mark.parametrize("dimensions", [1, 2, 3, 7, 16])
def test_agrees_with_scikit_learn_from_the_same_seeds(dimensions: int) -> None:
    points = cloud(500, dimensions, dimensions)
    for k in (1, 2, 9, 60):
        seeds = points[:k].clone()
        ours = one(points, k, init=seeds, max_iter=300)
        theirs = ScikitKMeans(k, init=seeds.double().numpy(), n_init=1, tol=0, algorithm="lloyd")
        theirs.fit(points.double().numpy())
        np.testing.assert_array_equal(ours.labels, theirs.labels_)
        assert ours.inertia.item() == pytest.approx(theirs.inertia_, rel=SCIKIT_TOLERANCE)
        np.testing.assert_allclose(ours.centers, theirs.cluster_centers_, atol=1e-5)


def test_an_empty_cluster_gets_scikit_learns_point() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [30.0]])
    seeds = torch.tensor([[0.0], [100.0], [5.0], [200.0]])  # the second and the fourth get nothing
    ours = one(points, 4, init=seeds)
    theirs = ScikitKMeans(4, init=seeds.numpy(), n_init=1, tol=0).fit(points.numpy())
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    assert ours.labels.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("init", ["ward", "k-means++"])
def test_invariants(init: str) -> None:
    points = cloud(333, 3)
    ks = torch.tensor([1, 2, 5, 40, 150, 332, 333])
    options: dict[str, Any] = {"problem": torch.zeros_like(ks), "init": init}
    previous = torch.full((len(ks),), torch.inf, dtype=torch.float64)
    for max_iter in (0, 1, 2, 3, 5, 100):
        found = kmeans(points, bounds(333), ks, max_iter=max_iter, **options)
        assert (found.inertia <= previous).all(), "inertia rose"
        previous = found.inertia
        centers = found.centers.split(ks.tolist())
        for labels, center, k in zip(found.labels.view(-1, 333), centers, ks.tolist(), strict=True):
            np.testing.assert_array_equal(labels, nearest(points, center))
            assert len(labels.unique()) == k, "an empty cluster"
    assert (found.iterations < 100).all()
    assert found.inertia[-1] == 0  # every point is a cluster
    for labels, center, k in zip(found.labels.view(-1, 333), centers, ks.tolist(), strict=True):
        for cluster in range(k):  # converged: centres are the means
            mean = points[labels == cluster].double().mean(0).float()
            torch.testing.assert_close(center[cluster], mean, rtol=0, atol=1e-6)


def test_ward_seeds_are_better_than_random_ones() -> None:
    points = cloud(400, 3)
    seeds = one(points, 60, init="k-means++").inertia
    assert one(points, 60).inertia < seeds


@pytest.mark.parametrize("init", ["ward", "k-means++"])
def test_all_points_equal(init: str) -> None:
    found = one(torch.full((50, 3), 7.0), 4, init=init)
    assert not found.labels.any()
    assert found.inertia.item() == 0
    assert torch.equal(found.centers, torch.full((4, 3), 7.0))


@pytest.mark.parametrize("init", ["ward", "k-means++"])
def test_as_many_clusters_as_distinct_points(init: str) -> None:
    points = torch.arange(20.0)[:, None].repeat(5, 1)
    found = one(points, 20, init=init)
    assert found.inertia.item() == 0
    assert len(found.labels.unique()) == 20


@pytest.mark.parametrize("init", ["ward", "k-means++", "given"])
def test_one_point(init: str) -> None:
    points = torch.tensor([[3.0, -4.0]])
    given: Any = points if init == "given" else init
    found = one(points, 1, init=given)
    assert found.labels.tolist() == [0]
    assert torch.equal(found.centers, points)
    assert (found.inertia.item(), found.iterations.item()) == (0, 1)


@pytest.mark.parametrize("power", [-118, -60, 60, 125])
@pytest.mark.parametrize("init", ["ward", "k-means++"])
def test_huge_and_tiny_magnitudes_change_nothing(power: int, init: str) -> None:
    points = torch.randint(-50, 50, (200, 2), generator=torch.Generator().manual_seed(0)) / 64
    points[-1] = torch.tensor([-1.0, 0.5])
    plain, scaled = one(points, 30, init=init), one(points * 2.0**power, 30, init=init)
    assert torch.equal(scaled.labels, plain.labels)
    assert scaled.inertia.item() * 4.0**-power == pytest.approx(plain.inertia.item(), rel=1e-6)


def test_centers_far_beyond_the_points() -> None:
    points = cloud(30, 2) * 1e-30
    found = one(points, 3, init=torch.tensor([[0.0, 0.0], [3e38, 3e38], [-3e38, 1.0]]))
    assert found.centers.isfinite().all()
    assert len(found.labels.unique()) == 3


def test_4096_points() -> None:
    points = cloud(4096, 3)
    found = one(points, 700)
    np.testing.assert_array_equal(found.labels, nearest(points, found.centers))
    assert found.inertia.item() < one(points, 700, init="k-means++").inertia.item()


@pytest.mark.parametrize("init", ["ward", "k-means++", "given"])
def test_ragged_jobs_do_not_touch_each_other(init: str) -> None:
    random = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 30, (1000,), generator=random)
    sizes[[0, 500, 999]] = torch.tensor([0, 1, 0])
    offsets, points = bounds(*sizes.tolist()), cloud(int(sizes.sum()), 3)
    problem = torch.randint(0, 1000, (1500,), generator=random)  # some never, some several times
    problem = problem[sizes[problem] > 0]
    k = (torch.rand(len(problem), generator=random) * sizes[problem]).long() + 1
    centers = cloud(int(k.sum()), 3, 1)
    given: Any = centers if init == "given" else init
    packed = kmeans(points, offsets, k, problem=problem, init=given, seed=5)
    ends = k.cumsum(0)
    for job in range(0, len(k), 7):
        own = points[offsets[problem[job]] : offsets[problem[job] + 1]]
        mine = slice(int(ends[job] - k[job]), int(ends[job]))
        alone = one(own, int(k[job]), init=centers[mine] if init == "given" else init, seed=5)
        labels = packed.labels[packed.offsets[job] : packed.offsets[job + 1]]
        assert torch.equal(labels, alone.labels)
        assert torch.equal(packed.centers[mine], alone.centers)
        assert packed.inertia[job] == alone.inertia[0]
        assert packed.iterations[job] == alone.iterations[0]


def test_every_k_at_once_is_each_k_alone() -> None:
    points, ks = cloud(130, 3), torch.arange(1, 131)
    for init in ("ward", "k-means++"):
        shuffled = ks[torch.randperm(130, generator=torch.Generator().manual_seed(0))]
        together = kmeans(points, bounds(130), shuffled, problem=torch.zeros_like(ks), init=init)
        for labels, k in zip(together.labels.view(-1, 130), shuffled.tolist(), strict=True):
            assert torch.equal(labels, one(points, k, init=init).labels), (init, k)


@pytest.mark.parametrize("init", ["ward", "k-means++", "given"])
def test_coordinates_that_are_zero_in_a_whole_problem_change_nothing(init: str) -> None:
    narrow, k = cloud(200, 3), torch.tensor([20, 7])
    wide = torch.nn.functional.pad(narrow, (0, 13))
    wide[100:, 15] = cloud(100, 1)[:, 0]  # the other problem uses them all
    centers = cloud(27, 3)
    padded = torch.nn.functional.pad(centers, (0, 13))
    both = kmeans(wide, bounds(100, 100), k, init=padded if init == "given" else init)
    alone = one(narrow[:100], 20, init=centers[:20] if init == "given" else init)
    assert torch.equal(both.labels[:100], alone.labels)
    assert torch.equal(both.centers[:20], torch.nn.functional.pad(alone.centers, (0, 13)))
    assert both.inertia[0] == alone.inertia[0] and both.iterations[0] == alone.iterations[0]


def test_given_centers_may_use_coordinates_that_no_point_does() -> None:
    points = torch.nn.functional.pad(cloud(50, 2), (0, 4))
    centers = cloud(5, 6)
    found = one(points, 5, init=centers, max_iter=0)
    assert torch.equal(found.centers, centers)
    np.testing.assert_array_equal(found.labels.numpy(), nearest(points, centers))


def test_seeds_of_a_smaller_k_come_first() -> None:
    points = cloud(100, 2)
    few = one(points, 10, init="k-means++", max_iter=0, seed=3)
    many = one(points, 40, init="k-means++", max_iter=0, seed=3)
    assert torch.equal(few.centers, many.centers[:10])
    other = one(points, 10, init="k-means++", max_iter=0, seed=2**63 - 1)
    assert not torch.equal(few.centers, other.centers)


def shared_out(dimensions: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Points, offsets, k and problems: one problem dominates, and its jobs are shared out."""
    sizes = (1000, 1, 130, 0, 17)
    problem = torch.tensor([0] * 30 + [1, 2, 2, 4])
    k = torch.tensor([*range(1, 900, 30), 1, 100, 3, 17])
    return cloud(sum(sizes), dimensions), bounds(*sizes), k, {"problem": problem}


@pytest.mark.parametrize("init", ["ward", "k-means++"])
@pytest.mark.parametrize("dimensions", [1, 3, 5, 16])
def test_same_bits_for_all_threads_and_instruction_sets(dimensions: int, init: str) -> None:
    points, offsets, k, options = shared_out(dimensions)
    options["init"] = init
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = kmeans(points, offsets, k, simd="baseline", **options)
        for threads in (1, 2, 16):
            torch.set_num_threads(threads)
            for simd in simd_levels():
                assert_same(
                    kmeans(points, offsets, k, simd=simd, **options), expected, (threads, simd)
                )
    finally:
        torch.set_num_threads(before)


def test_no_jobs() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    found = kmeans(cloud(5, 2), bounds(5), none, problem=none)
    assert [len(field) for field in found] == [0, 1, 0, 0, 0]
    found = kmeans(cloud(0, 2), bounds(), none)
    assert [len(field) for field in found] == [0, 1, 0, 0, 0]


def test_opcheck_and_compile() -> None:
    points, offsets, k = cloud(20, 3), bounds(12, 8), torch.tensor([3, 2])
    arguments = (points, offsets, k, None, "ward", None, 100, 0, None)
    torch.library.opcheck(torch.ops.mdcp_fast.kmeans.default, arguments)
    compiled = torch.compile(
        lambda p, o, k: kmeans(p, o, k).inertia.sum(), fullgraph=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # torch's own since 2.9
        assert torch.equal(compiled(points, offsets, k), kmeans(points, offsets, k).inertia.sum())


POINTS, OFFSETS, K = cloud(10, 2), bounds(6, 4), torch.tensor([2, 3])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"points": [[0.0]]}, TypeError, "points: expected a torch.Tensor, got list"),
        ({"points": POINTS.half()}, TypeError, "points: expected dtype torch.float32"),
        ({"points": POINTS[:, 0]}, ValueError, "points: expected shape [any, any]"),
        ({"points": cloud(10, 17)}, ValueError, "points: expected 1 to 16 dimensions"),
        ({"points": POINTS.to("meta")}, ValueError, "points: expected a tensor on cpu or cuda"),
        ({"points": POINTS / 0}, ValueError, "points: expected finite numbers"),
        ({"points": POINTS * float("nan")}, ValueError, "points: expected finite numbers, got nan"),
        ({"offsets": bounds(6, -2, 6)}, ValueError, "offsets: expected numbers that never"),
        ({"offsets": bounds(6, 5)}, ValueError, "offsets: expected to end at 10"),
        ({"offsets": bounds(10)}, ValueError, "k: expected one number for each of 1 problems"),
        ({"k": 3}, TypeError, "k: expected a torch.Tensor, got int"),
        ({"k": K.float()}, TypeError, "k: expected dtype torch.int64"),
        ({"k": K[None]}, ValueError, "k: expected shape [any], got [1, 2]"),
        ({"k": torch.tensor([0, 3])}, ValueError, "k: expected 1 to 6, the points of problem 0"),
        ({"k": torch.tensor([2, 5])}, ValueError, "problem 1, got 5 at 1"),
        ({"problem": [0, 1]}, TypeError, "problem: expected None or a torch.Tensor, got list"),
        ({"problem": torch.tensor([0])}, ValueError, "problem: expected shape [2], got [1]"),
        ({"problem": torch.tensor([0, 2])}, ValueError, "problem: expected 0 to 1, got 2 at 1"),
        ({"problem": torch.tensor([-1, 0])}, ValueError, "problem: expected 0 to 1, got -1 at 0"),
        ({"init": "random"}, ValueError, "init: expected 'ward', 'k-means++' or a tensor"),
        ({"init": None}, ValueError, "init: expected 'ward', 'k-means++' or a tensor"),
        ({"init": "given"}, ValueError, "init: expected 'ward', 'k-means++' or a tensor"),
        ({"init": cloud(4, 2)}, ValueError, "init: expected shape [5, 2], got [4, 2]"),
        ({"init": cloud(5, 2).double()}, TypeError, "init: expected dtype torch.float32"),
        ({"init": cloud(5, 2) / 0}, ValueError, "init: expected finite numbers"),
        ({"max_iter": -1}, ValueError, "max_iter: expected 0 to 2^63 - 1, got -1"),
        ({"max_iter": 1.5}, TypeError, "max_iter: expected an int, got float"),
        ({"seed": 2**63}, ValueError, "seed: expected 0 to 2^63 - 1"),
        ({"simd": "mmx"}, ValueError, "simd: expected None or one of baseline"),
    ],
)
def test_refuses(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"points": POINTS, "offsets": OFFSETS, "k": K, **changed}
    with pytest.raises(error, match=r"kmeans: .*" + re.escape(message)):
        kmeans(**arguments)


def wide(seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Points that span more than fixed point holds, and some of them as centres."""
    generator = np.random.default_rng(seed)
    count, dimensions = generator.integers(8, 30), generator.integers(1, 4)
    powers = 2.0 ** generator.uniform(-50, -38, (count, 1))
    points = (generator.standard_normal((count, dimensions)) * powers).astype(np.float32)
    points[0] = 1
    return points, generator.permutation(points)[: generator.integers(3, count)]


@pytest.mark.parametrize("simd", simd_levels())
def test_centres_that_go_round_in_circles_come_to_an_end(simd: str) -> None:
    """However many iterations are allowed, and bit for bit as the reference does."""
    ends = []
    for seed in range(40):
        points, start = wide(seed)
        found = kmeans(
            torch.from_numpy(points),
            torch.tensor([0, len(points)]),
            torch.tensor([len(start)]),
            init=torch.from_numpy(start),
            max_iter=2**40,
            simd=simd,
        )
        expected = reference.kmeans_reference(points, start, 2**40)
        assert found.labels.tolist() == expected.labels.tolist()
        assert np.array_equal(found.centers.numpy(), expected.centers)
        assert float(found.inertia) == expected.inertia
        assert int(found.iterations) == expected.iterations
        ends.append(expected.iterations)
    assert sum(end > reference.CYCLE_START for end in ends) >= 10 and max(ends) < 100


def test_circles_end_whatever_seeds_the_centres() -> None:
    for seed in range(6):
        points, start = wide(seed)
        for init in ("ward", "k-means++", torch.from_numpy(start)):
            found = kmeans(
                torch.from_numpy(points),
                torch.tensor([0, len(points)]),
                torch.tensor([len(start)]),
                init=init,
                max_iter=2**62,
            )
            assert int(found.iterations) < 100
