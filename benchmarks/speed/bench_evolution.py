"""Differential evolution of widths under a budget: gap to the best known, and time, by peer.

pytest benchmarks/speed/bench_evolution.py

The problem is that of a network of 53 layers: one width from 1 to 17 each, separable losses, costs
that multiply neighbouring widths, half of the cost allowed. Every method scores 64 x 100 candidates
with the same native evaluator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mdcp_fast.ops.evaluate_population import CostModel, LossTable, PopulationFitness
from mdcp_fast.ops.evolution import differential_evolution
from mdcp_fast.planning.relaxation import relaxed_widths

AXES, WIDEST, POPULATION, GENERATIONS = 53, 17, 64, 100
SEEDS = [0, 1, 2]

pytestmark = pytest.mark.usefixtures("threads")
Compare = Callable[..., dict[str, Any]]


class Problem:
    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        steps = 1 - torch.arange(1, WIDEST + 1, dtype=torch.float64) / WIDEST
        power = 0.5 + 2 * torch.rand(AXES, 1, generator=generator, dtype=torch.float64)
        self.loss = LossTable((steps**power).flatten(), torch.arange(AXES + 1) * WIDEST)
        counts = torch.arange(AXES + 1)
        terms = torch.stack([counts[:-1], counts[1:]], 1)
        self.cost = CostModel(
            constant=torch.tensor([1] + [0] * AXES),
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts]),
            axis=torch.arange(AXES),
            factor=torch.ones(AXES, dtype=torch.int64),
            terms=terms,
            coefficients=torch.randint(10, 5000, (1, AXES), generator=generator),
        )
        self.low = torch.ones(AXES, dtype=torch.int64)
        self.high = torch.full((AXES,), WIDEST)
        self.limit = self.cost.evaluate(self.high) // 2
        self.fitness = PopulationFitness(self.loss, self.cost, self.limit)

    def rounded(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Fitness of real genotypes [candidates, axes]."""
        widths = torch.from_numpy(np.rint(rows)).long().clamp(1, WIDEST)
        return self.fitness(widths).numpy()


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


@pytest.fixture(scope="module")
def best_known(problem: Problem) -> float:
    """The best of many long runs, from random and from relaxed starts."""
    choices = [torch.arange(1, WIDEST + 1)] * AXES
    relaxed = relaxed_widths(problem.loss, problem.cost, problem.limit.unsqueeze(0), choices)
    runs = list(range(8))
    return min(
        float(
            differential_evolution(
                problem.fitness,
                problem.low,
                problem.high,
                population=128,
                generations=400,
                seeds=runs,
                initial=initial,
            ).fitness.min()
        )
        for initial in (None, relaxed.expand(len(runs), -1, -1))
    )


def report(benchmark: Any, fitness: list[float], best: float) -> None:
    gaps = [100 * (one / best - 1) for one in fitness]
    benchmark.extra_info["gap_percent"] = float(np.mean(gaps))
    print(f"gap {np.mean(gaps):.2f} %")


def ours(problem: Problem, seed: int, descent: bool = True) -> float:
    found = differential_evolution(
        problem.fitness,
        problem.low,
        problem.high,
        population=POPULATION,
        generations=GENERATIONS,
        seeds=[seed],
        descent=descent,
    )
    assert (problem.cost.evaluate(found.best) <= problem.limit).all()
    return float(found.fitness)


def scipy(problem: Problem) -> Callable[[int], float]:
    from scipy.optimize import differential_evolution as scipy_evolution

    def run(seed: int) -> float:
        found = scipy_evolution(
            lambda columns: problem.rounded(columns.T),
            [(0.5, WIDEST + 0.49)] * AXES,
            maxiter=GENERATIONS - 1,
            popsize=1,
            init=np.random.default_rng(seed).uniform(0.5, WIDEST + 0.49, (POPULATION, AXES)),
            polish=False,
            vectorized=True,
            updating="deferred",
            tol=0,
            rng=seed,
        )
        return float(found.fun)

    return run


