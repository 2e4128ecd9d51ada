"""Page, figures and the README's table of the speed benchmark, from its records alone."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from figures import panels_of, save, settings
from readme import write_between
from records import Records
from speed_bars import bars, share_of_inertia
from speed_cases import (
    GAP,
    READ,
    UNCHECKED,
    Cases,
    Record,
    ratio,
    seconds,
    theirs,
)

MARKS = ("<!-- speed: written by benchmarks/speed report -->", "<!-- end of speed -->")


class Series(NamedTuple):
    """Times of cases of growing size: [(size, seconds)]."""

    suite: str
    of: str
    name: str
    who: str
    points: list[tuple[float, float]]

    @property
    def exponent(self) -> float:
        """Of time = constant x size^exponent, fitted to the three largest sizes."""
        sizes, times = np.log(self.points[-3:]).T
        return float(np.polyfit(sizes, times, 1)[0])


def series(cases: Cases, threads: int = 1) -> list[Series]:
    found: dict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for record in cases:
        if "growth" not in record or record["threads"] != threads:
            continue
        growth = record["growth"]
        for who in ("ours", *record["peers"]):
            times = record["ours"] if who == "ours" else record["peers"][who]
            key = (record["suite"], growth["of"], growth["series"], who)
            found[key].append((growth["at"], times["median"]))
    return [Series(*key, sorted(points)) for key, points in found.items() if len(points) > 1]


def growth(cases: Cases) -> str:
    rows: dict[tuple[str, str, str], dict[str, Series]] = defaultdict(dict)
    for one in series(cases):
        rows[one.suite, one.of, one.name][one.who] = one
    lines = ["| op | what grows | | ours | peers |", "|---|---|---|---:|---|"]
    for (suite, of, name), own in rows.items():
        first, last = own["ours"].points[0][0], own["ours"].points[-1][0]
        peers = ", ".join(f"{who} {one.exponent:.2f}" for who, one in own.items() if who != "ours")
        lines.append(
            f"| {suite} | {of}, {first:,} to {last:,} | {name} "
            f"| {own['ours'].exponent:.2f} | {peers} |"
        )
    return "\n".join(lines)


# Tables of times.


def duration_text(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def times_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def suite_table(cases: Cases, suite: str) -> str:
    lines = [
        "| case | threads | ours (p20 to p80) | times as long as ours | of the limit |",
        "|---|---:|---|---|---:|",
    ]
    for record in cases:
        if record["suite"] != suite:
            continue
        own = record["ours"]
        spread = f"{duration_text(own['p20'])} to {duration_text(own['p80'])}"
        peers = ", ".join(f"{name} {times_text(ratio(record, name))}" for name in record["peers"])
        limit = f"{record['floor'] / own['median']:.0%}" if "floor" in record else ""
        lines.append(
            f"| {record['case']} | {record['threads']} | {duration_text(own['median'])} ({spread}) "
            f"| {peers} | {limit} |"
        )
    return "\n".join(lines)


def compared(cases: Cases, what: str) -> str:
    """What else than time the cases were compared by: inertia, gaps."""
    rows = [record for record in cases if what in record and record["threads"] == 1]
    lines = ["| case | ours | peers |", "|---|---:|---|"]
    for record in rows:
        values = dict(record[what])
        own = values.pop("ours")
        peers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        lines.append(f"| {record['suite']}, {record['case']} | {own:.4g} | {peers} |")
    return "\n".join(lines)


def parts(cases: Cases, suite: str) -> str:
    """Where the time goes, by case and threads."""
    columns = [record for record in cases if record["suite"] == suite and "parts" in record]
    names = list(dict.fromkeys(name for record in columns for name in record["parts"]))
    heads = [
        f"{subject(record)}, {record['threads']} threads".replace(", 1 threads", ", 1 thread")
        for record in columns
    ]
    lines = ["| part | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    for name in names:
        cells = [
            duration_text(record["parts"][name]) if record["parts"].get(name) else ""
            for record in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def subject(record: Record) -> str:
    """What is in the brackets of a case's name."""
    return record["case"].partition("[")[2].rstrip("]") or record["case"]


