"""Compares maps inside two networks of different widths.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. Here the regressor from the
pupil's map to the teacher's is fitted once, by least squares, and then stays: the pupil starts as a
pruned teacher, whose maps are nearly linear in each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdcp_fast.modules.calls import Inputs, call
from mdcp_fast.modules.hooks import forward_hooks

STAGES = 3  # resolutions that are compared: the last ones
DIRECTIONS = 128  # of the teacher's map, those with most variance
POSITIONS = 4096  # of a batch that a fit reads, at most
DAMPING = 1e-2  # of the fit, in shares of the mean variance of the pupil's channels
POOR = 0.9  # share of the variance that a fit leaves from which on it says nothing


class _Fit(NamedTuple):
    """How to compare a map, in `DIRECTIONS` of the teacher's.

    Attributes:
        mine: [channels of the pupil, directions].
        yours: [channels of the teacher, directions].
        shift: [directions], what `mine` gives more on average.
        spread: Mean variance of the directions.
    """

    mine: Tensor
    yours: Tensor
    shift: Tensor
    spread: Tensor


class MapMatch:
    """The distance of maps inside a pupil from those of its teacher.

    The maps are the last outputs of modules of the same path in both, at each of the last
    resolutions: in most classifiers the results of the last stages.

    Args:
        model: The pupil, in evaluation mode.
        teacher: Likewise.
        batches: Arguments to fit the comparison on.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, batches: Sequence[Inputs]) -> None:
        self._networks = (model, teacher)
        self._maps: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        paths = _stages(model, teacher, batches[0])
        moments = {path: _Moments() for path in paths}
        with torch.no_grad(), self._recorded(paths):
            for batch in batches:
                call(teacher, batch)
                call(model, batch)
                for path, moment in moments.items():
                    moment.add(*(_rows(maps[path]) for maps in self._maps))
        fits = {path: moment.fit() for path, moment in moments.items()}
        self._fits = {path: fit for path, fit in fits.items() if fit is not None}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keeps the maps of every call inside, for `apart`."""
        with self._recorded(self._fits):
            yield

    @contextmanager
    def _recorded(self, paths: Iterable[str]) -> Iterator[None]:
        hooks = [
            (network.get_submodule(path), _storing(maps, path))
            for path in paths
            for network, maps in zip(self._networks, self._maps, strict=True)
        ]
        try:
            with forward_hooks(hooks, before=False):
                yield
        finally:
            for maps in self._maps:
                maps.clear()

    def apart(self) -> Tensor | float:
        """The mean squared distance in shares of the teacher's variance, averaged over the maps.

        Of the last call of each network; the gradient goes to the pupil alone. 0 without maps.
        """
        distances = []
        for path, fit in self._fits.items():
            mine, yours = (maps[path].movedim(1, -1).float() for maps in self._maps)
            gap = mine @ fit.mine - yours.detach() @ fit.yours
            distances.append((gap - fit.shift).square().mean() / fit.spread)
        return torch.stack(distances).mean() if distances else 0.0


def _storing(maps: dict[str, Tensor], path: str) -> Any:
    def hook(_: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        maps[path] = output

    return hook


class _Moments:
    """Second moments of a pupil's map and its teacher's, to fit one to the other."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | None = None
        self.product: Tensor | None = None

    def add(self, mine: Tensor, yours: Tensor) -> None:
        """Takes rows of both: [positions, channels], the same positions."""
        self.channels = mine.shape[1]
        both = torch.cat([mine, yours], 1).double()
        self.count += len(both)
        self.sum = both.sum(0) + (0 if self.sum is None else self.sum)
        self.product = both.T @ both + (0 if self.product is None else self.product)

    def fit(self) -> _Fit | None:
        """The comparison, or None where the maps are constant or have little to do with another."""
        assert self.sum is not None and self.product is not None
        mean = self.sum / self.count
        covariance = self.product / self.count - torch.outer(mean, mean)
        mine, yours = slice(None, self.channels), slice(self.channels, None)
        if not bool(covariance.isfinite().all()):
            return None
        spread, directions = torch.linalg.eigh(covariance[yours, yours])
        spread, directions = spread[-DIRECTIONS:], directions[:, -DIRECTIONS:]
        gram, both = covariance[mine, mine], covariance[mine, yours] @ directions
        damping = DAMPING * gram.diagonal().mean()
        if not float(spread.sum()) > 0 or not float(damping) > 0:
            return None
        weights = torch.linalg.solve(gram + damping * torch.eye(len(gram)).to(gram), both)
        left = spread.sum() - 2 * (weights * both).sum() + (weights * (gram @ weights)).sum()
        if float(left / spread.sum()) > POOR:
            return None
        shift = mean[mine] @ weights - mean[yours] @ directions
        return _Fit(*(x.float() for x in (weights, directions, shift, spread.mean())))


def _rows(value: Tensor) -> Tensor:
    """A map as [positions, channels], regularly spread positions of it where there are many."""
    rows = value.movedim(1, -1).flatten(0, -2)
    return rows[:: max(1, len(rows) // POSITIONS)]


def _stages(model: nn.Module, teacher: nn.Module, batch: Inputs) -> list[str]:
    """Paths of the modules whose outputs are compared."""
    seen = [_maps_of(network, batch) for network in (model, teacher)]
    last: dict[Any, str] = {}
    for path, shape in seen[1].items():
        mine = seen[0].get(path)
        if mine is not None and shape is not None and mine[2:] == shape[2:]:
            last.pop(shape[2:], None)  # in the order of the last ones
            last[shape[2:]] = path
    return list(last.values())[-STAGES:]


def _maps_of(network: nn.Module, batch: Inputs) -> dict[str, torch.Size | None]:
    """Shapes of the maps that modules give, in order; None for what is called several times."""
    shapes: dict[str, torch.Size | None] = {}

    def noting(path: str) -> Any:
        def hook(_: nn.Module, arguments: Any, named: Any, output: Any) -> None:
            usable = isinstance(output, Tensor) and output.dim() > 3
            usable = usable and output.is_floating_point() and output.shape[2:].numel() > 1
            if usable or path in shapes:
                shapes[path] = output.shape if usable and path not in shapes else None

        return hook

    hooks = [(module, noting(path)) for path, module in network.named_modules() if path]
    with torch.no_grad(), forward_hooks(hooks, before=False):
        call(network, batch)
    return shapes
