"""The ops on a CUDA device give the CPU's bits, on every case of the CPU ops' own tests.

Skipped by name where there is no device; MDCP_REQUIRE_CUDA=1 turns the skip into a failure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import astuple
from importlib import import_module
from pathlib import Path
from typing import Any

import evaluate_population_cases
import pytest
import test_population_norm as norm
import torch
from emulated_ops import Emulation
from emulation.build import EmulatedCore
from processes import run_python
from replay import FILES, Both, Op, assert_same_bits, map_tensors, replays

from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.evaluate_population import _launch, evaluate_population
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.ops.ward import ward

needs_cuda = pytest.mark.needs_cuda
LAUNCH = re.compile(r"MDCP_LAUNCH\(\(?(\w+)")


def on_device(op: Op, *args: Any, **kwargs: Any) -> Any:
    """The op on copies of its arguments."""
    there = {name: map_tensors(value, to_device) for name, value in kwargs.items()}
    return op(*map_tensors(args, to_device), **there)


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cuda")


Work = tuple[Op, tuple[Any, ...], dict[str, Any]]


def _points(*sizes: int, dimensions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(sizes), dimensions, generator=generator), offsets


def _kmeans(init: str, dimensions: int) -> Work:
    points, offsets = _points(0, 1, 60, 600, dimensions=dimensions)
    jobs = {"problem": torch.tensor([1, 2, 2, 3]), "init": init, "max_iter": 10}
    return kmeans, (points, offsets, torch.tensor([1, 7, 20, 30])), jobs


def _statistics(dtype: torch.dtype) -> Work:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3, 3, 3), (4, 1), (3, 700, 3, 3), (0, 4)]
    return (
        channel_statistics,
        ([torch.randn(s, generator=generator).to(dtype) for s in shapes],),
        {},
    )


# Beyond 2,048 points crowding merges sorted tiles, beyond 1,024 Ward's first rounds are spread over
# blocks, beyond 3,072 counts the population's scratch lies in device memory.
SMALL_WORK: dict[str, Callable[[], Work]] = {
    "crowding": lambda: (crowding_distance, _points(0, 1, 2, 40, 300), {}),
    "crowding of one wide segment": lambda: (crowding_distance, _points(2100, 5), {}),
    "ward": lambda: (ward, _points(0, 1, 2, 90, 200), {}),
    "ward of one wide problem": lambda: (ward, _points(1040, 3), {}),
    "ward, 16 dimensions": lambda: (ward, _points(40, 150, dimensions=16), {}),
    **{
        f"kmeans, {init}, {dimensions} dimensions": functools.partial(_kmeans, init, dimensions)
        for init in ("ward", "k-means++")
        for dimensions in (2, 3, 16)
    },
    **{
        f"population, {name}": functools.partial(
            lambda name: (evaluate_population, evaluate_population_cases.cases()[name], {}), name
        )
        for name in (
            "small, 3 x 64",
            "tables",
            "thousands of counts",
            "thousands of counts, tables",
            "no axes",
        )
    },
    **{
        f"statistics, {dtype}": functools.partial(_statistics, dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    },
    **{
        f"population norm, {name}": functools.partial(
            lambda name: (population_norm, norm.CASES[name].arguments(), {}), name
        )
        for name in ("images", "channels last", "long", "half, channels last", "bfloat16")
    },
}

for _op in FILES:
    for _name, _test in replays(_op, on_device):
        globals()[_name] = needs_cuda(_test)


@needs_cuda
@pytest.mark.parametrize("name", norm.CASES)
def test_population_norm(name: str) -> None:
    arguments = norm.CASES[name].arguments()
    result = population_norm(*(to_device(tensor) for tensor in arguments))
    assert result.device.type == "cuda"
    assert norm.error(result.cpu(), *arguments) <= norm.TOLERANCE[norm.CASES[name].dtype]


@needs_cuda
def test_population_norm_in_double_precision() -> None:
    """As the check of candidates that share a batch runs it."""
    x, *rest = norm.CASES["images"].arguments()
    result = population_norm(*(to_device(tensor) for tensor in (x.double(), *rest)))
    assert norm.error(result.cpu(), x.double(), *rest) <= norm.TOLERANCE[torch.float64]


@needs_cuda
def test_answers_are_on_the_device_of_the_points() -> None:
    points, offsets = torch.rand(20, 3, device="cuda"), torch.tensor([0, 20], device="cuda")
    assert crowding_distance(points, offsets).device == points.device
    assert ward(points, offsets).device == points.device
    found = kmeans(points, offsets, torch.tensor([4]))
    assert {field.device for field in found} == {points.device}


@needs_cuda
def test_ops_run_on_the_current_stream() -> None:
    """What a stream does before the op, the op sees, without a synchronisation by the caller."""
    offsets = torch.tensor([0, 3000])
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3000, 3, generator=generator)
    expected = ward(values, offsets)
    points, stream = torch.zeros(3000, 3, device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        points.copy_(values.pin_memory(), non_blocking=True)
        linkage = ward(points, offsets)
    stream.synchronize()
    assert torch.equal(linkage.cpu(), expected)


@needs_cuda
@pytest.mark.reaches_every_kernel
@pytest.mark.parametrize("name", SMALL_WORK)
def test_small_work_reaches_every_kernel(name: str) -> None:
    """For tools that slow a kernel a hundredfold: little work, on every path that kernels take."""
    op, arguments, options = SMALL_WORK[name]()
    there = on_device(op, *arguments, **options)
    torch.cuda.synchronize()
    if op is population_norm:
        assert norm.error(there.cpu(), *arguments) <= norm.TOLERANCE[arguments[0].dtype]
    else:
        assert_same_bits(there, op(*arguments, **options))


def test_the_small_work_launches_every_cuda_kernel(emulated: EmulatedCore) -> None:
    sources = (Path(__file__).parents[2] / "csrc/cuda").glob("*.cu")
    kernels = {name for path in sources for name in LAUNCH.findall(path.read_text())}
    launched: set[str] = set()
    emulated.set_launch_hook(lambda symbol, *_: launched.add(symbol))
    for op, arguments, options in (make() for make in SMALL_WORK.values()):
        if op is evaluate_population:
            population, loss, cost, budget = arguments
            _launch(emulated, population, loss.values, loss.offsets, astuple(cost), budget)
        elif op not in (channel_statistics, population_norm):  # Triton's
            elsewhere = Emulation([import_module(op.__module__)], schedules=(0,))
            elsewhere.core = emulated
            elsewhere(op, *arguments, **options)
    assert len(kernels) > 10
    assert {name for name in kernels if not any(name in symbol for symbol in launched)} == set()
    wide = {symbol for symbol in launched if "population_kernel" in symbol}
    assert len(wide) == 4  # scratch in shared or in device memory, with tables or without


def test_a_missing_device_skips_by_name_and_fails_where_one_is_demanded() -> None:
    test = f"{__file__}::test_answers_are_on_the_device_of_the_points"
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = (code, "-q", "-rs", "-p", "no:cacheprovider", test)
    folder = Path(__file__).parent
    hidden = {"CUDA_VISIBLE_DEVICES": "", "MDCP_REQUIRE_CUDA": ""}
    skipped = run_python(*arguments, folder=folder, **hidden)
    assert "1 skipped" in skipped.stdout and "needs_cuda: torch finds no CUDA" in skipped.stdout
    failed = run_python(
        *arguments, folder=folder, check=False, **hidden | {"MDCP_REQUIRE_CUDA": "1"}
    )
    assert failed.returncode == 1 and "MDCP_REQUIRE_CUDA=1 allows no skip" in failed.stdout


def test_a_replay_sees_other_bits_and_missing_errors() -> None:
    points, offsets = torch.rand(20, 3), torch.tensor([0, 20])
    Both(crowding_distance, crowding_distance)(points, offsets)
    with pytest.raises(AssertionError):
        Both(crowding_distance, lambda *given: crowding_distance(*given) + 1)(points, offsets)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        Both(crowding_distance, lambda *_: points)(points, offsets[:1])
