"""Table and figures of the quality benchmark, from its records alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from figures import panels_of, save, settings
from methods import ABLATION, METHODS, OURS, RANDOM, RIVAL
from networks import NETWORKS
from readme import write_between
from records import Records
from subject import HELD_OUT
from treatment import (
    BATCH,
    BEFORE,
    COMPENSATED,
    CURVE_IMAGES,
    DROPPED,
    FINETUNED,
    HALFWAY,
    REESTIMATED,
    STEPS,
)

TREATMENTS = (*BEFORE, *STEPS)
EXPLAINED = {
    DROPPED: "the channels are removed, nothing else",
    REESTIMATED: "then BatchNorm's statistics are re-estimated on 1,000 unlabelled training images",
    COMPENSATED: "ridge compensation and re-estimation, on the same images",
    **{
        name: f"compensated, then {steps} steps of {BATCH} training images with their labels"
        for name, steps in STEPS.items()
    },
}
DENSE = "dense"
MARKS = ("<!-- accuracy: written by benchmarks/quality report -->", "<!-- end of accuracy -->")
TITLES = {name: network.title for name, network in NETWORKS.items()}
SUMMARISED = (REESTIMATED, COMPENSATED, FINETUNED)  # in the README
BEST, PAPER, GREEDY_UNIFORM = "best", "paper", "greedy, uniform widths"
MAGNITUDE = ("l1", "l2", "fpgm", "bn-scale", "lamp")

Cell = list[float]  # test accuracies, one for each seed
Table = dict[tuple[str, str, float, str], Cell]  # (network, method, budget, treatment)


def write_report(records: Records, out: Path, readme_path: Path | None = None) -> None:
    """Writes quality.md, quality.svg and quality_steps.svg, and the README's table.

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
    name = records.path.stem
    table = tabled(records.records)
    (out / f"{name}.md").write_text(markdown(records, table), encoding="utf-8")
    figure_budgets(records.records, table, out / f"{name}.svg")
    figure_steps(records.records, out / f"{name}_steps.svg")
    if readme_path is not None:
        write_between(readme_path, MARKS, readme(table))


