"""Exact top k on the processor, for blocks of users: estimates choose candidates, and float64 scores rank them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from unisono.transforms.base.threads import in_threads
from unisono.transforms.rank.topk_estimates import BLOCK_ROWS, Estimates, threads_of_torch
from unisono.transforms.rank.topk_search import Search, kernels

_USER_ROWS = 512  # users of one product; with BLOCK_ROWS items its estimates take 4 MiB, which suits the caches
_USER_ROWS_OF_ALL = 2048  # the same, if all threads work on one product
_USERS_A_THREAD = 64
_ROOM, _MIN_ROOM = 8, 1024  # room for 8 · k + 1024 candidates of a user
_LEAST_BLOCKS = 8  # with fewer blocks of items, a sample of one block is not worth its time
_LAST_PLACE = 64  # the lowest place in the sample from which the k-th estimate is guessed

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # crowded: bool [users], item indices and scores as of `top_items`


def find(search: Search, estimates: Estimates, users: np.ndarray, out: Found) -> None:
    """Finds the best items of users, or says that a user is crowded.

    A crowded user is one whose candidates need more room than there is, because too many scores lie within the error
    of the k-th.

    Args:
        search: what is searched for.
        estimates: the estimates by which candidates are chosen.
        users: int64, indices of users.
        out: receives the results at these indices.
    """
    rows = _USER_ROWS if estimates.one_thread else _USER_ROWS_OF_ALL

    def work(start: int, stop: int) -> None:
        for at in range(start, stop, rows):
            some = users[at : min(at + rows, stop)]
            wrong = _Block(search, estimates, some).find(out, guess=True)
            if len(wrong):
                _Block(search, estimates, wrong).find(out, guess=False)

    if estimates.one_thread:
        with threads_of_torch():
            in_threads(np.arange(len(users) + 1), _USERS_A_THREAD, work)
    else:
        work(0, len(users))


class _Block:
    """Some users and their candidates.

    A bound that rises with each user's k-th score so far rejects almost every item with one comparison. So choosing
    candidates takes a fraction of the time of the product; `argpartition` of each block would take longer than it.
    """

    def __init__(self, search: Search, estimates: Estimates, users: np.ndarray) -> None:
        self._search, self._estimates, self._users = search, estimates, users
        n, room = len(users), _ROOM * search.k + _MIN_ROOM
        self._kept = np.empty((n, room), np.int32)
        self._lower, self._upper = np.empty((n, room), np.float32), np.empty((n, room), np.float32)
        self._counts, self._limits = np.zeros(n, np.int64), np.full(n, 2 * search.k + 64)
        self._crowded = np.zeros(n, bool)
        self._bounds = np.full(n, np.finfo(np.float32).min, np.float32)
        self._queries, self._unit = search.queries[users], estimates.unit[users]
        self._seen = search.seen.start[users], search.seen.stop[users]

    def find(self, out: Found, guess: bool) -> np.ndarray:
        """Finds the users' best items, see `find`; with `guess`, a guess from a sample is the first bound.

        Returns:
            The users for whom the guess was too high; they have no results.
        """
        n, m = len(self._users), len(self._search.items)
        memory: np.ndarray = np.empty(n * min(BLOCK_ROWS, m), self._estimates.dtype)
        if guess:
            self._guess(memory)
        guesses = self._bounds.copy()
        for block, start in enumerate(range(0, m, BLOCK_ROWS)):
            places = slice(start, min(start + BLOCK_ROWS, m))
            product = memory[: n * (places.stop - start)].reshape(n, -1)
            self._estimates.product(self._users, places, product)
            self._each(partial(self._scan, block, places, product))
        wrong = kernels().too_high(guesses, self._lower, self._counts, self._search.k) & ~self._crowded
        self._counts[self._crowded | wrong] = 0
        rows, scores = np.full((n, self._search.k), -1), np.full((n, self._search.k), -np.inf, np.float32)
        self._each(partial(self._rank, rows, scores))
        for all_users, found in zip(out, (self._crowded, rows, scores), strict=True):
            all_users[self._users] = found
        return self._users[wrong]

    def _each(self, work: Callable[[int, int], None]) -> None:
        if self._estimates.one_thread:
            work(0, len(self._users))
        else:
            in_threads(np.arange(len(self._users) + 1), _USERS_A_THREAD, work)

    def _guess(self, memory: np.ndarray) -> None:
        """Guesses each user's k-th estimate from a sample, if there are many more items than in the sample.

        The guess is so low that, of random items, it is too high for fewer than one user in a thousand.
        """
        visible = np.flatnonzero(~self._search.hidden[self._estimates.ids])
        if len(visible) < _LEAST_BLOCKS * BLOCK_ROWS:
            return
        expected = self._search.k * BLOCK_ROWS / len(visible)  # so many of the best k are in the sample
        place = int(expected + 4 * np.sqrt(expected)) + 2
        if place > _LAST_PLACE:
            return
        places = visible[np.arange(BLOCK_ROWS) * len(visible) // BLOCK_ROWS]
        product = memory.reshape(-1, BLOCK_ROWS)
        self._estimates.product(self._users, places, product)
        kernels().guess(product, self._estimates.scale[places // BLOCK_ROWS], place, self._bounds)

    def _scan(self, block: int, places: slice, product: np.ndarray, a: int, b: int) -> None:
        """Adds items of one block to the candidates of the users a to b − 1."""
        of, search, some = self._estimates, self._search, self._users[a:b]
        kernels().scan(
            product[a:b], product[a:b].view(np.int32), of.dtype is np.float32, of.scale[block],
            of.reach[some] * of.near[block] + of.loose[some] * of.size[block], of.ids[places],
            search.hidden, search.seen.items, self._seen[0][a:b], self._seen[1][a:b], search.k,
            self._bounds[a:b], self._kept[a:b], self._lower[a:b], self._upper[a:b],
            self._counts[a:b], self._limits[a:b], self._crowded[a:b],
        )  # fmt: skip

    def _rank(self, rows: np.ndarray, scores: np.ndarray, a: int, b: int) -> None:
        """Ranks the candidates of the users a to b − 1."""
        kernels().rank(
            self._queries[a:b], np.asarray(self._search.items), self._search.ranks, self._unit[a:b],
            self._kept[a:b], self._lower[a:b], self._upper[a:b], self._counts[a:b], rows[a:b], scores[a:b],
        )  # fmt: skip
