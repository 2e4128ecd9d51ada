"""Scores of the benchmark of real networks, on cases that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scores import agreement, heat_maps, hits
from text_boxes import boxes, f1, matched, overlap


def test_agreement_and_divergence() -> None:
    dense = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.8, 0.1]]).log()
    other = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.4, 0.3], [0.5, 0.3, 0.2]]).log()
    found = agreement(other + 5, dense - 3)  # logits may be shifted
    assert found["agreement"] == pytest.approx(1 / 3)
    assert found["sure"] == pytest.approx(1 / 2)  # of the first and the last
    wanted = np.mean(
        [
            sum(p * math.log(p / q) for p, q in zip(*rows, strict=True))
            for rows in zip(dense.exp().tolist(), other.exp().tolist(), strict=True)
        ]
    )
    assert found["kl"] == pytest.approx(wanted, rel=1e-5)
    assert agreement(dense, dense) == {"agreement": 1.0, "sure": 1.0, "kl": 0.0}
    assert agreement(other[1:2], dense[1:2])["sure"] == 1.0  # it is sure of none


def test_hits_allow_several_classes() -> None:
    logits = torch.eye(4)
    assert hits(logits, [(0,), (0, 1), (3,), ()]) == 2


def test_heat_maps_are_compared_in_shares_of_their_variance() -> None:
    dense = torch.zeros(2, 4, 4, 2)
    dense[0, ..., 0] = 1  # variance 1/4
    dense[0, ..., 1] = 4  # variance 4
    found = heat_maps(dense + torch.tensor([0.5, 1.0]), dense)
    assert found["mse"] == pytest.approx((0.25 + 1) / 2)
    assert found["error"] == pytest.approx((1 + 0.25) / 2)
    assert heat_maps(dense, dense) == {"mse": 0.0, "error": 0.0, "f1": 1.0}


def drawn(*words: tuple[int, int, int, int], value: float = 1.0) -> np.ndarray:
    """A map, [40, 60], with rectangles of one value."""
    found = np.zeros((40, 60))
    for left, top, right, bottom in words:
        found[top:bottom, left:right] = value
    return found


def test_boxes_are_words_that_grow_by_their_thickness() -> None:
    none = np.zeros((40, 60))
    # Filled rectangles: they grow by twice the root of their shorter side, half on each side.
    assert boxes(drawn((20, 10, 40, 14)), none) == [(18, 8, 42, 16)]
    assert boxes(drawn((0, 0, 20, 9)), none) == [(0, 0, 23, 12)]  # as far as the map goes
    assert boxes(drawn((20, 10, 23, 13)), none) == []  # nine pixels
    assert boxes(drawn((20, 10, 40, 14), value=0.6), none) == []  # not sure anywhere
    letters = drawn((10, 10, 20, 14), (30, 10, 40, 14))
    assert len(boxes(letters, none)) == 2
    # A link makes one word of them, and a link that sticks out is no part of the box.
    assert boxes(letters, drawn((18, 11, 50, 13))) == [(9, 9, 42, 16)]


def test_boxes_found_twice_count_once() -> None:
    wanted = [(0, 0, 10, 10), (20, 0, 30, 10)]
    assert overlap(wanted[0], (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap(*wanted) == 0.0
    shifted = [(1, 0, 11, 10), (0, 1, 10, 11), (24, 0, 34, 10)]  # two on the first; the last 3/7
    assert matched(shifted, wanted) == 1
    assert f1([(shifted, wanted)]) == pytest.approx(2 / 5)
    assert f1([(shifted, wanted), (wanted, wanted), ([], [])]) == pytest.approx(6 / 9)
    assert f1([([], [])]) == 1.0 and f1([([], wanted)]) == 0.0
