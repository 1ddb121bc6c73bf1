"""Liked pairs and their two orders against loops over events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.transforms.behaviour.likes import Likes, liked_pairs

EVENT = st.tuples(st.integers(0, 4), st.integers(0, 5), st.sampled_from([-3.0, -0.3, 0.0, 0.1, 0.2, 1.0, 3.0]))


def table(events: list[tuple[int, int, float]]) -> pa.Table:
    return pa.table({
        "user_id": pa.array([f"u{u}" for u, _, _ in events], pa.string()),
        "item_id": pa.array([i * 7 for _, i, _ in events], pa.int64()),
        "weight": pa.array([w for _, _, w in events], pa.float64()),
    })


@given(st.lists(EVENT, max_size=40), st.sampled_from([0.0, 0.5, -2.0]), st.randoms())
def test_liked_pairs_agree_with_a_loop_in_any_order(events, above, random):
    of_pair: dict = {}
    for u, i, w in events:
        of_pair.setdefault((f"u{u}", i * 7), []).append(w)
    expected = {
        pair for pair, weights in of_pair.items()
        if max(weights) > max(above, 0) and sum(round(w * 10) for w in weights) > 0
    }  # fmt: skip
    random.shuffle(events)
    found = [tuple(row.values()) for row in liked_pairs(table(events), above).to_pylist()]
    assert sorted(found) == sorted(expected)


def test_weights_that_cancel_out_do_not_like_whatever_their_order():
    events = [(1, 1, 0.1), (1, 1, 0.2), (1, 1, -0.3)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert liked_pairs(table([events[i] for i in order]), 0.0).num_rows == 0


@pytest.mark.parametrize("chunks", [1, 3])
def test_both_orders_hold_the_same_pairs_ascending(chunks):
    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((30, 20)) < 0.2)
    pairs = pa.table({"user_id": [f"u{u}" for u in users], "item_id": [f"i{i}" for i in items]})
    shuffled = pairs.take(pa.array(rng.permutation(len(users))))
    size = -(-len(users) // chunks)
    likes = Likes.of(pa.concat_tables([shuffled.slice(at, size) for at in range(0, len(users), size)]))
    assert likes.user_ids.to_pylist() == sorted({f"u{u}" for u in users})
    assert likes.item_ids.to_pylist() == sorted({f"i{i}" for i in items})
    for first, others, rows, columns, names in (
        (likes.first_of_user, likes.items, likes.user_ids, likes.item_ids, "user_id item_id"),
        (likes.first_of_item, likes.users, likes.item_ids, likes.user_ids, "item_id user_id"),
    ):
        assert first.dtype == np.int64
        assert others.dtype == np.int32
        for r, name in enumerate(rows.to_pylist()):
            row, column = names.split()
            mine = sorted(p[column] for p in pairs.to_pylist() if p[row] == name)
            assert columns.take(pa.array(others[first[r] : first[r + 1]])).to_pylist() == mine


def test_no_likes():
    likes = Likes.of(liked_pairs(table([(1, 2, -1.0)]), 0.0))
    assert len(likes.user_ids) == len(likes.item_ids) == len(likes.items) == len(likes.users) == 0
    assert likes.first_of_user.tolist() == likes.first_of_item.tolist() == [0]
