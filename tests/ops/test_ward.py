"""`ward` is scipy's, and bit for bit the written-out reference, whatever the threads and SIMD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, is_valid_linkage
from scipy.cluster.hierarchy import ward as scipy_ward
from torch import Tensor

from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.reference.ward import ward_reference
from mdcp_fast.ops.ward import ward

HEIGHT_TOLERANCE = 1e-9  # relative; both work in float64


def bounds(*sizes: int) -> Tensor:
    return torch.tensor((0, *sizes)).cumsum(0)


def cloud(count: int, dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def one(points: Tensor, **options: str) -> Tensor:
    return ward(points, bounds(len(points)), **options)


# Around the sizes of a leaf (8 slots), a group (64) and their multiples, and of both kernels'
# padding of the dimensions.
@pytest.mark.parametrize("count", [2, 3, 7, 8, 9, 63, 64, 65, 127, 200, 1000])
def test_agrees_with_scipy(count: int) -> None:
    points = cloud(count, 3, count)
    ours, theirs = one(points).numpy(), scipy_ward(points.double().numpy())
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=HEIGHT_TOLERANCE)
    np.testing.assert_array_equal(ours[:, [0, 1, 3]], theirs[:, [0, 1, 3]])


@pytest.mark.parametrize("dimensions", range(1, 17))
def test_agrees_with_scipy_in_every_dimension(dimensions: int) -> None:
    points = cloud(150, dimensions, dimensions)
    ours, theirs = one(points).numpy(), scipy_ward(points.double().numpy())
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=HEIGHT_TOLERANCE)
    np.testing.assert_array_equal(ours[:, [0, 1, 3]], theirs[:, [0, 1, 3]])


def test_flat_clusters_of_4096_points_are_scipys() -> None:
    points = cloud(4096, 3)
    ours, theirs = one(points).numpy(), scipy_ward(points.double().numpy())
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=HEIGHT_TOLERANCE)
    for k in (2, 17, 300, 2048, 4000):
        np.testing.assert_array_equal(
            fcluster(ours, k, "maxclust"), fcluster(theirs, k, "maxclust")
        )


def test_small_distances_far_from_the_origin_are_not_lost() -> None:
    points = cloud(300, 2) * 0.01 + 1000
    np.testing.assert_allclose(
        one(points)[:, 2], scipy_ward(points.double().numpy())[:, 2], rtol=1e-5
    )


TIES = {
    "all equal": torch.ones(100, 3),
    "zeros of both signs": torch.tensor([[0.0], [-0.0], [0.0], [-0.0]]),
    "pairs": cloud(40, 2).repeat(2, 1),
    "a line of equal steps": torch.arange(70.0)[:, None],
    "a grid": torch.cartesian_prod(torch.arange(9.0), torch.arange(9.0)),
    "a cube's corners": torch.cartesian_prod(*[torch.arange(2.0)] * 7),
    "one-hot": torch.eye(16).repeat(3, 1),
}


@pytest.mark.parametrize("name", TIES)
def test_ties_end_and_go_to_the_smallest_index(name: str) -> None:
    points = TIES[name]
    linkage = one(points).numpy()
    assert is_valid_linkage(linkage)
    assert (np.diff(linkage[:, 2]) >= 0).all()
    np.testing.assert_array_equal(linkage, ward_reference(points.numpy()))


def test_equals_the_reference_bit_for_bit() -> None:
    random = np.random.default_rng(1)
    for case in range(60):
        count, dimensions = int(random.integers(2, 80)), int(random.integers(1, 17))
        points = random.normal(size=(count, dimensions)).astype(np.float32)
        if case % 2:
            points = random.integers(0, 3, size=(count, dimensions)).astype(np.float32)
        ours = one(torch.from_numpy(points)).numpy()
        np.testing.assert_array_equal(ours, ward_reference(points), err_msg=f"case {case}")


def test_many_equal_points_take_no_more_rounds_than_others() -> None:
    linkage = one(torch.ones(4096, 16))
    assert torch.equal(linkage[:, 2], torch.zeros(4095, dtype=torch.float64))
    assert linkage[-1, 3] == 4096


@pytest.mark.parametrize("power", [-149, -100, 60, 125])
def test_huge_and_tiny_magnitudes(power: int) -> None:
    points = torch.randint(-3, 4, (60, 3), generator=torch.Generator().manual_seed(0)).float()
    scaled, plain = one(points * 2.0**power), one(points)
    assert torch.equal(scaled[:, 2] * 2.0**-power, plain[:, 2])
    assert torch.equal(scaled[:, [0, 1, 3]], plain[:, [0, 1, 3]])


def test_ragged_problems_do_not_touch_each_other() -> None:
    sizes = torch.randint(0, 30, (1000,), generator=torch.Generator().manual_seed(0))
    sizes[[0, 500, 999]] = torch.tensor([0, 1, 0])
    offsets = bounds(*sizes.tolist())
    points = cloud(int(sizes.sum()), 3)
    packed = ward(points, offsets)
    alone = [one(points[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert torch.equal(packed, torch.cat(alone))


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (0, 1, 0, 1)])
def test_nothing_to_merge(sizes: tuple[int, ...]) -> None:
    assert ward(cloud(sum(sizes), 2), bounds(*sizes)).shape == (0, 4)


def test_same_bits_for_all_threads_and_instruction_sets() -> None:
    sizes = (3000, 1, 500, 64, 0, 9)  # one dominates, and is searched by several threads
    points, offsets = cloud(sum(sizes), 5), bounds(*sizes)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = ward(points, offsets, simd="baseline")
        for threads in (1, 2, 16):
            torch.set_num_threads(threads)
            for simd in simd_levels():
                assert torch.equal(ward(points, offsets, simd=simd), expected), (threads, simd)
    finally:
        torch.set_num_threads(before)


def test_strides_and_gradients_do_not_matter() -> None:
    points = cloud(50, 8)
    view = points.t().contiguous().t()[:, ::2].requires_grad_()
    linkage = one(view)
    assert torch.equal(linkage, one(points[:, ::2].contiguous()))
    assert not linkage.requires_grad


def test_opcheck_and_compile() -> None:
    points, offsets = cloud(20, 3), bounds(12, 8)
    torch.library.opcheck(torch.ops.mdcp_fast.ward.default, (points, offsets, None))
    compiled = torch.compile(
        lambda p, o: ward(p, o)[:, 2].sum(), fullgraph=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # torch's own since 2.9
        assert torch.equal(compiled(points, offsets), ward(points, offsets)[:, 2].sum())


@pytest.mark.parametrize(
    ("points", "offsets", "error", "message"),
    [
        ([[0.0]], bounds(1), TypeError, "points: expected a torch.Tensor, got list"),
        (cloud(3, 2).double(), bounds(3), TypeError, "points: expected dtype torch.float32"),
        (cloud(3, 2)[0], bounds(3), ValueError, r"points: expected shape \[any, any\], got \[2\]"),
        (cloud(3, 17), bounds(3), ValueError, "points: expected 1 to 16 dimensions"),
        (cloud(3, 2)[:, :0], bounds(3), ValueError, "points: expected 1 to 16 dimensions"),
        (cloud(3, 2).to("meta"), bounds(3), ValueError, "points: expected a tensor on cpu"),
        (cloud(3, 2) / 0, bounds(3), ValueError, "points: expected finite numbers"),
        (cloud(3, 2) * float("nan"), bounds(3), ValueError, "got nan"),
        (cloud(3, 2), [0, 3], TypeError, "offsets: expected a torch.Tensor, got list"),
        (cloud(3, 2), bounds(3).int(), TypeError, "offsets: expected dtype torch.int64"),
        (cloud(3, 2), bounds(3)[:0], ValueError, "offsets: expected at least one number"),
        (cloud(3, 2), bounds(3) + 1, ValueError, "offsets: expected to start at 0, got 1"),
        (
            cloud(3, 2),
            bounds(3, -1, 1),
            ValueError,
            "offsets: expected numbers that never decrease",
        ),
        (cloud(3, 2), bounds(4), ValueError, "offsets: expected to end at 3"),
    ],
)
def test_refuses(points: Tensor, offsets: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"ward: .*{message}"):
        ward(points, offsets)


def test_refuses_an_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match="ward: simd: expected None or one of baseline"):
        one(cloud(3, 2), simd="mmx")
