"""Item and user factors by exact alternating least squares (iALS): one half-sweep at a time, and all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import common_rows
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, hash_ids, one_chunk
from unisono.transforms.base.threads import in_threads
from unisono.transforms.behaviour.exact_sums import kernels, sum_of_outer, total
from unisono.transforms.behaviour.left_factors import solve_left_factors
from unisono.transforms.behaviour.likes import Likes
from unisono.transforms.space.fit.whitening import turn_to

_LIKES_A_THREAD = 2000
_TASTES_LOST = 0.75  # in root mean squares of the singular values
_ROW_COST = 30  # solving a row costs as much as adding this many likes to its matrix


@dataclass(frozen=True)
class FactorSpec:
    """How factors are fitted.

    Attributes:
        factors: d, the number of factors, at least 1.
        regularization: λ, above 0. None means a value that suits the number of likes, see `settled`.
        unobserved: a₀, the weight of a pair that is not liked; at least 0. See `settled`.
        most_unobserved: how many times as much as all liked pairs all other pairs may weigh together; above 0.
        sweeps: how often both sides are solved; at least 1.
        left_ridge: the number added to the diagonal of XᵀX for the left factors; above 0.
        seed: which random start.
    """

    factors: int = 64
    regularization: float | None = None
    unobserved: float = 0.5
    most_unobserved: float = 16.0
    sweeps: int = 10
    left_ridge: float = 30.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Factors:
    """The factors of all items and users with a like.

    Attributes:
        item_ids: [m], ascending.
        users: int64 [m], how many users like the item.
        item_factors: V, float32 [m, d].
        left_factors: A, float32 [m, d]. A user's factors are about the sum of the A of the items that the user likes.
        user_factors: U, float32 [u, d], in the order of `Likes.user_ids`.
    """

    item_ids: pa.Array
    users: np.ndarray
    item_factors: np.ndarray
    left_factors: np.ndarray
    user_factors: np.ndarray


def fit_factors(likes: Likes, spec: FactorSpec, start: pa.Table | None = None) -> Factors:
    """Fits factors of items and users.

    Minimizes Σ_liked (1 − u·v)² + a₀ Σ_all (u·v)² + λ Σ_u (n_u + a₀ m) |u|² + λ Σ_i (n_i + a₀ u) |v|² by solving all
    users given the items, and then all items given the users, `sweeps` times. λ and a₀ are as `settled` returns them.
    n_u and n_i are the numbers of likes of a user and an item, among m items and u users. At the end all users are
    solved once more.

    Source: Rendle, Krichene, Zhang, Koren, "Revisiting the performance of iALS on item recommendation benchmarks",
    RecSys 2022, with ν = 1.

    Args:
        likes: the liked pairs.
        spec: the settings.
        start: `item_id` and `item_factor` of the published run, in any order. The items that are in it start from
            there. After the fit, all factors are rotated such that the item factors come closest to the published
            ones; scores do not change by that. None, or a table with another number of factors, means neither.

    Raises:
        JobError: see `solve_side`.

    Guarantees:
        The result depends on the set of pairs, the settings and the start only.
    """
    start = usable_start(start, spec)
    spec = settled(spec, len(likes.items), len(likes.user_ids), len(likes.item_ids))
    items = start_factors(likes.item_ids, spec, start)
    for sweep in range(spec.sweeps + 1):
        gram = total([sum_of_outer(items, items)])
        users = solve_side(likes.first_of_user, likes.items, factors=items, gram=gram, spec=spec)
        if sweep < spec.sweeps:
            gram = total([sum_of_outer(users, users)])
            items = solve_side(likes.first_of_item, likes.users, factors=users, gram=gram, spec=spec)
    left = solve_left_factors(likes, users, spec.left_ridge)
    if start is not None:
        turn = turn_between(total([shared_products(likes.item_ids, items, start)]))
        if turn is not None:
            items, users, left = (rotated(side, turn) for side in (items, users, left))
    return Factors(likes.item_ids, np.diff(likes.first_of_item), items, left, users)


def settled(spec: FactorSpec, likes: int, users: int, items: int) -> FactorSpec:
    """Fills in what depends on how sparse the likes are.

    a₀ is lowered to most_unobserved · likes / (users · items): with a₀ fixed, all pairs that are not liked would drown
    the liked ones of a sparse log.

    The regularization removes each taste whose singular value in X is below about λ · a₀ · √(users · items). If λ is
    None, it is chosen such that this bound is 3/4 of the root mean square of the singular values,
    √(likes / min(users, items)). That is 0.01 for MovieLens-100k. On the demo's sparse shop 1/2 to 1 does well, and
    1.5 leaves no tastes.

    Source: Rendle, Krichene, Zhang, Koren, RecSys 2022, whose a₀ and λ are smaller for sparser and for larger data.
    """
    weight = min(spec.unobserved, spec.most_unobserved * likes / max(users * items, 1))
    regularization = spec.regularization
    if regularization is None:
        regularization = 1.0
        if likes and weight:
            spread = np.sqrt(likes / min(users, items))
            regularization = float(_TASTES_LOST * spread / (weight * np.sqrt(users * items)))
    return replace(spec, regularization=regularization, unobserved=weight)


# --- one half-sweep ----------------------------------------------------------------------------------------


def solve_side(
    first: np.ndarray,
    others: np.ndarray,
    *,
    factors: np.ndarray,
    gram: np.ndarray,
    spec: FactorSpec,
) -> np.ndarray:
    """Solves the rows of one side, exactly, given the factors of the other side.

    Args:
        first: int64 [rows + 1]: row r has the likes `first[r]` to `first[r + 1]`.
        others: int [likes], rows of `factors`.
        factors: float32 [n, d], the other side; may be memory-mapped.
        gram: float64 [d, d], the sum of f fᵀ over the other side.
        spec: the settings.

    Returns:
        float32 [rows, d]. A row depends only on its own likes and on the other side.

    Raises:
        JobError: the regularization is so small that a row has no solution, or numba is not installed.
    """
    out = np.empty((len(first) - 1, factors.shape[1]), np.float32)
    base = _panels(spec.unobserved * gram)
    ridge, spread = float(spec.regularization or 0.0), float(spec.unobserved * len(factors))
    loops, factors = kernels(), np.asarray(factors)

    def solve(a: int, b: int) -> None:
        loops.solve_rows(first[a : b + 1], others, factors, base, ridge, spread, out[a:b])

    try:
        in_threads(first + _ROW_COST * np.arange(len(first)), _LIKES_A_THREAD, solve)
    except ZeroDivisionError as e:  # a pivot is zero; one below zero makes a row that is not a number
        raise _unsolvable(spec) from e
    if not np.isfinite(out).all():
        raise _unsolvable(spec)
    return out


def _unsolvable(spec: FactorSpec) -> JobError:
    return JobError(
        f"ranking: with a regularization of {spec.regularization:g} and {spec.factors} factors, some factors cannot be "
        "solved for in float32; raise the regularization, for instance to 0.01"
    )


def _panels(matrix: np.ndarray) -> np.ndarray:
    """Rounds a matrix to float32, pads it with zeros to a multiple of 16, and stores it in panels of 16 columns.

    The padding gets ones on the diagonal.
    """
    d = len(matrix)
    w = -(-d // 16) * 16
    wide = np.eye(w, dtype=np.float32)
    wide[:d, :d] = matrix
    return np.ascontiguousarray(wide.reshape(w, w // 16, 16).swapaxes(0, 1)).reshape(-1)


# --- start and turn ----------------------------------------------------------------------------------------


def usable_start(start: pa.Table | None, spec: FactorSpec) -> pa.Table | None:
    """Returns a published table, or None if it has no rows or another number of factors."""
    if start is None or start.num_rows == 0 or start["item_factor"].type.list_size != spec.factors:
        return None
    return start


def start_factors(ids: pa.Array, spec: FactorSpec, start: pa.Table | None = None) -> np.ndarray:
    """Draws the factors that items start from, with standard deviation 0.1/√d: float32 [n, d].

    A number is the sum of four 16-bit numbers from a hash of the item's id, the seed and the column. It is nearly
    normal, and has the same bits in every shard and on every machine.

    Args:
        ids: [n].
        spec: the settings.
        start: see `fit_factors`.
    """
    out = np.empty((len(ids), spec.factors), np.float32)
    hashed = hash_ids(ids)
    scale = 0.1 / np.sqrt(spec.factors) / np.sqrt((2.0**32 - 1) / 3)
    for column in range(spec.factors):
        salt = hash_ids(pa.array([spec.seed * 65_536 + column]))[0]
        drawn = hash_ids(pa.array(hashed ^ salt))
        parts = drawn.view(np.uint16).reshape(-1, 4).sum(1, dtype=np.int64)
        out[:, column] = (parts - 2 * 65_535) * scale
    if start is not None:
        here, there = common_rows(pa.chunked_array([ids]), _ids(start))
        published, _ = from_vector_column(start["item_factor"])
        out[here] = published[there]
    return out


def shared_products(ids: pa.Array, items: np.ndarray, start: pa.Table) -> np.ndarray:
    """Computes Σ v pᵀ over the items of a shard that have published factors p, as `sum_of_outer` returns it."""
    here, there = common_rows(pa.chunked_array([ids]), _ids(start))
    published, _ = from_vector_column(start["item_factor"])
    return sum_of_outer(items[here], np.ascontiguousarray(published[there]))


def turn_between(products: np.ndarray) -> np.ndarray | None:
    """Returns the orthogonal R for which V·R is closest to P, float64 [d, d].

    Args:
        products: VᵀP, float64 [d, d]. If it is zero, as without common items, the result is None.
    """
    return turn_to(np.eye(len(products)), products) if products.any() else None


def rotated(rows: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Multiplies each row by a matrix, float32 [n, d]; the bits of a row do not depend on the other rows."""
    out, matrix, loops = np.empty_like(rows), np.ascontiguousarray(turn), kernels()
    ends = np.arange(len(rows) + 1, dtype=np.int64)
    in_threads(ends, _LIKES_A_THREAD, lambda a, b: loops.rotate(rows[a:b], matrix, out[a:b]))
    return out


def _ids(start: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([one_chunk(start["item_id"])])
