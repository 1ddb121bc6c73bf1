"""The scale of new items: against lists that are sorted one by one."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from unisono.transforms.base.tables import hash_ids, shard_of, split_by_shard
from unisono.transforms.rank.exposure import (
    PLACES,
    USERS,
    DrawUsers,
    _places_of_new,
    best_scores,
    draw_users,
    merge_best,
    scale_for_exposure,
    scale_for_length,
)
from unisono.transforms.rank.model import COMMON
from unisono.transforms.read.interactions import event_schema

OWN = 6  # axes that are not common


def log_of(users: int, per_user: int, seed: int = 0) -> pa.Table:
    """Draws events; every fifth user only dislikes."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(users), per_user)
    n = len(who)
    time = pa.array(rng.integers(0, 10**12, n)).cast(pa.timestamp("us", tz="UTC"))
    weight = np.where(who % 5 == 0, -3.0, rng.choice([0.0, 1.0, 5.0], n, p=[0.1, 0.6, 0.3]))
    columns = [pa.array([f"u{u}" for u in who]), pa.array([f"i{i}" for i in rng.integers(0, 40, n)]), time, weight]
    return pa.table(columns, schema=event_schema(pa.string(), pa.string()))


# --- who is asked ------------------------------------------------------------------------------------------


def first_by_hash(events: pa.Table, most: int) -> set[str]:
    likes = {e["user_id"] for e in events.to_pylist() if e["weight"] > 0}
    rank = dict(zip(sorted(likes), hash_ids(pa.array(sorted(likes))).tolist(), strict=True))
    return set(sorted(likes, key=rank.__getitem__)[:most])


@pytest.mark.parametrize("most", [7, 500])
def test_users_who_like_something_are_drawn_by_hash(most: int) -> None:
    events = log_of(60, 9)
    found = draw_users(events, 0.0, most)
    wanted = first_by_hash(events, most)
    assert set(found["user_id"].to_pylist()) == wanted
    assert found.num_rows == sum(e["user_id"] in wanted for e in events.to_pylist())


@pytest.mark.parametrize("shards", [1, 5])
def test_shards_do_not_change_who_is_drawn(shards: int) -> None:
    events = log_of(500, 3)
    wanted = first_by_hash(events, USERS)
    assert len(wanted) == USERS

    def check(found: list[pa.Table]) -> None:
        (table,) = found
        assert set(table["user_id"].to_pylist()) == wanted
        assert table.num_rows == 3 * USERS

    with beam.Pipeline(FnApiRunner()) as p:
        parts = list(split_by_shard(events, shard_of(events["user_id"], shards)))
        assert_that(p | beam.Create(parts) | DrawUsers(0.0), check)


def test_nobody_is_drawn_from_a_log_of_dislikes() -> None:
    events = log_of(5, 3)
    dislikes = events.filter(pc.less(events["weight"], 0))
    assert draw_users(dislikes, 0.0).num_rows == 0
    assert draw_users(events.slice(0, 0), 0.0).num_rows == 0


# --- the best scores ---------------------------------------------------------------------------------------


def world(items: int = 90, new: int = 30, users: int = 40, seed: int = 3) -> dict[str, np.ndarray]:
    """Draws ranking vectors: new items use other axes than the others, and all have common axes."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((items, 2 * OWN + COMMON)).astype(np.float32)
    is_new = np.zeros(items, bool)
    is_new[rng.choice(items, new, replace=False)] = True
    vectors[is_new, :OWN] = 0
    vectors[is_new, OWN : 2 * OWN] *= 7  # the size of what content predicts says nothing
    vectors[~is_new, OWN : 2 * OWN] = 0
    vectors[:, -COMMON:] = np.abs(vectors[:, -COMMON:]) / 3
    vectors[is_new, -COMMON:] = [0, 0, 1, 0]
    queries = rng.standard_normal((users, 2 * OWN + COMMON)).astype(np.float32)
    queries[:, -COMMON:] = [0.4, -0.1, -0.3, 1]
    pairs = rng.integers(0, users, 200), rng.integers(0, items, 200)
    allowed = rng.random(items) > 0.1
    return {"items": vectors, "new": is_new, "users": queries, "user": pairs[0], "item": pairs[1], "allowed": allowed}


def tops(at: dict[str, np.ndarray], rows: np.ndarray) -> tuple:
    """Finds the best scores among some of the items."""
    here = np.isin(at["item"], rows)
    place = np.searchsorted(rows, at["item"][here])
    return best_scores(
        at["users"], at["items"][rows], at["new"][rows], at["allowed"][rows], (at["user"][here], place)
    )


def scored(at: dict[str, np.ndarray], scale: float = 1.0) -> np.ndarray:
    items = at["items"].astype(np.float64).copy()
    items[at["new"], : 2 * OWN] *= scale
    scores = at["users"].astype(np.float64) @ items.T
    scores[:, ~at["allowed"]] = -np.inf
    for user, item in zip(at["user"], at["item"], strict=True):
        scores[user, item] = -np.inf
    return scores


def exposure_by_hand(at: dict[str, np.ndarray], scale: float) -> float:
    """Sorts every user's list, and counts how many of the first ten places new items have."""
    scores, taken, places = scored(at, scale), 0, 0
    for own in scores:
        first = [i for i in np.argsort(-own) if np.isfinite(own[i])][:PLACES]
        taken += int(at["new"][first].sum())
        places += PLACES
    return taken / places


