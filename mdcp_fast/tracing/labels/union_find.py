"""Union-find over labels: which channels go together or not at all, and why some must stay."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mdcp_fast.tracing.labels.label_tensors import compact, distinct


@dataclass
class Resolved:
    """What became of all labels.

    Attributes:
        roots: int64 [labels], the class of every label.
        fixed: Why a class must stay whole, by root (the first reason found).
        mixed: Which op normalises over a class, so that removing is not zeroing, by root.
        bent: Which op keeps a class from being rotated, by root (see `linearity`).
    """

    roots: Tensor
    fixed: dict[int, str]
    mixed: dict[int, str]
    bent: dict[int, str]


@dataclass
class Classes:
    """Classes of labels that were merged. Label 0 is in none; what meets it is fixed."""

    parent: list[int] = field(default_factory=lambda: [0])
    fixed: dict[int, str] = field(default_factory=dict)
    mixed: dict[int, str] = field(default_factory=dict)
    bent: dict[int, str] = field(default_factory=dict)

    def fresh(self, count: int) -> Tensor:
        """New labels, each a class of its own: int64 [count]."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        """The root of a label's class: its smallest label."""
        parent = self.parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def merge(self, left: Tensor, right: Tensor, reason: str) -> None:
        """Merges two label tensors place by place; a label that meets 0 is fixed for `reason`."""
        left, right = torch.broadcast_tensors(compact(left), compact(right))
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)], 1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if pairs.shape[0] > 64:
            pairs = torch.unique(pairs, dim=0)
        for a, b in pairs.tolist():
            if a and b:
                a, b = self.find(a), self.find(b)
                self.parent[max(a, b)] = min(a, b)
            else:
                self.fixed.setdefault(a or b, reason)

    def fix(self, labels: Tensor, reason: str) -> None:
        """These channels must stay."""
        for label in distinct(labels):
            self.fixed.setdefault(label, reason)

    def mix(self, labels: Tensor, reason: str) -> None:
        """Removing one of these channels changes what the others compute."""
        for label in distinct(labels):
            self.mixed.setdefault(label, reason)

    def bend(self, labels: Tensor, reason: str) -> None:
        """Something tells these channels apart, or is not linear in them."""
        for label in distinct(labels):
            self.bent.setdefault(label, reason)

    def roots(self, labels: Tensor) -> Tensor:
        """The root of every entry of `labels`."""
        present, where = torch.unique(labels, return_inverse=True)
        return torch.tensor([self.find(label) for label in present.tolist()])[where]

    def resolve(self) -> Resolved:
        """The classes as they stand."""
        roots = [self.find(label) for label in range(len(self.parent))]

        def by_root(reasons: dict[int, str]) -> dict[int, str]:
            first: dict[int, str] = {}
            for label, reason in reasons.items():
                first.setdefault(roots[label], reason)
            return first

        by = [by_root(reasons) for reasons in (self.fixed, self.mixed, self.bent)]
        return Resolved(torch.tensor(roots), *by)
