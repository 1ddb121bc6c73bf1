"""Runs of the whole job with behaviour, incremental profiles, recommendations, explanations and small vectors."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import scipy.linalg
import yaml

from tests.transforms.behaviour.test_behaviour import draw
from unisono.pipelines.ask.evaluate_space import evaluate_space
from unisono.pipelines.ask.explain import explain
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.search import Searcher
from unisono.pipelines.graph import nightly
from unisono.pipelines.job.load import load_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.launch import beam_options, launch
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.behaviour.behaviour import (
    ENCODER_ID,
    BehaviourSpec,
    count_pairs,
    embed_pairs,
    turn_to_published,
)
from unisono.transforms.store.runs import Store, read_table
from unisono.transforms.store.small_vectors import read_vectors

CROWDS = (["red", "wool", "scarf", "warm", "knit"], ["oak", "drum", "loud", "stick", "skin"], ["tin", "lamp", "desk"])
ITEMS, USERS = 150, 60


class Shop:
    """A catalogue of texts, in three groups of items, and a log in which each user turns to the items of one group."""

    def __init__(self, root: Path) -> None:
        self.root, rng = root, np.random.default_rng(4)
        crowd = np.arange(ITEMS) % 3
        every = [word for words in CROWDS for word in words]
        words = [" ".join([*rng.choice(CROWDS[c], 3), *rng.choice(every, 2)]) for c in crowd]
        self.catalog = pa.table({"item_id": [f"i{n:03d}" for n in range(ITEMS)], "text": words})
        n = 4000
        user = rng.integers(0, USERS, n)
        # The last ten items have no events.
        item = np.minimum(rng.integers(0, ITEMS // 3, n) * 3 + user % 3, ITEMS - 1)
        item = np.where(item >= ITEMS - 10, item - 30, item)
        self.log = pa.table({
            "user": [f"u{u:02d}" for u in user],
            "item": [f"i{i:03d}" for i in item],
            "time": pa.array(1_770_000_000 + np.sort(rng.integers(0, 60 * 86_400, n))),
        })

    def run(self, run_id: str, items: int = ITEMS, events: slice = slice(None), **job: Any) -> Store:
        pq.write_table(self.catalog.slice(0, items), self.root / "catalog.parquet")
        log = f"log-{run_id}.parquet"
        rows = range(self.log.num_rows)[events]
        pq.write_table(self.log.slice(rows.start, len(rows)), self.root / log)
        body = {
            "store": "store",
            "catalog": {"path": "catalog.parquet", "id": "item_id", "text": ["text"]},
            "interactions": {"path": log, "user": "user", "item": "item", "time": "time", "time_unit": "s"},
            "space": {"dim": 12},
            "shards": 2,
        }
        parts = {"items": True, "users": True, "recommend": False} | job.pop("parts", {})
        (self.root / "job.yaml").write_text(yaml.safe_dump(body | job))
        plan = plan_run(load_job(str(self.root / "job.yaml")), run_id, **parts)
        launch(lambda root: nightly.build(root, plan), beam_options([]), {})
        return plan.run.store


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def part(store: Store, name: str, run_id: str | None = None) -> pa.Table:
    manifest = store.manifest(run_id) if run_id else store.published()
    assert manifest is not None
    table = pa.concat_tables([read_table(store, r) for r in manifest.part(name)])
    return table.sort_by(table.column_names[0]).combine_chunks()


def space_of(store: Store) -> dict:
    return json.loads(Path(store.run_path(store.published().run_id, "space/space.json")).read_text())


def same_crowd(table: pa.Table, column: str = "vector") -> float:
    vectors, present = read_vectors(table, column)
    crowd = np.array([int(i[1:]) % 3 for i in table["item_id"].to_pylist()])[present]
    scores = vectors[present] @ vectors[present].T
    np.fill_diagonal(scores, -9)
    return float((crowd[np.argsort(-scores, 1)[:, :5]] == crowd[:, None]).mean())


# --- what counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["learned", "vectors"])
def test_robots_and_repeats_teach_items_and_profiles_nothing(shop, method):
    """Each event again a minute earlier, and a robot on items that nobody turns to, change nothing."""
    n, clean = shop.log.num_rows, shop.log
    clean = clean.set_column(2, "time", pa.array(1_770_000_000 + np.arange(n) * 3600))
    earlier = clean.set_column(2, "time", pa.array(clean["time"].to_numpy() - 60))
    robot = pa.table({
        "user": ["robot"] * 3000,
        "item": [f"i{i:03d}" for i in ITEMS - 1 - np.arange(3000) % 10],
        "time": pa.array(1_770_000_000 + np.arange(3000) * 20),
    })
    rules = {"session_minutes": 30, "max_events_per_day": 8, "robots": "drop", "min_events": 70, "interests": 0}
    made = {}
    for name, log in (("clean", clean), ("dirty", pa.concat_tables([robot, clean, earlier]))):
        shop.log = log
        # The runs do not learn from each other.
        store = shop.run(name, store=f"store-{name}", behaviour={"dim": 12}, profiles=rules,
                         ranking={"k": 5, "device": "cpu", "method": method}, limits={"max_dead_letter_fraction": 1},
                         parts={"recommend": True})  # fmt: skip
        made[name] = {name: part(store, name) for name in ("items", "users", "recommendations")}
    assert made["clean"]["users"]["cold"].to_pylist().count(True) > 5  # so the prior matters
    for name, table in made["clean"].items():
        assert made["dirty"][name].equals(table), name


# --- behaviour joins before the space is fitted ------------------------------------------------------------


# One trained method stands for all: they read behaviour from the same sample.
@pytest.mark.parametrize("method", ["whiten", "procrustes", "ridge", "cca", "gcca", "anchors", "autoencoder"])
def test_behaviour_is_a_modality_under_every_method(shop, method):
    space = {"method": method, "dim": 8, "epochs": 5, "hub": "behaviour" if method == "ridge" else None}
    output = {"dtype": "int8"} if method == "gcca" else {}
    fusion = {"impute": method in ("gcca", "whiten")}
    store = shop.run("r", space=space, behaviour={"dim": 8}, fusion=fusion, output=output)
    items = part(store, "items")
    touched = items["item_id"].to_numpy(zero_copy_only=False) < f"i{ITEMS - 10}"
    assert ["behaviour" in m for m in items["modalities"].to_pylist()] == touched.tolist()
    known = items.filter(pa.array(touched))
    assert same_crowd(known, "behaviour_vector") > 0.9
    counts = json.loads(Path(store.run_path("r", "metrics.json")).read_text())
    assert counts["embeddings.behaviour"] == touched.sum()
    if method in ("gcca", "whiten"):  # For items without events, behaviour is predicted from text.
        assert items["imputed"].to_pylist() == [[] if t else ["behaviour"] for t in touched]
    assert space_of(store)["info"]["encoder_ids"]["behaviour"].startswith("behaviour-8-100-2-1-")
    users = part(store, "users")
    assert users["behaviour_affinity"].null_count == 0
    hits = Searcher(PublishedRun.open(store)).search(text="oak drum", k=3)  # `behaviour` has no encoder to ask
    assert hits["score"][0].as_py() > 0.2
    if method in ("gcca", "ridge"):
        found = evaluate_space(load_job(str(shop.root / "job.yaml")), folds=2)["methods"][method]
        assert {"behaviour→text", "text→behaviour"} <= found["pairs"].keys()
        assert found["times_chance"] > 1.2


def test_without_behaviour_embeddings_text_is_the_only_modality(shop):
    store = shop.run("r", behaviour={"dim": 12, "min_users": 10_000}, parts={"recommend": True},
                     ranking={"k": 3, "fusion": "late", "device": "cpu"})  # fmt: skip
    assert list(space_of(store)["info"]["left_out"]) == ["behaviour"]
    users = part(store, "users")
    assert users["behaviour_affinity"].null_count == users.num_rows
    served = part(store, "recommendations")
    found = explain(PublishedRun.open(store), "u07", served["item_ids"][7][0].as_py())
    assert found.score == pytest.approx(served["scores"][7][0].as_py(), abs=1e-5)
    assert [m for m, _ in found.modalities] == ["text"]


def test_new_behaviour_embeddings_are_turned_to_the_published_ones():
    table, spec = draw(True, 3000), BehaviourSpec(dim=6)
    today = turn_to_published(embed_pairs(count_pairs(table.slice(0, 2900), 100), spec), spec, None)
    raw = embed_pairs(count_pairs(table, 100), spec)
    turned = turn_to_published(raw, spec, today)
    assert turned.schema.metadata[ENCODER_ID] == today.schema.metadata[ENCODER_ID]
    a, b, c = (from_vector_column(t["behaviour_embedding"])[0].astype(float) for t in (raw, today, turned))
    assert raw["item_id"].to_pylist() == today["item_id"].to_pylist()
    np.testing.assert_allclose(c, a @ scipy.linalg.orthogonal_procrustes(a, b)[0], atol=1e-5)

    def cosine(x: np.ndarray) -> float:
        return float(np.mean(np.sum(x * b, 1) / np.linalg.norm(x, axis=1) / np.linalg.norm(b, axis=1)))

    assert cosine(c) > max(0.95, cosine(a))
    other = BehaviourSpec(dim=6, min_users=3)
    renamed = turn_to_published(raw, other, today).schema.metadata[ENCODER_ID]
    assert renamed != today.schema.metadata[ENCODER_ID]
    # Five items are too few to turn six axes.
    few = turn_to_published(raw.slice(0, 5), spec, today).schema.metadata[ENCODER_ID]
    assert few.rpartition(b"-")[2] != today.schema.metadata[ENCODER_ID].rpartition(b"-")[2]


# --- nights and refits -------------------------------------------------------------------------------------

HALF = 2000
FOLD = {"profiles": {"incremental": True}}


@pytest.mark.parametrize("behaviour", [None, {"dim": 12}], ids=["content", "behaviour"])
def test_sums_are_added_to_after_a_refit_that_is_turned_to_the_published_space(shop, behaviour):
    also = {"behaviour": behaviour} if behaviour else {}
    shop.run("one", 143, slice(0, HALF), **FOLD, **also)
    store = shop.run("two", ITEMS, slice(HALF, None), **FOLD, **also)
    space = space_of(store)
    one = json.loads(Path(store.run_path("one", "space/space.json")).read_text())
    assert space["space_id"] != one["space_id"]
    assert space["info"]["comparable"] == [one["space_id"]]
    folded = part(store, "users")
    # Compare with one pass over the whole log, with the items of the second run.
    again = {"profiles": {"incremental": "restart"}, "parts": {"items": False}}
    store = shop.run("whole", ITEMS, slice(0, None), **again, **also)
    whole = part(store, "users")
    assert folded["user_id"].equals(whole["user_id"])
    assert folded["events"].equals(whole["events"])
    assert folded["last_event"].equals(whole["last_event"])
    a, b = (from_vector_column(t["vector"])[0].astype(float) for t in (folded, whole))
    assert np.einsum("ud,ud->u", a, b).min() > 0.98


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=["in order", "out of order"])
def test_runs_over_parts_of_a_log_equal_one_run_over_the_whole_log(shop, order):
    shop.run("items", parts={"users": False})
    cuts, alone = (0, 1700, 2600, 4000), {"parts": {"items": False}}
    for place, night in enumerate(order):
        fold = {"profiles": {"incremental": True if place else "restart"}}
        store = shop.run(f"night-{place}", ITEMS, slice(cuts[night], cuts[night + 1]), **fold, **alone)
    folded = part(store, "users")
    whole = part(shop.run("whole", profiles={"incremental": "restart"}, **alone), "users")
    assert folded.num_rows == whole.num_rows == USERS
    for name in ("user_id", "events", "last_event", "cold"):
        assert folded[name].equals(whole[name])
    a, b = (from_vector_column(t["vector"])[0] for t in (folded, whole))
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(folded["text_affinity"].to_numpy(), whole["text_affinity"].to_numpy(), atol=1e-6)
    fields = [t["interests"].combine_chunks().flatten() for t in (folded, whole)]
    assert fields[0].field("item_id").equals(fields[1].field("item_id"))


def test_sums_are_kept_by_a_run_that_makes_only_items(shop):
    shop.run("one", 143, slice(0, HALF), **FOLD)
    store = shop.run("two", ITEMS, slice(0, 1), parts={"users": False}, **FOLD)
    assert not store.published().part("users")
    store = shop.run("three", ITEMS, slice(HALF, None), parts={"items": False}, **FOLD)
    assert sum(part(store, "users")["events"].to_pylist()) == 4000
    with pytest.raises(JobError, match=r"interactions.path: .*log-three.parquet is in the published state already"):
        plan_run(load_job(str(shop.root / "job.yaml")), "four", items=False, users=True)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (FOLD, {"space": {"dim": 12, "refit": "never"}}, ""),
        (FOLD, {"space": {"dim": 9}}, "which is not comparable with it .it has 12 axes, this run 9"),
        (FOLD, {"catalog": "other"}, "which is not comparable with it .fewer than 12 items in common"),
        (FOLD, {"profiles": {"incremental": True, "half_life_days": 5}}, "profiles.half_life_days: 5.0, .* with 30.0"),
        ({}, {}, "the published run one kept no sums to add to; run once with profiles.incremental: restart"),
    ],
    ids=["kept", "shorter", "not anchored", "half-life", "no sums"],
)
def test_sums_are_refused_if_the_settings_or_the_space_do_not_fit(shop, first, second, says):
    shop.run("one", ITEMS, slice(0, HALF), **first)
    if second.get("catalog") == "other":
        for name, column in (("catalog", "item_id"), ("log", "item")):
            table = getattr(shop, name)
            ids = pc.binary_join_element_wise("x", table[column], "")
            setattr(shop, name, table.set_column(table.schema.get_field_index(column), column, ids))
        second = {}
    with pytest.raises(JobError, match=says) if says else contextlib.nullcontext():
        shop.run("two", ITEMS, slice(HALF, None), **(FOLD | second))
    assert Store(str(shop.root / "store")).latest() == ("one" if says else "two")
    if says:
        shop.run("again", ITEMS, slice(0, None), **(FOLD | second | {"profiles": {"incremental": "restart"}}))


def test_items_seen_in_earlier_runs_are_not_recommended(shop):
    ranking = {"ranking": {"k": 20, "device": "cpu"}, "parts": {"recommend": True}}
    shop.run("one", ITEMS, slice(0, HALF), **FOLD, **ranking)
    ranking = {"ranking": {"k": 20, "device": "cpu"}, "parts": {"recommend": True}}
    store = shop.run("two", ITEMS, slice(HALF, None), **FOLD, **ranking)
    seen = set(zip(shop.log["user"].to_pylist(), shop.log["item"].to_pylist(), strict=True))
    served = part(store, "recommendations")
    assert served.num_rows == USERS
    assert not any((r["user_id"], i) in seen for r in served.to_pylist() for i in r["item_ids"])


# --- small vectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_small_item_vectors_are_ranked_and_explained(shop, dtype):
    store = shop.run("r", behaviour={"dim": 12}, output={"dtype": dtype}, fusion={"impute": True},
                     ranking={"k": 5, "device": "cpu", "interests": "profile"}, parts={"recommend": True})  # fmt: skip
    items, users, served = (part(store, p) for p in ("items", "users", "recommendations"))
    vectors, profiles = read_vectors(items)[0].astype(float), from_vector_column(users["vector"])[0].astype(float)
    for row in (0, 31):
        item, score = served["item_ids"][row][0].as_py(), served["scores"][row][0].as_py()
        at = items["item_id"].to_pylist().index(item)
        assert score == pytest.approx(profiles[row] @ vectors[at], abs=1e-6)
        found = explain(PublishedRun.open(store), users["user_id"][row].as_py(), item)
        assert found.score == pytest.approx(score, abs=1e-5)
        assert sum(p for _, p in found.modalities) == pytest.approx(score, abs=1e-5)
        assert sum(p for *_, p in found.events) + found.rest == pytest.approx(score, abs=1e-5)
        assert abs(found.rest) < 1e-5
        assert {m.partition(" ")[0] for m, _ in found.modalities} >= {"text", "behaviour"}
    unseen = explain(PublishedRun.open(store), "u00", f"i{ITEMS - 1}")
    assert "behaviour (predicted)" in dict(unseen.modalities)
