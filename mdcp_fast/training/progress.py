"""A progress bar for training, or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Silent:
    def step(self, epoch: int, batch: int) -> None:
        """A batch is done."""

    def epoch(self, epoch: int, loss: float, accuracy: float | None) -> None:
        """An epoch is done."""


class Bar(Silent):
    def __init__(self, display: Any, epochs: int, batches: int) -> None:
        self.display, self.epochs, self.batches = display, epochs, batches
        self.task = display.add_task("fine-tuning", total=epochs * batches, note="")

    def step(self, epoch: int, batch: int) -> None:
        self.display.update(
            self.task,
            completed=(epoch - 1) * self.batches + batch,
            description=f"epoch {epoch}/{self.epochs}",
        )

    def epoch(self, epoch: int, loss: float, accuracy: float | None) -> None:
        score = "" if accuracy is None else f", validation {accuracy:.2%}"
        self.display.update(self.task, note=f"loss {loss:.4f}{score}")


@contextmanager
def progress_bar(shown: bool, epochs: int, batches: int) -> Iterator[Silent]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not shown or not console.is_terminal:  # in a log file, a bar would be noise
        yield Silent()
        return

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as display:
        yield Bar(display, epochs, batches)
