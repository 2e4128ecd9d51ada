"""channel_statistics on the CPU: agreement with float64, and the same bits however it is run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mdcp_fast.ops._arguments import simd_levels
from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.reference.channel_statistics import channel_statistics_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Row lengths below, at and beyond the 32 lanes of a sum; 4-, 2-, 1- and 5-dimensional; odd sizes.
SHAPES = [
    (7, 3, 1, 1),
    (33, 3, 3, 3),
    (64, 3, 7, 7),
    (5, 32),
    (3, 33),
    (31, 64, 1, 1),
    (10, 129),
    (2, 515, 3, 3),
    (9,),
    (3, 2, 3, 3, 3),
    (1, 1),
]
TOLERANCE = 1e-6  # absolute for the distance, relative to the row's size or variance else
SMALLEST = 1.5e-45  # float32's least step, for variances down there


def weights_of(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator) * 0.1 + 0.02).to(dtype) for shape in shapes]


def assert_agrees(results: list[Tensor], weights: list[Tensor], unit: str) -> None:
    expected = channel_statistics_reference(weights, unit=unit)
    assert len(results) == len(expected)
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == torch.float32 and result.shape == exact.shape
        size = (exact[:, 0].square() + exact[:, 1]).sqrt()
        error = (result.double() - exact).abs()
        assert (error[:, 0] <= TOLERANCE * size).all()
        assert (error[:, 1] <= TOLERANCE * exact[:, 1] + SMALLEST).all()
        assert (error[:, 2] <= TOLERANCE).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", ["filter", "kernel"])
def test_agrees_with_float64(dtype: torch.dtype, unit: str) -> None:
    shapes = SHAPES if unit == "filter" else [shape for shape in SHAPES if len(shape) > 1]
    weights = weights_of(shapes, dtype)
    assert_agrees(channel_statistics(weights, unit=unit), weights, unit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", ["filter", "kernel"])
def test_same_bits_for_every_instruction_set_and_thread_count(
    dtype: torch.dtype, unit: str
) -> None:
    shapes = [(300, 70, 3, 3), (65, 64, 1, 1), (129, 3, 7, 7), (2, 40_000)]
    weights = weights_of(shapes, dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for level in simd_levels():
                results.append(torch.cat(channel_statistics(weights, unit=unit, simd=level)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)


def test_the_batch_does_not_matter() -> None:
    """A tensor has the same result alone, among others, and as rows of another shape."""
    weights = weights_of(SHAPES)
    together = channel_statistics(weights)
    for weight, result in zip(weights, together, strict=True):
        (alone,) = channel_statistics(weight)
        assert torch.equal(result, alone)
        assert torch.equal(
            result, channel_statistics(weight.flatten(1))[0] if weight.dim() > 1 else result
        )


@pytest.mark.parametrize("unit", ["filter", "kernel"])
def test_strides_do_not_matter(unit: str) -> None:
    weight = weights_of([(12, 6, 3, 3)])[0]
    strided = [
        weight.to(memory_format=torch.channels_last),
        torch.stack([weight, weight])[1],
        torch.stack([weight, weight], dim=-1)[..., 0],
        weight.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat([weight, weight])[::1][12:],
    ]
    (expected,) = channel_statistics(weight, unit=unit)
    for result in channel_statistics(strided, unit=unit):
        assert torch.equal(result, expected)


def test_row_lengths_around_the_lanes() -> None:
    weights = [torch.randn(3, n, generator=torch.Generator().manual_seed(n)) for n in range(1, 100)]
    assert_agrees(channel_statistics(weights), weights, "filter")


def test_special_rows() -> None:
    rows = torch.stack([torch.zeros(40), torch.full((40,), 0.1), torch.full((40,), -0.1)])
    (result,) = channel_statistics(rows)
    tenth = torch.tensor(0.1).item()
    expected = torch.tensor([[0, 0, 1], [tenth, 0, 0], [-tenth, 0, 2]])
    assert torch.equal(result, expected)
    # A row of one weight is the weight and its sign.
    single = torch.tensor([[3.0], [-1e-30], [0.0], [-0.0], [1e-45], [-2e38]])
    (result,) = channel_statistics(single[:, :, None, None], unit="kernel")
    assert torch.equal(result[:, 0], single[:, 0])
    assert torch.equal(result[:, 1], torch.zeros(6))
    assert torch.equal(result[:, 2], torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0, 2.0]))


@pytest.mark.parametrize("n", [9, 31, 32, 33, 4608])
def test_no_cancellation(n: int) -> None:
    """Weights far from zero, one outlier, and both ends of float32's range."""
    noise = torch.randn(8, n, generator=torch.Generator().manual_seed(n))
    outlier = noise.clone()
    outlier[:, 0] = 1e6
    weights = [noise * 1e-3 + 1000, 1 + noise * 1e-6, outlier, noise * 1e-25, noise * 1e17]
    assert_agrees(channel_statistics(weights), weights, "filter")


