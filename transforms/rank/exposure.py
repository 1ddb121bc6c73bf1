"""The scale of new items: how large their scores must be to take a given share of the first places."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import row_lengths
from unisono.transforms.base.tables import concat_tables, hash_ids, one_chunk
from unisono.transforms.rank.model import COMMON
from unisono.transforms.users.popularity import pair_events

USERS = 200  # users whose lists the scale is chosen on
PLACES = 10  # of each user's list
BEHIND = -100.0  # added to a score, this puts an item behind all others: scores have a standard deviation of about 1
_LEAST, _MOST = 1e-4, 1e4  # scales
_HALVINGS = 20  # more would end so close to a tie of two items that rounding decides which is first


def draw_users(events: pa.Table, liked_above: float, most: int = USERS) -> pa.Table:
    """Keeps the events of the users who come first by hash, among those who like something.

    Args:
        events: user_id, item_id, time, weight.
        liked_above: see `popularity.pair_events`.
        most: how many users are kept.
    """
    pairs = pair_events(events, liked_above)
    people = one_chunk(pairs["user_id"].filter(pairs["liked"])).unique()
    first = people.take(pa.array(np.argsort(hash_ids(people), kind="stable")[:most]))
    return events.filter(pc.is_in(events["user_id"], value_set=first))


class DrawUsers(beam.PTransform):
    """Draws users over all shards: from (shard, events) to one table; see `draw_users`."""

    def __init__(self, liked_above: float) -> None:
        super().__init__()
        self._liked_above = liked_above

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        above = self._liked_above
        return (
            events
            | "OfShard" >> beam.MapTuple(lambda _, t: draw_users(t, above)).with_output_types(pa.Table)
            | "OfAll" >> beam.CombineGlobally(_Draw(above)).without_defaults()
        )


class _Draw(beam.CombineFn):
    def __init__(self, liked_above: float) -> None:
        self._liked_above = liked_above

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(self, accumulator: list[pa.Table], table: pa.Table) -> list[pa.Table]:
        return self._least([*accumulator, table])

    def merge_accumulators(self, accumulators: Iterable[list[pa.Table]]) -> list[pa.Table]:
        return self._least([t for part in accumulators for t in part])

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table:
        return accumulator[0]

    def _least(self, tables: list[pa.Table]) -> list[pa.Table]:
        return [draw_users(concat_tables(tables), self._liked_above)] if tables else []


Tops = tuple[np.ndarray, np.ndarray, np.ndarray]


def best_scores(
    users: np.ndarray, items: np.ndarray, new: np.ndarray, allowed: np.ndarray, shut: tuple[np.ndarray, np.ndarray]
) -> Tops:
    """Finds each user's best scores among some items, apart for new items and for the others.

    Args:
        users: float32 [u, w], the ranking vectors of users.
        items: float32 [n, w], the ranking vectors of items, of new items with scale 1.
        new: bool [n], where an item has no event.
        allowed: bool [n], where an item may be recommended.
        shut: pairs of a user and an item that must not appear: indices, int64 each.

    Returns:
        float32 [u, 10], the scores of items with events; float32 [u, 10], the scores of new items; −inf where there are
        fewer items; and float32, the lengths of the new items' vectors without the common axes.
    """
    scores = users @ items.T
    scores[:, ~allowed] = -np.inf
    scores[shut] = -np.inf
    lengths = row_lengths(items[new, :-COMMON])
    return _best(scores[:, ~new]), _best(scores[:, new]), lengths


def _best(scores: np.ndarray) -> np.ndarray:
    missing = max(0, PLACES - scores.shape[1])
    wide = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return np.asarray(np.partition(wide, wide.shape[1] - PLACES, axis=1)[:, wide.shape[1] - PLACES :])


def merge_best(parts: Iterable[Tops]) -> Tops:
    """Merges the best scores of several parts of the items."""
    known, new, lengths = zip(*parts, strict=True)
    return _best(np.concatenate(known, axis=1)), _best(np.concatenate(new, axis=1)), np.sort(np.concatenate(lengths))


def scale_for_exposure(
    known: np.ndarray, new: np.ndarray, common: np.ndarray, share: float
) -> tuple[float, float]:
    """Finds the scale with which new items take a share of the first ten places, and no more.

    Args:
        known: float32 [u, 10], each user's best scores of items with events.
        new: float32 [u, 10], each user's best scores of new items with scale 1.
        common: float [u], the part of each score of a new item that the scale does not change.
        share: between 0 and 1.

    Returns:
        The scale, and what is added to all scores of new items, at most 0. The second is 0 unless even a tiny scale
        would give new items more than their share, because other items have scores below 0. If there are too few other
        items, new items take what is left. The scale is 0 if there are no new items or no users, and if `share` is 0;
        new items are then behind all others.
    """
    if share == 0:
        return 0.0, BEHIND
    if not np.isfinite(new).any():
        return 0.0, 0.0
    own = new - common[:, None]

    def exposure(scale: float, offset: float = 0.0) -> float:
        # inf − inf does not occur: an item that is not there stays at −inf.
        scaled = np.where(np.isfinite(own), scale * own + common[:, None] + offset, -np.inf)
        return float(np.mean(_places_of_new(known, scaled)) / PLACES)

    low, high = _LEAST, _MOST
    share = max(share, exposure(low, BEHIND))
    if exposure(low) > share:
        return low, _bisect(lambda offset: exposure(low, offset) <= share, BEHIND, 0.0)
    if exposure(high) <= share:
        return high, 0.0
    return float(np.exp(_bisect(lambda log: exposure(np.exp(log)) <= share, np.log(low), np.log(high)))), 0.0


def _places_of_new(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Counts how many of each user's first ten places new items take, float [u]; tied items share what is left."""
    last = np.sort(np.concatenate([known, new], axis=1), axis=1)[:, -PLACES, None]
    above, tied = (new > last).sum(1), ((new == last) & np.isfinite(new)).sum(1)
    left = PLACES - above - (known > last).sum(1)
    among = tied + ((known == last) & np.isfinite(known)).sum(1)
    return above + left * np.divide(tied, among, out=np.zeros(len(tied)), where=among > 0)


def _bisect(fits: Callable[[float], bool], low: float, high: float) -> float:
    """Finds the largest value that fits, between one that does and one that does not."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def scale_for_length(length: float, new: np.ndarray) -> float:
    """Finds the scale with which new items have a length in the median.

    Args:
        length: the length.
        new: float [m], the lengths of the new items with scale 1.

    Returns:
        The scale; 0 if there are no new items, or if all have length 0.
    """
    middle = float(np.median(new)) if len(new) else 0.0
    return length / middle if middle > 0 else 0.0
