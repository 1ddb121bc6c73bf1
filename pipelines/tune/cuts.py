"""Validation cuts: earlier moments of a log, each with what was known by then and what users liked next."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.job.job import Job
from unisono.transforms.base.columns import EMBEDDING, embeddings_of, in_sample
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import one_chunk, to_vector_column
from unisono.transforms.measure.splits import Split, SplitSpec, split_events, split_of_logs
from unisono.transforms.rank.content import ContentScale
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import table_bytes
from unisono.transforms.users.history import History, leave_out_repeats_and_robots, order_history
from unisono.transforms.users.profiles import ProfileSpec

STARTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the events, where a cut by time begins
SPLITS = ("both", "global-time", "leave-last-out")
LASTS = ("last liked item", "last liked item but one", "last liked item but two")
WINDOW = 0.2  # of the events, what a cut by time holds out
MOST_USERS = 2000  # of a cut, whose lists are measured


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of a job, and their content.

    Attributes:
        ids: [n], ascending.
        index: finds the rows of ids; its rows are those of `ids`.
        scale: how embeddings become content columns.
        content: float64 [n, k], the content columns.
        hidden: bool [n], the items that `ranking.filter` hides.
        home: the directory of temporary files.
    """

    ids: pa.ChunkedArray
    index: ItemMatrix
    scale: ContentScale
    content: np.ndarray
    hidden: np.ndarray
    home: str

    @classmethod
    def of(cls, job: Job, embeddings: pa.Table, hidden: pa.Array | None, home: str) -> Catalogue:
        """Lays out a catalogue.

        Args:
            job: the job.
            embeddings: `item_id` and `<m>_embedding`, in ascending order of the ids.
            hidden: ids of the items that may not be recommended. None means that every item may be.
            home: a directory for temporary files.
        """
        table = embeddings.select(["item_id", *(m + EMBEDDING for m in job.modalities)])
        counted = table.filter(pa.array(in_sample(table["item_id"], job.space.sample)))
        scale = ContentScale.of(Moments.zero().add(embeddings_of(counted)))
        ids = table["item_id"]
        shut = np.zeros(len(ids), bool)
        if hidden is not None:
            shut = pc.is_in(one_chunk(ids), value_set=hidden.cast(ids.type)).to_numpy(zero_copy_only=False)
        return cls(ids, index_of(one_chunk(ids), home, "catalogue"), scale, scale.columns(table), shut, home)


def index_of(ids: pa.Array, home: str, name: str) -> ItemMatrix:
    """Makes an index of ids. An item matrix is built from a file, so it is one of vectors of length 1."""
    path = os.path.join(home, f"{name}.parquet")
    table = pa.table({"item_id": ids, "vector": to_vector_column(np.zeros((len(ids), 1), np.float32))})
    with open(path, "wb") as f:
        f.write(table_bytes(table, {}))
    return ItemMatrix.open([path], cache_dir=home)


@dataclass(frozen=True, eq=False)
class Cut:
    """An earlier moment of a log. A user is named by the index in `history`, an item by the row in the catalogue.

    Attributes:
        name: what it is, for a reader.
        kind: `time`: everything from one moment on is held out. `last`: each user's last liked item is.
        train: the events that were known.
        history: the events of the measured users that profiles are made from.
        relevant: user and item, int64 each: the held-out pairs.
        seen: user and item, int64 each: the pairs with an event of a weight other than 0.
    """

    name: str
    kind: Literal["time", "last"]
    train: pa.Table
    history: History
    relevant: tuple[np.ndarray, np.ndarray]
    seen: tuple[np.ndarray, np.ndarray]

    @property
    def users(self) -> pa.Array:
        """The ids of the measured users."""
        return self.history.user_ids


def make_cuts(catalogue: Catalogue, events: pa.Table, job: Job, split: str = "both") -> list[Cut]:
    """Cuts a log at several moments. Cuts without a user to measure are left out.

    The cuts by time begin after 40, 50, 60, 70, 80 and 90% of the events, and hold out the next 20% of the events.
    Three more hold out each user's last liked item, the one before it, and the one before that.

    Args:
        catalogue: the items.
        events: the events, as `clean_interactions` returns them.
        job: the job. Its rules say which events count.
        split: `global-time`, `leave-last-out` or `both`: which cuts are made.

    Guarantees:
        The cuts do not depend on the order of the rows.
    """
    above = job.ranks.liked_above or 0.0
    found = []
    if split != "leave-last-out":
        for name, parts in _by_time(events, above):
            found.append(_lay_out(name, "time", parts, catalogue, job.profiles))
    if split != "global-time":
        for name, parts in _by_last(events, above):
            found.append(_lay_out(name, "last", parts, catalogue, job.profiles))
    return [cut for cut in found if len(cut.users)]


def _by_time(events: pa.Table, above: float) -> Iterable[tuple[str, Split]]:
    time = events["time"].cast(pa.int64()).to_numpy()
    if not len(time):
        return
    ascending = np.sort(time)
    last = len(time) - 1
    before = None
    for start in STARTS:
        cut, end = (ascending[min(round(at * len(time)), last)] for at in (start, start + WINDOW))
        train = events.filter(pa.array(time < cut))
        rest = events.filter(pa.array((time >= cut) & ((time < end) | (start + WINDOW >= 1))))
        if not train.num_rows or not rest.num_rows or cut == before:
            continue
        before = cut
        yield f"after {pc.min(rest['time']).as_py():%Y-%m-%d %H:%M}", split_of_logs(train, rest, above)


def _by_last(events: pa.Table, above: float) -> Iterable[tuple[str, Split]]:
    for name in LASTS:
        if not events.num_rows:
            return
        try:
            parts = split_events(events, SplitSpec("leave-last-out", relevant=above))
        except JobError:  # no user has two events; the caller says when there is too little to measure
            return
        yield name, parts
        events = parts.train


def _lay_out(
    name: str, kind: Literal["time", "last"], parts: Split, catalogue: Catalogue, profiles: ProfileSpec
) -> Cut:
    held = parts.held
    who = one_chunk(held["user_id"]).unique()
    if len(who) > MOST_USERS:
        held = held.filter(pa.array(in_sample(held["user_id"], MOST_USERS / len(who))))
    item = catalogue.index.lookup(held["item_id"])
    shown = item >= 0
    shown[shown] = ~catalogue.hidden[item[shown]]
    held, item = held.filter(pa.array(shown)), item[shown]
    theirs = parts.train.filter(pc.is_in(parts.train["user_id"], value_set=one_chunk(held["user_id"]).unique()))
    history, _ = order_history(theirs, catalogue.index)
    history, _ = leave_out_repeats_and_robots(
        history, profiles.session_minutes, profiles.max_events_per_day, profiles.robots == "drop"
    )
    return Cut(
        name,
        kind,
        parts.train,
        history,
        relevant=_places(held, history, catalogue.index),
        seen=_places(_said(theirs), history, catalogue.index),
    )


def _said(events: pa.Table) -> pa.Table:
    keys = ["user_id", "item_id"]
    return events.filter(pc.not_equal(events["weight"], 0.0)).select(keys).group_by(keys).aggregate([])


def _places(pairs: pa.Table, history: History, index: ItemMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Finds the index of each pair's user and item; pairs of others are left out."""
    user = pc.index_in(one_chunk(pairs["user_id"]).cast(history.user_ids.type), value_set=history.user_ids)
    user, item = user.fill_null(-1).to_numpy().astype(np.int64), index.lookup(pairs["item_id"])
    known = (user >= 0) & (item >= 0)
    return user[known], item[known]
