"""What an exact top k searches for, and the search that needs no estimates."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from unisono.transforms.base.extras import require


@dataclass(frozen=True, eq=False)
class Seen:
    """Items that must not appear: for user u, `items[start[u]]` to `items[stop[u] − 1]`, ascending.

    Attributes:
        start: int64 [users].
        stop: int64 [users].
        items: int64.
    """

    start: np.ndarray
    stop: np.ndarray
    items: np.ndarray

    def of(self, user: int) -> np.ndarray:
        """Returns one user's items."""
        return self.items[self.start[user] : self.stop[user]]


@dataclass(frozen=True, eq=False)
class Search:
    """What is searched for.

    Attributes:
        queries: float32 [users, dim].
        items: float32 [items, dim]; may be memory-mapped.
        ranks: int64 [items]; among equal scores, the item of lower rank comes first.
        hidden: bool [items], true for an item that never appears.
        seen: items that must not appear for a user.
        k: how many items are wanted.
    """

    queries: np.ndarray
    items: np.ndarray
    ranks: np.ndarray
    hidden: np.ndarray
    seen: Seen
    k: int

    def of(self, users: np.ndarray) -> Search:
        """Returns the search for some of the users."""
        seen = Seen(self.seen.start[users], self.seen.stop[users], self.seen.items)
        return Search(self.queries[users], self.items, self.ranks, self.hidden, seen, self.k)


def by_user(exclude: tuple[np.ndarray, np.ndarray] | None, users: int) -> Seen:
    """Sorts pairs by user, then by item."""
    if exclude is None or len(exclude[0]) == 0:
        return Seen(np.zeros(users, np.int64), np.zeros(users, np.int64), np.empty(0, np.int64))
    user, item = np.asarray(exclude[0], np.int64), np.asarray(exclude[1], np.int64)
    order = np.lexsort((item, user))
    ends = np.searchsorted(user[order], np.arange(users + 1))
    return Seen(ends[:-1], ends[1:], item[order])


def kernels() -> ModuleType:
    """Imports the compiled loops.

    Raises:
        JobError: numba is not installed.
    """
    require("numba", "ranking", "ranking")
    from unisono.transforms.rank import topk_kernels

    return topk_kernels


def rank_all(search: Search, user: int, rows: np.ndarray, scores: np.ndarray) -> None:
    """Scores every item that may appear for one user in float64.

    Only hundreds of items with nearly equal scores make this necessary.
    """
    allowed = ~search.hidden
    allowed[search.seen.of(user)] = False
    kept, one = np.flatnonzero(allowed).astype(np.int32)[None], slice(user, user + 1)
    least = np.full(kept.shape, -np.inf, np.float32)
    kernels().rank(
        search.queries[one], np.asarray(search.items), search.ranks, np.ones(1), kept, least, -least,
        np.array([kept.shape[1]]), rows[one], scores[one],
    )  # fmt: skip