@pytest.mark.parametrize("parts", [1, 4])
def test_the_best_scores_are_found_apart_for_new_items(parts: int) -> None:
    at = world()
    rows = np.array_split(np.arange(len(at["items"])), parts)
    known, new, lengths = merge_best([tops(at, r) for r in rows])
    scores = scored(at)
    for user, own in enumerate(scores):
        for found, group in ((known, ~at["new"]), (new, at["new"])):
            expected = np.sort(own[group])[::-1][:PLACES]
            np.testing.assert_allclose(np.sort(found[user])[::-1], expected, rtol=1e-5, atol=1e-5)
    by_hand = np.sort(np.linalg.norm(at["items"][at["new"], :-COMMON], axis=1))
    np.testing.assert_allclose(lengths, by_hand, rtol=1e-6)


def test_with_fewer_items_than_places_the_rest_is_minus_infinity() -> None:
    at = world(items=12, new=3)
    at["allowed"][:] = True
    at["user"], at["item"] = np.empty(0, int), np.empty(0, int)
    known, new, _ = tops(at, np.arange(12))
    assert np.isfinite(known).sum(1).tolist() == [9] * 40
    assert np.isfinite(new).sum(1).tolist() == [3] * 40


# --- the scale ---------------------------------------------------------------------------------------------


def common_of(at: dict[str, np.ndarray]) -> np.ndarray:
    return at["users"][:, -COMMON:].astype(np.float64) @ np.array([0.0, 0.0, 1.0, 0.0])


def scale_of(at: dict[str, np.ndarray], share: float) -> tuple[float, float]:
    known, new, _ = tops(at, np.arange(len(at["items"])))
    return scale_for_exposure(known, new, common_of(at), share)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_new_items_take_the_share_and_no_more(share: float) -> None:
    at = world()
    scale, newness = scale_of(at, share)
    assert newness == 0
    one = 1 / (40 * PLACES)
    assert share - 1.5 * one <= exposure_by_hand(at, scale) <= share
    assert exposure_by_hand(at, scale * 1.1) > share


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_where_other_items_have_scores_below_0_new_ones_are_set_back(share: float) -> None:
    """With a popularity penalty, the score 0 of an item that says nothing would be the best."""
    at = world()
    at["users"][:, -COMMON:] = [-30.0, 0.0, 0.0, 1.0]
    assert exposure_by_hand(at, 1e-4) > share
    scale, newness = scale_of(at, share)
    assert scale > 0 > newness
    at["items"][at["new"], -1] = newness
    assert share - 1.5 / (40 * PLACES) <= exposure_by_hand(at, scale) <= share


def test_an_exposure_of_0_puts_new_items_behind_all_others() -> None:
    at = world()
    at["users"][:, -COMMON:] = [-30.0, 0.0, 0.0, 1.0]
    scale, at["items"][at["new"], -1] = scale_of(at, 0.0)
    assert scale == 0
    scores = scored(at, scale)
    open_ = np.isfinite(scores)
    assert scores[:, at["new"]][open_[:, at["new"]]].max() < scores[:, ~at["new"]][open_[:, ~at["new"]]].min()


def test_without_new_items_or_users_the_scale_is_0() -> None:
    at = world()
    known, new, _ = tops(at, np.arange(len(at["items"])))
    assert scale_for_exposure(known, np.full_like(new, -np.inf), common_of(at), 0.3) == (0.0, 0.0)
    assert scale_for_exposure(known[:0], new[:0], common_of(at)[:0], 0.3) == (0.0, 0.0)


def test_with_few_other_items_new_ones_take_only_what_is_left() -> None:
    at = world(items=60, new=56, users=30)
    at["allowed"][:] = True
    at["user"], at["item"] = np.empty(0, int), np.empty(0, int)
    scale, newness = scale_of(at, 0.05)
    at["items"][at["new"], -1] = newness
    assert exposure_by_hand(at, scale) == pytest.approx(6 / PLACES)


def test_items_that_are_not_there_take_no_place() -> None:
    """Three items in all: one of ten places goes to the new item, however it is scaled."""
    known = np.full((2, PLACES), -np.inf, np.float32)
    new = known.copy()
    known[:, :2], new[:, 0] = [1.0, 2.0], 3.0
    scale, newness = scale_for_exposure(known, new, np.zeros(2), 0.2)
    assert scale > 1
    assert newness == 0


def test_tied_items_share_the_last_places() -> None:
    """Four others and a new item are tied for the last four places, so the new item has 4/5 of a place."""
    known = np.array([[5.0] * 6 + [1.0] * 4], np.float32)
    new = np.full((1, PLACES), -np.inf, np.float32)
    new[0, 0] = 1.0
    for share, fits in ((0.079, False), (0.081, True)):
        assert (_places_of_new(known, new)[0] / PLACES <= share) == fits


def test_a_scale_gives_new_items_a_length_in_the_median() -> None:
    assert scale_for_length(3.0, np.array([1.0, 2.0, 9.0])) == pytest.approx(1.5)
    assert scale_for_length(3.0, np.empty(0)) == 0.0
    assert scale_for_length(3.0, np.zeros(4)) == 0.0
