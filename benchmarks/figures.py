"""Figures of results: the same records give the same file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def settings() -> Iterator[None]:
    """Matplotlib's settings while a figure is drawn and saved; as they were afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, and the same records give the same file.
    own = {"svg.fonttype": "none", "svg.hashsalt": "quality", "font.size": 9}
    with matplotlib.rc_context(own):
        yield


def panels_of(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure and its panels, [rows, columns]; inside `settings`."""
    import matplotlib.pyplot as pyplot

    return pyplot.subplots(
        rows, columns, figsize=(5.2 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )


def save(figure: Any, panels: Any, path: Path) -> None:
    """Writes the figure, with one legend for all panels."""
    import matplotlib.pyplot as pyplot

    for panel in panels.flat:
        panel.grid(alpha=0.3)
    entries: dict[str, Any] = {}
    for panel in panels.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=4, fontsize=8
        )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
