"""A split log with everything that methods are measured on, and the lists of a job or a baseline on it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from unisono.pipelines.ask.trial import Items, build_items, build_users, rank_users_items
from unisono.pipelines.job.job import Job
from unisono.transforms.base.columns import in_sample
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.nearest import best_columns
from unisono.transforms.base.tables import hash_ids, one_chunk, same_id_kind
from unisono.transforms.measure.baselines import Scorer
from unisono.transforms.measure.rank_metrics import Ranked
from unisono.transforms.measure.splits import Split, SplitSpec, split_events

MOST_USERS = 10_000
_MOST_SCORES = 50_000_000  # with at most this many pairs of a user and an item, all items are ranked, for the AUC
_LEAST_WIDTH = 100
_USERS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Case:
    """A split log, ready to measure methods on.

    A user is named by the index in `who`, an item by the row in `embeddings`.

    Attributes:
        embeddings: `item_id` and `<m>_embedding`.
        train: the events that may be seen.
        who: the ids of the measured users, who have held-out events and events that may be seen.
        relevant: the held-out pairs: user and item, int64 each.
        seen: the pairs of the measured users in `train`: user and item, int64 each.
        log: float64 [all users of train, items], 1 where a user liked an item.
        rows: int64 [who], the row of each measured user in `log`.
        turned: int64 [items], the number of users of `train` who interacted with each item.
        events: int64 [who], the number of events of each measured user in `train`.
        about: a description of the split, in JSON types.
    """

    embeddings: pa.Table
    train: pa.Table
    who: pa.Array
    relevant: tuple[np.ndarray, np.ndarray]
    seen: tuple[np.ndarray, np.ndarray]
    log: scipy.sparse.csr_array
    rows: np.ndarray
    turned: np.ndarray
    events: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """The number of items."""
        return int(self.embeddings.num_rows)

    @property
    def width(self) -> int:
        """The length of a list: all items, unless these are too many scores."""
        whole = self.items * max(len(self.who), 1) <= _MOST_SCORES
        return self.items if whole else min(self.items, _LEAST_WIDTH)

    @property
    def new(self) -> np.ndarray:
        """The items that no user of `train` interacted with: bool [items]."""
        return self.turned == 0


def make_case(embeddings: pa.Table, events: pa.Table, split: SplitSpec, liked_above: float = 0.0) -> Case:
    """Splits a log and lays out everything that methods are measured on.

    Args:
        embeddings: the embeddings of all items, in ascending order of the ids.
        events: the events, as `clean_interactions` returns them.
        split: how the log is split.
        liked_above: in `Case.log`, a user likes an item if the user's weights on it sum to more than this.

    Raises:
        JobError: the log's item ids are of another kind than the catalogue's, or no user can be measured.
    """
    ids = one_chunk(embeddings["item_id"])
    if not same_id_kind(events["item_id"].type, ids.type):
        raise JobError(f"interactions.item: ids are {events['item_id'].type}, those of the items {ids.type}")
    parts = split_events(events, split)
    people = parts.train["user_id"].unique()
    held = parts.held.filter(pc.is_in(parts.held["item_id"].cast(ids.type), value_set=ids))
    known = held.filter(pc.is_in(held["user_id"], value_set=one_chunk(people)))
    who = _measured_users(known, split)
    mine = known.filter(pc.is_in(known["user_id"], value_set=who))
    total = parts.train.group_by(["user_id", "item_id"]).aggregate([("weight", "sum"), ([], "count_all")])
    user, item = _places(total, people, ids)
    inside = item >= 0
    shape = (len(people), len(ids))
    liked = inside & (total["weight_sum"].to_numpy() > liked_above)
    log = scipy.sparse.csr_array((np.ones(int(liked.sum())), (user[liked], item[liked])), shape=shape)
    rows = pc.index_in(who, value_set=one_chunk(people)).to_numpy().astype(np.int64)
    row_of = np.full(len(people), -1, np.int64)
    row_of[rows] = np.arange(len(who))
    asked = inside & (row_of[user] >= 0)
    about = _describe(split, parts) | {
        "held_out_pairs": mine.num_rows,
        "users": len(who),
        "users_without_history": len(held["user_id"].unique()) - len(known["user_id"].unique()),
        "items": len(ids),
        "new_items": int(len(ids) - len(np.unique(item[inside]))),
    }
    events_of = np.bincount(user, total["count_all"].to_numpy(), minlength=len(people))
    return Case(
        embeddings=embeddings,
        train=parts.train,
        who=who,
        relevant=_places(mine, pa.chunked_array([who]), ids),
        seen=(row_of[user[asked]], item[asked]),
        log=log,
        rows=rows,
        turned=np.bincount(item[inside], minlength=len(ids)),
        events=events_of[rows].astype(np.int64),
        about=about,
    )


def _measured_users(known: pa.Table, split: SplitSpec) -> pa.Array:
    """Chooses the users to measure: those with held-out events, or a sample of at most about `MOST_USERS`."""
    who = one_chunk(known["user_id"]).unique()
    if len(who) > MOST_USERS:
        who = who.filter(pa.array(in_sample(who, MOST_USERS / len(who))))
    if not len(who):
        raise JobError(f"--split: {split.method} leaves nobody with events on both sides; take another fraction")
    return who


def _describe(split: SplitSpec, parts: Split) -> dict[str, Any]:
    return {
        "split": split.method,
        "fraction": None if split.method == "leave-last-out" else split.fraction,
        "cut": None if parts.cut is None else parts.cut.as_py().isoformat(),
        "train_events": parts.train.num_rows,
    }


def _places(pairs: pa.Table, users: pa.ChunkedArray, items: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Finds the index of each pair's user and item: int64 each, −1 if unknown."""
    user = pc.index_in(one_chunk(pairs["user_id"]), value_set=one_chunk(users))
    item = pc.index_in(one_chunk(pairs["item_id"].cast(items.type)), value_set=items)
    return tuple(x.fill_null(-1).to_numpy().astype(np.int64) for x in (user, item))