def pymoo(problem: Problem) -> Callable[[int], float]:
    from pymoo.algorithms.soo.nonconvex.de import DE
    from pymoo.core.problem import Problem as PymooProblem
    from pymoo.optimize import minimize

    class Widths(PymooProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(n_var=AXES, n_obj=1, xl=0.5, xu=WIDEST + 0.49)

        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            out["F"] = problem.rounded(x)[:, None]

    def run(seed: int) -> float:
        algorithm = DE(pop_size=POPULATION)
        return float(minimize(Widths(), algorithm, ("n_gen", GENERATIONS), seed=seed).F[0])

    return run


def evox(problem: Problem, name: str) -> Callable[[int], float]:
    from evox import algorithms
    from evox.core import Problem as EvoxProblem
    from evox.workflows import EvalMonitor, StdWorkflow

    class Widths(EvoxProblem):  # type: ignore[misc]
        def evaluate(self, rows: Tensor) -> Tensor:
            widths = rows.round().long().clamp(1, WIDEST)
            return problem.fitness(widths).float()

    def run(seed: int) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            low, high = torch.full((AXES,), 0.5), torch.full((AXES,), WIDEST + 0.49)
            algorithm = getattr(algorithms, name)(POPULATION, low, high)
            monitor = EvalMonitor(full_fit_history=False)
            workflow = StdWorkflow(algorithm, Widths(), monitor)
            workflow.init_step()
            for _ in range(GENERATIONS - 1):
                workflow.step()
            return float(monitor.get_best_fitness())

    return run


def pygmo(problem: Problem) -> Callable[[int], float]:
    import pygmo

    class Widths:
        def fitness(self, row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return problem.rounded(row[None])

        def get_bounds(self) -> tuple[list[float], list[float]]:
            return [0.5] * AXES, [WIDEST + 0.49] * AXES

    def run(seed: int) -> float:
        population = pygmo.population(Widths(), POPULATION, seed=seed)
        algorithm = pygmo.algorithm(pygmo.sade(GENERATIONS - 1, seed=seed))
        return float(algorithm.evolve(population).champion_f[0])

    return run


PEERS: dict[str, Callable[[Problem], Callable[[int], float]]] = {
    "SciPy": scipy,
    "pymoo": pymoo,
    "evox DE": lambda problem: evox(problem, "DE"),
    "evox SHADE": lambda problem: evox(problem, "SHADE"),
    "pygmo sade": pygmo,
}


@pytest.mark.parametrize("descent", [False, True], ids=["l-shade", "l-shade-then-descent"])
def test_ours(
    compare: Compare, benchmark: Any, problem: Problem, best_known: float, descent: bool
) -> None:
    fitness = [ours(problem, seed, descent) for seed in SEEDS]
    compare(lambda: ours(problem, 0, descent), rounds=5)
    report(benchmark, fitness, best_known)


def test_beside_peers(
    compare: Compare, benchmark: Any, problem: Problem, best_known: float
) -> None:
    """Ours and every peer: the times of one seed, the mean gaps of all."""
    runs: dict[str, Callable[[int], float]] = {"ours": lambda seed: ours(problem, seed)}

    def prepare(name: str) -> Callable[[], float]:
        runs[name] = PEERS[name](problem)
        return lambda: runs[name](0)

    peers = {name: functools.partial(prepare, name) for name in PEERS}
    compared = compare(lambda: ours(problem, 0), peers, rounds=5)
    gaps: dict[str, float] = {}
    for name in ("ours", *compared):
        fitness = [runs[name](seed) for seed in SEEDS]
        print(f"{name}: ", end="")
        report(benchmark, fitness, best_known)
        gaps[name] = benchmark.extra_info.pop("gap_percent")
    benchmark.extra_info["gap to the best known, %"] = gaps


@pytest.mark.parametrize("candidates", [64, 1000, pytest.param(30_000, marks=pytest.mark.slow)])
def test_growth(compare: Compare, problem: Problem, candidates: int) -> None:
    """The evaluator alone, beside the formula in torch's ops."""
    generator = torch.Generator().manual_seed(0)
    population = torch.randint(1, WIDEST + 1, (candidates, AXES), generator=generator)

    def formula() -> Tensor:
        losses = problem.loss.values[problem.loss.offsets[:-1] + population - 1].sum(1)
        limit = problem.limit.double()
        excess = (problem.cost.evaluate(population) / limit - 1).clamp_min(0).sum(1)
        worst = problem.loss.values.view(AXES, WIDEST).max(1).values.sum()
        return torch.where(excess > 0, worst + excess, losses)

    torch.testing.assert_close(problem.fitness(population), formula())
    growth = ("candidates", candidates, f"{AXES} axes")
    peers = {"torch loop": lambda: formula}
    compare(lambda: problem.fitness(population), peers, rounds=15, growth=growth)
