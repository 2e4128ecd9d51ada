"""L-SHADE and the descent: bounds, optima that are known, independent runs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from evolution_reference import ReferenceLShade
from torch import Tensor

from mdcp_fast.ops.evolution import (
    Evaluate,
    LShade,
    _seeded,
    _uniform,
    descend,
    differential_evolution,
)

LOW, HIGH = torch.tensor([1, -3, 0, 5, 2]), torch.tensor([9, 40, 300, 5, 3])
TARGET = torch.tensor([4, 17, 123, 5, 3])


def bowl(candidates: Tensor) -> Tensor:
    """0 at TARGET, growing with the distance in units of the range."""
    return ((candidates - TARGET).double() / (HIGH - LOW + 1)).square().sum(-1)


def knapsack(candidates: Tensor) -> Tensor:
    """Large sums are wanted, but only up to 200: the best fitness is -200."""
    total = candidates.sum(-1).double()
    return torch.where(total <= 200, -total, total)


def half_impossible(candidates: Tensor) -> Tensor:
    return bowl(candidates).masked_fill(candidates[..., 2] % 2 == 0, torch.inf)


@pytest.mark.parametrize("seed", [0, 5489, -7, 2**40 + 3])
def test_random_numbers_are_torchs_in_float64(seed: int) -> None:
    """Drawn in portions that end within blocks and at their ends (312 numbers)."""
    generators, torchs = _seeded([1, seed]), torch.Generator().manual_seed(seed)
    for count in (1, 311, 312, 1000, 7):
        expected = torch.rand(count, generator=torchs, dtype=torch.float64)
        assert torch.equal(_uniform(generators, count)[1], expected)


@pytest.mark.parametrize("evaluate", [bowl, knapsack, half_impossible])
@pytest.mark.parametrize("population", [4, 7, 30])
def test_every_generation_is_the_references(evaluate: Evaluate, population: int) -> None:
    seeds = [0, 5]
    run = LShade(LOW, HIGH, population=population, evaluations=population * 40, seeds=seeds)
    references = [
        ReferenceLShade(LOW.numpy(), HIGH.numpy(), population, population * 40, seed)
        for seed in seeds
    ]
    while not run.finished:
        candidates = run.ask()
        n = candidates.shape[1]
        fitness = evaluate(candidates)
        for one, reference in enumerate(references):
            assert torch.equal(candidates[one], torch.from_numpy(reference.ask()))
            reference.tell(fitness[one].numpy())
        run.tell(fitness)
        for one, reference in enumerate(references):
            left = len(reference.members)
            close(run.state.members[one, :left], reference.members)
            close(run.state.scores[one, :left], reference.scores)
            close(run.state.scales[one, :n], reference.scales)
            close(run.state.rates[one, :n], reference.rates)
            close(run.state.scale_memory[one], np.array(reference.scale_memory))
            close(run.state.rate_memory[one], np.array(reference.rate_memory))
            archived = int(run.state.archived[one])
            assert archived == len(reference.archive)
            if archived:
                close(run.state.archive[one, :archived], np.stack(reference.archive))


def close(result: Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(result, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_finds_the_optimum_of_a_bowl() -> None:
    found = differential_evolution(bowl, LOW, HIGH, seeds=[0, 1])
    assert torch.equal(found.best, TARGET.expand(2, -1))
    assert torch.equal(found.fitness, torch.zeros(2, dtype=torch.float64))


def test_finds_a_boundary_that_takes_several_coordinates() -> None:
    assert differential_evolution(knapsack, LOW, HIGH).fitness.item() == -200


def test_every_candidate_is_within_the_bounds() -> None:
    seen = []

    def watched(candidates: Tensor) -> Tensor:
        seen.append(candidates.reshape(-1, 5))
        return knapsack(candidates)

    differential_evolution(watched, LOW, HIGH, population=16, generations=20)
    candidates = torch.cat(seen)
    assert (candidates >= LOW).all() and (candidates <= HIGH).all()


def test_the_best_is_the_best_that_was_seen_and_never_gets_worse() -> None:
    seen = []

    def watched(candidates: Tensor) -> Tensor:
        seen.append(bowl(candidates).min(1).values)
        return bowl(candidates)

    found = differential_evolution(watched, LOW, HIGH, population=8, generations=10, seeds=[3, 4])
    assert torch.equal(found.fitness, torch.stack(seen).amin(0))
    assert torch.equal(found.fitness, bowl(found.best.unsqueeze(1)).squeeze(1))
    assert (found.history.diff(dim=1) <= 0).all()


def test_runs_do_not_depend_on_one_another() -> None:
    """A budget's plan must not change when other budgets are asked for in the same call."""
    together = differential_evolution(knapsack, LOW, HIGH, seeds=[0, 7, 2], generations=5)
    alone = differential_evolution(knapsack, LOW, HIGH, seeds=[7], generations=5)
    assert torch.equal(together.best[1:2], alone.best)
    assert torch.equal(together.history[1:2], alone.history)


