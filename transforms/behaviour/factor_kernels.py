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
    target: np.ndarray, at: int, left: np.ndarray, left_at: int, right: np.ndarray, right_at: int
) -> None:
    """Adds Σ_k left[k, r] · right[k, c] to target[r, c], for 4 rows r, 16 columns c and 8 terms k.

    Two rows at a time share what they load of `right`. Written out, the terms stay in registers.

    Args:
        target: float32, flat; four rows of 16 begin at `at`.
        at: see `target`.
        left: float32, flat; eight rows of 16 begin at `left_at`, of which the first four columns count.
        left_at: see `left`.
        right: float32, flat; eight rows of 16 begin at `right_at`.
        right_at: see `right`.
    """
    mine, x, y = target[at : at + 64], left[left_at : left_at + 116], right[right_at : right_at + 128]
    for r in range(0, 4, 2):
        a0, a1, a2, a3 = x[r], x[16 + r], x[32 + r], x[48 + r]
        a4, a5, a6, a7 = x[64 + r], x[80 + r], x[96 + r], x[112 + r]
        b0, b1, b2, b3 = x[r + 1], x[17 + r], x[33 + r], x[49 + r]
        b4, b5, b6, b7 = x[65 + r], x[81 + r], x[97 + r], x[113 + r]
        rows = mine[r * 16 : r * 16 + 32]
        for c in range(16):
            y0, y1, y2, y3, y4, y5, y6, y7 = (
                y[c], y[16 + c], y[32 + c], y[48 + c], y[64 + c], y[80 + c], y[96 + c], y[112 + c]
            )  # fmt: skip
            a = ((a0 * y0 + a1 * y1) + (a2 * y2 + a3 * y3)) + ((a4 * y4 + a5 * y5) + (a6 * y6 + a7 * y7))
            b = ((b0 * y0 + b1 * y1) + (b2 * y2 + b3 * y3)) + ((b4 * y4 + b5 * y5) + (b6 * y6 + b7 * y7))
            rows[c] += a
            rows[16 + c] += b


@compiled
def _subtract_products(matrix: np.ndarray, at: int, left_at: int, right_at: int) -> None:
    """Subtracts Σ_k left[k, r] · right[k, c] from target[r, c], for 4 rows r, 16 columns c and 4 terms k.

    Args:
        matrix: float32, flat. Four rows of 16 of the target begin at `at`.
        at: see `matrix`.
        left_at: where four rows of 16 begin, of which the first four columns count.
        right_at: where four rows of 16 begin.
    """
    mine, x, y = matrix[at : at + 64], matrix[left_at : left_at + 52], matrix[right_at : right_at + 64]
    for r in range(0, 4, 2):
        a0, a1, a2, a3 = x[r], x[16 + r], x[32 + r], x[48 + r]
        b0, b1, b2, b3 = x[r + 1], x[17 + r], x[33 + r], x[49 + r]
        rows = mine[r * 16 : r * 16 + 32]
        for c in range(16):
            y0, y1, y2, y3 = y[c], y[16 + c], y[32 + c], y[48 + c]
            a = (a0 * y0 + a1 * y1) + (a2 * y2 + a3 * y3)
            b = (b0 * y0 + b1 * y1) + (b2 * y2 + b3 * y3)
            rows[c] -= a
            rows[16 + c] -= b