def missing(cases: Cases) -> str:
    """The peers that were left out, and why."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in cases:
        for name, reason in record["missing"].items():
            case = f"{record['suite']} {record['case']} ({record['threads']})"
            reasons[name, reason].append(case)
    lines = [
        f"- {name}: {reason}: {', '.join(own[:3])}{f' and {len(own) - 3} more' * (len(own) > 3)}"
        for (name, reason), own in reasons.items()
    ]
    return "\n".join(lines) or "None."


# The README's table.


class Row(NamedTuple):
    what: str
    suite: str
    case: str
    note: Callable[[Record], str] = lambda record: ""
    grows: str = ""  # the series whose exponent is shown


def inertia_note(record: Record) -> str:
    share = share_of_inertia(record)
    return "" if share is None else f"{share:.2f} of scikit-learn's inertia"


def bandwidth_note(record: Record) -> str:
    share = ratio(record, READ)
    return "" if share is None else f"{share:.0%} of a plain read"


def gap_note(record: Record) -> str:
    gaps = ", ".join(f"{name} {value:.1f}" for name, value in record[GAP].items())
    return f"gap to the best known, %: {gaps}"


def check_note(record: Record) -> str:
    return f"unchecked, 1 thread: {duration_text(record['peers'][UNCHECKED]['median'])}"


ROWS = [
    Row("`channel_statistics`, all layers", "channel_statistics", "layers[random]", bandwidth_note,
        "filters of 576 weights"),
    Row("`ward`, all layers", "ward", "layers", grows="D = 3"),
    Row("`ward`, 2,048 points", "ward", "growth[2048-3]"),
    Row("`kmeans` (a): a job a layer, k = C/2", "kmeans", "workload[a]", inertia_note,
        "k = n/4, D = 3"),
    Row("`kmeans` (b): 848 jobs", "kmeans", "workload[b]", inertia_note),
    Row("`kmeans` (c): one layer of 512, every k", "kmeans", "workload[c]", inertia_note),
    Row("`kmeans` (d): every k of every layer", "kmeans", "workload[d]"),
    Row("kernels of 26,560 filters: statistics, `kmeans`", "kernel_unit", "network"),
    Row("`crowding_distance`, 10,000 points in 500 segments", "crowding_distance", "groups[500]",
        grows="one segment, D = 3"),
    Row("evolution, 53 axes, 6,400 evaluations", "evolution", "beside_peers", gap_note),
    Row("half of every axis selected", "selection", "one_selection"),
    *(
        Row(f"{title}: trace, search, prune", "end_to_end", f"network[{name}]", check_note)
        for name, title in (
            ("resnet18", "ResNet-18"),
            ("resnet50", "ResNet-50"),
            ("mobilenet_v2", "MobileNetV2"),
            ("densenet121", "DenseNet-121"),
        )
    ),
]  # fmt: skip


def readme_table(cases: Cases) -> str:
    exponents = {
        (one.suite, one.name): one.exponent
        for one in series(cases)
        if one.who == "ours" and one.of == "n"
    }
    lines = [
        "| what | 1 thread | 2 threads | times as long as ours | of the limit | grows as | |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for row in ROWS:
        one, two = cases.get(row.suite, row.case), cases.get(row.suite, row.case, 2)
        if one is None:
            continue
        peers = ", ".join(f"{name} {times_text(ratio(one, name))}" for name in theirs(one))
        limit = f"{one['floor'] / seconds(one):.0%}" if "floor" in one else ""
        exponent = exponents.get((row.suite, row.grows))
        cells = [
            row.what,
            duration_text(seconds(one)),
            duration_text(seconds(two)) if two else "",
            peers,
            limit,
            "" if exponent is None else f"n^{exponent:.1f}",
            row.note(one),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


LIMIT = (
    "The limit is what reading everything once, or comparing all pairs (Ward: in the first round "
    "alone), takes at the bandwidth or the rate of arithmetic measured in the same run; what "
    "compares less may go beyond it. Growth is fitted to the three largest n."
)


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def readme(records: Records, cases: Cases, folder: str) -> str:
    where = records.environments[-1]
    name = records.path.stem
    resnet = cases.get("end_to_end", "network[resnet50]", 2)
    intro = (
        f"On {where['machine']} ({where['caches']}; {where['simd']}), {where['date']}, torch "
        f"{where['torch']}. Every suite checks its results before it is timed and imports its "
        "peers, which take turns with ours in one run at the same number of threads; medians, "
        "CPU time at one thread, wall time at two. "
        f"`python benchmarks/speed run` measures all of it; [{folder}/{name}.md]({folder}/"
        f"{name}.md) has spreads, sizes, other weights, versions. Work: ResNet-50's 53 "
        "convolutions with random weights."
    )
    text = [
        wrapped(intro),
        readme_table(cases),
        wrapped(LIMIT),
    ]
    if resnet is not None:
        own = sorted(resnet["parts"].items(), key=lambda part: -part[1])
        listed = ", ".join(f"{part} {duration_text(value)}" for part, value in own if value >= 0.02)
        what = "Where the time of ResNet-50 goes, 2 threads, in a run of its own"
        text += [wrapped(f"{what}: {listed}.")]
    text += [f"![How cost grows]({folder}/{name}_growth.svg)"]
    return "\n\n".join(text)


# Figures.

DASHES = ("--", ":", "-.")  # tell peers of one colour apart


@settings()
def figure_growth(cases: Cases, path: Path) -> None:
    """Time against size, a panel for each op and what grows; peers on the first series alone."""
    found = series(cases)
    kinds = list(dict.fromkeys((one.suite, one.of) for one in found))
    rows = -(-len(kinds) // 3)
    figure, panels = panels_of(rows, 3)
    colors = ["#c1121f", "#e07a5f", "#f2b8a0"]
    styles: dict[str, dict[str, Any]] = {}
    for panel, (suite, of) in zip(panels.flat, kinds, strict=False):
        own = [one for one in found if (one.suite, one.of) == (suite, of)]
        names = list(dict.fromkeys(one.name for one in own))
        for one in own:
            if one.who == "ours":
                panel.plot(*zip(*one.points, strict=True), color=colors[names.index(one.name)],
                           marker="o", markersize=4, linewidth=2)  # fmt: skip
                panel.annotate(one.name, one.points[-1], fontsize=7, ha="right", va="bottom")
            elif one.name == names[0]:
                style = styles.setdefault(
                    one.who,
                    {
                        "color": f"C{len(styles) % 10}",
                        "linestyle": DASHES[len(styles) // 10 % len(DASHES)],
                        "linewidth": 1,
                    },
                )
                panel.plot(*zip(*one.points, strict=True), label=one.who, **style)
        panel.set(title=f"{suite}: ours in red", xlabel=of, ylabel="seconds", xscale="log",
                  yscale="log")  # fmt: skip
    for panel in list(panels.flat)[len(kinds) :]:
        panel.set_visible(False)
    save(figure, panels, path)


@settings()
def figure_ratios(cases: Cases, path: Path) -> None:
    """How many times as long as ours each peer takes in the README's cases, one thread."""
    bars_of = [
        (f"{row.what}: {name}".replace("`", ""), ratio(record, name))
        for row in ROWS
        if (record := cases.get(row.suite, row.case)) is not None
        for name in theirs(record)
    ][::-1]
    figure, panels = panels_of(1, 1)
    figure.set_size_inches(9, 1 + 0.2 * len(bars_of))
    panel = panels[0][0]
    values = [value for _, value in bars_of]
    colors = ["#2a9d8f" if value >= 1 else "#c1121f" for value in values]
    panel.barh([name for name, _ in bars_of], [value - 1 for value in values], left=1, color=colors)
    panel.set(xscale="log", xlabel="times as long as ours, one thread")
    save(figure, panels, path)


