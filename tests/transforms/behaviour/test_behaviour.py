"""Behaviour embeddings against loops over users and NumPy's decompositions."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, hash_ids, shard_of, split_by_shard
from unisono.transforms.behaviour import behaviour
from unisono.transforms.behaviour.behaviour import BehaviourSpec, add_pairs, count_pairs, embed_pairs, join_behaviour
from unisono.transforms.read.interactions import TIME_TYPE


def draw(strings: bool, n: int = 1500, users: int = 60, items: int = 40) -> pa.Table:
    """Draws events of two groups of users. Each group mostly chooses its own half of the items."""
    rng = np.random.default_rng(2)
    user = rng.integers(0, users, n)
    item = (rng.integers(0, items // 2, n) + (user % 2) * (items // 2) + (rng.random(n) < 0.1) * 7) % items
    return pa.table({
        "user_id": pa.array([f"u{u}" for u in user]),
        "item_id": pa.array([f"i{i:02d}" for i in item]) if strings else pa.array(item * 10),
        "time": pa.array(1_770_000_000_000_000 + rng.integers(0, 10**6, n) * 10**6, TIME_TYPE),
        "weight": pa.array(rng.choice([1.0, 3.0, -3.0], n)),
    })


def reference_pairs(table: pa.Table, recent: int) -> Counter:
    liked: dict = defaultdict(lambda: defaultdict(lambda: [0.0, None]))
    for e in table.to_pylist():
        entry = liked[e["user_id"]][e["item_id"]]
        entry[0] += e["weight"]
        entry[1] = max(e["time"], entry[1] or e["time"])
    pairs: Counter = Counter()
    for items in liked.values():
        known = [i for i, (w, _) in items.items() if w > 0]
        mine = sorted(known, key=lambda i: (-items[i][1].timestamp(), hash_ids(pa.array([i]))[0]))[:recent]
        pairs.update((a, b) for a in mine for b in mine)
    return pairs


@pytest.mark.parametrize("strings", [True, False], ids=["strings", "integers"])
@pytest.mark.parametrize("shards", [1, 5])
def test_pairs_agree_with_loops_in_any_shards(strings, shards):
    table = draw(strings)
    parts = [count_pairs(t, 8) for _, t in split_by_shard(table, shard_of(table["user_id"], shards))]
    pairs = add_pairs(parts)
    found = {(r["a"], r["b"]): r["n"] for r in pairs.to_pylist()}
    assert found == reference_pairs(table, 8)


def test_names_do_not_decide_which_of_equally_recent_items_count():
    users = np.repeat(np.arange(400), 20)
    item = np.tile(np.arange(20), 400) + 100 * users  # every user has other items, so that many names are drawn
    table = pa.table({
        "user_id": pa.array(users), "item_id": pa.array(item),
        "time": pa.array(np.zeros(len(item), np.int64), TIME_TYPE), "weight": pa.array(np.ones(len(item))),
    })  # fmt: skip
    counted = {r["a"] % 100 for r in count_pairs(table, 5).to_pylist()}
    assert counted == set(range(20))


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_embeddings_are_the_svd_of_the_information(shift):
    table = draw(True)
    spec = BehaviourSpec(dim=12, recent_items=10, min_users=3, shift=shift)
    found = embed_pairs(count_pairs(table, 10), spec)
    counted = reference_pairs(table, 10)
    ids = sorted(a for (a, b), n in counted.items() if a == b and n >= 3)
    counts = np.array([[counted[a, b] * (a != b) for b in ids] for a in ids], float)
    total = counts.sum(1)
    with np.errstate(divide="ignore"):
        information = np.log(counts * (total**0.75).sum() / np.outer(total, total**0.75)) - np.log(shift)
    positive = np.maximum(information, 0)
    positive = (positive + positive.T) / 2
    u, s, _ = np.linalg.svd(positive)
    expected = u[:, :12] * np.sqrt(s[:12])
    vectors = from_vector_column(found["behaviour_embedding"])[0]
    assert found["item_id"].to_pylist() == ids
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-4)  # the signs of axes are arbitrary
    crowd = np.array([int(i[1:]) < 20 for i in ids])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[np.ix_(crowd, crowd)].mean() > alike[np.ix_(crowd, ~crowd)].mean() + 0.2


def test_many_items_go_through_the_sparse_solver():
    rng = np.random.default_rng(0)
    n, items = 20_000, 600
    user = rng.integers(0, 500, n)
    item = (rng.integers(0, items // 4, n) + user % 4 * (items // 4)) % items
    table = pa.table({
        "user_id": pa.array(user), "item_id": pa.array(item),
        "time": pa.array(np.full(n, 10**15), TIME_TYPE), "weight": np.ones(n),
    })  # fmt: skip
    pairs = count_pairs(table, 100)
    found = embed_pairs(pairs, BehaviourSpec(dim=8))
    shuffled = embed_pairs(pairs.take(pa.array(rng.permutation(len(pairs)))), BehaviourSpec(dim=8))
    assert found.equals(shuffled)  # bit for bit
    vectors = from_vector_column(found["behaviour_embedding"])[0]
    nearest = np.argsort(-(vectors @ vectors.T), 1)[:, 1:11]
    crowd = np.array(found["item_id"].to_pylist()) // (items // 4)
    assert (crowd[nearest] == crowd[:, None]).mean() > 0.95


def test_untouched_items_are_null():
    embedded = embed_pairs(count_pairs(draw(True), 10), BehaviourSpec(dim=4))
    table = pa.table({"item_id": pa.array(["i03", "new", "i17"])})
    joined = join_behaviour(table, embedded)
    vectors, present = from_vector_column(joined["behaviour_embedding"])
    assert present.tolist() == [True, False, True]
    place = embedded["item_id"].to_pylist().index("i17")
    np.testing.assert_array_equal(vectors[2], embedded["behaviour_embedding"][place].as_py())


def test_a_log_without_events():
    empty = draw(True).slice(0, 0)
    found = embed_pairs(add_pairs([count_pairs(empty, 10)]), BehaviourSpec(dim=4))
    assert found.num_rows == 0
    joined = join_behaviour(pa.table({"item_id": ["a", "b"]}), found)
    assert joined["behaviour_embedding"].to_pylist() == [None, None]


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_ridge_embeddings_carry_the_partial_correlations_of_who_likes_what(power):
    table = draw(True)
    spec = BehaviourSpec(dim=40, recent_items=40, method="ridge", ridge=5.0, power=power, liked_above=2.0)
    found = embed_pairs(count_pairs(table, 40, 2.0), spec)
    weights = table.group_by(["user_id", "item_id"]).aggregate([("weight", "sum")]).to_pandas()
    liked = weights[weights.weight_sum > 2.0].pivot_table("weight_sum", "user_id", "item_id", fill_value=0)
    x = (liked.to_numpy() > 0).astype(float)
    keep = x.sum(0) >= 2
    x, ids = x[:, keep], liked.columns[keep].tolist()
    assert found["item_id"].to_pylist() == ids
    inverse = np.linalg.inv(x.T @ x + 5.0 * np.eye(len(ids)))
    partial = -inverse / np.sqrt(np.outer(np.diag(inverse), np.diag(inverse)))
    np.fill_diagonal(partial, 0.0)
    values, vectors = np.linalg.eigh(partial)
    positive = (vectors * np.maximum(values, 0) ** (2 * power)) @ vectors.T
    embedded = from_vector_column(found["behaviour_embedding"])[0].astype(float)
    np.testing.assert_allclose(embedded @ embedded.T, positive, atol=1e-5)


def test_more_pairs_than_a_worker_can_hold_are_refused(monkeypatch):
    monkeypatch.setattr(behaviour, "_MOST_PAIRS", 100)
    with pytest.raises(JobError, match=r"^behaviour: 1,[0-9]{3} pairs of items, more than 100; lower"):
        embed_pairs(count_pairs(draw(True), 10), BehaviourSpec(dim=4))


@pytest.mark.parametrize(
    "bad",
    [
        {"dim": 0}, {"recent_items": 1}, {"min_users": 0}, {"shift": 0.5}, {"method": "ease"}, {"ridge": 0.0},
        {"power": -1.0}, {"liked_above": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_are_refused(bad):
    with pytest.raises(JobError, match=f"behaviour.{next(iter(bad))}"):
        BehaviourSpec(**bad)
