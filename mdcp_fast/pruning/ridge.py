"""Ridge regression from second moments: the damping and the solves that scores and repairs share.

With G the second moments of some inputs, the inputs K predict the others D by

    x_D = G_DK (G_KK + lam I)^-1 x_K

lam a share of the mean diagonal. What `compensation` repairs and what `reconstruction` scores are
the same regression, so its constant and its solution are here once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdcp_fast.modules.calls import even_parts

RIDGE = 1e-3  # of the mean diagonal
BLOCKS = 4  # of the columns of a wide Gram matrix, whose upper half is not computed
WIDE = 512  # columns from which that is faster
TINY = torch.finfo(torch.float32).tiny


def gram_of(rows: Tensor) -> Tensor:
    """Summed products of the columns of each matrix.

    Args:
        rows: [groups, R, n].

    Returns:
        [groups, n, n], of the same dtype.
    """
    columns = rows.shape[2]
    if columns < WIDE:
        return rows.mT @ rows
    gram = rows.new_empty(rows.shape[0], columns, columns)
    for block in even_parts(columns, BLOCKS):
        below = rows[:, :, block].mT @ rows[:, :, : block.stop]
        gram[:, block, : block.stop] = below
        gram[:, : block.start, block] = below[:, :, : block.start].mT
    return gram


def damping(gram: Tensor) -> Tensor:
    """lam for each matrix.

    Args:
        gram: float64 [groups, n, n], second moments.

    Returns:
        float64 [groups].
    """
    return RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY)


def damped(gram: Tensor, lam: Tensor) -> Tensor:
    """G + lam I, a new tensor.

    Args:
        gram: float64 [groups, n, n].
        lam: float64 [groups].
    """
    result = gram.clone()
    result.diagonal(dim1=1, dim2=2).add_(lam.unsqueeze(1))
    return result


def factorised(gram: Tensor, lam: Tensor) -> Tensor:
    """The lower Cholesky factors of G + lam I, float64 [groups, n, n].

    Args:
        gram: float64 [groups, n, n], symmetric.
        lam: float64 [groups], positive.

    Raises:
        torch.linalg.LinAlgError: One of the matrices is not positive definite.
    """
    return torch.linalg.cholesky(damped(gram, lam))


def predictors(gram: Tensor, kept: Tensor, lost: Tensor) -> Tensor:
    """Coefficients that predict lost inputs from kept ones: float64 [groups, lost, kept].

    Args:
        gram: float64 [groups, n, n], second moments.
        kept: int64, inputs that stay. lam is a share of their mean diagonal.
        lost: int64, the others.
    """
    inner = gram[:, kept][:, :, kept]
    factor = factorised(inner, damping(inner))
    return torch.cholesky_solve(gram[:, kept][:, :, lost], factor).transpose(1, 2)


def unpredicted(gram: Tensor, effect: Tensor, stays: Tensor, lam: Tensor) -> float:
    """tr(S (G_DD - G_DK (G_KK + lam I)^-1 G_KD)), summed over the groups.

    Args:
        gram: float64 [groups, n, n], G.
        effect: float64 [groups, n, n], S; of it the rows and columns D are used.
        stays: bool [n], true for K.
        lam: float64 [groups].
    """
    factor = factorised(gram[:, stays][:, :, stays], lam)
    across = gram[:, stays][:, :, ~stays]
    across = torch.linalg.solve_triangular(factor, across, upper=False)
    weights = effect[:, ~stays][:, :, ~stays]
    total = (weights * gram[:, ~stays][:, :, ~stays]).sum()
    return float(total - ((across @ weights) * across).sum())


def mispredicted(
    gram: Tensor, held_out: Tensor, effect: Tensor, stays: Tensor, lam: Tensor
) -> float:
    """tr(S E[e e^T]) of the errors e = x_D - B x_K on other samples than B was made from.

    Args:
        gram: float64 [groups, n, n], G, of which B = G_DK (G_KK + lam I)^-1.
        held_out: float64 [groups, n, n], the second moments of the other samples.
        effect: float64 [groups, n, n], S; of it the rows and columns D are used.
        stays: bool [n], true for K.
        lam: float64 [groups].
    """
    factor = factorised(gram[:, stays][:, :, stays], lam)
    predict = torch.cholesky_solve(gram[:, stays][:, :, ~stays], factor)  # [groups, K, D]
    across = held_out[:, stays][:, :, ~stays]
    inside = held_out[:, stays][:, :, stays] @ predict
    left = held_out[:, ~stays][:, :, ~stays] - 2 * across.mT @ predict + predict.mT @ inside
    return float((effect[:, ~stays][:, :, ~stays] * left).sum())


def nested_unpredicted(gram: Tensor, effect: Tensor, lam: Tensor) -> Tensor:
    """`unpredicted` where the first 0, 1, ..., n inputs stay: float64 [n + 1], from one factor.

    With L L^T = G + lam I the errors of the inputs D behind the first K have the second moments
    L_DD L_DD^T - lam I, whatever K is.

    Args:
        gram, effect, lam: As `unpredicted` takes them.
    """
    factor = factorised(gram, lam)
    gained = (factor * (effect @ factor)).sum(1)  # the diagonal of L^T S L
    return _from_the_end((gained - lam.unsqueeze(1) * effect.diagonal(dim1=1, dim2=2)).sum(0))


def nested_mispredicted(gram: Tensor, held_out: Tensor, effect: Tensor, lam: Tensor) -> Tensor:
    """`mispredicted` where the first 0, 1, ..., n inputs stay: float64 [n + 1], from one factor.

    With L L^T = G + lam I and z = L^-1 x the errors of the inputs D behind the first K are
    L_DD z_D, whatever K is.

    Args:
        gram, held_out, effect, lam: As `mispredicted` takes them.
    """
    factor = factorised(gram, lam)
    half = torch.linalg.solve_triangular(factor, held_out, upper=False)
    innovations = torch.linalg.solve_triangular(factor, half.mT, upper=False)  # E[z z^T]
    products = (factor.mT @ effect @ factor) * innovations
    return _from_the_end((2 * products.triu(1).sum(2) + products.diagonal(dim1=1, dim2=2)).sum(0))


def _from_the_end(terms: Tensor) -> Tensor:
    """Sums of the last n, n - 1, ..., 0 of n terms."""
    return torch.cat([terms.flip(0).cumsum(0).flip(0), terms.new_zeros(1)])
