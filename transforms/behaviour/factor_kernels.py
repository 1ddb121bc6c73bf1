"""Compiled loops of matrix factorization: exact solves of rows, sums over likes, and sums that are exact.

No loop adds up along the axis that the processor works on in parallel, and no operations are fused. So the results do
not depend on the width of a processor's registers.

The loops see a matrix of w columns, w a multiple of 16, as panels: panel p holds the columns 16p to 16p + 15, and in
it one row of 16 numbers follows the other. A loop of 16 steps becomes one or two instructions.
"""

from __future__ import annotations

import numpy as np

from unisono.transforms.base.compiled import compiled


@compiled
def _add_products(
    target: np.ndarray, at: int, left: np.ndarray, left_at: int, right: np.ndarray, right_at: int, sign: np.float32
) -> None:
    """Adds sign · Σ_k left[k, r] · right[k, c] to target[r, c], for 4 rows r, 16 columns c and 8 terms k.

    Args:
        target: float32, flat; four rows of 16 begin at `at`.
        at: see `target`.
        left: float32, flat; eight rows of 16 begin at `left_at`, of which the first four columns count.
        left_at: see `left`.
        right: float32, flat; eight rows of 16 begin at `right_at`.
        right_at: see `right`.
        sign: 1 or −1.
    """
    mine, x, y = target[at : at + 64], left[left_at : left_at + 116], right[right_at : right_at + 128]
    for r in range(4):
        a, b, c, d = sign * x[r], sign * x[16 + r], sign * x[32 + r], sign * x[48 + r]
        e, f, g, h = sign * x[64 + r], sign * x[80 + r], sign * x[96 + r], sign * x[112 + r]
        row = mine[r * 16 : r * 16 + 16]
        for i in range(16):
            row[i] += ((a * y[i] + b * y[16 + i]) + (c * y[32 + i] + d * y[48 + i])) + (
                (e * y[64 + i] + f * y[80 + i]) + (g * y[96 + i] + h * y[112 + i])
            )


