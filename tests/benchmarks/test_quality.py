"""The quality benchmark measures what it says: rivals' choices, budgets, resuming, its report.

On the digits network with one epoch of training.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ablations import plain_evolution
from methods import METHODS
from networks import NETWORKS, Network, accuracy
from quality import main
from quality_report import MARKS, write_report
from records import Records
from rivals import CRITERIA, Rival
from subject import Subject, load_subject, uniform_widths
from treatment import COMPENSATED, DROPPED, FINETUNED, HALFWAY, STEPS, finetuned, treated

from mdcp_fast.planning.evaluators import TableEvaluator
from mdcp_fast.planning.method import Method as Search
from mdcp_fast.planning.search import search
from mdcp_fast.pruning.plan import PruningPlan

NETWORK = "digits-resnet"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def one_epoch() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, NETWORK, Network("digits", 1, 0.1, False, "digits"))
        yield


@pytest.fixture(scope="module")
def subject(cache: Path) -> Subject:
    return load_subject(NETWORK, cache)


@pytest.mark.parametrize("everywhere", [True, False], ids=["global", "uniform"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_rivals_plan_keeps_what_torch_pruning_kept(
    subject: Subject, criterion: str, everywhere: bool
) -> None:
    pytest.importorskip("torch_pruning")
    graph, rival = subject.graph, Rival(criterion, everywhere)
    model = rival.prepared(graph, subject.labelled)
    theirs = rival.pruned(graph, model, 0.4)
    kept = rival.kept(graph, model, 0.4)
    ours = treated(subject, PruningPlan.build(graph, kept), DROPPED)
    weights = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, weights[name]), name
    assert any(len(chosen) < axis.channels for chosen, axis in zip(kept, graph.axes, strict=True))


@pytest.mark.parametrize("macs", [0.45, 0.15])
def test_budgets_are_met_and_used(subject: Subject, macs: float) -> None:
    pytest.importorskip("torch_pruning")
    for everywhere in (True, False):
        plan = Rival("l2", everywhere).plan(subject.graph, macs, subject.labelled)
        assert 0.9 * macs <= plan.macs / plan.dense_macs <= macs
    widths = torch.tensor(uniform_widths(subject.graph, macs))
    cost = int(subject.graph.cost.evaluate(widths)[..., 0])
    assert 0.9 * macs <= cost / subject.graph.macs <= macs


def test_a_number_left_out_changes_the_choice_alone(subject: Subject) -> None:
    paper, *others = (
        next(iter(METHODS[name].plans(subject, [0.3], 0)))
        for name in ("paper", "paper without mean", "paper without variance")
    )
    for other in others:
        assert [axis.width for axis in other.axes] == [axis.width for axis in paper.axes]
        assert [axis.kept for axis in other.axes] != [axis.kept for axis in paper.axes]


def test_ablations_are_methods_with_parts_of_their_own(subject: Subject) -> None:
    graph = subject.graph
    plain = replace(Search.quick(), evolution=plain_evolution)
    ours, theirs = (
        search(graph, macs=0.5, method=how, evaluator=TableEvaluator(16, 10))
        for how in (Search.quick(), plain)
    )
    assert ours.history[-1] <= theirs.history[-1] and len(theirs.history) == 10
    assert theirs.macs <= 0.5 * graph.macs
    assert list(theirs.history) == sorted(theirs.history, reverse=True)
    drawn = [
        next(iter(METHODS["paper, random in cluster"].plans(subject, [0.5], seed)))
        for seed in (0, 0, 1)
    ]
    kept = [[axis.kept for axis in plan.axes] for plan in drawn]
    assert kept[0] == kept[1] != kept[2]
    assert drawn[0].settings["selection"] == "RandomInCluster(seed=0)"


def test_fine_tuning_repeats_and_its_curve_ends_with_the_network(subject: Subject) -> None:
    plan = next(iter(METHODS["random"].plans(subject, [0.45], 0)))
    networks = [treated(subject, plan, COMPENSATED) for _ in range(2)]
    curves = [finetuned(subject, network, 0, steps=8) for network in networks]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == [0, 1, 2, 3, 4, 6, 8]
    assert curves[0][-1][1] == accuracy(networks[0], subject.test)


def test_a_run_resumes_and_reports(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for treatment, steps in ((HALFWAY, 1), (FINETUNED, 2)):
        monkeypatch.setitem(STEPS, treatment, steps)
    results = tmp_path / "quality.json"

    def run(*more: str) -> Records:
        given = ["run", "--quick", "--cache", str(cache), "--results", str(results)]
        given += ["--only", r"resnet\|random\||resnet\|paper\|0.6\|fine-tuned"]
        main([*given, "--budgets", "0.6", "0.15", *more])
        return Records(results)

    first = run("--tune")
    # dense; random: budgets x seeds x treatments, tuned at both; ours: tuned in all and half steps
    assert len(first.records) == 1 + 2 * 3 * 3 + 2 + 2
    assert [one["curve"][-1][0] for one in first.records if one["method"] == "paper"] == [1, 2]
    # A record that is there stays, one that is missing is measured again and comes out the same.
    first.records[1]["test"] = 0.123
    last = first.records.pop()
    first.write()
    second = run("--tune")
    assert second.records == [*first.records, last]
    again = run("--redo", r"random\|0.6\|dropped\|0$")
    assert len(again.records) == len(second.records)
    assert all(one["test"] != 0.123 for one in again.records)

    again.find((NETWORK, "dense", 1.0, "dropped", 0))["weights"] = "others"
    again.write()
    with pytest.raises(SystemExit, match="was measured on another digits-resnet"):
        run()

    main(["report", "--results", str(results), "--out", str(tmp_path / "out")])
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"quality.md", "quality.svg", "quality_steps.svg"}
    page = (tmp_path / "out" / "quality.md").read_text()
    assert "| random |" in page and "60%" in page and "at commit" in page
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_report(again, tmp_path / "out", readme)
    text = readme.read_text()
    assert "random " in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")

    environment = json.loads(results.read_text())["environments"][0]
    assert environment["torch"].startswith(torch.__version__.split("+")[0])
