"""The lists of a job or a baseline on a split log."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.ask.ranking_case import Case, Pairs
from unisono.pipelines.ask.trial import Items, build_items, build_users, rank_users_items
from unisono.pipelines.job.job import Job
from unisono.transforms.base.nearest import best_columns
from unisono.transforms.base.tables import hash_ids
from unisono.transforms.measure.baselines import Scorer
from unisono.transforms.measure.rank_metrics import Ranked, keep_candidates

_USERS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Lists:
    """The lists of a method.

    Attributes:
        every: lists of all items.
        new: lists of the items that nobody had interacted with.
        seconds: the time that making them took.
    """

    every: Ranked
    new: Ranked
    seconds: float = 0.0


def serve(job: Job, case: Case, items: Items | None = None) -> Lists:
    """Runs a job on a case. Behaviour, space and profiles are made from its training events.

    Args:
        job: the job.
        case: the split log.
        items: the job's item vectors, if they have been made before. None makes them.
    """
    started = time.monotonic()
    if items is None:
        items = build_items(job, case.embeddings, case.train, case.hidden_ids)
    users = build_users(job, items, case.train, case.who)
    every, new = (_rank(job, case, items, users, off) for off in (case.hidden, case.hidden | ~case.new))
    return Lists(every, new, time.monotonic() - started)


def _rank(job: Job, case: Case, items: Items, users: pa.Table, off: np.ndarray) -> Ranked:
    """Ranks items for the users of a case by a job.

    Args:
        job: the job.
        case: the split log.
        items: the item vectors of the job.
        users: the profiles.
        off: bool [items], the items that are left out for everybody.
    """
    ids = case.embeddings.select(["item_id"])
    if case.candidates is None:
        hidden = ids.filter(pa.array(off))
        return rank_users_items(job, items, users, case.train, who=case.who, width=case.width, hidden=hidden)
    user, item = case.candidates
    parts = []
    for start in range(0, len(case.who), _USERS_AT_ONCE):  # a few users have few candidates together
        who = case.who.slice(start, _USERS_AT_ONCE)
        here = (user >= start) & (user < start + len(who))
        asked = np.zeros(case.items, bool)
        asked[item[here]] = True
        asked &= ~off
        ranked = rank_users_items(
            job, items, users.filter(pc.is_in(users["user_id"], value_set=who)), case.train,
            who=who, width=max(int(asked.sum()), 1), hidden=ids.filter(pa.array(~asked)),
        )  # fmt: skip
        parts.append(keep_candidates(ranked, (user[here] - start, item[here]), case.items, case.width))
    return Ranked.join(parts)


def serve_baseline(score: Scorer, case: Case, exclude_seen: bool = True) -> Lists:
    """Ranks items by the scores of a baseline.

    Equal scores are ordered by a hash that differs from user to user. With one order for all users, a baseline that
    gives all new items the same score would find them by luck, or miss them by bad luck.
    """
    started = time.monotonic()
    every = rank_by_scores(score, case, case.width, exclude_seen)
    new = rank_by_scores(score, case, case.width, exclude_seen, ~case.new)
    return Lists(every, new, time.monotonic() - started)


def rank_by_scores(
    score: Scorer, case: Case, width: int, exclude_seen: bool = True, hidden: np.ndarray | None = None
) -> Ranked:
    """Ranks items for each user by scores. Hidden items, and all but the candidates, are left out.

    Args:
        score: returns the scores of some rows of `Case.log`.
        case: the split log.
        width: the length of a list.
        exclude_seen: items that a user has seen are left out.
        hidden: bool [items], items that are left out for everybody beside those that the case hides.
    """
    items, users = hash_ids(case.embeddings["item_id"]), hash_ids(case.who)
    users = users ^ np.uint64(case.seed * 0xD1B54A32D192ED03 % 2**64)
    off = case.hidden if hidden is None else case.hidden | hidden
    seen = _by_user(case.seen)
    asked = None if case.candidates is None else _by_user(case.candidates)
    parts = []
    for start in range(0, len(case.who), _USERS_AT_ONCE):
        scores = np.array(score(case.rows[start : start + _USERS_AT_ONCE]), np.float64)
        if exclude_seen:
            scores[_some_users(seen, start, len(scores))] = -np.inf
        scores[:, off] = -np.inf
        if asked is not None:
            others = np.ones(scores.shape, bool)
            others[_some_users(asked, start, len(scores))] = False
            scores[others] = -np.inf
        mixed = (users[start : start + _USERS_AT_ONCE, None] ^ items) * np.uint64(0x9E3779B97F4A7C15)
        parts.append(_best(scores, mixed ^ (mixed >> np.uint64(32)), width))
    return Ranked.join(parts)


def _by_user(pairs: Pairs) -> Pairs:
    order = np.argsort(pairs[0], kind="stable")
    return pairs[0][order], pairs[1][order]


def _some_users(pairs: Pairs, start: int, users: int) -> Pairs:
    """Selects the pairs of some users, of pairs sorted by user; the first of these users gets the index 0."""
    first, last = np.searchsorted(pairs[0], [start, start + users])
    return pairs[0][first:last] - start, pairs[1][first:last]


def _best(scores: np.ndarray, tie: np.ndarray, width: int) -> Ranked:
    order = best_columns(scores, width, tie)
    values = np.take_along_axis(scores, order, 1)
    return Ranked(np.where(values > -np.inf, order, -1), values)