@compiled
def _factorize(matrix: np.ndarray, w: int) -> None:
    """Overwrites the upper triangle of a positive definite matrix S by the U with UᵀU = S.

    Works on 16 rows at a time: first it subtracts what the rows above contribute, then it eliminates within the rows.

    Source: Golub and Van Loan, "Matrix computations", 2013, §4.2.5 (block Cholesky).

    Args:
        matrix: float32 [w · w], in panels.
        w: the number of columns.
    """
    for top in range(0, w, 16):
        for p in range(top // 16, w // 16):
            for r in range(top, top + 16, 4):
                for k in range(0, top, 8):
                    left_at = top * w + k * 16 + r - top
                    _add_products(matrix, (p * w + r) * 16, matrix, left_at, matrix, (p * w + k) * 16, np.float32(-1))
        for i in range(top, top + 16):
            head = matrix[top * w : top * w + 16 * w]  # the panel of the diagonal
            for j in range(top, i):
                factor = head[j * 16 + i - top]
                for p in range(top // 16, w // 16):
                    upper = matrix[(p * w + j) * 16 : (p * w + j) * 16 + 16]
                    lower = matrix[(p * w + i) * 16 : (p * w + i) * 16 + 16]
                    for c in range(16):
                        lower[c] -= factor * upper[c]
            scale = np.float32(1) / np.sqrt(head[i * 16 + i - top])
            for p in range(top // 16, w // 16):
                row = matrix[(p * w + i) * 16 : (p * w + i) * 16 + 16]
                for c in range(16):
                    row[c] *= scale


@compiled
def _substitute(matrix: np.ndarray, w: int, x: np.ndarray) -> None:
    """Overwrites x by the solution of UᵀU · solution = x.

    Args:
        matrix: float32 [w · w], U in panels, as `_factorize` returns it.
        w: the number of columns.
        x: float32 [w].
    """
    for j in range(w):
        own = j // 16
        x[j] /= matrix[(own * w + j) * 16 + j - own * 16]
        value = x[j]
        kept = x[own * 16 : j + 1].copy()
        for p in range(own, w // 16):
            row, part = matrix[(p * w + j) * 16 : (p * w + j) * 16 + 16], x[p * 16 : p * 16 + 16]
            for c in range(16):
                part[c] -= value * row[c]
        x[own * 16 : j + 1] = kept
    lanes = np.empty(16, np.float32)
    for j in range(w - 1, -1, -1):
        own = j // 16
        for c in range(16):
            lanes[c] = 0
        for p in range(own + 1, w // 16):
            row, part = matrix[(p * w + j) * 16 : (p * w + j) * 16 + 16], x[p * 16 : p * 16 + 16]
            for c in range(16):
                lanes[c] += row[c] * part[c]
        value = x[j]
        for c in range(16):
            value -= lanes[c]
        for c in range(j + 1 - own * 16, 16):
            value -= matrix[(own * w + j) * 16 + c] * x[own * 16 + c]
        x[j] = value / matrix[(own * w + j) * 16 + j - own * 16]


@compiled
def solve_rows(
    first: np.ndarray,
    others: np.ndarray,
    factors: np.ndarray,
    base: np.ndarray,
    ridge: float,
    spread: float,
    out: np.ndarray,
) -> None:
    """Solves (Σ v vᵀ + base + ridge · (n + spread) · I) x = Σ v for each row, with the vectors v of its n likes.

    Args:
        first: int64 [rows + 1]: row r has the likes `first[r]` to `first[r + 1]`.
        others: int [likes], rows of `factors`.
        factors: float32 [others, d], the vectors of the other side.
        base: float32 [w · w], in panels, symmetric; w is the next multiple of 16 that is not below d.
        ridge: see above.
        spread: see above.
        out: float32 [rows, d], receives the solutions.
    """
    d = factors.shape[1]
    w = (d + 15) // 16 * 16
    matrix, vectors = np.empty(w * w, np.float32), np.zeros(8 * w, np.float32)
    x = np.empty(w, np.float32)
    for r in range(len(first) - 1):
        matrix[:], x[:] = 0, 0
        for start in range(first[r], first[r + 1], 8):
            for k in range(8):
                if start + k < first[r + 1]:
                    vector = factors[others[start + k]]
                    for c in range(d):
                        value = vector[c]
                        vectors[c // 16 * 128 + k * 16 + c % 16] = value
                        x[c] += value
                else:
                    for p in range(w // 16):
                        vectors[p * 128 + k * 16 : p * 128 + k * 16 + 16] = 0
            for p in range(w // 16):
                for a in range(0, 16 * p + 16, 4):
                    left_at = a // 16 * 128 + a % 16
                    _add_products(matrix, (p * w + a) * 16, vectors, left_at, vectors, p * 128, np.float32(1))
        for i in range(w * w):
            matrix[i] += base[i]
        more = np.float32(ridge * (first[r + 1] - first[r] + spread))
        for c in range(w):
            matrix[(c // 16 * w + c) * 16 + c % 16] += more
        _factorize(matrix, w)
        _substitute(matrix, w, x)
        for c in range(d):
            out[r, c] = x[c]


@compiled
def add_up(first: np.ndarray, others: np.ndarray, vectors: np.ndarray, out: np.ndarray) -> None:
    """Adds up the vectors of each row's likes, in float64 and in the order of the likes.

    Args:
        first: int64 [rows + 1]: row r has the likes `first[r]` to `first[r + 1]`.
        others: int [likes], rows of `vectors`.
        vectors: float32 [others, d].
        out: float32 [rows, d], receives the sums.
    """
    total = np.empty(vectors.shape[1])
    for r in range(len(first) - 1):
        total[:] = 0
        for at in range(first[r], first[r + 1]):
            vector = vectors[others[at]]
            for c in range(len(vector)):
                total[c] += vector[c]
        for c in range(len(total)):
            out[r, c] = total[c]


@compiled
def add_outer(a: np.ndarray, b: np.ndarray, coarse: float, fine: float, sums: np.ndarray) -> None:
    """Adds Σ_r a[r] b[r]ᵀ to sums of multiples of two grids; each addition is exact.

    Args:
        a: float32 [rows, d].
        b: float32 [rows, e].
        coarse: 1.5 · 2^52 times the coarse grid: adding and subtracting it rounds a number to that grid.
        fine: the same for the fine grid.
        sums: float64 [2, d, e], receives the sums.
    """
    wide = np.empty((16, b.shape[1]))
    for top in range(0, len(a), 16):
        n = min(16, len(a) - top)
        for r in range(n):
            for c in range(b.shape[1]):
                wide[r, c] = b[top + r, c]
        for i in range(a.shape[1]):
            high, low = sums[0, i], sums[1, i]
            for r in range(n):
                x, y = np.float64(a[top + r, i]), wide[r]
                for c in range(len(y)):
                    product = x * y[c]
                    rounded = (product + coarse) - coarse
                    high[c] += rounded
                    low[c] += ((product - rounded) + fine) - fine


@compiled
def add_products(a: np.ndarray, b: np.ndarray, grids: np.ndarray, sums: np.ndarray) -> None:
    """Adds Σ_r a[r, c] · b[r, c] for each column c to sums of multiples of three grids; each addition is exact.

    Args:
        a: float32 [rows, d].
        b: float32 [rows, d].
        grids: float64 [3], 1.5 · 2^52 times each grid, the coarsest one first.
        sums: float64 [3, d], receives the sums.
    """
    high, middle, low = sums[0], sums[1], sums[2]
    for r in range(len(a)):
        x, y = a[r], b[r]
        for c in range(len(x)):
            rest = np.float64(x[c]) * np.float64(y[c])
            rounded = (rest + grids[0]) - grids[0]
            high[c] += rounded
            rest -= rounded
            rounded = (rest + grids[1]) - grids[1]
            middle[c] += rounded
            low[c] += ((rest - rounded) + grids[2]) - grids[2]


@compiled
def rotate(rows: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """Multiplies each row by a matrix, in float64.

    Args:
        rows: float32 [n, d].
        matrix: float64 [d, e].
        out: float32 [n, e], receives the products.
    """
    total = np.empty(matrix.shape[1])
    for r in range(len(rows)):
        total[:] = 0
        for i in range(len(matrix)):
            x, row = np.float64(rows[r, i]), matrix[i]
            for c in range(len(row)):
                total[c] += x * row[c]
        for c in range(len(total)):
            out[r, c] = total[c]
