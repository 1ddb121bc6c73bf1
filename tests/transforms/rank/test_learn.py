"""Learning on Beam and in memory: the same vectors, the promised exposure, and names that do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.tables import concat_tables, shard_of, split_by_shard, to_vector_column
from unisono.transforms.behaviour.factors import fit_factors
from unisono.transforms.behaviour.likes import Likes, liked_pairs
from unisono.transforms.behaviour.sweeps import factor_table
from unisono.transforms.rank.content import ContentScale
from unisono.transforms.rank.item_vectors import Popularity
from unisono.transforms.rank.learn import FactorTable, LearnRanking, learn_ranking
from unisono.transforms.rank.model import RankingModel
from unisono.transforms.rank.sample import LearnSpec
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.rank.user_vectors import read_ranking
from unisono.transforms.read.interactions import event_schema
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.store.runs import FileRecord, Store, shard_path, table_bytes, write_file
from unisono.transforms.users.popularity import add_likes, count_likes
from unisono.transforms.users.profiles import ProfileSpec

ITEMS, NEW, USERS, EVENTS, WORDS = 90, 20, 50, 1500, 6


def catalogue(seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Draws embeddings of three kinds of items."""
    rng = np.random.default_rng(seed)
    kind = np.eye(3)[np.arange(ITEMS) % 3] @ rng.standard_normal((3, WORDS))
    return [f"i{n}" for n in range(ITEMS)], (kind + 0.7 * rng.standard_normal((ITEMS, WORDS))).astype(np.float32)


def events_of(names: list[str], seed: int = 1) -> pa.Table:
    rng = np.random.default_rng(seed)
    user = rng.integers(0, USERS, EVENTS)
    item = np.where(rng.random(EVENTS) < 0.8, rng.integers(0, 23, EVENTS) * 3 + user % 3,
                    rng.integers(0, ITEMS - NEW, EVENTS))  # fmt: skip
    time = pa.array(np.sort(rng.integers(0, 30 * 86_400, EVENTS)) * 1_000_000).cast(pa.timestamp("us", tz="UTC"))
    ids = pa.array([names[i] for i in item])
    weight = rng.choice([1.0, 5.0, -3.0], EVENTS, p=[0.6, 0.3, 0.1])
    columns = [pa.array([f"u{u}" for u in user]), ids, time, weight]
    return pa.table(columns, schema=event_schema(pa.string(), pa.string()))


class World:
    """A catalogue, a log and fitted factors, as the steps before the ranking leave them."""

    def __init__(self, folder: Path, names: list[str], content: np.ndarray, factors: int, **ranking: Any) -> None:
        self.table = pa.table({"item_id": names, "text_embedding": to_vector_column(content)})
        self.events = events_of(names)
        ranks = RankingSpec(**({"liked_above": 0.0, "factors": factors} | ranking))
        self.spec = LearnSpec(ranks, ProfileSpec())
        self.moments = Moments.zero().add(embeddings_of(self.table))
        self.counts = add_likes([count_likes(self.events, 0.0, 14.0)], 14.0)
        fitted = fit_factors(Likes.of(liked_pairs(self.events, 0.0)), ranks.factor_spec)
        table = factor_table(fitted.item_ids, fitted.users, fitted.item_factors, fitted.left_factors)
        self.store = Store(str(folder))
        path = shard_path("r", "factors", 0, 1)
        self.record: FileRecord = write_file(
            self.store, "factors", path, table_bytes(table, {}), shard=0, rows=table.num_rows
        )

    def in_memory(self, hidden: pa.Array | None = None) -> pa.Table:
        return learn_ranking(
            self.table, FactorTable.open([self.record], self.store.root), Popularity.of(self.counts), self.events,
            scale=ContentScale.of(self.moments), spec=self.spec, hidden=hidden,
        )  # fmt: skip

    def on_beam(self, shards: int, hidden: pa.Array | None = None) -> pa.Table:
        out = self.store.root + f"/made-{shards}"
        Path(out).mkdir()
        with beam.Pipeline(FnApiRunner()) as p:
            items = list(split_by_shard(self.table, shard_of(self.table["item_id"], shards)))
            people = list(split_by_shard(self.events, shard_of(self.events["user_id"], shards)))
            learned = p | beam.Create(items) | LearnRanking(
                self.spec, self.store, f"run-{shards}",
                factors=p | "F" >> beam.Create([self.record]), moments=p | "M" >> beam.Create([self.moments]),
                popularity=p | "P" >> beam.Create([self.counts]), events=p | "E" >> beam.Create(people),
                hidden=None if hidden is None else p | "H" >> beam.Create([pa.table({"item_id": hidden})]),
            )  # fmt: skip
            _ = learned["shards"] | beam.MapTuple(lambda n, t: pq.write_table(t, f"{out}/{n}.parquet"))
        found = concat_tables([pq.read_table(f) for f in sorted(Path(out).iterdir())])
        order = pc.index_in(self.table["item_id"], value_set=found["item_id"].combine_chunks())
        return found.take(order)


def vectors_in(made: pa.Table, column: str = "ranking_vector") -> np.ndarray:
    return np.stack(made[column].to_pylist()).astype(np.float64)


