"""The state of a training run on disk, so that a killed one goes on as if nothing had happened.

One file holds everything and is replaced whole; it is read with `weights_only=True`, so it cannot
run code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mdcp_fast.modules.files import atomic_write
from mdcp_fast.modules.torch_files import read_torch_file

FORMAT = 1


@dataclass
class TrainingState:
    """Where a run is.

    Attributes:
        epoch: Epochs that are done.
        batch: Batches of the epoch under way that are done.
        loss: float32 scalar, sum of the losses of that epoch's samples so far.
        samples: How many those are.
        epochs: (number, loss, accuracy, learning rate) of each epoch done.
        start_accuracy: Before the first step.
        best_accuracy, best_epoch, best: The best epoch so far, and its weights (empty without
            validation data).
    """

    epoch: int = 0
    batch: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))
    samples: int = 0
    epochs: list[tuple[int, float, float | None, float]] = field(default_factory=list)
    start_accuracy: float | None = None
    best_accuracy: float | None = None
    best_epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RandomState:
    """All generators that training may use: Python's, NumPy's, torch's, the GPU's, the loader's."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    cpu: Tensor
    device: Tensor | None
    loader: list[Tensor]

    @classmethod
    def now(cls, device: torch.device, generators: Sequence[torch.Generator]) -> RandomState:
        # The global generator: the one that users' augmentations draw from.
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
        return cls(
            random.getstate(),
            (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            [generator.get_state() for generator in generators],
        )

    def restore(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        random.setstate(self.python)
        name, keys, *rest = self.numpy
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(self.cpu)
        if self.device is not None and device.type == "cuda":
            torch.cuda.set_rng_state(self.device, device)
        for generator, state in zip(generators, self.loader, strict=True):
            generator.set_state(state)

    @staticmethod
    def seed(
        seed: int, epoch: int, device: torch.device, generators: Sequence[torch.Generator]
    ) -> None:
        """Sets every generator as a function of (seed, epoch) alone."""
        words = np.random.SeedSequence([seed, epoch]).generate_state(2 + len(generators))
        random.seed(int(words[0]))
        np.random.seed(int(words[0]))  # noqa: NPY002
        torch.random.default_generator.manual_seed(int(words[1]))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(int(words[1]))
        for generator, word in zip(generators, words[2:], strict=True):
            generator.manual_seed(int(word))

    @classmethod
    @contextmanager
    def kept(cls, device: torch.device, generators: Sequence[torch.Generator]) -> Iterator[None]:
        """Puts all of them back at the end of the block."""
        before = cls.now(device, generators)
        try:
            yield
        finally:
            before.restore(device, generators)


def generators_of(loader: DataLoader[Any]) -> list[torch.Generator]:
    """The generators that a loader, its sampler and its batch sampler bring along, each once."""
    found: dict[int, torch.Generator] = {}
    inner = getattr(loader.batch_sampler, "sampler", None)
    for owner in (loader, loader.sampler, loader.batch_sampler, inner):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())


class _Written:
    """A file that remembers why it could not be written to."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_state(
    path: str,
    identity: dict[str, Any],
    state: TrainingState,
    model: nn.Module,
    optimizer: Any,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: Any,
    random_state: RandomState | None,
) -> None:
    """Writes everything that `read_state` needs; the file appears whole or stays as it was.

    Args:
        path: The file.
        identity: What must be the same in the run that goes on.
        state: Where the run is.
        model, optimizer, schedule: What it trains, and with what.
        scaler: The gradient scaler of fp16, or None.
        random_state: The generators, within an epoch; None between epochs, where (seed, epoch) says
            it all.
    """
    content = {
        "format": FORMAT,
        "identity": identity,
        "state": vars(state),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": None if random_state is None else vars(random_state),
    }
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        written = _Written(file)
        try:
            torch.save(content, cast(IO[bytes], written))
        except Exception:
            if written.error is not None:  # of which torch says no more than where in the file
                raise written.error from None
            raise


def read_state(
    path: str,
    identity: dict[str, Any],
    state: TrainingState,
    model: nn.Module,
    optimizer: Any,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: Any,
) -> RandomState | None:
    """Reads what `write_state` wrote into the objects given, once it was found right.

    Returns:
        The generators of an epoch under way, or None.

    Raises:
        ValueError: The file is damaged, or belongs to another model or recipe (the message names
            the first difference).
    """
    device = next(model.parameters()).device
    try:
        content = read_torch_file(path)
        found, fields = content["identity"], content["state"]
        newer = content["format"] != FORMAT
    except OSError:
        raise
    except (
        Exception
    ) as error:  # torch, zipfile and pickle each have their own way to say "not a whole file"
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"finetune: checkpoint: expected {path!r} to be a whole file that finetune wrote, "
            f"got {type(error).__name__}: {first}"
        ) from error
    if newer:
        raise ValueError(
            f"finetune: checkpoint: expected format {FORMAT} in {path!r}, got {content['format']!r}"
        )
    for key, wanted in identity.items():
        if found.get(key) != wanted:
            raise ValueError(
                f"finetune: checkpoint: expected one of the same run in {path!r}; "
                f"{_difference(key, wanted, found.get(key))}; use another folder, or delete it "
                "to start anew"
            )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    schedule.load_state_dict(content["schedule"])
    if scaler is not None and content["scaler"] is not None:
        scaler.load_state_dict(content["scaler"])
    for name, value in fields.items():
        setattr(state, name, value)
    state.loss = state.loss.to(device)
    drawn = content["random"]
    return None if drawn is None else RandomState(**drawn)


def _difference(key: str, wanted: Any, got: Any) -> str:
    if isinstance(wanted, dict) and isinstance(got, dict):
        for name in [*wanted, *got]:
            if wanted.get(name) != got.get(name):
                return f"{key}: {name}: expected shape {wanted.get(name)}, got {got.get(name)}"
    if isinstance(wanted, list) and isinstance(got, list):
        only = sorted(set(wanted) ^ set(got))
        return f"{key}: expected the same, got a difference in {', '.join(only[:3])}"
    return f"{key}: expected {wanted!r}, got {got!r}"
