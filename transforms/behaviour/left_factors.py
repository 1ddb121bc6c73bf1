"""Left factors: what each liked item adds to a user's factors, by conjugate gradients over all columns at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unisono.transforms.base.threads import in_threads
from unisono.transforms.behaviour.exact_sums import kernels, sum_of_products, total
from unisono.transforms.behaviour.likes import Likes

MOST_STEPS = 40
_RESIDUAL = 1e-3  # relative, of every column
_NOTHING = 1e-10  # the squared norm of a column of XᵀU below which its left factors stay zero
_LIKES_A_THREAD = 20_000


@dataclass(frozen=True, eq=False)
class Search:
    """The state of the search for the rows of some items. All arrays are float32 [items, d].

    Attributes:
        solution: A, so far.
        residual: XᵀU − (XᵀX + ridge · I) A.
        direction: the direction of the last step.
        image: (XᵀX + ridge · I) times the direction.
    """

    solution: np.ndarray
    residual: np.ndarray
    direction: np.ndarray
    image: np.ndarray


@dataclass(frozen=True, eq=False)
class Step:
    """The size of a step for each column, the same for all items.

    Attributes:
        alpha: float64 [d], the length of the step.
        beta: float64 [d], how much of the last direction the new one keeps.
        gamma: float64 [d], rᵀz before the step, for the next step.
        start: float64 [d], the squared norm of XᵀU.
        done: the residual is small enough before the step; the step changes nothing.
    """

    alpha: np.ndarray
    beta: np.ndarray
    gamma: np.ndarray
    start: np.ndarray
    done: bool


def solve_left_factors(likes: Likes, users: np.ndarray, ridge: float) -> np.ndarray:
    """Computes A = (XᵀX + ridge · I)^{-1} XᵀU, with X the 0/1 matrix of likes, float32 [m, d].

    Conjugate gradients with the diagonal as preconditioner, until the residual of every column is at most 0.001 of
    XᵀU, or for 40 steps. XᵀX is never formed.

    Source: Chronopoulos and Gear, "s-step iterative methods for symmetric linear systems", JCAM 25, 1989 (the form
    with one exchange of sums a step).

    Args:
        likes: the liked pairs.
        users: U, float32 [u, d].
        ridge: above 0.
    """
    counts = np.diff(likes.first_of_item)
    state = first_state(add_likes(likes.first_of_item, likes.users, users))
    step = None
    for _ in range(MOST_STEPS):
        z = preconditioned(state.residual, counts, ridge)
        image = add_likes(likes.first_of_item, likes.users, add_likes(likes.first_of_user, likes.items, z))
        image = with_ridge(image, z, ridge)
        step = next_step(total([sums_of(state, z, image)]), step)
        if step.done:
            break
        state = advance(state, z, image, step)
    return state.solution


def add_likes(first: np.ndarray, others: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Adds up the vectors of each row's likes, float32 [rows, d]. The bits of a row do not depend on the other rows."""
    out = np.empty((len(first) - 1, vectors.shape[1]), np.float32)
    loops, vectors = kernels(), np.asarray(vectors)
    in_threads(
        first + np.arange(len(first)),
        _LIKES_A_THREAD,
        lambda a, b: loops.add_up(first[a : b + 1], others, vectors, out[a:b]),
    )
    return out


def first_state(right: np.ndarray) -> Search:
    """Begins the search at zero, given the rows of XᵀU."""
    zeros = np.zeros_like(right)
    return Search(zeros, right, zeros, zeros)


def preconditioned(residual: np.ndarray, counts: np.ndarray, ridge: float) -> np.ndarray:
    """Divides rows by the diagonal of XᵀX + ridge · I."""
    return residual * (1 / (counts + ridge)).astype(np.float32)[:, None]


def with_ridge(image: np.ndarray, z: np.ndarray, ridge: float) -> np.ndarray:
    """Returns image + ridge · z."""
    return image + np.float32(ridge) * z


def sums_of(state: Search, z: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Returns the sums over some items that a step needs: rᵀz, zᵀ(XᵀX + ridge · I)z and rᵀr, float64 [3, 3, d]."""
    pairs = (state.residual, z), (z, image), (state.residual, state.residual)
    return np.stack([sum_of_products(a, b) for a, b in pairs], 1)


def next_step(sums: np.ndarray, last: Step | None) -> Step:
    """Computes the size of the next step from the sums over all items.

    Args:
        sums: float64 [3, d], the total of `sums_of`.
        last: the step before. None means that this is the first one.
    """
    gamma, delta, norm = sums
    start = norm if last is None else last.start
    if last is None:
        beta, curvature = np.zeros_like(gamma), delta
    else:
        beta = _divided(gamma, last.gamma)
        curvature = delta - beta * _divided(gamma, last.alpha)
    # A solved column stands still: its sums are as small as their rounding. So does one that is all but zero.
    open_ = (norm > _RESIDUAL**2 * start) & (start > _NOTHING)
    alpha = np.where(open_, _divided(gamma, curvature), 0.0)
    return Step(alpha, np.where(open_, beta, 0.0), gamma, start, not open_.any())


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divides, with 0 where the divisor is not above 0: a column that is solved exactly."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def advance(state: Search, z: np.ndarray, image: np.ndarray, step: Step) -> Search:
    """Takes one step for the rows of some items."""
    alpha, beta = step.alpha.astype(np.float32), step.beta.astype(np.float32)
    direction = z + beta * state.direction
    moved = image + beta * state.image
    return replace(
        state,
        solution=state.solution + alpha * direction,
        residual=state.residual - alpha * moved,
        direction=direction,
        image=moved,
    )
