"""Reads calibration data: batches of a network's inputs, with or without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mdcp_fast.modules.calls import Inputs, even_parts, map_tensors, samples_in, tensors_in
from mdcp_fast.tracing.graph import ChannelGraph

NOISE_SAMPLES = 256
HELD_OUT = 4  # one of so many samples is held out
TOGETHER = 16  # samples that run at once where none need to meet
SMOOTHNESS = 1.5  # the power of the frequency by which the amplitude of noise images falls


def calibration_batches(graph: ChannelGraph, calibration: Iterable[Any]) -> list[Inputs]:
    """Calibration data as a list of the model's arguments, on the device of the example inputs.

    Args:
        graph: The traced network; batches may differ from its example inputs in the batch size
            only.
        calibration: An iterable of tensors, of (input, label) pairs, of tuples of the model's
            arguments, or of dicts of named arguments if the example inputs are such a dict.

    Raises:
        TypeError: It is not an iterable of such batches.
        ValueError: It is empty, or a batch has another shape than the example inputs, or holds NaN
            or infinities.
    """
    if isinstance(calibration, Tensor):
        calibration = [calibration]
    batches = [_inputs(graph.example_inputs, batch) for batch in _items(calibration)]
    if not batches:
        raise ValueError(
            "calibration: expected at least one batch, got none (an iterator that was used up?)"
        )
    return batches


def noise_batches(graph: ChannelGraph) -> list[Inputs]:
    """Smooth random images in place of calibration data, as the network's arguments, in one batch.

    Gaussian noise whose amplitude falls with the frequency f as f^-1.5 over the dimensions behind
    the channels, of mean 0 and variance 1 as inputs standardised for training have; plain Gaussian
    noise where there are none. Layers are fitted better on it than on nothing, and better than on
    white noise, since activations are smooth too.

    Args:
        graph: The traced network. Its example inputs say the shapes; arguments that are no tensors
            with a batch dimension stay as they are there.

    Raises:
        ValueError: An argument is not of floating point: what integers mean cannot be guessed.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(example: Tensor) -> Tensor:
        if not example.dim():
            return example
        if not example.is_floating_point():
            raise ValueError(
                "calibration: expected a network whose inputs are of floating point, for 'noise', "
                f"got an input of {example.dtype}"
            )
        drawn = _smooth(torch.randn(NOISE_SAMPLES, *example.shape[1:], generator=generator))
        return drawn.to(example.device, example.dtype)

    return [map_tensors(graph.example_inputs, noise)]


def _smooth(white: Tensor) -> Tensor:
    """Weakens high frequencies, along all dimensions from the third on."""
    dimensions = list(range(2, white.dim()))
    sizes = [white.shape[d] for d in dimensions]
    if not dimensions or max(sizes) == 1:
        return white
    square = torch.zeros(())
    for d, size in zip(dimensions, sizes, strict=True):
        last = d == dimensions[-1]
        frequency = torch.fft.rfftfreq(size) if last else torch.fft.fftfreq(size)
        square = square + frequency.square().view(-1, *[1] * (white.dim() - 1 - d))
    amplitude = square.clamp_min(max(sizes) ** -2.0) ** (-SMOOTHNESS / 2)
    smooth = torch.fft.irfftn(torch.fft.rfftn(white, dim=dimensions) * amplitude, sizes, dimensions)
    return (smooth - smooth.mean()) / smooth.std()


def joined_batches(batches: list[Inputs], samples: int) -> Inputs | None:
    """The first samples of all batches as one batch.

    Args:
        batches: The model's arguments.
        samples: How many samples, at most.

    Returns:
        The arguments, or None where it is not clear how to join them: tensors of a batch that do
        not have as many samples each, or other arguments that differ from batch to batch.
    """
    flat = [tree_flatten(batch) for batch in batches]
    structure = flat[0][1]
    if any(other != structure for _, other in flat):
        return None
    joined, sizes = [], []
    for values in zip(*(leaves for leaves, _ in flat), strict=True):
        first = values[0]
        if isinstance(first, Tensor) and first.dim():
            sizes.append([len(value) for value in values])
            joined.append(_first(values, samples))
        elif all(_same(first, value) for value in values[1:]):
            joined.append(first)
        else:
            return None
    if any(size != sizes[0] for size in sizes):
        return None
    together: Inputs = tree_unflatten(joined, structure)
    return together


def _first(tensors: Sequence[Tensor], samples: int) -> Tensor:
    """Their first samples, without a copy of more than these."""
    parts, missing = [], samples
    for tensor in tensors:
        if missing:
            parts.append(tensor[:missing])
            missing -= len(parts[-1])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return left is right or (
        type(left) is type(right) and not isinstance(left, Tensor) and bool(left == right)
    )


