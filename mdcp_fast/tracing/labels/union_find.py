"""Union-find over labels: which channels go together or not at all, and why some must stay."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdcp_fast.tracing.labels.label_tensors import compact


@dataclass
class Resolved:
    """What became of all labels.

    Attributes:
        roots: int64 [labels], the class of every label.
        fixed: Why a class must stay whole, by root (the first reason found).
        mixed: Which op normalises over a class, so that removing is not zeroing, by root.
        bent: Which op keeps a class from being rotated, by root (see `linearity`).
        doubts: Which op takes a part of a class whose size may be written in the source, by root.
    """

    roots: Tensor
    fixed: dict[int, str]
    mixed: dict[int, str]
    bent: dict[int, str]
    doubts: dict[int, str]


Notes = list[tuple[Tensor, str]]  # labels, int64 [any], and what was noted of all of them


@dataclass
class Classes:
    """Classes of labels that were merged. Label 0 is in none; what meets it is fixed."""

    parent: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))
    fixed: Notes = field(default_factory=list)
    mixed: Notes = field(default_factory=list)
    bent: Notes = field(default_factory=list)
    doubts: Notes = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """New labels, each a class of its own: int64 [count]."""
        labels = torch.arange(len(self.parent), len(self.parent) + count)
        self.parent = torch.cat([self.parent, labels])
        return labels

    def merge(self, left: Tensor, right: Tensor, reason: str) -> None:
        """Merges two label tensors place by place; a label that meets 0 is fixed for `reason`."""
        left, right = torch.broadcast_tensors(compact(left), compact(right))
        differ = left != right
        left, right = left[differ], right[differ]
        meets = torch.minimum(left, right) == 0
        if meets.any():
            self.fixed.append((torch.maximum(left, right)[meets], reason))
            left, right = left[~meets], right[~meets]
        while left.numel():  # those whose roots differ
            one, other = self.roots(left), self.roots(right)
            self.parent[left], self.parent[right] = one, other  # keeps the ways to the roots short
            differ = one != other
            left, right = one[differ], other[differ]
            larger, smaller = torch.maximum(left, right), torch.minimum(left, right)
            # A root that meets several others goes to the smallest of them, next time to the rest.
            self.parent.scatter_reduce_(0, larger, smaller, "amin")

    def fix(self, labels: Tensor, reason: str) -> None:
        """These channels must stay."""
        self.fixed.append((compact(labels), reason))

    def mix(self, labels: Tensor, reason: str) -> None:
        """Removing one of these channels changes what the others compute."""
        self.mixed.append((compact(labels), reason))

    def bend(self, labels: Tensor, reason: str) -> None:
        """Something tells these channels apart, or is not linear in them."""
        self.bent.append((compact(labels), reason))

    def roots(self, labels: Tensor) -> Tensor:
        """The root of every entry of `labels`, of the same shape: its class's smallest label."""
        roots = self.parent[labels]
        while not torch.equal(roots, above := self.parent[roots]):
            roots = above
        return roots

    def resolve(self) -> Resolved:
        """The classes as they stand."""
        roots = self.roots(torch.arange(len(self.parent)))
        notes = (self.fixed, self.mixed, self.bent, self.doubts)
        by = [_first_reasons(roots, one) for one in notes]
        return Resolved(roots, *by)


def _first_reasons(roots: Tensor, notes: Notes) -> dict[int, str]:
    """What was noted first of each class, by root.

    Args:
        roots: int64 [labels], the class of every label.
        notes: In the order in which they were made.
    """
    first: dict[int, str] = {}
    known = torch.zeros(len(roots), dtype=torch.bool)
    known[0] = True  # no channel
    for labels, reason in notes:
        found = roots[labels]
        new = found[~known[found]]
        known[new] = True
        first |= dict.fromkeys(new.tolist(), reason)
    return first
