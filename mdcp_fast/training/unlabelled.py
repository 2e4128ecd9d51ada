"""Inputs without labels: what counts as such, and how samples are drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mdcp_fast.modules.calls import Inputs, map_tensors, samples_in, tensors_in
from mdcp_fast.training.checkpoint import RandomState, generators_of
from mdcp_fast.training.evaluation import TARGETS

MOST_SAMPLES = 4096  # that are kept in memory
HELD_OUT = 4  # one sample of so many
WHOLE_BATCHES = 4  # from so many batches on, whole ones are held out


def without_labels(data: Any) -> bool:
    """Whether training data are inputs alone.

    They are where they are a tensor or a mapping of tensors (one batch), a Dataset or DataLoader
    whose samples are a tensor, a mapping without targets or a tuple of one, or any other iterable
    but a tuple. A pair is (inputs, targets).
    """
    if isinstance(data, (Tensor, Mapping)):
        return True
    if isinstance(data, (Dataset, DataLoader)):
        return _is_input(_first_sample(data))
    return isinstance(data, Iterable) and not isinstance(data, (tuple, str))


def _first_sample(data: Dataset[Any] | DataLoader[Any]) -> Any:
    """The first sample, as a loader would hand it out; None where that cannot be seen."""
    generators = generators_of(data) if isinstance(data, DataLoader) else []
    with RandomState.kept(torch.device("cpu"), generators):  # augmentation draws from them
        try:
            if not isinstance(data, DataLoader):
                return data[0]
            sample = data.dataset[0]
            return data.collate_fn(sample if data.batch_size is None else [sample])
        except Exception:  # whatever the user's data raise: reading them in earnest will tell
            return None


def _is_input(batch: Any) -> bool:
    single = isinstance(batch, (tuple, list)) and len(batch) == 1
    if isinstance(batch, Mapping):
        return not any(name in batch for name in TARGETS)
    return isinstance(batch, Tensor) or single


def read_inputs(name: str, data: Any, batch_size: int, op: str = "finetune") -> list[Inputs]:
    """Batches of a network's arguments, at most `MOST_SAMPLES` samples.

    Args:
        name: Of the argument, for messages.
        data: Inputs, see `without_labels`.
        batch_size: For a Dataset.
        op: Likewise, who asks.

    Raises:
        TypeError: A batch is no tensor, mapping of named arguments or tuple of one.
        ValueError: There is none, it holds NaN or infinities, or batches differ in shape.
    """
    place = f"{op}: {name}"
    if isinstance(data, (Tensor, Mapping)):
        data = [data]
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size)
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise TypeError(
            f"{place}: expected a tensor, or an iterable of batches, got {type(data).__name__}"
        )
    batches: list[Inputs] = []
    samples = 0
    for batch in data:
        batches.append(_arguments(place, batch))
        _check_batch(place, batches[0], batches[-1])
        samples += samples_in(batches[-1])
        if samples >= MOST_SAMPLES:
            break
    if not samples:
        raise ValueError(f"{place}: expected at least one batch of images, got none")
    return batches


def _arguments(place: str, batch: Any) -> Inputs:
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        batch = batch[0]
        if isinstance(batch, (tuple, list)):
            return tuple(batch)
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, Mapping):
        return dict(batch)
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise TypeError(
        f"{place}: expected batches of inputs without labels (tensors, dicts of named "
        f"arguments, or a tuple of the arguments in a tuple of one), got {type(batch).__name__}"
        f"{size}; with labels give a DataLoader or Dataset of (inputs, targets)"
    )


def _check_batch(place: str, first: Inputs, batch: Inputs) -> None:
    shapes = [
        [tensor.shape[1:] if tensor.dim() else () for tensor in tensors_in(one)]
        for one in (first, batch)
    ]
    if not shapes[1] or shapes[0] != shapes[1]:
        listed = " and ".join(str([list(shape) for shape in one]) for one in shapes)
        raise ValueError(
            f"{place}: expected batches that differ in their number of samples alone, "
            f"got samples of shapes {listed}"
        )
    for tensor in tensors_in(batch):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{place}: expected finite numbers, got NaN or infinities")


class Samples:
    """Samples of a network's inputs, drawn one by one.

    Args:
        batches: See `read_inputs`.
        picks: int64 [samples, 2], a batch and a row in it for each sample; by default all.
    """

    def __init__(self, batches: Sequence[Inputs], picks: Tensor | None = None) -> None:
        self.batches = batches
        if picks is None:
            picks = torch.tensor(
                [(b, row) for b, batch in enumerate(batches) for row in range(samples_in(batch))],
                device="cpu",
            )
        self.picks = picks

    def __len__(self) -> int:
        return len(self.picks)

    def take(self, indices: Sequence[int], model: nn.Module) -> Inputs:
        """These samples as one batch, on the device of `model`, floating point in its dtype."""
        parts: list[Inputs] = []
        for b, row in self.picks[list(indices)].tolist():
            size = samples_in(self.batches[b])
            parts.append(map_tensors(self.batches[b], lambda x, r=row, n=size: _row(x, r, n)))
        columns = [iter(tensors_in(part)) for part in parts]
        like = next(model.parameters())

        def joined(_: Tensor) -> Tensor:
            rows = [next(column) for column in columns]
            whole = torch.cat(rows) if rows[0].dim() else rows[0]
            return whole.to(like.device, like.dtype if whole.is_floating_point() else None)

        batch: Inputs = map_tensors(parts[0], joined)
        return batch

    def split(self, seed: int) -> tuple[Samples, Samples]:
        """Samples to learn from, and a quarter of them, at least one, that are held out.

        From four batches on whole batches are held out, so that what belongs together (crops of one
        photograph, frames of one film) can be kept together. A single sample is both.
        """
        count = len(self)
        if count == 1:
            return self, self
        generator = torch.Generator("cpu").manual_seed(seed)
        wanted = max(1, count // HELD_OUT)
        held = torch.zeros(count, dtype=torch.bool, device="cpu")
        if len(self.batches) >= WHOLE_BATCHES:
            for b in torch.randperm(len(self.batches), generator=generator, device="cpu").tolist():
                if held.any() and int(held.sum()) >= wanted:
                    break
                held |= self.picks[:, 0] == b
        if not 0 < int(held.sum()) <= count // 2:  # batches of very different sizes
            held = torch.zeros(count, dtype=torch.bool, device="cpu")
            held[torch.randperm(count, generator=generator, device="cpu")[:wanted]] = True
        return Samples(self.batches, self.picks[~held]), Samples(self.batches, self.picks[held])


def _row(tensor: Tensor, row: int, samples: int) -> Tensor:
    """A sample of a batched tensor; what has no sample dimension stays whole."""
    return tensor[row : row + 1] if tensor.dim() and len(tensor) == samples else tensor
