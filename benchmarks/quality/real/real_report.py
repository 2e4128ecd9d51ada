"""Tables of the benchmark of real networks, from its records alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from readme import write_between
from real_latency import table_of
from real_methods import (
    BEST,
    DROPPED,
    EXPLAINED,
    FITTED,
    METHODS,
    MIMICKED,
    REESTIMATED,
    RIVAL,
    UNIFORM,
)
from real_tables import Record, Tables, networks_in
from records import Records
from scores import Shown

MARKS = ("<!-- real: written by benchmarks/quality/real report -->", "<!-- end of real -->")
NOT_ACCURACY = (
    "Agreement with the dense network on photographs is not accuracy on ImageNet, whose images "
    "are not at hand: it says how much of the network's behaviour is left, not how often it is "
    "right."
)


def write_report(records: Records, out: Path, readme_path: Path | None = None) -> None:
    """Writes real.md, and the README's table.

    Args:
        records: What was measured.
        out: The folder.
        readme_path: The README, whose text between `MARKS` is replaced; None to leave it.

    Raises:
        ValueError: There are no records, or the README lacks the marks.
    """
    if not records.records:
        raise ValueError(f"expected records in {records.path}, got none; run the benchmark first")
    out.mkdir(parents=True, exist_ok=True)
    page = out / f"{records.path.stem}.md"
    halved = table_of(records.path.with_name("latency.json"))
    page.write_text("\n".join([markdown(records), *halved]), encoding="utf-8")
    if readme_path is not None:
        write_between(readme_path, MARKS, readme(records.records))


def readme(records: Sequence[Record]) -> str:
    """The README's table: ours beside the best rival under every treatment."""
    rivals = [name for name, method in METHODS.items() if method.family == RIVAL]
    heads = [
        "rival, dropped",
        "rival, re-estimated",
        "rival, our treatment",
        "ours, uniform widths",
        "ours",
        "ours, mimicked",
    ]
    columns = [
        *((rivals, treatment) for treatment in (DROPPED, REESTIMATED, FITTED)),
        ([UNIFORM], FITTED),
        ([BEST], FITTED),
        ([BEST], MIMICKED),
    ]
    lines = []
    for network in networks_in(records):
        tables = Tables(records, network)
        first, second = tables.settings.shown[:2]
        lines += [
            "",
            f"{tables.settings.title}: {first.title} / {second.title}; {tables.crops} calibration "
            f"images without labels, {tables.settings.held_out} held-out ones, mean of "
            f"{_counted(len(tables.splits), 'split')} by subject. Of rivals the best one.",
            "",
            f"| MACs | {' | '.join(heads)} |",
            "|---:|" + "---|" * len(heads),
        ]
        for budget in tables.budgets:
            cells = []
            for names, treatment in columns:
                found = tables.best(names, budget, treatment)
                if found is None:
                    cells.append("")
                    continue
                label = f"{found[0]} " if names is rivals else ""
                cells.append(f"{label}{first.written(found[1])} / {second.written(found[2])}")
            lines.append(f"| {budget:.0%} | {' | '.join(cells)} |")
    return "\n".join([NOT_ACCURACY, *lines])


