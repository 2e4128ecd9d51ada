"""evaluate_population's CUDA kernels, emulated: the CPU op's bits on every schedule."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from emulation.build import EmulatedCore
from evaluate_population_cases import Case, cases, random_case
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mdcp_fast.ops.evaluate_population import _launch, evaluate_population

CASES = cases()
SCHEDULES = (0, 1, 2)  # in order, and two drawn at random


def launch(emulated: EmulatedCore, case: Case) -> Tensor:
    population, loss, cost, budget = case
    return _launch(emulated, population, loss.values, loss.offsets, astuple(cost), budget)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_cpu(emulated: EmulatedCore, name: str) -> None:
    expected = evaluate_population(*CASES[name])
    for seed in SCHEDULES:
        emulated.set_schedule(seed)
        assert torch.equal(launch(emulated, CASES[name]), expected)


def test_both_verdicts_are_among_the_cases() -> None:
    """The agreement would say little if all candidates kept to their budgets, or none."""
    names = ("small, 3 x 64", "a network's size", "thousands of counts")
    for name in (*names, "tables", "a network's size, tables", "tables and no terms"):
        population, _, cost, budget = CASES[name]
        feasible = (cost.evaluate(population) <= budget[:, None]).all(-1)
        assert feasible.any() and not feasible.all()


def test_more_candidates_than_blocks(emulated: EmulatedCore) -> None:
    """Too many counts for shared memory, so that blocks share the workspace's rows in turn."""
    case = random_case(3, 3100, 4, 1, 2, 300)
    assert torch.equal(launch(emulated, case), evaluate_population(*case))


def test_one_launch_scores_all_runs(emulated: EmulatedCore) -> None:
    launches: list[tuple[str, int]] = []
    emulated.set_launch_hook(lambda kernel, grid, *_: launches.append((kernel, grid[0])))
    launch(emulated, CASES["small, 3 x 64"])
    (worst, _), (scores, blocks) = launches
    assert "worst" in worst and "population_kernel" in scores and blocks == 3 * 64


@pytest.mark.parametrize("counts", [3072 - 53, 3072 - 53 + 1])
def test_shared_memory_fits_every_device(emulated: EmulatedCore, counts: int) -> None:
    needed: list[int] = []
    emulated.set_launch_hook(lambda kernel, grid, block, shared, *_: needed.append(shared))
    launch(emulated, random_case(53, counts, 2, 1, 1, 1))
    assert max(needed) <= 24 * 1024


@pytest.mark.parametrize("name", ["small, 3 x 64", "small, 0 x 5"])
def test_fake_cuda_tensors(name: str) -> None:
    arguments = CASES[name].flat()
    with FakeTensorMode():
        fakes = [torch.empty(one.shape, dtype=one.dtype, device="cuda") for one in arguments]
        result = torch.ops.mdcp_fast.evaluate_population(*fakes)
    assert result.shape == arguments[0].shape[:2] and result.dtype == torch.float64
    assert result.device.type == "cuda"
