"""A layer's correction by ridge regression, as strong as images that were held out say.

With seen the patches y that a layer reads and lacking what its outputs still lack of the dense
layer's, the correction D of its weight minimises

    mean ||lacking - D y||^2 + lam ||D||^2.

Rows of one image are alike: of 32,768 neighbouring positions of a hundred images, a layer with a
thousand entries learns those images. So lam is chosen by images, not by rows: it is the one of a
short path with which a quarter of them that was held out comes nearest, in four turns (wide layers,
whose solves take seconds: in one, and from the middle of the path only on while that gains), and no
correction is made where none brings them nearer. The last fit is to all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mdcp_fast.pruning.ridge import TINY, factorised, gram_of

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # lam, as shares of the mean square of the inputs
FOLDS = 4  # parts of the images, each of which is held out once
NARROW = 256  # entries of a patch, above which only one part is held out


def held_out_ridge(seen: Tensor, lacking: Tensor, images: Tensor) -> Tensor:
    """The correction of a layer, as strong as images that were held out say.

    Args:
        seen: [groups, R, entries].
        lacking: [groups, R, outputs].
        images: int64 [R], the image that a row is of. Of a single image nothing can be held out:
            the strongest ridge is taken.

    Returns:
        float64 [groups, outputs, entries]; zeros where no correction helps.

    Raises:
        torch.linalg.LinAlgError: The inputs are not finite.
    """
    rows, entries = seen.shape[1:]
    folds = images % FOLDS
    if entries > NARROW:  # one part, and the others together
        folds = (folds != folds[0]).long()
    parts = [(folds == fold).nonzero().flatten() for fold in folds.unique().tolist()]
    problem: _Problem = (_Rows if entries > rows else _Products).of(seen, lacking, parts)
    if len(parts) == 1:
        return problem.solved(RIDGES[-1])
    if entries > NARROW:
        best, gain = _uphill(lambda i: problem.gain(0, RIDGES[i]), len(RIDGES))
    else:
        path = [[problem.gain(held, share) for share in RIDGES] for held in range(len(parts))]
        gains = torch.tensor(path, dtype=torch.float64).sum(0)
        best, gain = int(gains.argmax()), float(gains.max())
    return problem.solved(RIDGES[best]) * float(gain > 0)


def _uphill(gain: Callable[[int], float], count: int) -> tuple[int, float]:
    """The place of a gain that no neighbour exceeds, from the middle of a path, and that gain.

    Too strong and too weak a ridge both lose, so that there is one such place; each costs a
    factorisation.
    """
    best = count // 2
    most = gain(best)
    for step in (-1, 1):
        found = False
        while 0 <= best + step < count and (other := gain(best + step)) > most:
            best, most, found = best + step, other, True
        if found:
            break
    return best, most


class _Problem(Protocol):
    """Parts of the rows of a regression."""

    def solved(self, share: float) -> Tensor:
        """The correction from all parts: float64 [groups, outputs, entries]."""
        ...

    def gain(self, held: int, share: float) -> float:
        """By how much the correction from the other parts lowers what a part lacks, squared."""
        ...


class _Products(NamedTuple):
    """By products of entries, summed over the rows of each part.

    Attributes:
        grams: float64 [groups, entries, entries] of each part, and their sum.
        crosses: float64 [groups, entries, outputs] likewise.
        counts: Rows likewise.
    """

    grams: Sequence[Tensor]
    crosses: Sequence[Tensor]
    counts: Sequence[int]

    @classmethod
    def of(cls, seen: Tensor, lacking: Tensor, parts: Sequence[Tensor]) -> _Products:
        grams, crosses = [], []
        for part in parts:
            left = seen[:, part]
            grams.append(gram_of(left).double())
            crosses.append((left.mT @ lacking[:, part]).double())
        counts = [len(part) for part in parts]
        total = [torch.stack(one).sum(0) for one in (grams, crosses)]
        return cls([*grams, total[0]], [*crosses, total[1]], [*counts, sum(counts)])

    def solved(self, share: float, without: int | None = None) -> Tensor:
        gram, cross, count = self.grams[-1], self.crosses[-1], self.counts[-1]
        if without is not None:
            gram, cross = gram - self.grams[without], cross - self.crosses[without]
            count -= self.counts[without]
        lam = share * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY * count)
        return torch.cholesky_solve(cross, factorised(gram, lam)).mT

    def gain(self, held: int, share: float) -> float:
        correction = self.solved(share, held)
        linear = 2 * (correction * self.crosses[held].mT).sum()
        return float(linear - ((correction @ self.grams[held]) * correction).sum())


class _Rows(NamedTuple):
    """By products of rows, which are the smaller matrix where entries outnumber rows.

    Attributes:
        seen: [groups, R, entries].
        lacking: float64 [groups, R, outputs].
        gram: float64 [groups, R, R], of the rows.
        parts: int64, the rows of each part.
    """

    seen: Tensor
    lacking: Tensor
    gram: Tensor
    parts: Sequence[Tensor]

    @classmethod
    def of(cls, seen: Tensor, lacking: Tensor, parts: Sequence[Tensor]) -> _Rows:
        return cls(seen, lacking.double(), gram_of(seen.mT).double(), parts)

    def solved(self, share: float) -> Tensor:
        rows = torch.cat(list(self.parts))
        return self._weights(share, rows).mT @ self.seen[:, rows].double()

    def gain(self, held: int, share: float) -> float:
        part = self.parts[held]
        rest = torch.cat([rows for i, rows in enumerate(self.parts) if i != held])
        lacking = self.lacking[:, part]
        left = lacking - self.gram[:, part][:, :, rest] @ self._weights(share, rest)
        return float(lacking.square().sum() - left.square().sum())

    def _weights(self, share: float, rows: Tensor) -> Tensor:
        """Of some rows, whose combination the correction is: float64 [groups, rows, outputs]."""
        gram, entries = self.gram[:, rows][:, :, rows], self.seen.shape[2]
        squares = gram.diagonal(dim1=1, dim2=2).sum(1) / entries
        lam = share * squares.clamp_min(TINY * len(rows))
        return torch.cholesky_solve(self.lacking[:, rows], factorised(gram, lam))