def test_initial_candidates_are_not_forgotten() -> None:
    initial = TARGET.view(1, 1, -1)
    found = differential_evolution(
        bowl, LOW, HIGH, population=4, generations=1, initial=initial, descent=False
    )
    assert torch.equal(found.best, TARGET.unsqueeze(0))


def test_the_population_shrinks_and_the_evaluations_are_counted() -> None:
    run = LShade(LOW, HIGH, population=32, evaluations=32 * 10)
    sizes = []
    while not run.finished:
        candidates = run.ask()
        sizes.append(candidates.shape[1])
        run.tell(bowl(candidates))
    assert sizes[0] == 32 and sizes[-1] <= 6 and sizes == sorted(sizes, reverse=True)
    assert run.evaluated == sum(sizes) >= 320


def test_asking_twice_gives_the_same_candidates() -> None:
    run = LShade(LOW, HIGH, population=8, evaluations=80)
    run.tell(bowl(run.ask()))
    assert torch.equal(run.ask(), run.ask())


def test_what_was_given_out_does_not_change() -> None:
    """The state lives in memory that is written again and again."""
    run = LShade(LOW, HIGH, population=8, evaluations=80)
    seen = []
    while not run.finished:
        candidates = run.ask()
        run.tell(bowl(candidates))
        parts = (candidates, run.best, run.fitness)
        seen.append((parts, [part.clone() for part in parts]))
    for parts, copies in seen:
        assert all(map(torch.equal, parts, copies))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
def test_a_copy_goes_its_own_way(copied: Callable[[LShade], LShade]) -> None:
    def advance(run: LShade) -> list[Tensor]:
        asked = []
        while not run.finished:
            asked.append(run.ask())
            run.tell(bowl(asked[-1]))
        return asked

    run = LShade(LOW, HIGH, population=8, evaluations=80, seeds=[0, 1])
    run.tell(bowl(run.ask()))
    other = copied(run)
    for one, two in zip(advance(run), advance(other), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(run.best, other.best)


def test_infinite_fitness_is_survived() -> None:
    """A user's evaluator may call a candidate impossible."""

    def mostly_impossible(candidates: Tensor) -> Tensor:
        return bowl(candidates).masked_fill(candidates[..., 2] % 7 != 0, torch.inf)

    found = differential_evolution(mostly_impossible, LOW, HIGH)
    assert found.best[0, 2] % 7 == 0 and found.fitness.isfinite().all()


def test_a_single_possible_candidate() -> None:
    found = differential_evolution(bowl, TARGET, TARGET, population=4, generations=2)
    assert torch.equal(found.best, TARGET.unsqueeze(0))


def test_descend_never_goes_up() -> None:
    start = torch.tensor([[9, 40, 300, 5, 2]])
    best, fitness, evaluated = descend(bowl, start, bowl(start), LOW, HIGH, seeds=[0])
    assert torch.equal(best, TARGET.unsqueeze(0)) and fitness.item() == 0 and evaluated > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"low": LOW.float()}, TypeError, "low: expected dtype torch.int64, got torch.float32"),
        ({"low": LOW[:3]}, ValueError, r"high: expected shape \[3\], got \[5\]"),
        ({"low": LOW[:0], "high": HIGH[:0]}, ValueError, "low: expected at least one coordinate"),
        ({"low": HIGH + 1}, ValueError, r"high\[0\]: expected at least 10, got 9"),
        ({"population": 3}, ValueError, "population: expected at least 4, got 3"),
        ({"generations": 0}, ValueError, "generations: expected at least 1, got 0"),
        ({"seeds": []}, ValueError, "seeds: expected at least one"),
        ({"evaluate": lambda c: bowl(c)[:, :2]}, ValueError, "fitness: expected shape"),
        ({"evaluate": lambda c: bowl(c) * torch.nan}, ValueError, "expected numbers, got NaN"),
    ],
)
def test_bad_input_is_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        differential_evolution(**{"evaluate": bowl, "low": LOW, "high": HIGH, **arguments})


def test_descend_names_bad_input() -> None:
    start = TARGET.unsqueeze(0)
    with pytest.raises(ValueError, match=r"descend: start: expected shape \[2, 5\], got \[1, 5\]"):
        descend(bowl, start, bowl(start), LOW, HIGH, seeds=[0, 1])


def test_steps_as_long_as_the_integers_go() -> None:
    low, high = torch.tensor([-(2**61), 0]), torch.tensor([2**61, 1])
    start = torch.tensor([[2**61 - 1, 0]])

    def within(candidates: Tensor) -> Tensor:
        assert (candidates >= low).all() and (candidates <= high).all()
        return -candidates[..., 1].double()

    best, _, _ = descend(within, start, within(start), low, high, seeds=[0])
    assert best[0, 1] == 1


def test_tell_needs_ask() -> None:
    run = LShade(LOW, HIGH, population=4, evaluations=8)
    with pytest.raises(RuntimeError, match="call of ask"):
        run.tell(torch.zeros(1, 4))
