"""Backward elimination of an axis's channels: each step drops what the others replace best.

Optimal brain surgery (OBS) of channels: with H = G + lam I over the channels that stay, dropping
channel j and letting the others take over what they can predict of it costs S_jj / (H^-1)_jj, S
being the effect of the layer's weights with everything dropped before taken over. Both matrices
follow from step to step by updates of low rank. One pass from the full axis to the last channel
gives every width, its channels and its loss.

Source: Hassibi and Stork, "Second order derivatives for network pruning: optimal brain surgeon",
1993; for channels, Kurtic, Frantar and Alistarh, "ZipLM", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdcp_fast.pruning.reconstruction import ReconstructionError, nested_ridge_losses
from mdcp_fast.pruning.ridge import damped, damping

LAZY = 48  # steps whose updates are added at once, as one product of matrices


class _Shrinking:
    """What one layer loses while channels are dropped.

    `inverse` and `effect` are as of the last `_settle`; since then channels were dropped, whose
    updates are the products `inverse + b c^T` and `effect + t b^T + b t^T` of the columns kept in
    `_b`, `_c` and `_t` [groups, entries, pending]. The diagonal blocks are always up to date.
    """

    def __init__(self, error: ReconstructionError, channels: int) -> None:
        gram, lam = error.gram, damping(error.gram)
        self.inverse = torch.linalg.inv(damped(gram, lam))
        self.effect = error.effect.clone()
        self.size = gram.shape[1] // channels  # entries of a channel
        self._make_room()
        self._inverse_blocks = self._blocks(self.inverse)
        self._effect_blocks = self._blocks(self.effect)
        # What the ridge adds to a residual is no loss of the network's.
        traces = self._effect_blocks.diagonal(dim1=2, dim2=3).sum(2)
        self._regularised = (lam[:, None] * traces).sum(0)  # [channels]

    def _make_room(self) -> None:
        shape = (*self.inverse.shape[:2], LAZY * self.size)
        self._b, self._c, self._t = (self.inverse.new_empty(shape) for _ in range(3))
        self._pending = 0

    def _blocks(self, matrix: Tensor) -> Tensor:
        """The diagonal blocks, [groups, channels, size, size]."""
        parts = matrix.unflatten(1, (-1, self.size)).unflatten(3, (-1, self.size))
        return parts.diagonal(dim1=1, dim2=3).movedim(-1, 1).clone()

    def costs(self) -> Tensor:
        """What dropping each channel would lose: float64 [channels]."""
        if self.size == 1:
            lost = self._effect_blocks[..., 0, 0] / self._inverse_blocks[..., 0, 0]
        else:
            solved = torch.linalg.solve(self._inverse_blocks, self._effect_blocks)
            lost = solved.diagonal(dim1=2, dim2=3).sum(2)
        return lost.sum(0) - self._regularised

    def drop(self, channel: int, stays: Tensor) -> None:
        """Lets the channels that stay take over one that goes.

        Args:
            stays: float64 [channels], 1 for those, else 0.
        """
        at = slice(channel * self.size, (channel + 1) * self.size)
        mask = stays.repeat_interleave(self.size).unsqueeze(1)  # [entries, 1]
        column, seen = self.inverse[:, :, at], self.effect[:, :, at]  # [groups, entries, size]
        if self._pending:
            b, c, t = self._columns()
            column = column + b @ c[:, at].transpose(1, 2)
            seen = seen + t @ b[:, at].transpose(1, 2) + b @ t[:, at].transpose(1, 2)
        block = seen[:, at]
        # The entries that go are, from those that stay, -(H^-1_jj)^-1 H^-1_jK x_K.
        if self.size == 1:
            taken = column / -column[:, at] * mask
        else:
            solved = torch.linalg.solve(column[:, at], column.transpose(1, 2))
            taken = -solved.transpose(1, 2) * mask
        column, seen = column * mask, (seen + taken @ block / 2) * mask
        self._inverse_blocks += self._product(taken, column)
        both = self._product(seen, taken)
        self._effect_blocks += both + both.transpose(2, 3)
        more = self._pending + self.size
        for pending, new in ((self._b, taken), (self._c, column), (self._t, seen)):
            pending[..., self._pending : more] = new
        self._pending = more
        if more == self._b.shape[2]:
            self._settle()

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """The diagonal blocks of left right^T."""
        parts = [factor.unflatten(1, (-1, self.size)) for factor in (left, right)]
        return parts[0] @ parts[1].transpose(2, 3)

    def _columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """The columns of b, c and t that are pending."""
        pending = slice(self._pending)
        return self._b[..., pending], self._c[..., pending], self._t[..., pending]

    def _settle(self) -> None:
        b, c, t = self._columns()
        self.inverse.baddbmm_(b, c.transpose(1, 2))
        self.effect.baddbmm_(t, b.transpose(1, 2)).baddbmm_(b, t.transpose(1, 2))
        self._pending = 0

    def forget(self, channels: Tensor) -> None:
        """Keeps only these channels' entries: int64 [n]."""
        if self._pending:
            self._settle()
        entries = (channels.unsqueeze(1) * self.size + torch.arange(self.size)).flatten()
        entries = entries.to(self.inverse.device)
        self.inverse, self.effect = (
            matrix[:, entries][:, :, entries] for matrix in (self.inverse, self.effect)
        )
        self._inverse_blocks, self._effect_blocks, self._regularised = (
            self._inverse_blocks[:, channels],
            self._effect_blocks[:, channels],
            self._regularised[channels],
        )
        self._make_room()


def elimination_order(
    errors: Sequence[ReconstructionError],
    channels: int,
    *,
    given: bool = False,
    dead: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The order in which channels are worth keeping, and the loss at every width.

    Args:
        errors: Of one axis, at least one.
        channels: Of the axis.
        given: Whether channels come in this order already, as those of a rotated axis do.
        dead: int64 [channels], those that go before all others, the largest numbers first; 0 for
            the others. None: there are none.

    Returns:
        int64 [channels], the first w of which stay at width w; float64 [channels], the loss at
        widths 1 to `channels`: falling, and 0 at the last. It is what ridge regression from the
        kept channels leaves of the others, summed over the errors.
    """
    if given:
        order = torch.arange(channels)
        fitted = [error._replace(fitted=None, held_out=None) for error in errors]
        return order, nested_ridge_losses(fitted, order).flip(0).cummax(0).values.flip(0)
    layers = [_Shrinking(error, channels) for error in errors]
    names = torch.arange(channels)  # of the channels that the layers still hold
    stays = torch.ones(channels, dtype=torch.float64)
    dropped, costs = [], []
    for left in range(channels, 1, -1):
        if left <= len(names) // 2 and len(names) > LAZY:
            held = stays.nonzero().flatten()
            names, stays = names[held], stays[held]
            for layer in layers:
                layer.forget(held)
        cost = torch.stack([layer.costs().cpu() for layer in layers]).sum(0)
        may_go = stays > 0
        if dead is not None:
            left_dead = dead[names] * may_go
            may_go &= left_dead == left_dead.max()
        cheapest = int(torch.where(may_go, cost, torch.inf).argmin())
        stays[cheapest] = 0
        for layer in layers:
            layer.drop(cheapest, stays.to(layer.inverse.device))
        dropped.append(int(names[cheapest]))
        costs.append(max(float(cost[cheapest]), 0.0))
    order = torch.tensor([int(names[stays > 0][0]), *reversed(dropped)])
    losses = torch.tensor([0.0, *costs], dtype=torch.float64).cumsum(0).flip(0)
    return order, losses
