"""The benchmark of real networks measures what it says, on a tiny network and made-up pictures."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import real_methods
import real_networks
import rivals
import torch
from photographs import ACTIVITIES, centre, crop_box, crops, extract, photographs, split_of
from PIL import Image
from real_benchmark import main
from real_cells import KEY, in_order
from real_methods import BEST, FITTED, METHODS, MIMICKED, UNIFORM, reestimate
from real_networks import NETWORKS, NotInstalled, RealNetwork, folder_of
from real_report import MARKS, write_report
from real_subject import RealSubject, traced
from records import Records
from scores import CLASSIFIER, agreement
from subjects import CLASSES, SUBJECT, by_subject
from text_pages import pages
from torch import nn

PICTURES = 24
MONUMENTS = ("explore_monuments_5", "categorization_100", "explore_monuments_11")
NAMES = (*MONUMENTS, "categorization_120", "explore_farm_animals_0", "explore_world_animals_9")


def picture(seed: int) -> Image.Image:
    """Coarse random colours, smooth between them."""
    draw = random.Random(seed)
    small = Image.new("RGB", (4, 3))
    small.putdata([tuple(draw.randint(0, 255) for _ in range(3)) for _ in range(12)])
    return small.resize((draw.randint(40, 90), draw.randint(40, 90)), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    others = (f"categorization_{place}" for place in range(200, 200 + PICTURES - len(NAMES)))
    for seed, name in enumerate((*NAMES, *others)):
        picture(seed).save(folder / f"{name}.webp", lossless=True)
    return folder


def tiny() -> nn.Module:
    """Random weights, and as many classes as it takes for some of the animals."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 300),
        ).eval()


TINY = RealNetwork(
    title="tiny",
    packages=("a-package-of-weights",),
    load=tiny,
    images=crops,
    size=32,
    scores=agreement,
    shown=CLASSIFIER,
    budgets=(0.7, 0.5),
    calibration=24,
    fewer=(8,),
    fewer_at=0.7,
    held_out=12,
    batch=8,
    classes=True,
)


def test_photographs_are_taken_out_of_resource_files(photos: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "usr" / "share"
    unpacked.mkdir(parents=True)
    noise = torch.randint(0, 256, (60, 60, 3), generator=torch.Generator().manual_seed(0)).byte()
    Image.fromarray(noise.numpy()).save(tmp_path / "large.webp", lossless=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "icon.webp")
    large, icon = ((tmp_path / f"{name}.webp").read_bytes() for name in ("large", "icon"))
    mixed = b"qres" + icon + b"RIFF....text" + large + b"\0" + large + b"RIFF\xff\xff\xff\x7fWEBP"
    (unpacked / f"{ACTIVITIES[0]}.rcc").write_bytes(mixed)
    (unpacked / "another_activity.rcc").write_bytes(large)
    assert extract(tmp_path, tmp_path / "out") == 2
    assert [path.name for path in photographs(tmp_path / "out")] == [
        f"{ACTIVITIES[0]}_{place}.webp" for place in (1, 2)
    ]
    assert (tmp_path / "out" / f"{ACTIVITIES[0]}_1.webp").read_bytes() == large
    with pytest.raises(SystemExit, match="expected gcompris-qt-data"):
        extract(photos, tmp_path / "nothing")
    with pytest.raises(SystemExit, match="apt-get download"):
        photographs(tmp_path / "empty")


@pytest.mark.parametrize("number", range(5))
def test_no_subject_is_on_both_sides(photos: Path, number: int) -> None:
    files = photographs(photos)
    split = split_of(files, number)
    assert sorted((*split.calibration, *split.held_out)) == files
    assert abs(len(split.calibration) - 120 / 212 * len(files)) <= 2
    sides = [
        {SUBJECT.get(path.stem, path.stem) for path in part}
        for part in (split.calibration, split.held_out)
    ]
    assert not sides[0] & sides[1]
    assert split == split_of(files, number) != split_of(files, number + 1)


def test_subjects_of_two_pictures_stay_together() -> None:
    groups = by_subject(NAMES)
    assert groups[:2] == [
        ["categorization_100", "explore_monuments_5"],
        ["categorization_120", "explore_monuments_11"],
    ]
    assert all(0 <= one < 1000 for classes in CLASSES.values() for one in classes)


@pytest.mark.parametrize("images", [crops, pages])
def test_images_repeat_and_fewer_are_the_first_of_more(photos: Path, images: object) -> None:
    files = photographs(photos)
    many = images(files, 8, 64, "calibration 0")
    assert many.shape == (8, 3, 64, 64) and many.dtype == torch.uint8
    assert torch.equal(images(files, 5, 64, "calibration 0"), many[:5])
    assert not torch.equal(images(files, 8, 64, "held out 0"), many)


def test_crops_lie_inside_and_are_large_enough() -> None:
    draw = random.Random(0)
    for width, height in [(90, 40), (300, 200), (1000, 20)]:
        for _ in range(50):
            left, top, right, bottom = crop_box(width, height, draw)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            shape, area = (right - left) / (bottom - top), (right - left) * (bottom - top)
            assert 0.7 < shape < 1.4
            assert area >= 0.24 * width * height or min(width, height) == 20


def test_the_middle_is_what_imagenet_networks_are_tested_on(tmp_path: Path) -> None:
    plain = Image.new("RGB", (320, 256), (255, 0, 0))
    plain.paste((0, 255, 0), (48, 16, 272, 240))
    plain.save(tmp_path / "plain.webp", lossless=True)
    green = torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None, None]
    assert (centre(tmp_path / "plain.webp", 224) == green).all()