def markdown(records: Records) -> str:
    """The whole result as a page."""
    parts = ["# Networks trained by others, judged without labels", _preamble(records)]
    for network in networks_in(records.records):
        tables = Tables(records.records, network)
        parts += [f"## {tables.settings.title}", _dense(tables)]
        if not tables.pruned:
            continue
        first, second, *more = tables.settings.shown
        for budget in tables.budgets:
            parts += [f"### {budget:.0%} of the MACs: {first.title} / {second.title}"]
            parts += [_grid(tables, budget)]
        for shown in more:
            table = _across(tables, shown)
            if table:
                parts += [f"### {shown.title}, after our treatment", table]
        parts += [_numbers_of_crops(tables)]
        parts += ["### MACs that were used, % / seconds of a fit", _used(tables)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _preamble(records: Records) -> str:
    lines = [
        NOT_ACCURACY,
        "",
        "Images are 212 photographs out of Debian's gcompris-qt-data, split three times at random "
        "into 120 to calibrate on and 92 to score on, so that no subject is on both sides; the "
        "classifier gets random crops of them, the text detector pages of text drawn onto them and "
        "plain ground. No label is used, but for the line of animals, 21 photographs (some of them "
        "calibrated on) that were given ImageNet's classes by hand as a check. Budgets are shares "
        "of the dense network's MACs. Rivals are torch-pruning's criteria with its default "
        "options: *global* ranks all channels together, *uniform* takes the same share of each "
        "group. All may choose any width (ours: `round_to=1`). What is measured after:",
        "",
        *(f"- *{name}*: {text};" for name, text in EXPLAINED.items()),
        "",
        "a [b, c]: mean and range over the splits. Bold: the best of a column by the first score.",
        "",
        "Measured on:",
    ]
    for place, one in enumerate(records.environments):
        count = sum(record["environment"] == place for record in records.records)
        versions = ", ".join(
            f"{name} {value}"
            for name, value in one.items()
            if name not in ("machine", "date", "mdcp_fast")
        )
        lines.append(
            f"- {one['date']}, {one['machine']}, mdcp_fast at commit {one['mdcp_fast']}, "
            f"{versions}: {_counted(count, 'record')}"
        )
    return "\n".join(lines)


def _dense(tables: Tables) -> str:
    settings = tables.settings
    text = (
        f"From: `{settings.install}`. {tables.crops} calibration images, {settings.held_out} "
        f"held-out ones, {_counted(len(tables.splits), 'split')}."
    )
    if tables.dense and "hits" in tables.dense[0]:
        one = tables.dense[0]
        text += f" The dense network names {one['hits']} of {one['animals']} animals right."
    return text


def _grid(tables: Tables, budget: float) -> str:
    """Methods by treatments at one budget."""
    first, second = tables.settings.shown[:2]
    treatments = [
        one for one in EXPLAINED if any(o["treatment"] == one for o in tables.pruned)
    ]  # fmt: skip
    best = {one: tables.best(tables.methods, budget, one) for one in treatments}
    lines = [f"| method | {' | '.join(treatments)} |", "|---|" + "---:|" * len(treatments)]
    for name in tables.methods:
        cells = []
        for treatment in treatments:
            scores = [tables.cell(one, name, budget, treatment) for one in (first, second)]
            text = " / ".join(_spread(*one) for one in zip((first, second), scores, strict=True))
            top = best[treatment]
            bold = bool(scores[0]) and top is not None and statistics.mean(scores[0]) == top[1]
            cells.append(f"**{text}**" if bold else text if scores[0] else "")
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _across(tables: Tables, shown: Shown) -> str:
    """Methods by budgets after our treatment, one score."""
    lines = []
    for name in tables.methods:
        cells = [
            _spread(shown, tables.cell(shown, name, budget, FITTED)) for budget in tables.budgets
        ]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if not lines:
        return ""
    budgets = " | ".join(f"{budget:.0%}" for budget in tables.budgets)
    return "\n".join([f"| method | {budgets} |", "|---|" + "---:|" * len(tables.budgets), *lines])


def _numbers_of_crops(tables: Tables) -> str:
    """Scores against the number of calibration images, on the first split."""
    counts = sorted({one["crops"] for one in tables.pruned})
    if len(counts) < 2:
        return ""
    others = [one for one in tables.pruned if one["crops"] != tables.crops]
    budget = others[0]["budget"]
    first, second = tables.settings.shown[:2]
    lines = [
        f"### {budget:.0%} of the MACs against the number of calibration images: {first.title} / "
        f"{second.title}, split {tables.splits[0]}",
        "",
        f"| method | treatment | {' | '.join(map(str, counts))} |",
        "|---|---|" + "---:|" * len(counts),
    ]
    for name, treatment in dict.fromkeys((one["method"], one["treatment"]) for one in others):
        cells = [
            " / ".join(
                _spread(shown, tables.cell(shown, name, budget, treatment, count))
                for shown in (first, second)
            )
            for count in counts
        ]
        lines.append(f"| {name} | {treatment} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _used(tables: Tables) -> str:
    lines = [
        f"| method | {' | '.join(f'{budget:.0%}' for budget in tables.budgets)} |",
        "|---|" + "---:|" * len(tables.budgets),
    ]
    macs, seconds = Shown("macs", "", percent=True), Shown("seconds", "", digits=0)
    for name in tables.methods:
        cells = []
        for budget in tables.budgets:
            found = [tables.cell(shown, name, budget, FITTED) for shown in (macs, seconds)]
            means = [
                shown.written(statistics.mean(values)) if values else ""
                for shown, values in zip((macs, seconds), found, strict=True)
            ]
            cells.append(" / ".join(means) if found[0] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(shown: Shown, values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return ""
    text = shown.written(statistics.mean(values))
    if len(values) > 1:
        text += f" [{shown.written(min(values))}, {shown.written(max(values))}]"
    return text


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