@compiled
def _factorize(matrix: np.ndarray, w: int, inverse: np.ndarray) -> None:
    """Overwrites the upper triangle of a positive definite matrix S by the U with UᵀU = S.

    Works on 4 rows at a time: first it subtracts what the rows above contribute, then it eliminates within the rows.

    Source: Golub and Van Loan, "Matrix computations", 2013, §4.2.5 (block Cholesky).

    Args:
        matrix: float32 [w · w], in panels. Below the diagonal it may hold anything.
        w: the number of columns.
        inverse: float32 [w], receives the inverse of the diagonal of U.
    """
    one = np.float32(1)
    for top in range(0, w, 4):
        own = top // 16
        column = own * w * 16 + top % 16  # where the first of the 4 columns with the diagonal begins
        for p in range(own, w // 16):
            for k in range(0, top, 4):
                _subtract_products(matrix, (p * w + top) * 16, column + k * 16, (p * w + k) * 16)
        head = matrix[column + top * 16 : column + top * 16 + 52]
        s0 = one / np.sqrt(head[0])
        u01, u02, u03 = head[1] * s0, head[2] * s0, head[3] * s0
        s1 = one / np.sqrt(head[17] - u01 * u01)
        u12, u13 = (head[18] - u01 * u02) * s1, (head[19] - u01 * u03) * s1
        s2 = one / np.sqrt((head[34] - u02 * u02) - u12 * u12)
        u23 = ((head[35] - u02 * u03) - u12 * u13) * s2
        s3 = one / np.sqrt(((head[51] - u03 * u03) - u13 * u13) - u23 * u23)
        inverse[top], inverse[top + 1], inverse[top + 2], inverse[top + 3] = s0, s1, s2, s3
        for p in range(own, w // 16):
            rows = matrix[(p * w + top) * 16 : (p * w + top) * 16 + 64]
            for c in range(16):
                r0 = rows[c] * s0
                r1 = (rows[16 + c] - u01 * r0) * s1
                r2 = ((rows[32 + c] - u02 * r0) - u12 * r1) * s2
                r3 = (((rows[48 + c] - u03 * r0) - u13 * r1) - u23 * r2) * s3
                rows[c], rows[16 + c], rows[32 + c], rows[48 + c] = r0, r1, r2, r3


@compiled
def _substitute(matrix: np.ndarray, w: int, inverse: np.ndarray, right: np.ndarray, x: np.ndarray) -> None:
    """Solves UᵀU x = right.

    Args:
        matrix: float32 [w · w], U in panels, as `_factorize` returns it.
        w: the number of columns.
        inverse: float32 [w], the inverse of the diagonal of U.
        right: float32 [w]; overwritten.
        x: float32 [w], receives the solution.
    """
    for j in range(w):
        value = right[j] * inverse[j]
        for p in range(j // 16, w // 16):
            row, part = matrix[(p * w + j) * 16 : (p * w + j) * 16 + 16], right[p * 16 : p * 16 + 16]
            for c in range(16):
                part[c] -= value * row[c]
        right[j] = value
        x[j] = 0
    n = np.empty(16, np.float32)
    for j in range(w - 1, -1, -1):  # x is still zero up to j, so what stands below the diagonal does not count
        for c in range(16):
            n[c] = 0
        for p in range(j // 16, w // 16):
            row, part = matrix[(p * w + j) * 16 : (p * w + j) * 16 + 16], x[p * 16 : p * 16 + 16]
            for c in range(16):
                n[c] += row[c] * part[c]
        low = ((n[0] + n[1]) + (n[2] + n[3])) + ((n[4] + n[5]) + (n[6] + n[7]))
        high = ((n[8] + n[9]) + (n[10] + n[11])) + ((n[12] + n[13]) + (n[14] + n[15]))
        x[j] = (right[j] - (low + high)) * inverse[j]


@compiled
def _place(vector: np.ndarray, k: int, vectors: np.ndarray, total: np.ndarray) -> None:
    """Writes a vector into the k-th of 8 rows in panels, and adds it to a sum.

    Args:
        vector: float32 [d].
        k: 0 to 7.
        vectors: float32 [8 · w].
        total: float32 [w].
    """
    whole = len(vector) // 16 * 16
    for at in range(0, whole, 16):
        source, row, part = vector[at : at + 16], vectors[at * 8 + k * 16 : at * 8 + k * 16 + 16], total[at : at + 16]
        for c in range(16):
            row[c] = source[c]
            part[c] += source[c]
    for c in range(whole, len(vector)):
        vectors[whole * 8 + k * 16 + c - whole] = vector[c]
        total[c] += vector[c]


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
    right, x, inverse = np.empty(w, np.float32), np.empty(w, np.float32), np.empty(w, np.float32)
    for r in range(len(first) - 1):
        matrix[:], right[:] = 0, 0
        for start in range(first[r], first[r + 1], 8):
            n = min(8, first[r + 1] - start)
            for k in range(n):
                _place(factors[others[start + k]], k, vectors, right)
            for k in range(n, 8):
                for p in range(w // 16):
                    vectors[p * 128 + k * 16 : p * 128 + k * 16 + 16] = 0
            for p in range(w // 16):
                for a in range(0, 16 * p + 16, 4):
                    left_at = a // 16 * 128 + a % 16
                    _add_products(matrix, (p * w + a) * 16, vectors, left_at, vectors, p * 128)
        for i in range(w * w):
            matrix[i] += base[i]
        more = np.float32(ridge * (first[r + 1] - first[r] + spread))
        for c in range(w):
            matrix[(c // 16 * w + c) * 16 + c % 16] += more
        _factorize(matrix, w, inverse)
        _substitute(matrix, w, inverse, right, x)
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
