"""Recommendations, compared with loops over users and items in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import pack_vectors, to_vector_column, unpack_vectors
from unisono.transforms.rank.item_vectors import Popularity, vector_columns
from unisono.transforms.rank.lists import diversify
from unisono.transforms.rank.ranking import RecommendItems, distinct_pairs, make_shelf, rank_items
from unisono.transforms.rank.ranking import Shelf as ShelfOfItems
from unisono.transforms.rank.spec import Interests, RankingSpec
from unisono.transforms.rank.user_vectors import add_ranking_vectors, kind_of_items, queries_of, read_ranking
from unisono.transforms.store.item_matrix import ItemMatrix

DIM, ITEMS, USERS = 8, 60, 12


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    vectors = rng.standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Items in four files, of which a fifth lack a text vector; users; and the pairs that users have seen."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(1)
    vectors, text, image = (unit(rng, ITEMS) for _ in range(3))
    has_text, ids, files = rng.random(ITEMS) < 0.8, [f"item-{i}" for i in range(ITEMS)], []
    for part in range(4):
        rows = slice(part * 15, part * 15 + 15)
        table = pa.table({
            "item_id": ids[rows],
            "vector": to_vector_column(vectors[rows]),
            "text_vector": to_vector_column(text[rows], has_text[rows]),
            "image_vector": to_vector_column(image[rows]),
            "ranking_vector": to_vector_column(vectors[rows]),
        })
        files.append(str(folder / f"part-{part}.parquet"))
        pq.write_table(pack_vectors(table), files[-1])
    own = to_vector_column(unit(rng, USERS))
    users = pa.table({"user_id": [f"u{i}" for i in range(USERS)], "vector": own, "ranking_vector": own})
    seen = pa.table({
        "user_id": [f"u{u}" for u in rng.integers(0, USERS + 2, 80)],
        "item_id": [f"item-{i}" for i in rng.integers(0, ITEMS + 5, 80)],
    })
    matrix = ItemMatrix.open(files, cache_dir=str(folder / "cache"))
    return {
        "files": files, "cache": str(folder / "cache"), "users": users, "seen": seen, "vectors": vectors, "ids": ids,
        "text": np.where(has_text[:, None], text, 0), "image": image, "matrix": matrix,
    }  # fmt: skip


def best_of(scores: np.ndarray, ids: list[str], gone: set[str], k: int) -> list[str]:
    order = np.argsort(-scores, kind="stable")
    return [ids[i] for i in order if ids[i] not in gone][:k]


def seen_of(shop: dict[str, Any], user: str) -> set[str]:
    return {s["item_id"] for s in shop["seen"].to_pylist() if s["user_id"] == user}


@pytest.mark.parametrize("slices", [1, 3])
def test_the_transform_agrees_with_a_loop(shop: dict[str, Any], slices: int) -> None:
    spec = RankingSpec(k=10, slices=slices, device="cpu")
    hidden = pa.table({"item_id": ["item-3", "item-30", "gone"]})
    q = np.stack(shop["users"]["ranking_vector"].to_pylist())
    scores = q.astype(np.float64) @ shop["vectors"].T
    expected = {}
    for u in range(USERS):
        gone = seen_of(shop, f"u{u}") | {"item-3", "item-30"}
        expected[f"u{u}"] = best_of(scores[u], shop["ids"], gone, 10)

    def check(found: list[Any]) -> None:
        (shard, table), = found
        assert shard == 5
        assert dict(zip(table["user_id"].to_pylist(), table["item_ids"].to_pylist(), strict=True)) == expected
        for user, items, values in zip(*(table[c].to_pylist() for c in table.column_names), strict=True):
            own = scores[int(user[1:])]
            np.testing.assert_allclose(values, [own[int(i[5:])] for i in items], atol=1e-6)

    with beam.Pipeline(FnApiRunner()) as p:
        pairs = p | beam.Create([(5, (shop["users"], distinct_pairs(shop["seen"])))])
        recommend = RecommendItems(
            beam.pvalue.AsList(p | "F" >> beam.Create(shop["files"])),
            spec,
            hidden=p | "H" >> beam.Create([hidden]),
            cache_dir=shop["cache"],
        )
        assert_that(pairs | recommend, check)


@pytest.mark.parametrize("gain", [-0.4, 0.3])
def test_popularity_and_caution_are_axes(shop: dict[str, Any], gain: float, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"popularity_penalty": 0.4} if gain < 0 else {"popularity_bonus": gain, "caution": 0.2}
    spec = RankingSpec(k=10, interests="profile", device="cpu", **settings)
    likes = np.arange(1, 21)
    counts = pa.table({
        "item_id": shop["ids"][:20], "late": likes / 2, "likes": likes, "users": likes, "newest": likes * 0,
        "oldest": likes * 0,
    })
    items, users = with_ranking_vectors(shop, spec, Popularity.of(counts), tmp_path)
    found = rank_items(users, None, make_shelf(items, []), spec)
    scores = np.stack(users["vector"].to_pylist()).astype(np.float64) @ shop["vectors"].T
    scores[:, :20] += gain * np.log(1 + likes / 2) / np.log(11)
    if gain > 0:
        scores -= 0.2 / np.sqrt(1 + np.pad(likes, (0, ITEMS - 20)))
    for u in range(USERS):
        assert found["item_ids"][u].as_py() == best_of(scores[u], shop["ids"], set(), 10)


def with_ranking_vectors(
    shop: dict[str, Any], spec: RankingSpec, popularity: Popularity, folder: Path, users: pa.Table | None = None
) -> tuple[ItemMatrix, pa.Table]:
    """Gives the shop's items and users the ranking vectors of `method: vectors`."""
    tables = [unpack_vectors(pq.read_table(f)).drop_columns(["ranking_vector"]) for f in shop["files"]]
    late = ("image", "text") if spec.fusion == "late" else ()
    table = vector_columns(pa.concat_tables(tables), spec, late, popularity, kind_of_items(spec, late))
    pq.write_table(pack_vectors(table), folder / "items.parquet")
    users = shop["users"].drop_columns(["ranking_vector"]) if users is None else users
    made = add_ranking_vectors(users, spec, read_ranking(table.schema))
    path = str(folder / "items.parquet")
    return ItemMatrix.open([path], cache_dir=str(folder), vector_column="ranking_vector"), made