def held_out_batches(batches: Sequence[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
    """The batches without every fourth sample, and those samples.

    Where a batch's tensors do not have as many samples each, or batches have fewer than four, all
    are in the first list.
    """
    if any({len(t) if t.dim() else 0 for t in tensors_in(b)} != {samples_in(b)} for b in batches):
        return list(batches), []
    if any(samples_in(batch) < HELD_OUT for batch in batches):
        return list(batches), []
    return [
        map_tensors(batch, lambda t: t[torch.arange(len(t)) % HELD_OUT > 0]) for batch in batches
    ], [map_tensors(batch, lambda t: t[::HELD_OUT]) for batch in batches]


def in_parts(batches: Iterable[Inputs], samples: int = TOGETHER) -> Iterator[Inputs]:
    """The batches in even parts of at most so many samples, where all their tensors have as many.

    What runs in parts of a few images takes a third of the time on a CPU: the memory of activations
    is used again, and not fetched from the system for each layer.
    """
    for batch in batches:
        sizes = {len(x) if x.dim() else 0 for x in tensors_in(batch)}
        size = sizes.pop() if len(sizes) == 1 else 0
        if size <= samples:
            yield batch
            continue
        for rows in even_parts(size, -(-size // samples)):

            def cut(x: Tensor, rows: slice = rows) -> Tensor:
                return x[rows]

            yield map_tensors(batch, cut)


def labelled_batches(
    graph: ChannelGraph, calibration: Iterable[Any]
) -> tuple[list[Inputs], list[Tensor]]:
    """Calibration data as the model's arguments, and the label tensors that came with them.

    Args:
        graph: The traced network.
        calibration: An iterable of pairs of arguments (a tensor, a tuple, a dict) and labels, or of
            tuples of the arguments and last the labels.

    Returns:
        The arguments and, for each batch, its labels [batch, ...], both on the device of the
        example inputs.

    Raises:
        TypeError: Labels are not a tensor, or as in `calibration_batches`.
        ValueError: A batch has no labels, or not one for each sample.
    """
    pairs = [_pair(graph.example_inputs, batch) for batch in _items(calibration)]
    batches = calibration_batches(graph, [arguments for arguments, _ in pairs])
    labels = []
    for arguments, (_, label) in zip(batches, pairs, strict=True):
        samples = samples_in(arguments)
        if not isinstance(label, Tensor):
            raise TypeError(f"calibration: expected labels as a tensor, got {type(label).__name__}")
        if not label.dim() or label.shape[0] != samples:
            raise ValueError(
                f"calibration: expected a label for each of {samples} samples, got labels "
                f"of shape {list(label.shape)}"
            )
        labels.append(label.to(tensors_in(arguments)[0].device))
    return batches, labels


def _items(calibration: Iterable[Any]) -> Iterator[Any]:
    if isinstance(calibration, str):
        raise TypeError(f"calibration: expected an iterable of batches, got {calibration!r}")
    try:
        return iter(calibration)
    except TypeError:
        kind = type(calibration).__name__
        raise TypeError(f"calibration: expected an iterable of batches, got {kind}") from None


def _pair(example: Inputs, batch: Any) -> tuple[Any, Any]:
    """The arguments of a batch, and its labels."""
    entries = len(batch) if isinstance(batch, (tuple, list)) else 0
    if entries == 2 and (len(example) == 1 or isinstance(batch[0], (tuple, list, Mapping))):
        return batch[0], batch[1]
    if isinstance(example, tuple) and entries == len(example) + 1:
        return tuple(batch[:-1]), batch[-1]
    got = f"{entries} entries" if entries else type(batch).__name__
    raise ValueError(
        f"calibration: expected batches of (inputs, labels), since labels are asked for, got {got}"
    )


def _inputs(example: Inputs, batch: Any) -> Inputs:
    if isinstance(example, dict):
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"calibration: expected dicts of named arguments as the example inputs are, got "
                f"{type(batch).__name__}"
            )
        missing = [name for name in example if name not in batch]
        if missing:
            raise ValueError(f"calibration: expected batches with {missing}, got {list(batch)}")
        return {name: _input(wanted, batch[name]) for name, wanted in example.items()}
    values = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if len(values) < len(example):
        raise ValueError(
            f"calibration: expected batches of {len(example)} inputs, got {len(values)}"
        )
    # What follows the arguments (labels) is not needed.
    return tuple(_input(wanted, got) for wanted, got in zip(example, values, strict=False))


def _input(wanted: Any, got: Any) -> Any:
    """One argument of a batch, checked against the example's, tensor by tensor."""
    leaves, structure = tree_flatten(wanted)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        return got
    found, other = tree_flatten(got)
    if isinstance(wanted, Tensor) and not isinstance(got, Tensor):
        raise TypeError(f"calibration: expected batches of tensors, got {type(got).__name__}")
    if other != structure:
        raise TypeError(
            f"calibration: expected arguments nested as the example inputs are ({structure}), got "
            f"{other}"
        )
    return tree_unflatten([_leaf(*pair) for pair in zip(leaves, found, strict=True)], structure)


def _leaf(wanted: Any, got: Any) -> Any:
    if not isinstance(wanted, Tensor):
        return got
    if not isinstance(got, Tensor):
        raise TypeError(f"calibration: expected batches of tensors, got {type(got).__name__}")
    fits = got.dim() == wanted.dim() and got.shape[1:] == wanted.shape[1:]
    if not fits or (got.dim() and not got.shape[0]):
        sizes = ", ".join(str(size) for size in wanted.shape[1:])
        raise ValueError(
            f"calibration: expected batches of shape [batch, {sizes}] as the example inputs have, "
            f"got {list(got.shape)}"
        )
    if got.is_floating_point() and not bool(got.isfinite().all()):
        raise ValueError("calibration: expected batches of finite numbers, got NaN or infinities")
    return got.to(wanted.device, wanted.dtype)
