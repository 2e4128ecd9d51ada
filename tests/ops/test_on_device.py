"""The ops on a CUDA device give the CPU's bits, on every case of the CPU ops' own tests.

Skipped by name where there is no device; MDCP_REQUIRE_CUDA=1 turns the skip into a failure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_population_norm as norm
import torch
from processes import run_python
from replay import FILES, Both, Op, map_tensors, replays

from mdcp_fast.ops.crowding_distance import crowding_distance
from mdcp_fast.ops.kmeans import kmeans
from mdcp_fast.ops.population_norm import population_norm
from mdcp_fast.ops.ward import ward

needs_cuda = pytest.mark.needs_cuda


def on_device(op: Op, *args: Any, **kwargs: Any) -> Any:
    """The op on copies of its arguments."""
    there = {name: map_tensors(value, to_device) for name, value in kwargs.items()}
    return op(*map_tensors(args, to_device), **there)


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cuda")


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
