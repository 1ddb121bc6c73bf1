"""A split log with everything that methods are measured on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from unisono.transforms.base.columns import embeddings_of, in_sample
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids, one_chunk, same_id_kind
from unisono.transforms.measure.baselines import Known
from unisono.transforms.measure.splits import Split, SplitSpec, split_events
from unisono.transforms.read.usable import DAY_US, UsableSpec, usable_events

MOST_USERS = 10_000
_MOST_SCORES = 50_000_000  # with at most this many pairs of a user and an item, all items are ranked, for the AUC
_LEAST_WIDTH = 100
Pairs = tuple[np.ndarray, np.ndarray]  # user and item, int64 each


@dataclass(frozen=True, eq=False)
class Rules:
    """What is left out, of the events that methods learn from and of their lists.

    Attributes:
        usable: which events baselines learn from. By default all.
        hidden: ids of the items that may not be recommended. None means that every item may be.
        candidates: user_id, item_id, each pair once: only these items are ranked for a user. None means all items.
    """

    usable: UsableSpec = field(default_factory=UsableSpec)
    hidden: pa.Array | None = None
    candidates: pa.Table | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """A split log, ready to measure methods on.

    A user is named by the index in `who`, an item by the row in `embeddings`.

    Attributes:
        embeddings: `item_id` and `<m>_embedding`.
        train: the events that may be seen. A job leaves out robots and repeats by itself.
        who: the ids of the measured users, who have held-out events and events that may be seen.
        relevant: the held-out pairs.
        seen: the pairs of the measured users that `train` holds with a weight other than 0.
        log: float64 [all users of train, items], 1 where a user likes an item. Robots and repeats are left out.
        age_days: float64, for each entry of `log`, the days from the pair's newest event to the newest event of all.
        rows: int64 [who], the row of each measured user in `log`.
        turned: int64 [items], the number of users who turned to each item: whose events with it have a weight other
            than 0. Robots do not count.
        events: int64 [who], the number of events of each measured user, without repeats.
        hidden: bool [items], the items that may not be recommended.
        candidates: the pairs of the measured users that are ranked. None means all items for each user.
        seed: seed of what methods draw at random, and of the order of equal scores.
        about: a description of the split, in JSON types.
    """

    embeddings: pa.Table
    train: pa.Table
    who: pa.Array
    relevant: Pairs
    seen: Pairs
    log: scipy.sparse.csr_array
    age_days: np.ndarray
    rows: np.ndarray
    turned: np.ndarray
    events: np.ndarray
    hidden: np.ndarray
    candidates: Pairs | None = None
    seed: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """The number of items."""
        return int(self.embeddings.num_rows)

    @property
    def whole(self) -> bool:
        """Whether the lists hold every item that is ranked for a user."""
        return self.candidates is not None or self.items * max(len(self.who), 1) <= _MOST_SCORES

    @property
    def width(self) -> int:
        """The length of a list: all items that are ranked, unless these are too many scores."""
        if self.candidates is not None:
            return int(np.bincount(self.candidates[0]).max(initial=1))
        return self.items if self.whole else min(self.items, _LEAST_WIDTH)

    @property
    def new(self) -> np.ndarray:
        """The items that no user turned to: bool [items]."""
        return self.turned == 0

    @property
    def hidden_ids(self) -> pa.Table | None:
        """`item_id` of the hidden items; None if there are none."""
        return self.embeddings.select(["item_id"]).filter(pa.array(self.hidden)) if self.hidden.any() else None

    @cached_property
    def known(self) -> Known:
        """What baselines use beside `log`."""
        order = np.argsort(hash_ids(self.embeddings["item_id"]), kind="stable")
        return Known(self.age_days, embeddings_of(self.embeddings), order)


# --- making a case -----------------------------------------------------------------------------------------


def make_case(
    embeddings: pa.Table, events: pa.Table, split: SplitSpec, liked_above: float = 0.0, rules: Rules | None = None
) -> Case:
    """Splits a log and lays out everything that methods are measured on.

    Args:
        embeddings: the embeddings of all items, in ascending order of the ids.
        events: the events, as `clean_interactions` returns them.
        split: how the log is split.
        liked_above: see `lay_out`.
        rules: see `lay_out`.

    Raises:
        JobError: the log's item ids are of another kind than the catalogue's, or no user can be measured.
    """
    _check_kind(events, embeddings)
    parts = split_events(events, split)
    about = {
        "split": split.method,
        "fraction": None if split.method == "leave-last-out" else split.fraction,
        "cut": None if parts.cut is None else parts.cut.as_py().isoformat(),
    }
    return lay_out(embeddings, parts, about, liked_above=liked_above, rules=rules, seed=split.seed)


def lay_out(
    embeddings: pa.Table,
    parts: Split,
    about: dict[str, Any],
    *,
    liked_above: float = 0.0,
    rules: Rules | None = None,
    seed: int = 0,
) -> Case:
    """Lays out everything that methods are measured on.

    Args:
        embeddings: the embeddings of all items, in ascending order of the ids.
        parts: the training events and the held-out pairs.
        about: a description of the split, of which `split` is its name.
        liked_above: in `Case.log`, a user likes an item if the user's weights on it sum to more than this.
        rules: what is left out. None means nothing.
        seed: see `Case`.

    Raises:
        JobError: the log's item ids are of another kind than the items', or no user can be measured.
    """
    _check_kind(parts.train, embeddings)
    rules = rules or Rules()
    ids = one_chunk(embeddings["item_id"])
    people = one_chunk(parts.train["user_id"].unique())
    usable = usable_events(parts.train, rules.usable)
    mine, counts = _measured_pairs(parts.held, ids, people, usable.robots, rules)
    who = _measured_users(mine, about["split"])
    mine = mine.filter(pc.is_in(mine["user_id"], value_set=who))
    rows = pc.index_in(who, value_set=people).to_numpy().astype(np.int64)
    log, age_days, turned = _learned(usable.events, people, ids, liked_above)
    user, item = _places(_turned_to(parts.train), who, ids)
    asked = (user >= 0) & (item >= 0)
    hidden = np.zeros(len(ids), bool) if rules.hidden is None else _among(ids, rules.hidden)
    known = usable.events.filter(pa.array(_among(usable.events["item_id"].cast(ids.type), ids)))
    events = pc.index_in(known["user_id"], value_set=who).drop_null().to_numpy()
    candidates = _candidates(rules.candidates, who, ids)
    relevant = _places(mine, who, ids)
    if candidates is not None:
        counts["held_out_not_candidates"] = _count_missing(relevant, candidates, len(ids))
    return Case(
        embeddings=embeddings,
        train=parts.train,
        who=who,
        relevant=relevant,
        seen=(user[asked], item[asked]),
        log=log,
        age_days=age_days,
        rows=rows,
        turned=turned,
        events=np.bincount(events, minlength=len(who)),
        hidden=hidden,
        candidates=candidates,
        seed=seed,
        about=about
        | {"seed": seed, "train_events": parts.train.num_rows}
        | {"events_set_aside": parts.train.num_rows - usable.events.num_rows}
        | {"held_out_pairs": mine.num_rows, "users": len(who)}
        | counts
        | {"items": len(ids), "new_items": int((turned == 0).sum()), "hidden_items": int(hidden.sum())},
    )


def _check_kind(events: pa.Table, embeddings: pa.Table) -> None:
    of_log, of_items = (t.schema.field("item_id").type for t in (events, embeddings))
    if not same_id_kind(of_log, of_items):
        raise JobError(f"interactions.item: ids are {of_log}, those of the items {of_items}")


def _measured_pairs(
    held: pa.Table, ids: pa.Array, people: pa.Array, robots: pa.Array, rules: Rules
) -> tuple[pa.Table, dict[str, int]]:
    """Sets held-out pairs aside that no list can hold.

    Args:
        held: user_id, item_id: the held-out pairs.
        ids: the ids of the items.
        people: the ids of the users with training events.
        robots: the ids of the users who get no profile.
        rules: see `lay_out`.

    Returns:
        The pairs that are left, and counts for `Case.about`.
    """
    known = held.filter(pa.array(_among(held["item_id"].cast(ids.type), ids)))
    counts = {"held_out_unknown": held.num_rows - known.num_rows, "held_out_hidden": 0, "users_without_candidates": 0}
    if rules.hidden is not None:
        shown = known.filter(pa.array(~_among(known["item_id"].cast(ids.type), rules.hidden.cast(ids.type))))
        counts["held_out_hidden"] = known.num_rows - shown.num_rows
        known = shown
    person = _among(known["user_id"], people) & ~_among(known["user_id"], robots)
    mine = known.filter(pa.array(person))
    counts["users_without_history"] = len(known["user_id"].unique()) - len(mine["user_id"].unique())
    if rules.candidates is not None:
        some = _among(mine["user_id"], rules.candidates["user_id"])
        counts["users_without_candidates"] = len(mine.filter(pa.array(~some))["user_id"].unique())
        mine = mine.filter(pa.array(some))
        if person.any() and not some.any():
            raise JobError("--candidates: no user with something to find has candidates; check the user ids")
    return mine, counts


def _measured_users(pairs: pa.Table, split: str) -> pa.Array:
    """Chooses the users to measure: those with held-out pairs, or a sample of at most about `MOST_USERS`."""
    who = one_chunk(pairs["user_id"]).unique()
    if len(who) > MOST_USERS:
        who = who.filter(pa.array(in_sample(who, MOST_USERS / len(who))))
    if not len(who):
        raise JobError(
            f"--split: {split} leaves nobody with training events and with an item to find that may be shown; "
            "give another split or another log"
        )
    return who


def _learned(
    events: pa.Table, people: pa.Array, ids: pa.Array, liked_above: float
) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray]:
    """Returns `log`, `age_days` and `turned` of a `Case`, from the events that count."""
    time = pc.max(events["time"]).cast(pa.int64()).as_py()
    events = events.filter(pc.not_equal(events["weight"], 0.0))
    total = events.group_by(["user_id", "item_id"]).aggregate([("weight", "sum"), ("time", "max")])
    user, item = _places(total, people, ids)
    turned = np.bincount(item[item >= 0], minlength=len(ids))
    liked = (item >= 0) & (total["weight_sum"].to_numpy() > liked_above)
    user, item, newest = user[liked], item[liked], total["time_max"].cast(pa.int64()).to_numpy()[liked]
    order = np.lexsort((item, user))
    first = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(people)))])
    log = scipy.sparse.csr_array((np.ones(len(user)), item[order], first), shape=(len(people), len(ids)))
    return log, ((time or 0) - newest[order]) / DAY_US, turned


def _turned_to(events: pa.Table) -> pa.Table:
    """Returns the distinct pairs with an event whose weight is not 0."""
    keys = ["user_id", "item_id"]
    return events.filter(pc.not_equal(events["weight"], 0.0)).select(keys).group_by(keys).aggregate([])


def _candidates(pairs: pa.Table | None, who: pa.Array, ids: pa.Array) -> Pairs | None:
    if pairs is None:
        return None
    user, item = _places(pairs, who, ids)
    known = (user >= 0) & (item >= 0)
    return user[known], item[known]


def _count_missing(pairs: Pairs, among: Pairs, items: int) -> int:
    wanted, given = (user * items + item for user, item in (pairs, among))
    missing = int(np.count_nonzero(~np.isin(wanted, given)))
    if missing == len(wanted):
        raise JobError("--candidates: no item to find is among the candidates of its user; add the held-out items")
    return missing


def _among(column: pa.ChunkedArray | pa.Array, values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Says of each value of a column whether it is among some values of the same kind: bool [n]."""
    found = pc.is_in(one_chunk(column), value_set=one_chunk(values).cast(column.type))
    return np.asarray(found.to_numpy(zero_copy_only=False))


def _places(pairs: pa.Table, users: pa.Array, items: pa.Array) -> Pairs:
    """Finds the index of each pair's user and item, −1 if unknown."""
    user = pc.index_in(one_chunk(pairs["user_id"]), value_set=users)
    item = pc.index_in(one_chunk(pairs["item_id"].cast(items.type)), value_set=items)
    user, item = (x.fill_null(-1).to_numpy().astype(np.int64) for x in (user, item))
    return user, item
