"""Splits of interaction logs into training events and held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids, one_chunk
from unisono.transforms.users.history import rank_ids

SPLITS = ("global-time", "leave-last-out", "random", "new-items")
_BUCKETS = 1 << 20  # the number of equally likely values that a hash is reduced to


@dataclass(frozen=True)
class SplitSpec:
    """How events are held out.

    Attributes:
        method: `global-time` holds out all events from one moment on, as in production. `leave-last-out` holds out each
            user's last liked item. `random` holds out pairs of a user and an item. `new-items` holds out all events of
            some items, which are then new.
        fraction: the fraction of events, pairs or items that is held out. `leave-last-out` does not use it.
        relevant: a held-out item is liked if the weights of the user's held-out events with it sum to more than this.
        seed: decides what `random` and `new-items` draw, and which of a user's last items at one time `leave-last-out`
            holds out.
    """

    method: str = "global-time"
    fraction: float = 0.2
    relevant: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in SPLITS:
            raise JobError(f"--split: {self.method!r} is none of {', '.join(SPLITS)}; choose one of them")
        if not 0 < self.fraction < 1:
            raise JobError(f"--fraction: {self.fraction} is not between 0 and 1; give the part to hold out, as 0.2")


@dataclass(frozen=True, eq=False)
class Split:
    """A log in two parts.

    Attributes:
        train: the training events, in the order of the log.
        held: user_id, item_id: the pairs that are liked in the held-out events and that `train` does not hold with a
            weight other than 0, sorted by user and then by item.
        cut: the time of the first held-out event. None means that the method is not `global-time`.
    """

    train: pa.Table
    held: pa.Table
    cut: pa.TimestampScalar | None = None


def split_events(events: pa.Table, spec: SplitSpec) -> Split:
    """Splits a log into training events and held-out pairs.

    `global-time` cuts at the earliest time at which no more than the fraction of the events lies at or after the cut.
    All events of one moment are in the same part. `leave-last-out` holds out each user's newest event with a weight
    above `relevant`, and among several at one time the one with the highest hash of user and item. It drops the user's
    later events. A user's first event always stays in training.

    Args:
        events: user_id, item_id, time, weight, in the columns of `clean_interactions`.
        spec: how events are held out.

    Raises:
        JobError: no training event or no held-out pair is left.

    Guarantees:
        The split does not depend on the order of the rows, and ids count only by their hash: what is held out says
        nothing about the order of the ids. With `global-time`, every training event is older than every held-out event.
    """
    side = {
        "global-time": _by_time,
        "leave-last-out": _last_of_each,
        "random": _by_pair,
        "new-items": _by_item,
    }[spec.method]
    seen, held_out = side(events, spec)
    train, rest = events.filter(pa.array(seen)), events.filter(pa.array(held_out))
    held = _liked_and_new(train, rest, spec.relevant)
    if not train.num_rows or not held.num_rows:
        raise JobError(
            f"--split: {spec.method} leaves {train.num_rows:,} events to learn from and {held.num_rows:,} pairs to "
            "find; take another fraction, or a log of more users and a longer time"
        )
    cut = pc.min(rest["time"]) if spec.method == "global-time" else None
    return Split(train, held, cut)


def split_of_logs(train: pa.Table, test: pa.Table, relevant: float = 0.0) -> Split:
    """Makes a split of two logs: the training events and the held-out events, in the columns of `clean_interactions`.

    Args:
        train: the training events.
        test: the held-out events.
        relevant: see `SplitSpec`.
    """
    return Split(train, _liked_and_new(train, test, relevant))


Sides = tuple[np.ndarray, np.ndarray]  # two masks, bool [n] each: the training events, and the held-out events


def _by_time(events: pa.Table, spec: SplitSpec) -> Sides:
    time = events["time"].cast(pa.int64()).to_numpy()
    if not len(time):
        return np.empty(0, bool), np.empty(0, bool)
    place = len(time) - int(spec.fraction * len(time))
    ascending = np.sort(time)
    # If events before `place` have the time of the cut too, the cut moves behind all events of that time.
    cut = ascending[place] if place < len(time) else ascending[-1] + 1
    if place > 0 and ascending[place - 1] == cut:
        later = np.searchsorted(ascending, cut, side="right")
        cut = ascending[later] if later < len(time) else cut
    return time < cut, time >= cut


def _last_of_each(events: pa.Table, spec: SplitSpec) -> Sides:
    _, user = rank_ids(events["user_id"])
    time, weight = events["time"].cast(pa.int64()).to_numpy(), events["weight"].to_numpy()
    # In a log by days, many events of a user have one time. If an order of the ids decided which is held out, names
    # that follow popularity or age would move all figures.
    order = np.lexsort((weight, _stir(_hash_pairs(events), spec.seed), time, user))
    liked = order[weight[order] > spec.relevant]
    last = np.full(int(user.max(initial=-1)) + 1, -1, np.int64)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    np.maximum.at(last, user[liked], place[liked])  # a user's later events have a higher place in the order
    first = np.searchsorted(user[order], np.arange(len(last)))
    last[last == first] = -1  # otherwise such a user would have no training event
    held = np.zeros(len(order), bool)
    held[order[last[last >= 0]]] = True
    return (place < last[user]) | (last[user] < 0), held


def _by_pair(events: pa.Table, spec: SplitSpec) -> Sides:
    return _drawn(_hash_pairs(events), spec)


def _by_item(events: pa.Table, spec: SplitSpec) -> Sides:
    return _drawn(hash_ids(events["item_id"]), spec)


def _drawn(hashes: np.ndarray, spec: SplitSpec) -> Sides:
    held = _stir(hashes, spec.seed) % np.uint64(_BUCKETS) < np.uint64(int(spec.fraction * _BUCKETS))
    return ~held, np.asarray(held)


def _hash_pairs(events: pa.Table) -> np.ndarray:
    return hash_ids(events["user_id"]) * np.uint64(0x9E3779B97F4A7C15) + hash_ids(events["item_id"])


def _stir(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Hashes hashes once more, with a seed."""
    return hash_ids(pa.array((hashes ^ np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)).astype(np.int64)))


def _liked_and_new(train: pa.Table, rest: pa.Table, relevant: float) -> pa.Table:
    keys = ["user_id", "item_id"]
    total = rest.group_by(keys).aggregate([("weight", "sum")])
    liked = total.filter(pc.greater(total["weight_sum"], relevant)).select(keys)
    known = train.filter(pc.not_equal(train["weight"], 0.0))  # an event of weight 0 says nothing about the user
    return _without(liked, known.select(keys)).sort_by([(k, "ascending") for k in keys])


def _without(pairs: pa.Table, others: pa.Table) -> pa.Table:
    """Returns the pairs that are not among `others`."""
    ends = pairs.num_rows
    codes = []
    for name in ("user_id", "item_id"):
        both = pa.chunked_array([*pairs[name].chunks, *others[name].chunks], type=pairs[name].type)
        codes.append(one_chunk(both).dictionary_encode().indices.to_numpy().astype(np.int64))
    key = codes[0] * (int(codes[1].max(initial=0)) + 1) + codes[1]
    return pairs.filter(pa.array(~np.isin(key[:ends], key[ends:])))