def page(records: Records, cases: Cases) -> str:
    name = records.path.stem
    suites = list(dict.fromkeys(record["suite"] for record in cases))
    used = [
        ", ".join(f"{key} {value}" for key, value in one.items() if key not in ("machine", "date"))
        for one in records.environments
    ]
    environments = "\n".join(
        f"- {one['date']}, {one['machine']}: {versions}"
        for one, versions in zip(records.environments, used, strict=True)
    )
    text = [
        "# Speed, beside peers",
        "Medians; CPU time at one thread, wall time at two. Ours and its peers take turns in one "
        "run, after the result was checked. " + LIMIT,
        environments,
        "## What was asked",
        bars(cases),
        "## In short",
        readme_table(cases),
        f"![Ratios]({name}_ratios.svg)",
        "## How cost grows",
        "Exponents of time in size, one thread, fitted to the three largest sizes.",
        growth(cases),
        f"![Growth]({name}_growth.svg)",
        "## Where the time goes",
        parts(cases, "end_to_end"),
        parts(cases, "kernel_unit"),
    ]
    for suite in suites:
        text += [f"## {suite}", suite_table(cases, suite)]
    for what, title in (("inertia", "Inertia"), (GAP, "Evolution: gap to the best known, %")):
        text += [f"## {title}", compared(cases, what)]
    text += ["## Peers that were left out", missing(cases)]
    return "\n\n".join(text) + "\n"


def write_report(records: Records, readme_path: Path | None) -> None:
    """Writes the page and the figures beside the records, and the README's table.

    Args:
        records: What was measured.
        readme_path: The README, whose text between `MARKS` is replaced; None to leave it.

    Raises:
        ValueError: There are no records, or the README lacks the marks.
    """
    if not records.records:
        raise ValueError(f"expected records in {records.path}, got none; run the benchmark first")
    cases, stem = Cases(records), records.path.with_suffix("")
    stem.with_suffix(".md").write_text(page(records, cases), encoding="utf-8")
    figure_growth(cases, stem.with_name(f"{stem.name}_growth.svg"))
    figure_ratios(cases, stem.with_name(f"{stem.name}_ratios.svg"))
    if readme_path is None:
        return
    folder = records.path.parent.resolve().relative_to(readme_path.parent.resolve()).as_posix()
    write_between(readme_path, MARKS, readme(records, cases, folder))