def shelf(shop: dict[str, Any]) -> ShelfOfItems:
    return ShelfOfItems(shop["matrix"])


def with_interests(shop: dict[str, Any]) -> tuple[pa.Table, list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(7)
    vectors = [unit(rng, n) for n in rng.integers(0, 4, USERS)]
    weights = [rng.random(len(v)).astype(np.float32) for v in vectors]
    rows = [
        [{"vector": v.tolist(), "weight": float(w), "item_id": "x"} for v, w in zip(vs, ws, strict=True)]
        for vs, ws in zip(vectors, weights, strict=True)
    ]
    kind = pa.list_(pa.struct([
        ("vector", pa.list_(pa.float32(), DIM)), ("weight", pa.float32()), ("item_id", pa.string()),
    ]))
    users = shop["users"].drop_columns(["ranking_vector"])
    return users.append_column("interests", pa.array(rows, kind)), vectors, weights


@pytest.mark.parametrize("how", ["profile", "weighted"])
def test_several_interests(shop: dict[str, Any], how: Interests, tmp_path: Path) -> None:
    users, vectors, weights = with_interests(shop)
    spec = RankingSpec(k=7, interests=how, device="cpu")
    items, users = with_ranking_vectors(shop, spec, Popularity.of(None), tmp_path, users)
    found = rank_items(users, None, make_shelf(items, []), spec)
    own = np.stack(users["vector"].to_pylist())
    for u in range(USERS):
        if how == "profile" or not len(vectors[u]):  # without interests, the profile is the query
            scores = shop["vectors"] @ own[u]
        else:
            scores = (shop["vectors"] @ vectors[u].T) @ weights[u]
        assert found["item_ids"][u].as_py() == best_of(scores, shop["ids"], set(), 7)


def test_late_fusion_averages_over_the_modalities_an_item_has(shop: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    text, image = unit(rng, USERS), unit(rng, USERS)
    has = np.arange(USERS) != 4  # a user without a text vector
    users = shop["users"].drop_columns(["ranking_vector"]).append_column("text_vector", to_vector_column(text, has))
    users = users.append_column("image_vector", to_vector_column(image))
    spec = RankingSpec(k=9, fusion="late", weights={"text": 2.0}, device="cpu")
    items, users = with_ranking_vectors(shop, spec, Popularity.of(None), tmp_path, users)
    found = rank_items(users, None, make_shelf(items, []), spec)
    lacks = ~shop["text"].any(1)
    for u in range(USERS):
        by_text = shop["text"] @ text[u] * 2 if has[u] else 0
        scores = (by_text + shop["image"] @ image[u]) / np.where(lacks, 1, 3)
        assert found["item_ids"][u].as_py() == best_of(scores, shop["ids"], set(), 9)


@pytest.mark.parametrize("diversity", [0.3, 0.9])
def test_diversity_agrees_with_a_greedy_loop(shop: dict[str, Any], diversity: float) -> None:
    spec = RankingSpec(k=6, diversity=diversity, device="cpu")
    seen = shop["seen"].filter(pa.compute.equal(shop["seen"]["user_id"], "u1"))
    pool = rank_items(shop["users"], seen, shelf(shop), spec)
    found = diversify(pool, shop["matrix"], 6, diversity)
    for u in range(USERS):
        left, score = pool["item_ids"][u].as_py(), dict(
            zip(pool["item_ids"][u].as_py(), pool["scores"][u].as_py(), strict=True)
        )
        assert len(left) == 24
        chosen: list[str] = []
        while len(chosen) < 6:
            def value(i: str, chosen: tuple[str, ...] = tuple(chosen), score: dict[str, float] = score) -> float:
                v = shop["vectors"]
                near = max((float(v[int(i[5:])] @ v[int(c[5:])]) for c in chosen), default=0.0)
                return (1 - diversity) * score[i] - diversity * near
            best = max(left, key=value)
            chosen.append(best)
            left.remove(best)
        assert found["item_ids"][u].as_py() == chosen
        assert found["scores"][u].as_py() == [score[c] for c in chosen]


def test_a_user_who_has_seen_everything_gets_an_empty_list(shop: dict[str, Any]) -> None:
    everything = pa.table({"user_id": ["u2"] * ITEMS, "item_id": shop["ids"]})
    for spec in (RankingSpec(k=5, device="cpu"), RankingSpec(k=5, diversity=0.5, device="cpu")):
        found = rank_items(shop["users"], everything, shelf(shop), spec)
        if spec.diversity:
            found = diversify(found, shop["matrix"], 5, 0.5)
        assert [len(i) for i in found["item_ids"].to_pylist()] == [0 if u == 2 else 5 for u in range(USERS)]


def test_no_users(shop: dict[str, Any]) -> None:
    none = shop["users"].slice(0, 0)
    assert rank_items(none, None, shelf(shop), RankingSpec(device="cpu")).num_rows == 0
    assert queries_of(none, RankingSpec(interests="profile")).shape == (0, DIM)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"interests": "all"}, "ranking.interests: Input should be 'profile' or 'weighted'"),
        ({"fusion": "middle"}, "ranking.fusion: Input should be 'early' or 'late'"),
        ({"weights": {"text": 1.0}}, "ranking.weights: weigh modalities of late fusion"),
        ({"diversity": 1.5}, "ranking.diversity: .* 1 .got 1.5"),
        ({"popularity_penalty": -1.0}, "ranking.popularity_penalty: .* 0 .got -1.0"),
        ({"caution": float("nan")}, "ranking.caution: .* finite"),
        ({"popularity_penalty": 0.1, "popularity_bonus": 0.1}, "ranking.popularity_bonus: given beside"),
        ({"method": "learned", "fusion": "late"}, "ranking.method: learned does not use"),
        ({"popularity_bonus": 1.0, "popularity_half_life_days": 0.0}, "half_life_days: .* greater than 0"),
    ],
    ids=["interests", "fusion", "weights", "diversity", "penalty", "caution", "both", "learned late", "no age"],
)
def test_settings_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        RankingSpec(**options)
