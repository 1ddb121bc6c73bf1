"""The ranking vectors of items: layout, popularity, and what the sampled users may see."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.rank.content import ContentScale
from unisono.transforms.rank.exposure import PLACES
from unisono.transforms.rank.item_vectors import (
    FactorRows,
    Popularity,
    Sample,
    comparable_with,
    late_matrix,
    learned_columns,
    recount,
    tops_of,
    vector_columns,
)
from unisono.transforms.rank.model import COMMON, RankingModel
from unisono.transforms.rank.spec import RankingSpec

D, K, N = 3, 4, 8
DAY = 86_400_000_000
IDS = [f"i{n}" for n in range(N)]


def counts(days: float = 30.0) -> pa.Table:
    """Items 0 to 4 are liked, item 5 has events and no like, and items 6 and 7 have no event."""
    likes = np.array([8, 4, 2, 1, 1, 0])
    return pa.table({
        "item_id": ["gone", *IDS[:6]],
        "late": [9.0, *(likes / 2).tolist()],
        "likes": [20, *likes.tolist()],
        "users": [21, *(likes + 1).tolist()],
        "newest": pa.array(np.full(7, int(days * DAY))),
        "oldest": pa.array(np.zeros(7, np.int64)),
    })


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    text = rng.standard_normal((N, K)).astype(np.float32)
    return pa.table({"item_id": IDS, "text_embedding": to_vector_column(text)})


def model() -> RankingModel:
    rng = np.random.default_rng(1)
    turn, left, new = (rng.standard_normal((D, D)) for _ in range(3))
    scale = ContentScale({"text": np.zeros(K)}, {"text": 2.0})
    content = rng.standard_normal((K, 2 * D))
    return RankingModel(turn, left, new, scale, content, 4.0, new_items=0.5, newness=-0.2, ageing=True)


def factors() -> FactorRows:
    rng = np.random.default_rng(2)
    items, left = (rng.standard_normal((N, D)).astype(np.float32) for _ in range(2))
    known = np.arange(N) < 5
    return FactorRows(np.where(known[:, None], items, 0), np.where(known[:, None], left, 0), known)


def vectors_in(made: pa.Table, column: str = "ranking_vector") -> np.ndarray:
    return np.stack(made[column].to_pylist())


# --- popularity --------------------------------------------------------------------------------------------


def test_items_without_an_event_have_zeros() -> None:
    found = Popularity.of(counts()).rows(pa.chunked_array([["i6", "i1", "i5"]]))
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "late": [0.0, 2.0, 0.0], "likes": [0, 4, 0], "users": [0, 5, 1],
    }  # fmt: skip


def test_a_log_ages_from_a_week_on() -> None:
    assert Popularity.of(counts(7.0)).ageing
    assert not Popularity.of(counts(6.99)).ageing
    for nothing in (None, counts().slice(0, 0)):
        none = Popularity.of(nothing)
        assert not none.ageing
        np.testing.assert_array_equal(none.axes(pa.chunked_array([["i1"]])), [[0, 0, 1, 0]])


def test_axes_are_shares_of_the_most_popular_item() -> None:
    found = Popularity.of(counts()).axes(pa.chunked_array([["gone", "i1"]]), np.array([0.0, -0.5]))
    expected = [[1, 1, 1 / np.sqrt(21), 0], [np.log(3) / np.log(10), np.log(5) / np.log(21), 1 / np.sqrt(5), -0.5]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


# --- learned vectors ---------------------------------------------------------------------------------------


def test_the_layout_says_what_is_known_of_an_item() -> None:
    made = learned_columns(table(), model(), factors(), Popularity.of(counts()), {"method": "learned", "x": 1})
    vectors, m = vectors_in(made), model()
    assert vectors.shape == (N, 2 * D + COMMON)
    content = np.stack(table()["text_embedding"].to_pylist()) / 2
    np.testing.assert_allclose(vectors[:5, :D], factors().items[:5] @ m.turn, atol=1e-5)
    assert not vectors[:6, D : 2 * D].any()
    assert not vectors[5:, :D].any()
    np.testing.assert_allclose(vectors[6:, D : 2 * D], 0.5 * content[6:] @ m.content[:, :D] @ m.turn, atol=1e-5)
    np.testing.assert_allclose(vectors[:, -1], [0] * 5 + [-1] + [-0.2] * 2, atol=1e-7)
    assert vectors[0, -COMMON] == pytest.approx(np.log(5) / np.log(10))
    np.testing.assert_allclose(vectors[5:, -COMMON:-1], [[0, 0, 1]] * 3)
    about = json.loads(made.schema.metadata[b"unisono.ranking"])
    assert about == {"method": "learned", "x": 1, "ageing": True, "key": m.key, "comparable": []}


def test_popularity_can_be_counted_anew() -> None:
    made = learned_columns(table(), model(), factors(), Popularity.of(counts()), {"method": "learned"})
    other = counts().set_column(1, "late", pa.array([9.0, 0, 0, 3.0, 9.0, 1, 0]))
    found, before = recount(made, Popularity.of(other), {"method": "learned", "y": 2}), vectors_in(made)
    late = np.log1p([0, 0, 3, 9, 1, 0, 0, 0]) / np.log(10)
    np.testing.assert_allclose(vectors_in(found)[:, -COMMON], late, atol=1e-6)
    rest = [i for i in range(2 * D + COMMON) if i != 2 * D]
    np.testing.assert_array_equal(vectors_in(found)[:, rest], before[:, rest])
    assert json.loads(found.schema.metadata[b"unisono.ranking"])["y"] == 2


@pytest.mark.parametrize("shards", [1, 3])
def test_hidden_and_seen_items_take_no_place(shards: int) -> None:
    trial = replace(model(), new_items=1.0, newness=0.0)
    made = learned_columns(table(), trial, factors(), Popularity.of(counts()))
    rng = np.random.default_rng(3)
    users = rng.standard_normal((4, 2 * D + COMMON)).astype(np.float32)
    seen = pa.array(["i0", "i6", "gone", "i0"])
    sample = Sample(users, np.array([0, 0, 1, 2]), seen, pa.array(["i2", "nothing"]))
    parts = [made.slice(a, N // shards + 1) for a in range(0, N, N // shards + 1)]
    popularity = Popularity.of(counts())
    known, new = (np.concatenate([tops_of(t, sample, popularity)[i] for t in parts], axis=1) for i in (0, 1))
    scores = users.astype(float) @ vectors_in(made).T
    for user, gone in enumerate([{0, 2, 6}, {2}, {0, 2}, {2}]):
        for found, rows in ((known, range(5)), (new, (6, 7))):  # i5 has events and no like
            expected = sorted((scores[user, i] for i in rows if i not in gone), reverse=True)
            best = np.sort(found[user])[::-1][:PLACES]
            np.testing.assert_allclose(best[: len(expected)], expected, atol=1e-5)
            assert not np.isfinite(best[len(expected) :]).any()


# --- comparable --------------------------------------------------------------------------------------------


def test_history_vectors_are_comparable_if_they_point_the_same_way() -> None:
    rng = np.random.default_rng(4)
    mine, users = rng.standard_normal((50, 6)), rng.integers(1, 9, 50)
    assert comparable_with(mine, 3 * mine, users)
    assert comparable_with(mine, mine + 0.1 * rng.standard_normal((50, 6)), users)
    assert not comparable_with(mine, rng.standard_normal((50, 6)), users)
    assert not comparable_with(mine, mine[:, :5], users)
    assert not comparable_with(mine, mine, np.zeros(50, int))
    turned = mine.copy()
    turned[:10] *= -1
    assert comparable_with(mine, turned, np.where(np.arange(50) < 10, 0, users))  # nobody uses what was turned


# --- made of item vectors ----------------------------------------------------------------------------------


def items_table() -> pa.Table:
    rng = np.random.default_rng(5)
    unit = rng.standard_normal((3, N, K)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    has = np.arange(N) % 3 > 0
    return pa.table({
        "item_id": IDS, "vector": to_vector_column(unit[0]), "image_vector": to_vector_column(unit[1]),
        "text_vector": to_vector_column(unit[2], has),
    })  # fmt: skip


def test_vectors_are_the_item_vectors_and_the_common_axes() -> None:
    spec = RankingSpec(method="vectors")
    made = vector_columns(items_table(), spec, (), Popularity.of(counts()), {"fusion": "early"})
    vectors = vectors_in(made)
    np.testing.assert_array_equal(vectors[:, :K], np.stack(items_table()["vector"].to_pylist()))
    np.testing.assert_allclose(vectors[1, K:], [np.log(3) / np.log(10), np.log(5) / np.log(21), 1 / np.sqrt(5), 0])
    assert json.loads(made.schema.metadata[b"unisono.ranking"]) == {"fusion": "early", "ageing": True}


def test_late_vectors_average_over_the_modalities_of_an_item() -> None:
    spec = RankingSpec(fusion="late", weights={"text": 3.0})
    made = vector_columns(items_table(), spec, ("image", "text"), Popularity.of(None), {})
    rng, vectors = np.random.default_rng(6), vectors_in(made)
    query = {m: rng.standard_normal(K) for m in ("image", "text")}
    joined = np.concatenate([query["image"], 3.0 * query["text"]])
    for n, row in enumerate(items_table().to_pylist()):
        own = [(w, query[m] @ row[f"{m}_vector"]) for m, w in (("image", 1.0), ("text", 3.0)) if row[f"{m}_vector"]]
        expected = sum(w * s for w, s in own) / sum(w for w, _ in own)
        assert vectors[n, : 2 * K] @ joined == pytest.approx(expected, abs=1e-5)
    none = {"text": np.zeros((2, K), np.float32)}
    assert not late_matrix(none, {}).any()