def test_halves_of_every_value() -> None:
    """All 65,536 bit patterns are widened as torch widens them."""
    for dtype in (torch.float16, torch.bfloat16):
        patterns = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
        finite = patterns[torch.isfinite(patterns)]
        for level in simd_levels():
            (result,) = channel_statistics(finite, simd=level)
            assert torch.equal(result[:, 0], finite.float())


def test_parameters_give_a_detached_result() -> None:
    convolution = nn.Conv2d(3, 8, 3)
    (result,) = channel_statistics([convolution.weight])
    assert not result.requires_grad
    assert torch.equal(result, channel_statistics(convolution.weight.detach())[0])


def test_nothing_in_nothing_out() -> None:
    assert channel_statistics([]) == []
    (none,) = channel_statistics(torch.empty(0, 3, 3, 3))
    assert none.shape == (0, 3)
    (none,) = channel_statistics(torch.empty(4, 0, 3, 3), unit="kernel")
    assert none.shape == (0, 3)
    first, none, last = channel_statistics([torch.ones(2, 3), torch.empty(0, 5), torch.ones(1, 2)])
    assert first.shape == (2, 3) and none.shape == (0, 3) and last.shape == (1, 3)


@pytest.mark.parametrize(
    ("weights", "arguments", "error", "message"),
    [
        (3, {}, TypeError, "weights: expected a tensor or a list of tensors, got int"),
        ("abc", {}, TypeError, "weights: expected a tensor or a list of tensors, got str"),
        ([torch.ones(2, 2), None], {}, TypeError, r"weights\[1\]: expected .*Tensor, got NoneType"),
        ([torch.ones(2, 2).double()], {}, TypeError, r"weights\[0\]: expected dtype .*float64"),
        ([torch.ones(2, 2).int()], {}, TypeError, r"weights\[0\]: expected dtype .*int32"),
        ([torch.ones(2, 2).to_sparse()], {}, ValueError, "expected a strided tensor"),
        ([torch.ones(2, 2)], {"unit": "filters"}, ValueError, "unit: expected one of filter, kern"),
        ([torch.ones(2, 2)], {"simd": "sse9"}, ValueError, "simd: expected None or one of"),
        ([torch.tensor(1.0)], {}, ValueError, r"at least 1 dimensions.*got shape \[\]"),
        ([torch.ones(4)], {"unit": "kernel"}, ValueError, r"at least 2 dimensions.*shape \[4\]"),
        ([torch.ones(4, 0, 3, 3)], {}, ValueError, r"one weight in every filter, got shape \[4, 0"),
        (
            [torch.ones(2, 2), torch.empty(2, 2, device="meta")],
            {},
            ValueError,
            r"weights\[1\]: expected a tensor on cpu, as weights\[0\] is, got one on meta",
        ),
        (
            [torch.ones(2, 2), torch.tensor([[1.0, 2.0], [3.0, torch.nan]])],
            {},
            ValueError,
            r"weights\[1\]: expected finite numbers, got nan at \[1, 1\]",
        ),
        (
            [torch.tensor([[torch.inf, 1.0]]), torch.tensor([[torch.nan]])],
            {},
            ValueError,
            r"weights\[0\]: expected finite numbers, got inf at \[0, 0\]",
        ),
        ([torch.tensor([[3e38, -3e38]])], {}, ValueError, r"variance is within float32, .*3e\+38"),
    ],
)
def test_wrong_input(weights: object, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^channel_statistics: .*{message}"):
        channel_statistics(weights, **arguments)  # type: ignore[arg-type]


def test_a_late_nan_is_found_at_every_level() -> None:
    weight = torch.ones(100, 333)
    weight[99, 332] = torch.nan
    for level in simd_levels():
        with pytest.raises(ValueError, match=r"got nan at \[99, 332\]"):
            channel_statistics([weight], simd=level)


@pytest.mark.parametrize("unit", ["filter", "kernel"])
def test_registered_with_torch(unit: str) -> None:
    weights = weights_of([(4, 3, 3, 3), (2, 40)])
    torch.library.opcheck(torch.ops.mdcp_fast.channel_statistics, (weights, unit, None))
    compiled = torch.compile(channel_statistics, fullgraph=True, backend="eager")
    for result, expected in zip(
        compiled(weights, unit=unit), channel_statistics(weights, unit=unit), strict=True
    ):
        assert torch.equal(result, expected)


@pytest.mark.parametrize(("unit", "rows"), [("filter", 7), ("kernel", 7 * 5)])
def test_fake_cuda_tensors(unit: str, rows: int) -> None:
    with FakeTensorMode():
        weights = [torch.empty(7, 5, 3, 3, device="cuda", dtype=torch.float16)]
        result = torch.ops.mdcp_fast.channel_statistics(weights, unit, None)
    assert result.shape == (rows, 3) and result.dtype == torch.float32
    assert result.device.type == "cuda"


def test_the_default_dtype_does_not_matter() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    expected = channel_statistics(weight)[0]
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(channel_statistics(weight)[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)
