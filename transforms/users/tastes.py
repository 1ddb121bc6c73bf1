"""Tastes: the part of a user's ranking vector that is learned from the user's events, as sums that nights fold into.

An item carries two history vectors: what one event with it adds to the scores of items that have events, and to the
scores of new items. A user's taste is the direction of each of the two sums over the user's liked events.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unisono.transforms.base.columns import HISTORY, HISTORY_NEW, RANKING, row_lengths
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.item_matrix import HasPath, first_schema, per_process
from unisono.transforms.users.history import History
from unisono.transforms.users.sums import add_rows, decay


@dataclass(frozen=True)
class TasteSpec:
    """How a history becomes a taste.

    Attributes:
        half_life_days: after this many days, an event counts half in the sum over the whole history. None means that
            events do not age.
        recent: ρ, the weight of the sum over the latest events beside the sum over the whole history. None means 1 if
            the log that the items were ranked by spans a week, otherwise 0.
        recent_half_life: in the sum over the latest events, an event counts half if this many liked events are newer.
        liked_above: an event is liked if its weight is above this. Other events add nothing.
        min_events: a user with fewer events has a shorter taste, and leans on what is popular of late instead.
    """

    half_life_days: float | None = 30.0
    recent: float | None = None
    recent_half_life: float = 3.0
    liked_above: float = 0.0
    min_events: int = 1

    def after(self, ageing: bool) -> TasteSpec:
        """Fills `recent` in: 1 if the log spans a week (`ageing`), otherwise 0."""
        return self if self.recent is not None else replace(self, recent=1.0 if ageing else 0.0)


@dataclass(frozen=True, eq=False)
class Tastes:
    """What the tastes of all users are made from.

    Attributes:
        spec: the settings.
        history: the items' history vectors for items with events, float32 [items, d], zeros where an item has none.
        history_new: the items' history vectors for new items, float32 [items, d].
        key: names the vectors. Sums of vectors with another key cannot be added to.
        comparable: keys of earlier vectors whose sums can be added to.
    """

    spec: TasteSpec
    history: np.ndarray
    history_new: np.ndarray
    key: str = ""
    comparable: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The length of a taste: two blocks of the history vectors' length."""
        return int(self.history.shape[1] + self.history_new.shape[1])


def read_tastes(
    items: Sequence[str | HasPath], spec: TasteSpec, root: str = "", cache_dir: str | None = None
) -> Tastes:
    """Opens the history vectors of items.

    Args:
        items: the files of items/: paths, or records with a `path`.
        spec: the settings.
        root: the directory that relative paths are joined to.
        cache_dir: the directory for the matrices on each machine. None means the machine's temporary directory.

    Raises:
        JobError: the items have no history vectors.
    """
    schema = first_schema(items, root)
    if HISTORY not in schema.names:
        raise JobError(
            "ranking: the published items have no ranking vectors, because they were made without the log; run "
            "`unisono embed` or `unisono nightly` with `ranking` in the job file"
        )
    made = json.loads((schema.metadata or {}).get(RANKING, b"{}"))
    spec = spec.after(bool(made.get("ageing")))
    history, new = (np.asarray(per_process(items, root, cache_dir, c).vectors) for c in (HISTORY, HISTORY_NEW))
    return Tastes(spec, history, new, made.get("key", ""), tuple(made.get("comparable", ())))


def sum_older(gone: History, newest: np.ndarray, tastes: Tastes) -> np.ndarray:
    """Sums the history vectors of events that a state no longer keeps one by one.

    Args:
        gone: the events.
        newest: int64 [u], the time of each user's newest event, kept or not.
        tastes: the history vectors.

    Returns:
        float64 [u, 2d]: Σ w · 2^(−age / half-life) · h over the liked events for items with events, and Σ w · h for
        new items. The age is the time to the user's newest event.
    """
    weight = _liked(gone, tastes.spec)
    aged = weight * _aged(gone, newest, tastes.spec)
    return _join(_add(tastes.history, gone, aged), _add(tastes.history_new, gone, weight))


