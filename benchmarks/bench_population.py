"""Differential evolution of widths under a budget: gap to the best known, and time, by peer.

pytest benchmarks/bench_population.py. The problem is that of a network of 53 layers: one width from
1 to 17 each, separable losses, costs that multiply neighbouring widths, half of the cost allowed.
Every method scores 64 x 100 candidates with the same native evaluator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mdcp_fast.evolution import differential_evolution
from mdcp_fast.ops.population import CostModel, LossTable, PopulationFitness
from mdcp_fast.relaxation import relaxed_widths

AXES, WIDEST, POPULATION, GENERATIONS = 53, 17, 64, 100
SEEDS = [0, 1, 2]


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


@pytest.mark.parametrize("descent", [False, True], ids=["l-shade", "l-shade-then-descent"])
def test_ours(benchmark: Any, problem: Problem, best_known: float, descent: bool) -> None:
    def run(seed: int) -> float:
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

    benchmark.pedantic(run, (0,), rounds=5, warmup_rounds=1)
    report(benchmark, [run(seed) for seed in SEEDS], best_known)


def test_scipy(benchmark: Any, problem: Problem, best_known: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")

    def run(seed: int) -> float:
        found = optimize.differential_evolution(
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

    benchmark.pedantic(run, (0,), rounds=5, warmup_rounds=1)
    report(benchmark, [run(seed) for seed in SEEDS], best_known)


def test_pymoo(benchmark: Any, problem: Problem, best_known: float) -> None:
    pytest.importorskip("pymoo")
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

    benchmark.pedantic(run, (0,), rounds=5, warmup_rounds=1)
    report(benchmark, [run(seed) for seed in SEEDS], best_known)
