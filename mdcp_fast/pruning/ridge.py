"""Ridge regression from second moments: the damping and the solves that scores and repairs share.

With G the second moments of some inputs, the inputs K predict the others D by

    x_D = G_DK (G_KK + lam I)^-1 x_K

lam a share of the mean diagonal. What `compensation` repairs and what `reconstruction` scores are
the same regression, so its constant and its solution are here once.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3  # of the mean diagonal
TINY = torch.finfo(torch.float32).tiny


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
