"""Users of the synthetic shop, their tastes and their interactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from unisono.pipelines.demo.items import CATEGORIES, COLOURS, Item, generator

END = datetime(2026, 11, 1, tzinfo=UTC)  # the shop's present time; fixed, so a shop does not depend on the clock
DAYS = 60  # the interactions happen in this many days before END
EVENTS = ("view", "cart", "purchase", "dislike")

_BLOCK = 256  # Users are drawn in blocks: a block needs memory for users × items values.
_UNKNOWN = 0.02  # the fraction of events whose item is not in the catalogue


@dataclass(frozen=True)
class _Shop:
    """The items as users see them.

    Attributes:
        ids: the items' ids, [items].
        category: int64 [items], index into `CATEGORIES`.
        colour: int64 [items], index into `COLOURS`.
        popularity: float64 [items], the logarithm of the items' popularity.
    """

    ids: pa.Array
    category: np.ndarray
    colour: np.ndarray
    popularity: np.ndarray


def make_users(seed: int, users: int, items: Sequence[Item]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Draws users and what they do.

    Args:
        seed: the shop's seed.
        users: the number of users.
        items: all items of the shop.

    Returns:
        truth: user_id, tastes (one or two categories), colour (the favourite).
        interactions: user_id, item_id, timestamp, event; sorted by time.
        heldout: user_id, item_id of later positive interactions.
    """
    shop = _Shop(
        ids=pa.array([item.item_id for item in items]),
        category=np.array([item.latent.category for item in items]),
        colour=np.array([item.latent.colour for item in items]),
        popularity=np.log([item.popularity for item in items]),
    )
    user_ids = pa.array([f"user-{u:05d}" for u in range(users)])
    blocks = [
        _make_block(generator(seed, 4, start), user_ids.slice(start, _BLOCK), shop) for start in range(0, users, _BLOCK)
    ]
    truth, log, heldout = (pa.concat_tables(tables) for tables in zip(*blocks, strict=True))
    return truth, log.sort_by([("timestamp", "ascending"), ("user_id", "ascending")]), heldout


def _make_block(rng: np.random.Generator, users: pa.Array, shop: _Shop) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Draws the truth about a block of users, their interactions and their held-out interactions."""
    n = len(users)
    tastes = rng.permuted(np.tile(np.arange(len(CATEGORIES)), (n, 1)), axis=1)[:, :2]
    tastes[rng.random(n) < 0.5, 1] = -1  # Half of the users like one category only.
    favourite = rng.integers(0, len(COLOURS), n)
    matches = (shop.category == tastes[:, :1]) | (shop.category == tastes[:, 1:])
    attraction = shop.popularity + 4.0 * matches + 1.0 * (shop.colour == favourite[:, None])
    row, item, later_row, later_item = _draw_items(rng, attraction, shop.popularity, matches)
    log = _log(rng, users.take(pa.array(row)), shop.ids.take(pa.array(item)), matches[row, item])
    heldout = {"user_id": users.take(pa.array(later_row)), "item_id": shop.ids.take(pa.array(later_item))}
    return _truth(users, tastes, favourite), log, pa.table(heldout)


def _truth(users: pa.Array, tastes: np.ndarray, favourite: np.ndarray) -> pa.Table:
    flat = pa.array(np.array(CATEGORIES)[tastes[tastes >= 0]])
    offsets = np.concatenate([[0], (tastes >= 0).sum(1).cumsum()]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), flat)
    return pa.table({"user_id": users, "tastes": lists, "colour": pa.array(np.array(COLOURS)[favourite])})


def _log(rng: np.random.Generator, users: pa.Array, items: pa.Array, suits: np.ndarray) -> pa.Table:
    """Draws the times and types of events, and replaces some items by items that are not in the catalogue.

    Args:
        rng: the block's random generator.
        users: the user of each event, [m].
        items: the item of each event, [m].
        suits: bool [m], True if the item is of a category that the user likes.
    """
    seen = items.to_numpy(zero_copy_only=False)
    gone = np.flatnonzero(rng.random(len(seen)) < _UNKNOWN)
    seen[gone] = [f"retired-{number:05d}" for number in rng.integers(0, 500, len(gone)).tolist()]
    before = rng.integers(1, DAYS * 86_400_000_000, len(seen))
    when = np.datetime64(END.replace(tzinfo=None), "us") - before.astype("timedelta64[us]")
    return pa.table({
        "user_id": users,
        "item_id": pa.array(seen, pa.string()),
        "timestamp": pa.array(when, pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
        "event": pa.array(np.array(EVENTS)[_draw_events(rng, suits)]),
    })  # fmt: skip


def _draw_distinct(rng: np.random.Generator, log_weight: np.ndarray, count: int) -> np.ndarray:
    """Draws distinct columns for each row, with chances proportional to their weights.

    Args:
        rng: the block's random generator.
        log_weight: float64 [rows, columns], the logarithms of the weights.
        count: how many columns to draw for each row.

    Returns:
        int64 [rows, count], in the order in which the columns were drawn.

    Source: the Gumbel top-k trick of Kool, van Hoof and Welling, 2019, for the sampling of Efraimidis and Spirakis,
    2006.
    """
    keys = log_weight + rng.gumbel(size=log_weight.shape)
    chosen = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(keys, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def _draw_items(
    rng: np.random.Generator, attraction: np.ndarray, popularity: np.ndarray, matches: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws the items of a block's events, and the items of its held-out interactions.

    Args:
        rng: the block's random generator.
        attraction: float64 [users, items], unnormalised log chances by taste and popularity.
        popularity: float64 [items], log chances by popularity alone.
        matches: bool [users, items], True if the item is of a category that the user likes.

    Returns:
        The user and item of each event, int64 [m] each, and of each held-out interaction, int64 [h] each.
    """
    n, items = attraction.shape
    # A user's events leave some of the suitable items out: the held-out interactions need them.
    wanted = np.minimum(rng.integers(11, 19, n), np.maximum(matches.sum(1) * 3 // 5, 1))
    suited = _draw_distinct(rng, attraction, min(18, items // 2))
    others = _draw_distinct(rng, np.broadcast_to(popularity, attraction.shape), min(12, items // 4))

    events = rng.integers(25, 41, n)
    row = np.repeat(np.arange(n), events)
    by_taste = rng.random(len(row)) < 0.78
    # This distribution is denser near 0: items that were drawn earlier have more events.
    near = 1 - np.sqrt(rng.random(len(row)))
    item = np.where(
        by_taste,
        suited[row, np.minimum((near * wanted[row]).astype(np.int64), suited.shape[1] - 1)],
        others[row, (near * others.shape[1]).astype(np.int64)],
    )
    fresh = attraction.copy()
    fresh[row, item] = -np.inf
    later = _draw_distinct(rng, fresh, 7)
    kept = np.arange(7) < rng.integers(3, 8, (n, 1))
    later_row, place = np.nonzero(kept)
    return row, item, later_row, later[later_row, place]


def _draw_events(rng: np.random.Generator, suits: np.ndarray) -> np.ndarray:
    """Draws event types, int64 [m], indices into `EVENTS`; the chances depend on whether the item suits the user."""
    chances = np.where(suits[:, None], (0.66, 0.18, 0.15, 0.01), (0.76, 0.06, 0.03, 0.15))
    return (rng.random((len(suits), 1)) > chances.cumsum(1)[:, :-1]).sum(1)