# --- lists -------------------------------------------------------------------------------------------------


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
    items = build_items(job, case.embeddings, case.train) if items is None else items
    users = build_users(job, items, case.train, case.who)

    def rank(hidden: pa.Table | None) -> Ranked:
        return rank_users_items(job, items, users, case.train, who=case.who, width=case.width, hidden=hidden)

    old = case.embeddings.select(["item_id"]).filter(pa.array(~case.new))
    return Lists(rank(None), rank(old), time.monotonic() - started)


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
    """Ranks items for each user by scores.

    Args:
        score: returns the scores of some rows of `Case.log`.
        case: the split log.
        width: the length of a list.
        exclude_seen: items that a user has seen are left out.
        hidden: bool [items], items that are left out for everybody.
    """
    items, users = hash_ids(case.embeddings["item_id"]), hash_ids(case.who)
    order = np.argsort(case.seen[0], kind="stable")
    seen = case.seen[0][order], case.seen[1][order]
    parts = []
    for start in range(0, len(case.who), _USERS_AT_ONCE):
        scores = np.array(score(case.rows[start : start + _USERS_AT_ONCE]), np.float64)
        if exclude_seen:
            first, last = np.searchsorted(seen[0], [start, start + len(scores)])
            scores[seen[0][first:last] - start, seen[1][first:last]] = -np.inf
        if hidden is not None:
            scores[:, hidden] = -np.inf
        mixed = (users[start : start + _USERS_AT_ONCE, None] ^ items) * np.uint64(0x9E3779B97F4A7C15)
        parts.append(_best(scores, mixed ^ (mixed >> np.uint64(32)), width))
    return Ranked(np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))


def _best(scores: np.ndarray, tie: np.ndarray, width: int) -> Ranked:
    order = best_columns(scores, width, tie)
    values = np.take_along_axis(scores, order, 1)
    return Ranked(np.where(values > -np.inf, order, -1), values)
