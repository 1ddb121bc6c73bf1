"""What two items have in common beyond what all others explain: partial correlations from counts of pairs."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse

from unisono.transforms.base.errors import JobError

MOST_ITEMS = 20_000  # dense and inverted: 3.2 GB, a few minutes


def partial_correlations(counts: scipy.sparse.csr_array, ridge: float) -> np.ndarray:
    """Gives −P_ij / √(P_ii P_jj) with P = (counts + ridge · I)^{-1}, zero on the diagonal: float64 [n, n].

    With counts = XᵀX, column j of EASE's item–item weights is −P_ij / P_jj: what is left between two items once the
    others are held fixed. Scaled by both ends instead of one it is symmetric, so that one vector an item can carry it.

    Args:
        counts: [n, n], how many users turned to both items; on the diagonal, to the item.
        ridge: λ > 0; the larger, the more pairs speak for themselves.

    Raises:
        JobError: there are more items than can be inverted.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, eq. 8 (the weights); Lauritzen,
    "Graphical models", 1996, eq. 5.8 (partial correlation from the inverse).
    """
    n = counts.shape[0]
    if n > MOST_ITEMS:
        raise JobError(
            f"behaviour.method: ridge inverts a matrix of {n:,} items, over {MOST_ITEMS:,}; raise behaviour.min_users "
            "or use method ppmi"
        )
    dense = counts.toarray().astype(np.float64)
    dense[np.diag_indices(n)] += ridge
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(dense), np.eye(n))
    scale = 1.0 / np.sqrt(np.diag(inverse))
    out = -(inverse + inverse.T) / 2 * np.outer(scale, scale)  # symmetric to the last digit
    out[np.diag_indices(n)] = 0.0
    return np.asarray(out)


def leading_axes(matrix: np.ndarray, dim: int, power: float) -> np.ndarray:
    """Gives U Λ^power of the largest eigenvalues of a symmetric matrix, those above zero: float64 [n, ≤ dim].

    Each column's largest entry is positive. With power ½ inner products of rows approximate the matrix, with 1 its
    square: what is alike to the same others, too.

    Source: Caron, "Experiments with LSA scoring", 2001 (the power as a setting); Levy, Goldberg, Dagan, "Improving
    distributional similarity with lessons learned from word embeddings", TACL 3, 2015, §3.3.
    """
    n = len(matrix)
    dim = min(dim, n)
    if dim == 0:
        return np.zeros((n, 0))
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[n - dim, n - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > 1e-9 * max(values[0], 1e-300)
    values, vectors = values[keep], vectors[:, keep]
    signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0))
    return np.asarray(vectors * signs * values**power)