def taste_vectors(
    recent: History, tastes: Tastes, *, newest: np.ndarray, events: np.ndarray, older: np.ndarray | None
) -> np.ndarray:
    """Turns the events of users into tastes.

    p = Σ w · (2^(−age / half-life) + ρ · 2^(−rank / recent half-life)) · h over the liked events, where rank is the
    number of the user's liked events that are strictly newer, and the second term is for the events of `recent` only.
    The sum for new items, Σ w · h, does not age.

    Args:
        recent: the newest events of users.
        tastes: the history vectors and settings.
        newest: int64 [u], the time of each user's newest event.
        events: int64 [u], the number of all events of each user.
        older: float64 [u, 2d], the sums over the events before `recent`, see `sum_older`. None means that there are
            none.

    Returns:
        float32 [u, 2d]: the direction of p, then the direction of the sum for new items. Both have the length
        min(1, events / min_events); they are zero for a user without a liked event of a known item.
    """
    long, late = event_weights(recent, newest, tastes.spec)
    warm = _add(tastes.history, recent, long + (tastes.spec.recent or 0.0) * late)
    new = _add(tastes.history_new, recent, _liked(recent, tastes.spec))
    d = tastes.history.shape[1]
    if older is not None:
        warm += older[:, :d]
        new += older[:, d:]
    share = np.minimum(1.0, events / tastes.spec.min_events)
    return _join(_scaled(warm, share), _scaled(new, share)).astype(np.float32)


def tastes_of(history: History, tastes: Tastes, recent: int) -> np.ndarray:
    """Turns whole histories into tastes, see `taste_vectors`.

    Args:
        history: all events of users.
        tastes: the history vectors and settings.
        recent: `profiles.recent_events`, the number of newest events of a user that count as the latest.
    """
    counts = history.counts
    newest = np.zeros(len(counts), np.int64)
    newest[counts > 0] = history.time[history.first[1:][counts > 0] - 1]
    older = sum_older(history.before_newest(recent), newest, tastes)
    return taste_vectors(history.newest(recent), tastes, newest=newest, events=counts, older=older)


def event_weights(recent: History, newest: np.ndarray, spec: TasteSpec) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weight of each event in the sum over the whole history and in that over the latest, float64 [e].

    Args:
        recent: the newest events of users.
        newest: int64 [u], the time of each user's newest event.
        spec: the settings.
    """
    weight = _liked(recent, spec)
    return weight * _aged(recent, newest, spec), weight * np.exp2(newer_liked(recent, spec) / -spec.recent_half_life)


def newer_liked(history: History, spec: TasteSpec) -> np.ndarray:
    """Counts for each event the user's liked events that are strictly newer, float64 [e]; events of one time are tied.

    The order of rows in a log says nothing about events of one time, so it must not decide their weight.
    """
    n = len(history.time)
    liked = np.concatenate([[0], np.cumsum(_liked(history, spec) > 0)])
    changes = np.ones(n, bool)
    user = history.user
    changes[:-1] = (np.diff(history.time) != 0) | (np.diff(user) != 0)
    ends = np.flatnonzero(changes) + 1
    end_of_tie = ends[np.searchsorted(ends, np.arange(n), side="right")]
    return (liked[history.first[1:]][user] - liked[end_of_tie]).astype(np.float64)


def _liked(history: History, spec: TasteSpec) -> np.ndarray:
    return np.where(history.weight > max(spec.liked_above, 0.0), history.weight, 0.0)


def _aged(history: History, newest: np.ndarray, spec: TasteSpec) -> np.ndarray:
    return decay(np.repeat(newest, history.counts) - history.time, spec.half_life_days)


def _add(matrix: np.ndarray, history: History, weight: np.ndarray) -> np.ndarray:
    return add_rows(matrix, history.rows, weight, history.first)


def _join(warm: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.concatenate([warm, new], axis=1)


def _scaled(vectors: np.ndarray, share: np.ndarray) -> np.ndarray:
    length = row_lengths(vectors)
    return np.divide(
        vectors * share[:, None], length[:, None], out=np.zeros_like(vectors), where=(length > 0)[:, None]
    )
