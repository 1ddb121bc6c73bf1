"""Partial correlations of items from counts of pairs: what two items have in common beyond all other items."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse

from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.whitening import signs

MOST_ITEMS = 20_000  # a dense matrix of this many items takes 3.2 GB, and its inversion a few minutes


def partial_correlations(counts: scipy.sparse.csr_array, ridge: float) -> np.ndarray:
    """Computes −P_ij / √(P_ii P_jj) with P = (counts + ridge · I)^{-1}, zero on the diagonal: float64 [n, n].

    With counts = XᵀX, column j of the item–item weights of EASE is −P_ij / P_jj: the relation of two items with all
    other items held fixed. Divided by √(P_ii P_jj) instead of P_jj, the matrix is symmetric, and inner products of one
    vector for each item can approximate it.

    Args:
        counts: [n, n], the number of users who liked both items; on the diagonal, the number of users who liked the
            item.
        ridge: λ > 0. The larger it is, the less the other items are taken into account.

    Raises:
        JobError: there are more items than the matrix to invert may have.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, eq. 8 (the weights); Lauritzen,
    "Graphical models", 1996, eq. 5.8 (partial correlation from the inverse).
    """
    n = counts.shape[0]
    if n > MOST_ITEMS:
        raise JobError(
            f"behaviour.method: ridge inverts a matrix of {n:,} items, and at most {MOST_ITEMS:,} are allowed; "
            "raise behaviour.min_users or use method ppmi"
        )
    dense = counts.toarray().astype(np.float64)
    dense[np.diag_indices(n)] += ridge
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(dense), np.eye(n))
    scale = 1.0 / np.sqrt(np.diag(inverse))
    out = -(inverse + inverse.T) / 2 * np.outer(scale, scale)  # exactly symmetric
    out[np.diag_indices(n)] = 0.0
    return np.asarray(out)


def leading_axes(matrix: np.ndarray, dim: int, power: float) -> np.ndarray:
    """Computes U Λ^power for the largest positive eigenvalues of a symmetric matrix: float64 [n, ≤ dim].

    Each column's largest entry is positive. With power ½, inner products of rows approximate the matrix. With power 1
    they approximate its square, in which two items are also related if they are related to the same other items.

    Source: Caron, "Experiments with LSA scoring", 2001 (the power as a setting); Levy, Goldberg, Dagan, "Improving
    distributional similarity with lessons learned from word embeddings", TACL 3, 2015, §3.3.

    Args:
        matrix: [n, n], symmetric.
        dim: the largest number of columns to return.
        power: the power of the eigenvalues.
    """
    n = len(matrix)
    dim = min(dim, n)
    if dim == 0:
        return np.zeros((n, 0))
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[n - dim, n - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > 1e-9 * max(values[0], 1e-300)
    values, vectors = values[keep], vectors[:, keep]
    return np.asarray(vectors * signs(vectors) * values**power)
