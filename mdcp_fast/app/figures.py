"""Figures of a pruned network, as PNG files.

Colours are those of Okabe and Ito, told apart by colour-blind readers; nothing is said by colour
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mdcp_fast.modules.files import AnyPath, atomic_write
from mdcp_fast.ops.channel_statistics import channel_statistics
from mdcp_fast.planning.latency_table import LatencyTable
from mdcp_fast.pruning.plan import AxisPlan, PruningPlan
from mdcp_fast.tracing.axes import module_of
from mdcp_fast.tracing.graph import ChannelGraph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, GREY, DARK = "#56B4E9", "#D55E00", "#B8B8B8", "#333333"
LONE = "#8C8C8C"
CLUSTER_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
MARKERS = "osD^v"  # with the colours, 30 clusters before a pair comes again
# How the stages of the demo are called where people read them.
TITLES = {"pruned": "pruned only", "finetuned": "fine-tuned"}
SLOWEST = 30  # layers that a figure shows
TALLEST = 30.0  # inches; beyond that no viewer shows a figure whole


def figure_widths(path: AnyPath, plan: PruningPlan) -> None:
    """Channels of every prunable layer, before and after.

    Args:
        path: The PNG file; it appears whole or not at all.
        plan: What `search` returned.
    """
    count = len(plan.axes)
    figure, axes = _figure(7.5, min(1.4 + 0.3 * count, TALLEST))
    rows = range(count)
    axes.barh(rows, [axis.channels for axis in plan.axes], 0.8, color="#D0D0D0", label="before")
    axes.barh(rows, [axis.width for axis in plan.axes], 0.5, color=BLUE, label="after")
    small = min(10.0, 72 * 0.8 * (TALLEST - 1.4) / max(count, 1))
    for row, axis in zip(rows, plan.axes, strict=True):
        text = f"{axis.width} of {axis.channels}"
        axes.annotate(
            text,
            (axis.channels, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=min(9.0, small),
            color=DARK,
        )
    axes.set_yticks(rows, [axis.name for axis in plan.axes], fontsize=small)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(0, 1.18 * max((axis.channels for axis in plan.axes), default=1))
    axes.set_xlabel("channels")
    axes.set_ylabel("layer, first to last")
    share = plan.macs / max(plan.dense_macs, 1)
    figure.suptitle(f"Channels before and after: {share:.1%} of the MACs remain", fontsize=12)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    _save(path, figure)


def figure_convergence(path: AnyPath, plan: PruningPlan) -> None:
    """The best fitness after every generation of the search.

    Args:
        path: The PNG file; it appears whole or not at all.
        plan: What `search` returned; a plan without a history gives an empty figure that says so.
    """
    figure, axes = _figure(7.0, 4.0)
    steps = [(step, value) for step, value in enumerate(plan.history, 1) if math.isfinite(value)]
    if steps:
        x, y = zip(*steps, strict=True)
        axes.step(x, y, where="post", color=BLUE, linewidth=1.8)
        axes.plot(x[-1], y[-1], "o", color=VERMILION, clip_on=False)
        axes.annotate(
            f"{y[-1]:.4g}",
            (x[-1], y[-1]),
            (0, 8),
            textcoords="offset points",
            ha="right",
            color=VERMILION,
        )
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(y=0.12)
    else:
        axes.text(0.5, 0.5, "no history in this plan", transform=axes.transAxes, ha="center")
    axes.set_xlabel("generation")
    axes.set_ylabel("loss of the best candidate so far")
    axes.set_title("Convergence of the search")
    _save(path, figure)


def figure_descriptors(
    path: AnyPath, graph: ChannelGraph, plan: PruningPlan, axis: str | None = None
) -> None:
    """The channels of one layer by the moments of their weights, with clusters and survivors.

    Args:
        path: The PNG file; it appears whole or not at all.
        graph: What `trace` returned.
        plan: What `search` returned for it.
        axis: Name of the axis; None takes the largest clustered one that is still legible.

    Raises:
        ValueError: There is no such axis in the plan, or none at all.
    """
    chosen = _axis_to_show(plan, axis)
    index = [one.name for one in plan.axes].index(chosen.name)
    weights = graph.weights(graph.axes[index])[0]
    moments = channel_statistics([weights])[0].cpu()  # [channels, 3]
    clusters = torch.tensor(chosen.clusters or [0] * chosen.channels)
    kept = torch.zeros(chosen.channels, dtype=torch.bool)
    kept[list(chosen.kept)] = True

    figure, panels = _figure(10.5, 5.0, columns=2, sharey=True)
    for axes, horizontal, label in (
        (panels[0], 0, "mean of the weights"),
        (panels[1], 2, "cosine distance to the all-ones vector"),
    ):
        _scatter_clusters(axes, moments[:, [horizontal, 1]], clusters, kept)
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(axis="both", scilimits=(-2, 4), useMathText=True)
    panels[0].set_ylabel("variance of the weights")
    clustered = f" in {int(clusters.max()) + 1} clusters" if chosen.clusters else ""
    figure.suptitle(
        f"{chosen.name}: {chosen.channels} channels{clustered}, {chosen.width} stay",
        fontsize=12,
    )
    of_its = "its cluster's " if chosen.clusters else "the "
    left = panels[0]
    marks = [
        left.scatter([], [], s=70, color=DARK, label="stays"),
        left.scatter([], [], s=26, facecolors="none", edgecolors=DARK, label="goes"),
        *left.plot([], [], color=GREY, label=f"from one that goes to {of_its}nearest survivor"),
    ]
    if chosen.clusters:
        marks.append(left.scatter([], [], s=70, color=LONE, label="stays, alone in its cluster"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False)
    _save(path, figure)


def figure_accuracy(path: AnyPath, stages: Mapping[str, Mapping[str, float]]) -> None:
    """Accuracy of each stage, with its MACs.

    Args:
        path: The PNG file; it appears whole or not at all.
        stages: By name, in order, each with "accuracy" (0 to 1) and "macs".
    """
    figure, axes = _figure(7.0, 4.2)
    colours = (GREY, VERMILION, ORANGE, BLUE)
    most = max(stage["macs"] for stage in stages.values())
    for place, stage in enumerate(stages.values()):
        value = 100 * stage["accuracy"]
        axes.bar(place, value, 0.62, color=colours[place % len(colours)], edgecolor=DARK)
        axes.annotate(
            f"{value:.2f} %", (place, value), (0, 4), textcoords="offset points", ha="center"
        )
    names = [
        f"{TITLES.get(name, name)}\n{stage['macs'] / most:.1%} of MACs"
        for name, stage in stages.items()
    ]
    axes.set_xticks(range(len(stages)), names)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 109)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy on the test data (%)")
    axes.set_title("Accuracy by stage")
    _save(path, figure)


def figure_latency(path: AnyPath, graph: ChannelGraph, table: LatencyTable) -> None:
    """What a table of latencies says: of whole networks beside what they took, and of the layers.

    Args:
        path: The PNG file; it appears whole or not at all.
        graph: The traced network.
        table: Of `measure_latency` or `calibrate_latency`, for it.
    """
    layers = sorted(table.layers, key=lambda one: -float(one.milliseconds[-1, -1]))[:SLOWEST]
    figure, (networks, single) = _figure(10, 1.5 + 0.22 * max(len(layers), 10), 2)
    measured = [one.milliseconds for one in table.networks]
    predicted = [table.predict(graph, one.widths) for one in table.networks]
    limit = 1.05 * max(*measured, *predicted)
    networks.plot([0, limit], [0, limit], color=GREY, linewidth=1)
    networks.scatter(measured, predicted, 18, color=BLUE, label="networks of other widths")
    networks.scatter(measured[:1], predicted[:1], 40, color=VERMILION, marker="D", label="dense")
    networks.set(xlim=(0, limit), ylim=(0, limit), xlabel="measured, ms", ylabel="predicted, ms")
    networks.legend(frameon=False, fontsize=8)
    single.barh(range(len(layers)), [float(one.milliseconds[-1, -1]) for one in layers], color=BLUE)
    single.set_yticks(range(len(layers)), [module_of(one.weight) for one in layers], fontsize=7)
    single.invert_yaxis()
    single.set_xlabel("each layer alone, dense, ms")
    _save(path, figure)


def _scatter_clusters(axes: Axes, points: Tensor, clusters: Tensor, kept: Tensor) -> None:
    """Survivors large and filled, the others small and hollow, joined to the nearest of their own.

    Colours and shapes go to clusters of two and more; a channel alone in its cluster is grey.

    Args:
        axes: Where to draw.
        points: float32 [channels, 2].
        clusters: int64 [channels].
        kept: bool [channels].
    """
    spread = points.std(0).clamp_min(1e-12)
    sizes = torch.bincount(clusters)
    alone = sizes[clusters] == 1
    x, y = points.T.numpy()
    big: dict[str, Any] = {"s": 70, "linewidths": 0.8, "edgecolors": "white"}
    small: dict[str, Any] = {"s": 26, "linewidths": 1.2, "facecolors": "white"}
    axes.scatter(x[alone], y[alone], **big, color=LONE, zorder=2)
    for style, cluster in enumerate((sizes > 1).nonzero().flatten().tolist()):
        members = (clusters == cluster).nonzero().flatten()
        stay, go = members[kept[members]], members[~kept[members]]
        if len(stay) and len(go):
            nearest = stay[torch.cdist(points[go] / spread, points[stay] / spread).argmin(1)]
            for start, end in zip(points[go].tolist(), points[nearest].tolist(), strict=True):
                axes.plot(*zip(start, end, strict=True), color=GREY, linewidth=0.9, zorder=1)
        colour = CLUSTER_COLOURS[style % len(CLUSTER_COLOURS)]
        marker = MARKERS[style // len(CLUSTER_COLOURS) % len(MARKERS)]
        axes.scatter(x[go], y[go], **small, edgecolors=colour, marker=marker, zorder=2)
        axes.scatter(x[stay], y[stay], **big, facecolors=colour, marker=marker, zorder=3)


def _axis_to_show(plan: PruningPlan, name: str | None) -> AxisPlan:
    found: Sequence[AxisPlan] = [axis for axis in plan.axes if name in (None, axis.name)]
    if not found:
        known = ", ".join(axis.name for axis in plan.axes[:10]) or "none"
        raise ValueError(
            f"figure_descriptors: axis: expected the name of an axis of the plan ({known}), "
            f"got {name!r}"
        )
    legible = 64

    def rank(axis: AxisPlan) -> tuple[bool, bool, int]:
        size = axis.channels if axis.channels <= legible else -axis.channels
        return (axis.clusters is not None, axis.width < axis.channels, size)

    return max(found, key=rank)


def _figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of its own, without pyplot and its global state; its axes without a box."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    axes = figure.subplots(1, columns, **options)
    for one in [axes] if columns == 1 else axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#EEEEEE")
        one.set_axisbelow(True)
    return figure, axes


def _save(path: AnyPath, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_write(path) as temporary:
        # Without the date and the version of matplotlib, the same plan gives the same file.
        FigureCanvasAgg(figure).print_png(str(temporary), metadata={"Software": None})
