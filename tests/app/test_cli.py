"""The command line: the demo end to end, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_python
from safetensors import SafetensorError
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import mdcp_fast
from mdcp_fast.app import cli
from mdcp_fast.app.cli import app
from mdcp_fast.app.datasets import load_data
from mdcp_fast.modules.files import atomic_write
from mdcp_fast.pruning.plan import PruningPlan

FILES = {
    "result.json",
    "plan.json",
    "model.safetensors",
    "widths.png",
    "convergence.png",
    "descriptors.png",
    "accuracy.png",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "made" / "on the way"
    ended = run("demo", "--epochs", 4, "--out", out)
    assert ended.exit_code == 0, ended.output
    for word in ("dense", "pruned only", "compensated", "fine-tuned", "accuracy", "MACs"):
        assert word in ended.output
    return out


@pytest.fixture(scope="module")
def result(demo: Path) -> dict[str, Any]:
    return json.loads((demo / "result.json").read_text())


def test_demo_keeps_its_promises(result: dict[str, Any]) -> None:
    """The promises of the README, after a third of the epochs of the real demo."""
    dense, pruned = result["dense"], result["pruned"]
    compensated, finetuned = result["compensated"], result["finetuned"]
    assert dense["accuracy"] >= 0.97
    assert finetuned["accuracy"] >= dense["accuracy"] - 0.015
    gained = compensated["accuracy"] - pruned["accuracy"]
    assert gained >= 0.2 or compensated["accuracy"] >= dense["accuracy"] - 0.03
    assert result["budget"] == {"macs": 0.4}
    for stage in (pruned, compensated, finetuned):
        assert 0.37 * dense["macs"] <= stage["macs"] <= 0.4 * dense["macs"]
        assert stage["params"] < dense["params"]
    assert all(stage["latency_ms"] > 0 for stage in (dense, pruned, compensated, finetuned))
    assert {"trace", "train", "search", "prune", "finetune"} <= result["seconds"].keys()


def test_demo_writes_what_it_says_and_nothing_else(demo: Path, result: dict[str, Any]) -> None:
    assert set(os.listdir(demo)) == FILES
    plan = PruningPlan.from_json((demo / "plan.json").read_text())
    assert (plan.macs, plan.dense_macs) == (result["finetuned"]["macs"], result["dense"]["macs"])
    model = mdcp_fast.load(
        demo / "model.safetensors", lambda: mdcp_fast.make_model("digits-resnet")
    )
    accuracy = mdcp_fast.evaluate(model, load_data("digits").test)
    assert accuracy == pytest.approx(result["finetuned"]["accuracy"])


def test_demo_repeats_in_a_fresh_process_and_takes_weights(
    demo: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    """Another process, with the caller's random numbers elsewhere, gives the same networks."""
    script = (
        "import torch; torch.manual_seed(9)\n"
        "from mdcp_fast.app.cli import app\n"
        f"app(['demo', '--epochs', '4', '--out', {str(tmp_path / 'again')!r}])\n"
    )
    run_python(script, folder=tmp_path)
    for name in ("plan.json", "convergence.png"):
        assert (tmp_path / "again" / name).read_bytes() == (demo / name).read_bytes()
    # Tensor by tensor: safetensors writes its metadata in no particular order.
    expected = load_file(demo / "model.safetensors")
    for name, value in load_file(tmp_path / "again" / "model.safetensors").items():
        assert torch.equal(value, expected[name])

    dense = mdcp_fast.make_model("digits-resnet")
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    out = tmp_path / "given"
    ended = run("demo", "--epochs", 1, "--out", out, "--weights", tmp_path / "dense.pt")
    assert ended.exit_code == 0, ended.output
    given = json.loads((out / "result.json").read_text())
    assert "train" not in given["seconds"]
    assert given["dense"]["accuracy"] < 0.5  # these weights were random, and were taken as they are


def test_version_and_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "version", {"mdcp-fast": "1.2.3"}.__getitem__)
    assert run("--version").output == "mdcp-fast 1.2.3\n"
    assert "demo" in run("--help").output
    assert "--macs" in run("demo", "--help").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--macs", 1.5), "macs: expected a fraction in (0, 1], got 1.5"),
        (("--macs", 0), "macs: expected a fraction in (0, 1], got 0"),
        (("--macs", "nan"), "macs: expected a fraction in (0, 1], got nan"),
        (("--macs", 1e-6), "macs"),
        (("--epochs", 0), "epochs: expected at least 1, got 0"),
        (("--seed", -1), "seed: expected an integer of at least 0, got -1"),
        (("--model", "no-such-net"), "expected one of digits-resnet"),
        (("--data", "cifar"), "expected one of digits"),
        (("--data", "fashion-mnist:nowhere"), "no such file"),
        (("--weights", "nowhere.pt"), "expected a file of weights, got 'nowhere.pt'"),
        (("--device", "warp"), "device: expected one that is here, got 'warp'"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(
    tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    ended = run("demo", "--out", tmp_path / "out", *arguments)
    assert ended.exit_code == 2
    assert ended.stderr.startswith("mdcp-fast: ") and message in ended.stderr
    assert ended.stderr.count("\n") == 1 and "Traceback" not in ended.output
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_an_unwritable_folder_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        ended = run("demo", "--out", out)
        assert ended.exit_code == 2 and "out: expected a folder that can be written" in ended.stderr
        assert "Training" not in ended.output


def test_words_that_are_no_numbers() -> None:
    ended = run("demo", "--macs", "half")
    assert ended.exit_code == 2 and "Invalid value for '--macs'" in ended.output


def test_a_full_disk_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the system, whatever library wrote."""

    def full(**options: Any) -> None:
        with atomic_write(options["out"] / "model.safetensors"):
            raise SafetensorError("Error while serializing: I/O error: full (os error 28)")

    monkeypatch.setattr("mdcp_fast.app.demo.run_demo", full)
    ended = run("demo", "--out", tmp_path)
    said = f"mdcp-fast: [Errno 28] No space left on device: '{tmp_path}/model.safetensors'\n"
    assert ended.exit_code == 2 and ended.output == said
    assert os.listdir(tmp_path) == []
