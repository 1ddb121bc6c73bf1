"""`unisono evaluate --what ranking`: against a real run on the training events, and against pandas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from unisono.pipelines.ask.evaluate_ranking import OWN, evaluate_ranking, variants
from unisono.pipelines.ask.ranking_case import make_case
from unisono.pipelines.ask.ranking_lists import serve
from unisono.pipelines.ask.ranking_report import print_ranking
from unisono.pipelines.ask.trial import read_embeddings, read_events, without
from unisono.pipelines.cli import app
from unisono.pipelines.job.load import load_job
from unisono.pipelines.launch import run_job
from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.baselines import BASELINES
from unisono.transforms.measure.splits import SplitSpec, split_events
from unisono.transforms.store.runs import Store, read_table

GROUPS, ITEMS, USERS = 4, 80, 90
WORDS = ["river stone water", "engine wheel oil", "velvet silk thread", "bread salt oven"]
DAY = 86_400_000_000


def write_shop(root: Path) -> Path:
    """Items in groups that their text tells, users who keep to one group, and items that appear late."""
    rng = np.random.default_rng(0)
    group = np.arange(ITEMS) % GROUPS
    ids = [f"i{i:02d}" for i in range(ITEMS)]
    text = [f"{WORDS[g]} {rng.choice(WORDS[g].split())} no {i}" for i, g in enumerate(group)]
    pq.write_table(pa.table({"id": ids, "title": text}), root / "catalog.parquet")
    user = rng.integers(0, USERS, 2600)
    day = rng.integers(0, 100, len(user))
    item = rng.choice(ITEMS, len(user), p=(w := 1 / (1 + np.arange(ITEMS))) / w.sum())
    off = rng.random(len(user)) > 0.15
    item = np.where(off, item // GROUPS * GROUPS + user % GROUPS, item)
    late = item >= ITEMS - 8
    day = np.where(late, rng.integers(85, 100, len(user)), day)
    like = np.where(rng.random(len(user)) < 0.1, "dislike", "like")
    log = pa.table({
        "user": [f"u{u}" for u in user], "item": [ids[i] for i in item], "what": like,
        "at": pa.array(1_700_000_000_000_000 + day * DAY).cast(pa.timestamp("us", "UTC")),
    })  # fmt: skip
    pq.write_table(log, root / "log.parquet")
    job = {
        "store": "store",
        "catalog": {"path": "catalog.parquet", "id": "id", "title": "title", "text": "title"},
        "encoders": {"text": {"model": "lite"}},
        "interactions": {
            "path": "log.parquet", "user": "user", "item": "item", "time": "at", "event": "what",
            "weights": {"like": 1, "dislike": -1},
        },
        "behaviour": {"method": "ridge", "ridge": 20, "dim": 12},
        "space": {"method": "ridge", "hub": "behaviour"},
        "profiles": {"half_life_days": 20, "min_events": 18, "interests": 2},
        "ranking": {"k": 10, "popularity_bonus": 0.1, "popularity_half_life_days": 30, "caution": 0.05},
    }  # fmt: skip
    (root / "job.yaml").write_text(yaml.safe_dump(job))
    return root / "job.yaml"


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_shop(tmp_path_factory.mktemp("ranked"))
    run_job(str(path), "whole", [], items=True, users=False)
    return path


def test_lists_are_those_of_a_run_that_knows_the_training_events_alone(job_file: Path) -> None:
    job = load_job(str(job_file))
    embeddings, (events, lost) = read_embeddings(job.store_at), read_events(job)
    assert lost == 0
    case = make_case(embeddings, events, SplitSpec())
    lists = serve(job, case)
    root = job_file.parent
    train = split_events(events, SplitSpec()).train
    what = np.where(train["weight"].to_numpy() > 0, "like", "dislike")
    log = pa.table({"user": train["user_id"], "item": train["item_id"], "what": what, "at": train["time"]})
    pq.write_table(log, root / "before.parquet")
    raw = yaml.safe_load(job_file.read_text())
    raw["interactions"]["path"], raw["store"] = "before.parquet", "other"
    (root / "other.yaml").write_text(yaml.safe_dump(raw))
    run_job(str(root / "other.yaml"), "train", [], items=True, users=True, recommend=True)
    store = Store(str(root / "other"))
    tables = [read_table(store, r) for r in store.published().part("recommendations")]
    served = {r["user_id"]: r for r in pa.concat_tables(tables).to_pylist()}
    ids = np.array(embeddings["item_id"].to_pylist())
    same = 0
    for u, user in enumerate(case.who.to_pylist()):
        found = lists.every.items[u][:10]
        np.testing.assert_allclose(lists.every.scores[u][:10], served[user]["scores"], atol=2e-5)
        same += ids[found].tolist() == served[user]["item_ids"]
    assert same >= 0.95 * len(case.who)  # the graph may add moments in another order: ties may turn


@pytest.fixture(scope="module")
def result(job_file: Path) -> dict:
    return evaluate_ranking(load_job(str(job_file)), fusions=["concat"])


def test_popularity_by_pandas(job_file: Path, result: dict) -> None:
    log = pq.read_table(job_file.parent / "log.parquet").to_pandas()
    log["w"] = np.where(log.what == "like", 1, -1)
    log = log.sort_values("at", kind="stable")
    cut = pd.Timestamp(result["about"]["cut"])
    train, rest = log[log["at"] < cut], log[log["at"] >= cut]
    liked = train.groupby(["user", "item"]).w.sum()
    n = liked[liked > 0].groupby("item").size()
    total = rest.groupby(["user", "item"]).w.sum()
    held = [(u, i) for (u, i), w in total.items() if w > 0 and (u, i) not in liked.index and u in set(train.user)]
    assert result["about"]["held_out_pairs"] == len(held)
    ndcg, recall = [], []
    for user in sorted({u for u, _ in held}):
        wanted = {i for u, i in held if u == user}
        seen = set(train[train.user == user].item)
        order = n.drop(seen, errors="ignore").sort_values(ascending=False)
        places = [p for p, i in enumerate(order.index[:10]) if i in wanted]
        best = sum(1 / np.log2(p + 2) for p in range(min(len(wanted), 10)))
        ndcg.append(sum(1 / np.log2(p + 2) for p in places) / best)
        recall.append(len(places) / len(wanted))
    found = result["rows"]["popular"]["metrics"]
    # Items of one count come in an order of their own.
    assert found["ndcg@10"]["mean"] == pytest.approx(np.mean(ndcg), abs=0.03)
    assert found["recall@10"]["mean"] == pytest.approx(np.mean(recall), abs=0.04)
    assert result["about"]["users"] == len(ndcg)


def test_rows_slices_and_order(result: dict, job_file: Path) -> None:
    json.dumps(result, allow_nan=False)
    rows = result["rows"]
    learned = [OWN, "nothing ages", "no new items", "item vectors"]
    by_vectors = ["text alone", "behaviour alone", "late fusion", "fusion concat", "interests profile"]
    assert [*rows][:9] == [*learned, *by_vectors]
    assert {"popular", "random", "cosine", "bm25"} <= set(rows)

    def ndcg(name: str) -> float:
        return rows[name]["metrics"]["ndcg@10"]["mean"]

    assert ndcg(OWN) > 1.5 * ndcg("popular")
    assert rows[OWN]["metrics"]["auc"]["mean"] > 0.7 > 0.6 > rows["random"]["metrics"]["auc"]["mean"] > 0.4
    assert rows["random"]["lists"]["coverage@50"] > 0.95
    assert rows["popular"]["lists"]["popularity@10"] > rows["random"]["lists"]["popularity@10"]
    assert result["best_baseline"] == max(BASELINES & rows.keys(), key=ndcg)
    assert result["ratio"] == pytest.approx(ndcg(OWN) / ndcg(result["best_baseline"]))
    gap = rows[OWN]["against"]
    assert gap["mean"] == pytest.approx(ndcg(OWN) - ndcg(result["best_baseline"]))
    assert gap["low"] < gap["mean"] < gap["high"]
    # Items nobody had touched: behaviour alone has no vector for them, text has.
    new = {n: r["slices"]["new items, among new"]["metrics"]["ndcg@10"]["mean"] for n, r in rows.items()}
    assert result["about"]["new_items"] >= 8
    assert new["behaviour alone"] == 0
    assert new[OWN] > new["random"]
    assert "cold users" in rows[OWN]["slices"]
    print_ranking(result)


def test_modalities_are_dropped_with_the_settings_that_name_them(job_file: Path) -> None:
    job = load_job(str(job_file))
    lone = without(job, {"behaviour"})
    assert lone.space_modalities == ("text",)
    assert lone.space.hub is None
    names = [name for name, _ in variants(job)]
    assert len(names) == len(set(names))


def test_the_command(job_file: Path) -> None:
    words = ["evaluate", "--config", str(job_file), "--what", "ranking"]
    words += ["--no-ablations", "--baselines", "popular,random"]
    shown = CliRunner().invoke(app, [*words, "--split", "leave-last-out", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert list(found["rows"]) == [OWN, "popular", "random"]
    assert found["about"]["split"] == "leave-last-out"
    log, users = str(job_file.parent / "log.parquet"), job_file.parent / "users.parquet"
    shown = CliRunner().invoke(app, [*words, "--seed", "20261125", "--per-user", str(users), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["about"]["seed"] == 20261125
    assert set(pq.read_table(users)["row"].to_pylist()) == {OWN, "popular", "random"}
    assert "popular" in found["verdict"]
    for bad, message in [
        (["--split", "monthly"], "--split: 'monthly' is none of"),
        (["--baselines", "svd"], "--baselines: 'svd' is none of"),
        (["--label", "kind"], "--what: ranking does not use"),
        (["--train", log], "--train: given without --test"),
        (["--train", log, "--test", log, "--split", "random"], "--split: --train and --test are a split already"),
        (["--candidates", log], "--candidates: no column 'user_id'"),
        (["--what", "space", "--candidates", log], "--what: space does not use"),
    ]:
        with pytest.raises(JobError, match=message):
            CliRunner().invoke(app, [*words, *bad], catch_exceptions=False)