def test_re_estimated_statistics_are_those_of_the_images() -> None:
    norm = nn.BatchNorm2d(3)
    batches = [5 + 2 * torch.randn(4, 3, 8, 8) for _ in range(3)]
    reestimate(norm, batches)
    together = torch.cat(batches)
    torch.testing.assert_close(norm.running_mean, together.mean((0, 2, 3)))
    variances = [batch.var((0, 2, 3)) for batch in batches]
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == 0.1 and not norm.training


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_its_package_is_left_out_by_name(
    name: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(real_networks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NotInstalled, match="a-package is not installed"):
        folder_of("a_package", "a-package")
    results = tmp_path / "real.json"
    main(["run", "--networks", name, "--photos", str(photos), "--results", str(results)])
    line = capsys.readouterr().out
    assert line.startswith(f"{name}: left out: ") and NETWORKS[name].install in line
    assert len(line.splitlines()) == 1 and not results.exists()


def test_the_most_important_comes_first() -> None:
    batches = in_order(["mobilenet_v2"], [0, 1], [])
    assert [one.method for one in batches[:2]] == [BEST, UNIFORM]
    assert all(one.split == 0 and one.crops == 480 for one in batches[:6])
    keys = [key for one in batches for key in one.cells()]
    assert len(set(keys)) == len(keys)
    assert {key[5] for key in keys} == {32, 120, 480, 2000}
    assert {key[1] for key in keys} == set(METHODS)


def test_a_run_resumes_and_reports(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    monkeypatch.setattr(real_methods, "finetune", lambda *_, **__: None)
    monkeypatch.setattr(rivals, "BISECTIONS", 5)
    kept = (BEST, UNIFORM, "l2, uniform", "random, uniform")
    monkeypatch.setattr("real_cells.METHODS", {name: METHODS[name] for name in kept})
    results = tmp_path / "real.json"

    def run(*more: str) -> Records:
        given = ["run", "--networks", "tiny", "--photos", str(photos), "--results", str(results)]
        main([*given, "--splits", "0,1", *more])
        return Records(results, KEY)

    first = run("--wanted", r"\|0\.7\||l2")
    again = run("--wanted", r"\|0\.7\||l2")
    assert again.records == first.records
    # At 0.7, of both splits: dense, ours fitted and mimicked, uniform, two rivals three ways; fewer
    # crops of the first split: ours, uniform, one rival two ways. At 0.5, one rival three ways.
    assert len(first.records) == 2 * (1 + 2 + 1 + 2 * 3) + 4 + 2 * 3
    dense = first.find(("tiny", "dense", 1.0, "dropped", 0, 0))
    assert dense["agreement"] == 1 and abs(dense["kl"]) < 1e-9 and dense["animals"] == 2
    assert all(one["macs"] <= one["budget"] for one in first.records)
    dropped = [one for one in first.records if one["treatment"] == "dropped"]
    assert any(one["agreement"] < 1 for one in dropped)
    fitted, learnt = (
        first.find(("tiny", BEST, 0.7, treatment, 0, 24)) for treatment in (FITTED, MIMICKED)
    )
    assert fitted["kl"] == learnt["kl"]  # nothing was trained here

    # At one budget both searches end with all axes at one share: measured once, told twice.
    uniform = first.find(("tiny", UNIFORM, 0.7, FITTED, 0, 24))
    if uniform["plan"] == fitted["plan"]:
        assert all(uniform[name] == one for name, one in fitted.items() if name != "method")

    # A record that is there stays, one that is missing comes out the same.
    last = first.records.pop()
    first.records[1]["kl"] = 123.0
    first.write()
    second = run("--wanted", r"\|0\.7\||l2")
    measured = second.find(tuple(last[name] for name in KEY))
    assert measured["kl"] == last["kl"] and second.records[1]["kl"] == 123.0
    redone = run("--wanted", r"\|0\.7\||l2", "--redo", f"^{second.records[1]['network']}.{BEST}")
    assert len(redone.records) == len(second.records)
    assert all(one["kl"] != 123.0 for one in redone.records if one["method"] == BEST)

    main(["report", "--results", str(results), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "real.md").read_text()
    assert "is not accuracy on ImageNet" in page and "| l2, uniform |" in page
    assert "against the number of calibration images" in page and "names" in page
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_report(redone, tmp_path / "out", readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "is not accuracy on ImageNet" in text and "| 70% |" in text

    monkeypatch.setitem(NETWORKS, "tiny", replace(TINY, held_out=10))
    with pytest.raises(SystemExit, match="other images or another tiny"):
        run()


def test_mimicking_is_judged_on_other_photographs(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    subject = RealSubject("tiny", traced("tiny"), photographs(photos), 0, 48)
    learn, judge = subject.scenes(48)
    assert len(learn) + len(judge) == 48 and 0 < len(judge) < 24
    everything = subject.network.standardised(subject.calibration)
    scene = torch.arange(48) % len(subject.split.calibration)
    judged = [
        place for place in range(48) if any(torch.equal(everything[place], one) for one in judge)
    ]
    apart = {int(scene[place]) for place in judged}
    assert apart.isdisjoint({int(scene[place]) for place in set(range(48)) - set(judged)})
    seen = []
    monkeypatch.setattr(real_methods, "finetune", lambda *given, **_: seen.append(given))
    dense = subject.graph.model
    twin = real_methods.mimicked(subject, dense, 48)
    assert twin is not dense and math.isclose(agreement_of(subject, twin), 1.0)
    assert sum(len(batch) for part in seen[0][1:] for batch in part) == 48


def agreement_of(subject: RealSubject, model: nn.Module) -> float:
    return subject.scores(model)["agreement"]
