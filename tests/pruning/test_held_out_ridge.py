"""How strong a layer's correction is, images say that were held out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mdcp_fast.pruning import held_out_ridge as module
from mdcp_fast.pruning.held_out_ridge import FOLDS, NARROW, RIDGES, _uphill, held_out_ridge
from mdcp_fast.pruning.ridge import WIDE, gram_of


def data(rows: int, entries: int, noise: float, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, what outputs lack, and of which of twelve images each row is."""
    generator = torch.Generator().manual_seed(rows + entries)
    seen = torch.randn(groups, rows, entries, generator=generator, dtype=torch.float64)
    truth = torch.randn(groups, entries, 3, generator=generator, dtype=torch.float64)
    lacking = seen @ truth / entries**0.5
    lacking += noise * torch.randn(lacking.shape, generator=generator, dtype=torch.float64)
    return seen, lacking, torch.arange(rows) % 12


def corrections(seen: Tensor, lacking: Tensor) -> list[Tensor]:
    """Those of the whole path, by their definition."""
    gram, cross = seen.mT @ seen, seen.mT @ lacking
    one = torch.eye(seen.shape[2], dtype=torch.float64)
    lam = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * one
    return [torch.linalg.solve(gram + share * lam, cross).mT for share in RIDGES]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("rows", "entries"), [(240, 20), (60, 100), (900, NARROW + 1), (96, 300)])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_it_is_the_one_of_the_path_that_held_out_images_choose(
    rows: int, entries: int, noise: float, groups: int
) -> None:
    seen, lacking, images = data(rows, entries, noise, groups)
    gains = []
    for share in range(len(RIDGES)):
        gain = 0.0
        for fold in range(FOLDS if entries <= NARROW else 1):
            held = images % FOLDS == fold
            fitted = corrections(seen[:, ~held], lacking[:, ~held])[share]
            left = lacking[:, held] - seen[:, held] @ fitted.mT
            gain += float(lacking[:, held].square().sum() - left.square().sum())
        gains.append(gain)
    best = max(range(len(RIDGES)), key=gains.__getitem__)
    wanted = corrections(seen, lacking)[best] * float(gains[best] > 0)
    found = held_out_ridge(seen, lacking, images)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_wide_layers_try_less_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, lacking, images = data(900, NARROW + 1, 0.1)
    factors = []

    def factorised(gram: Tensor, lam: Tensor) -> Tensor:
        factors.append(lam)
        return known(gram, lam)

    known = module.factorised
    monkeypatch.setattr(module, "factorised", factorised)
    held_out_ridge(seen, lacking, images)
    assert len(factors) <= len(RIDGES)  # with the one of the last fit


@pytest.mark.parametrize("top", range(5))
def test_uphill_finds_the_top(top: int) -> None:
    tried: list[int] = []

    def gain(place: int) -> float:
        tried.append(place)
        return -abs(place - top) - 0.5

    assert _uphill(gain, 5) == (top, -0.5)
    assert len(tried) == len(set(tried)) <= 4


def test_of_a_single_image_the_strongest_is_taken() -> None:
    seen, lacking, images = data(40, 10, 0.1)
    found = held_out_ridge(seen, lacking, torch.zeros_like(images))
    torch.testing.assert_close(found, corrections(seen, lacking)[-1])


@pytest.mark.parametrize("columns", [5, WIDE, WIDE + 3])
def test_half_of_a_gram_matrix_is_all_of_it(columns: int) -> None:
    rows = torch.randn(2, 33, columns, dtype=torch.float64)
    found = gram_of(rows)
    torch.testing.assert_close(found, rows.mT @ rows)
