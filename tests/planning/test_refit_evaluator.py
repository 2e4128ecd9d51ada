"""Widths by trial: scores are those of what prune returns, budgets are met, nothing gets worse."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from blocks import image
from plans import limits_at
from torch import Tensor, nn

from mdcp_fast.planning.budgets import limits_of, scaled_widths, uniform_widths
from mdcp_fast.planning.channels import ChannelScorer
from mdcp_fast.planning.judge import CEILING, KeptChannels
from mdcp_fast.planning.method import Method, resolve_method
from mdcp_fast.planning.refit_evaluator import RefitJudge, evolve_widths
from mdcp_fast.planning.rounding import allowed_widths
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.calibration_data import CalibrationData
from mdcp_fast.pruning.plan import PruningPlan
from mdcp_fast.pruning.prune import prune
from mdcp_fast.tracing.graph import ChannelGraph
from mdcp_fast.tracing.trace import trace

X = image(batch=64, size=8)
BATCHES = list(X.split(16))
LABELS = torch.arange(64) % 5
FITTED = [batch[:12] for batch in BATCHES]
SCORED = torch.cat([batch[12:] for batch in BATCHES])
BUDGETS = [{"macs": 0.2}, {"macs": 0.5}, {"params": 0.3}]


class Net(nn.Module):
    """A residual stream, an inner axis and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.inner = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.back = nn.Conv2d(24, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.back(self.inner(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    """Traced, with logits whose differences between samples matter."""
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.head.weight *= 2 / model(X).std(0).mean()
        model.head.bias -= model(X).mean(0)
    return trace(model, X[:1])


def kept_by_the_best(graph: ChannelGraph) -> KeptChannels:
    data = CalibrationData(graph, [(batch,) for batch in BATCHES])
    scorer = ChannelScorer(graph, resolve_method(Method.best(), True), data)
    return KeptChannels(graph.widths, scorer.choose)


@pytest.fixture(scope="module")
def kept(graph: ChannelGraph) -> KeptChannels:
    return kept_by_the_best(graph)


def logits(graph: ChannelGraph, plan: PruningPlan) -> Tensor:
    """What the network says of the samples that it was not fitted on."""
    small = prune(graph, plan, calibration=FITTED).eval()
    with torch.no_grad():
        return small(SCORED)


def divergence(graph: ChannelGraph, plan: PruningPlan) -> float:
    """KL(dense || pruned) by its definition, mean over these samples."""
    ours, theirs = F.log_softmax(logits(graph, plan), 1), F.log_softmax(graph.model(SCORED), 1)
    return float((theirs.exp() * (theirs - ours)).sum(1).mean().detach())


@pytest.mark.parametrize("labelled", [False, True])
def test_the_score_is_that_of_the_network_that_prune_returns(
    graph: ChannelGraph, kept: KeptChannels, labelled: bool
) -> None:
    labels = list(LABELS.split(16)) if labelled else None
    data = CalibrationData(graph, [(batch,) for batch in BATCHES], labels)
    evaluate = RefitJudge(graph, kept, limits_at(graph, 0.5), data)
    widths = torch.tensor([[6, 9, 5], [10, 4, 12]])
    scores = evaluate(torch.cat([widths, graph.widths.unsqueeze(0)]).unsqueeze(0))[0]
    for width, score in zip(widths, scores.tolist(), strict=False):
        masks = kept(width.unsqueeze(0))
        plan = PruningPlan.build(graph, [mask[0].nonzero().flatten() for mask in masks])
        expected = divergence(graph, plan)
        if labelled:
            scored = torch.cat([batch[12:] for batch in LABELS.split(16)])
            expected = float(F.cross_entropy(logits(graph, plan), scored))
        assert score == pytest.approx(expected, rel=1e-4) and score > 1e-4
    assert scores[2] > CEILING and evaluate.forwards == 2  # over the budget: not run


class OneNorm(nn.Module):
    """One BatchNorm behind two layers, which fitting leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.bn, self.last, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.b(torch.relu(self.bn(self.a(x))))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def test_norms_that_fitting_leaves_get_their_statistics_as_in_prune() -> None:
    torch.manual_seed(0)
    model = OneNorm().eval()
    model.head.weight.data *= 20
    graph = trace(model, X[:1])
    data = CalibrationData(graph, [(batch,) for batch in BATCHES])
    kept = kept_by_the_best(graph)
    evaluate = RefitJudge(graph, kept, limits_at(graph, 1), data)
    widths = graph.widths // 2
    plan = PruningPlan.build(graph, [mask[0].nonzero().flatten() for mask in kept(widths[None])])
    score = float(evaluate(widths.view(1, 1, -1)))
    assert score == pytest.approx(divergence(graph, plan), rel=1e-4) and score > 1e-4


def test_batches_of_few_samples_are_fitted_and_scored_whole(
    graph: ChannelGraph, kept: KeptChannels
) -> None:
    data = CalibrationData(graph, [(one,) for one in X.split(3)])
    evaluate = RefitJudge(graph, kept, limits_at(graph, 1), data)
    assert evaluate.samples == len(X)
    assert 0 < float(evaluate(torch.tensor([[[6, 9, 5]]]))) < CEILING


def test_the_network_that_is_whole_loses_nothing(graph: ChannelGraph, kept: KeptChannels) -> None:
    evaluate = RefitJudge(graph, kept, limits_at(graph, 1), CalibrationData(graph, [(X,)]))
    assert float(evaluate(graph.widths.view(1, 1, -1))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("round_to", [1, 4])
def test_scaled_widths_are_allowed_and_meet_the_limits_as_far_as_they_can(
    graph: ChannelGraph, round_to: int
) -> None:
    choices, notes, _ = allowed_widths(graph.axes, round_to, 0.1)
    limits = limits_of(graph, BUDGETS, choices, notes)
    generator = torch.Generator().manual_seed(0)
    shape = torch.rand(len(BUDGETS), 6, len(choices), generator=generator).double() * 20 + 0.5
    widths = scaled_widths(shape, graph.cost, limits, choices)
    for run, row in enumerate(widths):
        for width in row.tolist():
            assert all(w in one for w, one in zip(width, choices, strict=True))
            assert (graph.cost.evaluate(torch.tensor(width)) <= limits[run]).all()
            fits = []
            for axis, one in enumerate(choices):
                wider = torch.tensor(width)
                wider[axis] = one[min(one.tolist().index(width[axis]) + 1, len(one) - 1)]
                fits.append(bool((graph.cost.evaluate(wider) <= limits[run]).all()))
            assert not all(fits)


def test_proportions_are_kept(graph: ChannelGraph) -> None:
    choices, notes, _ = allowed_widths(graph.axes, 1, 0.0)
    limits = limits_of(graph, [{"macs": 0.5}], choices, notes)
    shape = torch.tensor([[[1.0, 2.0, 1.0]]], dtype=torch.float64)
    found = scaled_widths(shape, graph.cost, limits, choices)[0, 0].double()
    assert ((found / shape).amax() - (found / shape).amin()) <= 1.5  # by rounding alone


def test_the_evolution_starts_from_both_ends_and_never_gets_worse(graph: ChannelGraph) -> None:
    """On a function whose best widths are known."""
    choices, notes, _ = allowed_widths(graph.axes, 1, 0.1)
    limits = limits_of(graph, BUDGETS, choices, notes)
    uniform = uniform_widths(graph, limits, choices)
    given = scaled_widths(
        torch.tensor([[[8.0, 1.0, 1.0]]], dtype=torch.float64).expand(3, 1, 3),
        graph.cost,
        limits,
        choices,
    )[:, 0]
    wanted = torch.tensor([3.0, 20.0, 2.0])

    def evaluate(widths: Tensor) -> Tensor:
        assert (graph.cost.evaluate(widths) <= limits.unsqueeze(1)).all()
        return (widths - wanted).abs().sum(-1).double()

    found = evolve_widths(evaluate, given, uniform, graph.cost, limits, choices, (5, 12), 0)
    assert (found.history.diff(dim=1) <= 0).all() and found.history.shape == (3, 12)
    starts = torch.minimum(evaluate(given[:, None])[:, 0], evaluate(uniform[:, None])[:, 0])
    assert (found.history[:, 0] <= starts).all() and (found.fitness < 0.7 * starts).all()
    assert torch.equal(evaluate(found.best[:, None])[:, 0], found.fitness)
    assert found.evaluations == 60

    for run in range(3):  # alone as beside the others

        def alone(widths: Tensor) -> Tensor:
            return (widths - wanted).abs().sum(-1).double()

        rows = (given[run : run + 1], uniform[run : run + 1])
        again = evolve_widths(alone, *rows, graph.cost, limits[run : run + 1], choices, (5, 12), 0)
        assert torch.equal(again.best[0], found.best[run])


def test_plans_are_no_worse_than_the_table_and_uniform_widths(graph: ChannelGraph) -> None:
    budgets = [0.3, 0.15]
    table = search(graph, macs=budgets, calibration=BATCHES)
    tried = search(graph, macs=budgets, calibration=BATCHES, evaluator="fitted")
    uniform = search(graph, macs=budgets, calibration=BATCHES, method=Method(widths="uniform"))
    for one, other, even in zip(table, tried, uniform, strict=True):
        best = divergence(graph, other)
        assert best <= min(divergence(graph, one), divergence(graph, even)) * 1.0001
        assert other.history[-1] == pytest.approx(best, rel=1e-4)
        assert all(a >= b for a, b in itertools.pairwise(other.history))
    again = search(graph, macs=0.15, calibration=BATCHES, evaluator="fitted")
    assert [axis.kept for axis in again.axes] == [axis.kept for axis in tried[1].axes]