@pytest.mark.parametrize("shards", [1, 4])
def test_beam_and_memory_make_the_same_bits(tmp_path: Path, shards: int) -> None:
    world, shut = World(tmp_path, *catalogue(), 8), pa.array(["i3", f"i{ITEMS - 1}", "nothing"])
    expected, found = world.in_memory(shut), world.on_beam(shards, shut)
    for column in ("ranking_vector", "history_vector", "history_vector_new"):
        np.testing.assert_array_equal(vectors_in(found, column), vectors_in(expected, column))
    # The key names the bits of a regression in float64. Its last digits depend on the shards, those of vectors do not.
    mine, theirs = (read_ranking(t.schema) for t in (found, expected))
    assert mine | {"key": ""} == theirs | {"key": ""}
    written = Path(world.store.run_path(f"run-{shards}", "ranking/ranking.safetensors")).read_bytes()
    model = RankingModel.from_bytes(written)
    assert model.new_items > 0
    new = np.arange(ITEMS) >= ITEMS - NEW
    vectors = vectors_in(found)
    assert vectors[new, 8:16].any(1).all()
    assert not vectors[~new, 8:16].any()


def test_items_with_likes_have_unit_variance_in_every_direction_that_says_something(tmp_path: Path) -> None:
    """There are three kinds of items, so the fourth factor may be all noise, which is not made larger."""
    vectors = vectors_in(World(tmp_path, *catalogue(), 4).in_memory())[: ITEMS - NEW, :4]
    variances = np.linalg.eigvalsh(np.cov(vectors.T, bias=True))
    assert variances.max() <= 1 + 1e-6
    np.testing.assert_allclose(variances[1:], 1, atol=0.05)


def lists_by_hand(world: World, made: pa.Table) -> list[list[int]]:
    """Ranks items for every user by the formulas: the direction of the sums of history vectors, weights, lists."""
    names = {i: n for n, i in enumerate(made["item_id"].to_pylist())}
    history, new, items = (vectors_in(made, c) for c in ("history_vector", "history_vector_new", "ranking_vector"))
    out, rows = [], world.events.to_pylist()
    for user in sorted({e["user_id"] for e in rows}):
        mine = sorted((e for e in rows if e["user_id"] == user), key=lambda e: e["time"])
        warm, cold = np.zeros(history.shape[1]), np.zeros(history.shape[1])
        for e in (e for e in mine if e["weight"] > 0):
            age = (mine[-1]["time"] - e["time"]).total_seconds() / 86_400
            newer = sum(o["time"] > e["time"] and o["weight"] > 0 for o in mine)
            warm += e["weight"] * (2 ** (-age / 30) + 2 ** (-newer / 3)) * history[names[e["item_id"]]]
            cold += e["weight"] * new[names[e["item_id"]]]
        query = np.concatenate([warm / np.linalg.norm(warm), cold / np.linalg.norm(cold), [1, -1, 0, 1]])
        scores = items @ query
        scores[[names[e["item_id"]] for e in mine]] = -np.inf
        out.append(np.argsort(-scores)[:10].tolist())
    return out


@pytest.mark.parametrize("content_users", [0.0, 10.0])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_new_items_take_their_share_of_the_lists(tmp_path: Path, share: float, content_users: float) -> None:
    world = World(tmp_path, *catalogue(), 8, cold_exposure=share, content_users=content_users)
    lists = lists_by_hand(world, world.in_memory())
    taken = sum(i >= ITEMS - NEW for one in lists for i in one)
    places = 10 * len(lists)
    assert len(lists) == USERS
    assert share * places - 1.5 <= taken <= share * places + 0.5


def test_without_exposure_new_items_come_last(tmp_path: Path) -> None:
    world = World(tmp_path, *catalogue(), 8, cold_exposure=0.0)
    assert not any(i >= ITEMS - NEW for one in lists_by_hand(world, world.in_memory()) for i in one)


def test_a_quantile_gives_new_items_the_length_of_others(tmp_path: Path) -> None:
    vectors = vectors_in(World(tmp_path, *catalogue(), 8, cold_quantile=0.8).in_memory())
    lengths = np.linalg.norm(vectors[:, :-4], axis=1)
    expected = np.quantile(lengths[: ITEMS - NEW], 0.8)
    assert np.median(lengths[ITEMS - NEW :]) == pytest.approx(expected, rel=1e-5)
    # Before they are scaled, scores must exceed a sixth of the median length.
    np.testing.assert_allclose(vectors[ITEMS - NEW :, -1], -expected / 6, rtol=1e-5)


def test_a_catalogue_without_new_items(tmp_path: Path) -> None:
    names, content = catalogue()
    made = World(tmp_path, names[: ITEMS - NEW], content[: ITEMS - NEW], 8).in_memory()
    assert not vectors_in(made)[:, 8:16].any()


def test_names_of_items_change_scores_little(tmp_path: Path) -> None:
    """Names decide from where the factors start, so scores differ by what ten sweeps leave open."""
    names, content = catalogue()
    renamed = [f"thing-{(n * 37) % 997}" for n in range(ITEMS)]
    scores = []
    for folder, ids in (("a", names), ("b", renamed)):
        (tmp_path / folder).mkdir()
        made = World(tmp_path / folder, ids, content, 48).in_memory()
        history, items = vectors_in(made, "history_vector"), vectors_in(made)[:, :48]
        scores.append(history @ items.T)
    assert np.linalg.norm(scores[0] - scores[1]) < 0.02 * np.linalg.norm(scores[0])