def readme(table: Table) -> str:
    """The README's table: `best` beside the best rival and chance, for every treatment."""
    rivals = [name for name, method in METHODS.items() if method.family == RIVAL]
    lines = [
        f"| network, MACs that remain | {' | '.join(SUMMARISED)} |",
        "|---|" + "---|" * len(SUMMARISED),
    ]
    for network in _ordered(table, 0):
        for budget in _budgets(table):
            cells = []
            for treatment in SUMMARISED:
                found = _best_of(table, network, budget, treatment, rivals)
                own, chance = (table.get((network, n, budget, treatment)) for n in (BEST, "random"))
                ours = statistics.mean(own) if own else 0.0
                bold = own is not None and (found is None or ours >= found[1])
                rival = f"{found[0]} {100 * found[1]:.1f}, " if found else ""
                cells.append(f"{rival}random {_cell(chance, False)}, `best` {_cell(own, bold)}")
            lines.append(f"| {TITLES[network]}, {budget:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tabled(records: Iterable[dict[str, Any]]) -> Table:
    """Test accuracies of all seeds by network, method, budget and treatment."""
    table: Table = defaultdict(list)
    for one in records:
        key = (one["network"], one["method"], one["budget"], one["treatment"])
        table[key].append(one["test"])
    return dict(table)


def _ordered(table: Table, place: int) -> list[Any]:
    return list(dict.fromkeys(key[place] for key in table if key[1] != DENSE))


def _budgets(table: Table) -> list[float]:
    return sorted(_ordered(table, 2), reverse=True)


def _methods(table: Table) -> list[str]:
    """Those that were measured, in the order of `METHODS`."""
    measured = set(_ordered(table, 1))
    return [name for name in METHODS if name in measured]


def markdown(records: Records, table: Table) -> str:
    """The whole result as a page."""
    parts = ["# Accuracy against MACs, under one recipe", _preamble(records)]
    for network in _ordered(table, 0):
        dense = table.get((network, DENSE, 1.0, DROPPED))
        title = f"## {TITLES[network]}"
        parts.append(f"{title}, dense {dense[0]:.2%}" if dense else title)
        for treatment in reversed(TREATMENTS):
            if any(key[0] == network and key[3] == treatment for key in table):
                parts.append(f"### {treatment}: {EXPLAINED[treatment]}")
                parts.append(_grid(table, network, treatment))
        parts += ["### MACs that were used, %", _shares(records.records, network)]
    parts += ["## Best against its rivals", _bars(records.records, table)]
    choice = _choice(records.records)
    if choice:
        parts += ["## How `best` was chosen", choice]
    return "\n\n".join(parts) + "\n"


def _preamble(records: Records) -> str:
    lines = [
        f"Accuracy on the first {HELD_OUT:,} test images, in per cent. Budgets are shares of the "
        "dense network's MACs, counted by "
        "`mdcp_fast.count_macs` for all methods. All layers that hang together are pruned, "
        "residual streams included, by all methods; only the classes stay. Rivals are "
        "torch-pruning's criteria with its default options: *global* ranks all channels together, "
        "*uniform* takes the same share of each group; the share is found by bisection. All may "
        "choose any width (ours: `round_to=1`). *taylor* "
        "reads the labels of the 1,000 images, everything else before fine-tuning none. "
        "a ± b: mean and half the range over three seeds. Bold: the best of a column "
        "(ablations apart).",
        "",
        "Measured on:",
    ]
    for place, one in enumerate(records.environments):
        own = [record["treatment"] for record in records.records if record["environment"] == place]
        counts = ", ".join(f"{own.count(name)} {name}" for name in TREATMENTS if name in own)
        versions = ", ".join(
            f"{name} {value}"
            for name, value in one.items()
            if name not in ("machine", "date", "mdcp_fast")
        )
        lines.append(
            f"- {one['date']}, {one['machine']}, mdcp_fast at commit {one['mdcp_fast']}, "
            f"{versions}: {counts}"
        )
    return "\n".join(lines)


def _grid(table: Table, network: str, treatment: str) -> str:
    budgets = _budgets(table)
    rows = []
    for name in _methods(table):
        cells = [table.get((network, name, budget, treatment)) for budget in budgets]
        if any(cells):
            rows.append((name, cells))
    top = [
        max(
            (statistics.mean(cells[i]) for name, cells in rows if cells[i] and _ranked(name)),
            default=2.0,
        )
        for i in range(len(budgets))
    ]
    lines = [
        "| method | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |",
        "|---|" + "---:|" * len(budgets),
    ]
    for name, cells in rows:
        texts = [
            _cell(cell, bool(cell) and _ranked(name) and statistics.mean(cell) >= best)
            for cell, best in zip(cells, top, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def used_macs(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str, float], float]:
    """The share of the MACs that a plan leaves, by network, method and budget."""
    return {
        (one["network"], one["method"], one["budget"]): one["macs"]
        for one in records
        if one["method"] != DENSE
    }


def _shares(records: Iterable[dict[str, Any]], network: str) -> str:
    """How much of each budget the methods used: a share of all groups moves in steps."""
    used = used_macs(records)
    budgets = sorted({key[2] for key in used if key[0] == network}, reverse=True)
    lines = [
        "| method | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |",
        "|---|" + "---:|" * len(budgets),
    ]
    for name in METHODS:
        shares = [used.get((network, name, budget)) for budget in budgets]
        texts = ["" if share is None else f"{100 * share:.1f}" for share in shares]
        if any(texts):
            lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _ranked(name: str) -> bool:
    return METHODS[name].family != ABLATION


def _cell(values: Cell | None, bold: bool) -> str:
    if not values:
        return ""
    text = f"{100 * statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {50 * (max(values) - min(values)):.1f}"
    return f"**{text}**" if bold else text


def _best_of(
    table: Table, network: str, budget: float, treatment: str, names: Sequence[str]
) -> tuple[str, float] | None:
    found = [
        (name, statistics.mean(table[network, name, budget, treatment]))
        for name in names
        if (network, name, budget, treatment) in table
    ]
    return max(found, key=lambda one: one[1], default=None)


def _bars(records: list[dict[str, Any]], table: Table) -> str:
    """What `best` is above or below its rivals by, in points."""
    rivals = [name for name, method in METHODS.items() if method.family in (RIVAL, RANDOM)]
    magnitude = [name for name in rivals if name.partition(",")[0] in MAGNITUDE]
    lines = [
        "| network | budget | treatment | best | best rival | points above | best magnitude rival "
        "| points above | points above greedy at uniform widths |",
        "|---|---:|---|---:|---|---:|---|---:|---:|",
    ]
    for network in _ordered(table, 0):
        for treatment in (*BEFORE, FINETUNED):
            for budget in _budgets(table):
                own = table.get((network, BEST, budget, treatment))
                if not own:
                    continue
                mean = statistics.mean(own)
                cells = [f"{100 * mean:.1f}"]
                for names in (rivals, magnitude):
                    found = _best_of(table, network, budget, treatment, names)
                    cells += [f"{found[0]} {100 * found[1]:.1f}" if found else ""]
                    cells += [f"{100 * (mean - found[1]):+.1f}" if found else ""]
                greedy = table.get((network, GREEDY_UNIFORM, budget, treatment))
                cells.append(f"{100 * (mean - statistics.mean(greedy)):+.1f}" if greedy else "")
                row = " | ".join(cells)
                lines.append(f"| {TITLES[network]} | {budget:.0%} | {treatment} | {row} |")
    steps = _halfway(records, table, rivals)
    return "\n".join(lines) + (f"\n\n{steps}" if steps else "")


def curves(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str, float], list[list[float]]]:
    """Mean curve over the seeds, [[steps, test accuracy], ...], by network, method and budget."""
    found = defaultdict(list)
    for one in records:
        if one["treatment"] == FINETUNED:
            found[one["network"], one["method"], one["budget"]].append(one["curve"])
    return {
        key: [
            [points[0][0], statistics.mean(accuracy for _, accuracy in points)]
            for points in zip(*several, strict=True)
        ]
        for key, several in found.items()
    }


def _halfway(records: list[dict[str, Any]], table: Table, rivals: list[str]) -> str:
    """How soon `best` reaches what the best rival ends with."""
    mean = curves(records)
    lines = []
    for network in _ordered(table, 0):
        for budget in _budgets(table):
            found = _best_of(table, network, budget, FINETUNED, rivals)
            curve = mean.get((network, BEST, budget))
            if found is None or curve is None:
                continue
            end = mean[network, found[0], budget][-1][1]
            when = next((step for step, accuracy in curve if accuracy >= end), None)
            own = table.get((network, BEST, budget, HALFWAY))
            above = f"{100 * (statistics.mean(own) - found[1]):+.1f}" if own else ""
            lines.append(
                f"| {TITLES[network]} | {budget:.0%} | {found[0]} {100 * found[1]:.1f} "
                f"| {_cell(own, False)} | {above} | {'never' if when is None else round(when)} |"
            )
    if not lines:
        return ""
    head = [
        f"`best` after a schedule of {STEPS[HALFWAY]} steps against the best rival after one of "
        f"{STEPS[FINETUNED]}; and the step of its own {STEPS[FINETUNED]} at which `best` first "
        f"reaches that rival's end, on the first {CURVE_IMAGES:,} test images:",
        "",
        "| network | budget | best rival, final | best in half the steps | points above "
        "| reached at step |",
        "|---|---:|---|---:|---:|---:|",
    ]
    return "\n".join(head + lines)


def _choice(records: list[dict[str, Any]]) -> str:
    """Validation accuracies of our own settings after compensation."""
    scores: dict[str, dict[tuple[str, float], float]] = defaultdict(dict)
    for one in records:
        own = one["method"] in METHODS and METHODS[one["method"]].family == OURS
        if own and one["treatment"] == COMPENSATED and "validation" in one:
            scores[one["method"]][one["network"], one["budget"]] = one["validation"]
    cells = sorted(set.intersection(*map(set, scores.values())) if scores else ())
    if not cells:
        return ""
    budgets = sorted({budget for _, budget in cells}, reverse=True)
    networks = list(dict.fromkeys(network for network, _ in cells))
    lines = [
        "By validation accuracy, compensated, mean over the budgets that all were measured at ("
        + ", ".join(f"{budget:.0%}" for budget in budgets)
        + "), on the networks of this table and no others; test data chose nothing.",
        "",
        "| setting | " + " | ".join(TITLES[network] for network in networks) + " | mean |",
        "|---|" + "---:|" * (len(networks) + 1),
    ]
    common = {name: {cell: by[cell] for cell in cells} for name, by in scores.items()}
    for name, by_cell in sorted(common.items(), key=lambda one: -sum(one[1].values())):
        means = [
            statistics.mean(value for cell, value in by_cell.items() if cell[0] == network)
            for network in networks
        ]
        texts = [f"{100 * mean:.2f}" for mean in (*means, statistics.mean(means))]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _style(name: str) -> dict[str, Any]:
    """Ours in colour, chance and rivals in grey tones told apart by marker and dash."""
    if name == BEST:
        return {"color": "#c1121f", "linewidth": 2.4, "marker": "o", "zorder": 5}
    if name == PAPER:
        return {"color": "#1d70b8", "linewidth": 1.8, "marker": "s", "zorder": 4}
    if name == GREEDY_UNIFORM:
        return {"color": "#2a9d8f", "linewidth": 1.5, "marker": "D", "zorder": 4}
    if name == "random":
        return {"color": "black", "linewidth": 1.2, "linestyle": ":", "marker": "x"}
    criterion, _, scope = name.partition(", ")
    tones = {
        "l1": "#8d6a9f",
        "l2": "#b08968",
        "fpgm": "#7f8c8d",
        "bn-scale": "#a3b18a",
        "lamp": "#6d8fb3",
        "taylor": "#e09f3e",
    }
    dash = "-" if scope == "global" else "--"
    return {"color": tones.get(criterion, "#999999"), "linewidth": 1.1, "linestyle": dash}


@settings()
def figure_budgets(records: Iterable[dict[str, Any]], table: Table, path: Path) -> None:
    """Accuracy against MACs: one row of panels for each treatment, one column a network."""
    networks = _ordered(table, 0)
    rows = [
        treatment
        for treatment in (REESTIMATED, COMPENSATED, FINETUNED)
        if len({key[2] for key in table if key[3] == treatment}) > 1  # one budget is no line
    ] or [COMPENSATED]
    budgets, used = _budgets(table), used_macs(records)
    names = [name for name in _methods(table) if name in _drawn()]
    figure, panels = panels_of(len(rows), len(networks))
    for row, treatment in enumerate(rows):
        for column, network in enumerate(networks):
            panel = panels[row][column]
            for name in names:
                points = [
                    (100 * used[network, name, budget], 100 * statistics.mean(cell))
                    for budget in budgets
                    if (cell := table.get((network, name, budget, treatment)))
                ]
                if points:
                    panel.plot(*zip(*points, strict=True), label=name, markersize=4, **_style(name))
            dense = table.get((network, DENSE, 1.0, DROPPED))
            if dense:
                panel.axhline(100 * dense[0], color="black", linewidth=0.6)
            panel.set_title(f"{TITLES[network]}, {treatment}", fontsize=10)
            panel.set_xlabel("MACs left, % of the dense network's (line: dense accuracy)")
            panel.set_ylabel("test accuracy, %")
    save(figure, panels, path)


@settings()
def figure_steps(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Accuracy against fine-tuning steps: a row of panels for each budget, a column a network."""
    mean = curves(records)
    if not mean:
        return
    networks = list(dict.fromkeys(key[0] for key in mean))
    budgets = sorted({key[2] for key in mean}, reverse=True)
    names = [name for name in METHODS if name in _drawn()]
    figure, panels = panels_of(len(budgets), len(networks))
    for row, budget in enumerate(budgets):
        for column, network in enumerate(networks):
            panel = panels[row][column]
            for name in names:
                curve = mean.get((network, name, budget))
                if curve:
                    steps, accuracy = zip(*curve, strict=True)
                    scores = [100 * value for value in accuracy]
                    panel.plot(steps, scores, label=name, markersize=3, **_style(name))
            panel.set_title(f"{TITLES[network]}, {budget:.0%} of the MACs", fontsize=10)
            panel.set_xlabel("fine-tuning steps, 64 images each")
            panel.set_ylabel(f"accuracy on {CURVE_IMAGES:,} test images, %")
    save(figure, panels, path)


def _drawn() -> list[str]:
    return [
        name
        for name, method in METHODS.items()
        if method.family in (RANDOM, RIVAL) or name in (BEST, PAPER, GREEDY_UNIFORM)
    ]
