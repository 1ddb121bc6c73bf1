"""What an evaluation leaves out and what it takes from files: every row sees and shows what a run would."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from unisono.pipelines.ask.evaluate_ranking import OWN, evaluate_ranking, state_verdict
from unisono.pipelines.ask.evaluation_files import EvaluationFiles
from unisono.pipelines.ask.hidden import read_hidden
from unisono.pipelines.ask.ranking_case import Case, Rules, lay_out, make_case
from unisono.pipelines.ask.ranking_lists import rank_by_scores, serve, serve_baseline
from unisono.pipelines.ask.ranking_report import print_ranking
from unisono.pipelines.ask.trial import build_items, read_embeddings, read_events
from unisono.pipelines.job.load import load_job
from unisono.pipelines.launch import run_job
from unisono.transforms.base.errors import JobError
from unisono.transforms.behaviour.behaviour import BehaviourSpec
from unisono.transforms.measure.baselines import Baseline, fit_baseline
from unisono.transforms.measure.rank_metrics import measure_users
from unisono.transforms.measure.splits import SplitSpec, split_events
from unisono.transforms.privacy.pseudonyms import check_key

ITEMS, USERS, DAY = 50, 60, 86_400_000_000
NOW = 1_760_000_000_000_000
WEIGHTS = {"like": 1, "dislike": -1, "impression": 0}


def events(n: int = 1500, seed: int = 0) -> pd.DataFrame:
    """A log by days, with dislikes and impressions, in which low items are popular."""
    rng = np.random.default_rng(seed)
    share = (w := 1 / (2 + np.arange(ITEMS))) / w.sum()
    day = rng.integers(0, 60, n)
    return pd.DataFrame({
        "user": [f"u{u}" for u in rng.integers(0, USERS, n)],
        "item": [f"i{i:02d}" for i in rng.choice(ITEMS, n, p=share)],
        "what": rng.choice(list(WEIGHTS), n, p=[0.8, 0.1, 0.1]),
        "at": pd.to_datetime(NOW + day * DAY, unit="us", utc=True),
    })  # fmt: skip


def write_job(root: Path, name: str, log: pd.DataFrame, **changes: dict[str, Any]) -> Path:
    """Writes a log and a job file with some sections changed."""
    log.to_parquet(root / f"{name}.parquet", index=False)
    job: dict[str, Any] = {
        "store": "store",
        "catalog": {"path": "catalog.parquet", "id": "id", "text": "title"},
        "space": {"dim": 8},
        "interactions": {
            "path": f"{name}.parquet", "user": "user", "item": "item", "time": "at", "event": "what",
            "weights": WEIGHTS,
        },
        "profiles": {"interests": 0},
        "ranking": {"k": 10, "device": "cpu"},
    }  # fmt: skip
    for section, settings in changes.items():
        job[section] = job[section] | settings
    (root / f"{name}.yaml").write_text(yaml.safe_dump(job))
    return root / f"{name}.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a catalogue, half of which is on sale, and a store with the embeddings of its items."""
    root, rng = tmp_path_factory.mktemp("rules"), np.random.default_rng(1)
    words = ["red", "blue", "green", "lamp", "chair", "table", "sofa", "vase", "mug", "plate", "rug", "clock", "shelf"]
    titles = [" ".join(rng.choice(words, 3, replace=False)) for _ in range(ITEMS)]
    catalog = pa.table({
        "id": [f"i{i:02d}" for i in range(ITEMS)], "title": titles, "on_sale": [i % 2 == 0 for i in range(ITEMS)],
    })  # fmt: skip
    pq.write_table(catalog, root / "catalog.parquet")
    run_job(str(write_job(root, "plain", events())), "items", [], items=True, users=False)
    return root


def evaluate(path: Path, method: str = "global-time", seed: int = 0, **files: Any) -> dict[str, Any]:
    names = ["popular", "cosine", "ease"]
    given = EvaluationFiles(**{name: str(file) for name, file in files.items()})
    return evaluate_ranking(load_job(str(path)), SplitSpec(method, seed=seed), names, ablations=False, files=given)


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    return {name: {k: v for k, v in row.items() if k != "seconds"} for name, row in result["rows"].items()}


def case_of(path: Path, **rules: Any) -> Case:
    job = load_job(str(path))
    return make_case(read_embeddings(job.store_at), read_events(job)[0], SplitSpec(), rules=Rules(**rules))


# --- the rules of a run ------------------------------------------------------------------------------------


def test_events_in_the_future_change_nothing(root: Path) -> None:
    later = pd.DataFrame({"user": [f"u{u}" for u in range(40)], "item": "i07", "what": "like"})
    later["at"] = pd.Timestamp.now("UTC").ceil("us") + pd.Timedelta(days=3)
    log = pd.concat([events(), later.astype({"at": "datetime64[us, UTC]"})])
    for method in ("global-time", "leave-last-out"):
        plain, other = evaluate(root / "plain.yaml", method), evaluate(write_job(root, "later", log), method)
        assert other["about"]["events_lost"] == 40
        assert without_seconds(plain) == without_seconds(other)


def test_hidden_items_are_in_no_list_and_their_pairs_are_set_aside(root: Path) -> None:
    path = write_job(root, "filtered", events(), ranking={"filter": "on_sale"})
    job, plain = load_job(str(path)), case_of(root / "plain.yaml")
    hidden = read_hidden(job)
    assert hidden is not None
    assert sorted(hidden.to_pylist()) == [f"i{i:02d}" for i in range(1, ITEMS, 2)]
    case = case_of(path, hidden=hidden)
    baselines = [serve_baseline(fit_baseline(Baseline(b), case.log), case) for b in ("popular", "ease")]
    for lists in [serve(job, case), *baselines]:
        shown = lists.every.items
        assert (shown[shown >= 0] % 2 == 0).all()
        assert (shown[:, :10] >= 0).all()
    found = evaluate(path)
    events_of, _ = read_events(job)
    held = split_events(events_of, SplitSpec()).held["item_id"].to_pylist()
    assert found["about"]["held_out_hidden"] == sum(int(i[1:]) % 2 for i in held)
    kept = plain.relevant[1] % 2 == 0
    assert found["about"]["held_out_pairs"] == kept.sum() < len(kept)
    assert found["about"]["hidden_items"] == ITEMS // 2


def test_exposure_is_chosen_on_what_may_be_shown(root: Path) -> None:
    """Without the hidden items the few new ones would take more places than they are given."""
    log = events().query("what != 'impression'")
    log = log[log["item"] < "i30"]
    shown = write_job(root, "exposure", log, ranking={"cold_exposure": 0.2, "exclude_seen": False})
    job, place = load_job(str(shown)), np.arange(ITEMS)
    new = place >= 30
    hidden = [f"i{i:02d}" for i in place[~new & (place < 15)]]
    share = {}
    for name, off in (("all", None), ("shown", pa.array(hidden))):
        case = case_of(shown, hidden=off)
        assert (case.new == new).all()
        found = serve(job, case).every.items[:, :10]
        share[name] = new[found].mean()
    unaware = build_items(job, case.embeddings, case.train)
    share["unaware"] = new[serve(job, case, unaware).every.items[:, :10]].mean()
    # New items take their share and no more. Exposure is chosen on all users; these have something to find.
    assert 0.05 < share["all"] < 0.26
    assert 0.05 < share["shown"] < 0.26
    assert share["unaware"] > 0.3


def test_impressions_are_not_seen_and_dislikes_are_seen_but_not_liked(root: Path) -> None:
    case = case_of(root / "plain.yaml")
    log = events()
    cut = pd.Timestamp(case.about["cut"])
    train = log[log["at"] < cut].assign(w=lambda t: t["what"].map(WEIGHTS))
    who = case.who.to_pylist()
    told = {(r.user, r.item) for r in train.itertuples() if r.w != 0}
    assert {(who[u], f"i{i:02d}") for u, i in zip(*case.seen, strict=True)} == {p for p in told if p[0] in set(who)}
    total = train.groupby(["user", "item"]).w.sum()
    likes = Counter(item for (_, item), w in total.items() if w > 0)
    assert case.log.sum(0).tolist() == [likes.get(f"i{i:02d}", 0) for i in range(ITEMS)]
    users = Counter(item for _, item in told)
    assert case.turned.tolist() == [users.get(f"i{i:02d}", 0) for i in range(ITEMS)]
    newest = train[train.w != 0].groupby(["user", "item"])["at"].max()
    people = case.train["user_id"].unique().to_pylist()
    ages = case.log.copy()
    ages.data = case.age_days
    for u, i in list(zip(*ages.nonzero(), strict=True))[::17]:
        age = (train["at"].max() - newest[people[u], f"i{i:02d}"]) / pd.Timedelta(days=1)
        assert ages[u, i] == pytest.approx(age)


def test_baselines_do_not_learn_from_robots(root: Path) -> None:
    robot = pd.DataFrame({"user": "robot", "item": [f"i{i:02d}" for i in range(ITEMS)] * 3, "what": "like"})
    robot["at"] = pd.to_datetime(np.full(len(robot), NOW + DAY), unit="us", utc=True)
    again = pd.DataFrame({"user": "robot", "item": ["i03"], "what": "like"})
    again["at"] = pd.to_datetime([NOW + 59 * DAY], unit="us", utc=True)
    path = write_job(root, "robot", pd.concat([events(), robot, again]), profiles={
        "max_events_per_day": 60, "robots": "drop",
    })  # fmt: skip
    job = load_job(str(path))
    case = case_of(path, usable=job.usable)
    train = case.train.to_pandas()
    people = train[train.user_id != "robot"].query("weight != 0").groupby("item_id").user_id.nunique()
    assert case.turned.tolist() == people.reindex([f"i{i:02d}" for i in range(ITEMS)], fill_value=0).tolist()
    assert "robot" not in case.who.to_pylist()
    assert case.about["events_set_aside"] == len(robot)
    assert case_of(path).turned.min() >= 1


@pytest.mark.parametrize("method", ["learned", "vectors"])
def test_robots_and_repeats_teach_a_job_nothing(root: Path, method: str) -> None:
    robot = pd.DataFrame({"user": "robot", "item": [f"i{i:02d}" for i in range(30, ITEMS)] * 6, "what": "like"})
    robot["at"] = pd.to_datetime(NOW + DAY + np.arange(len(robot)) * 1_000_000, unit="us", utc=True)
    log = events()
    repeats = log.assign(at=log["at"] - pd.Timedelta(minutes=5))
    rules: dict[str, Any] = {"session_minutes": 30, "max_events_per_day": 15, "robots": "drop", "min_events": 3}
    rules["interests"] = 0
    how: dict[str, Any] = {"ranking": {"method": method}, "profiles": rules}
    dirty = write_job(root, "dirty", pd.concat([log, repeats, robot]), **how)
    # What the rules leave out is left out by hand here: of equal events on one day, one.
    clean = write_job(root, "clean", log.drop_duplicates(), **how)
    embeddings, made = read_embeddings(load_job(str(clean)).store_at), []
    parts = split_events(read_events(load_job(str(clean)))[0], SplitSpec())
    assert parts.cut is not None
    before = pa.scalar(parts.cut.as_py() - timedelta(hours=1), parts.cut.type)  # without repeats of held-out events
    for path in (dirty, clean):
        job = load_job(str(path)).model_copy(update={"behaviour": BehaviourSpec(dim=8)})
        seen = read_events(job)[0]
        train = seen.filter(pc.less(seen["time"], before))
        case = lay_out(embeddings, replace(parts, train=train), {"split": "own"}, rules=Rules(job.usable))
        items = build_items(job, embeddings, train)
        made.append((items, serve(job, case, items).every, case.log.sum(0)))
    (one, ranked, likes), (other, expected, expected_likes) = made
    np.testing.assert_array_equal(one.matrix.vectors, other.matrix.vectors)
    np.testing.assert_array_equal(one.ranking.vectors, other.ranking.vectors)
    np.testing.assert_array_equal(ranked.items, expected.items)
    np.testing.assert_array_equal(likes, expected_likes)


@pytest.mark.parametrize("method", ["leave-last-out", "global-time"])
def test_renaming_items_moves_figures_by_no_more_than_chance(root: Path, method: str) -> None:
    rng = np.random.default_rng(3)
    share = (w := 1 / np.arange(1, ITEMS + 1)) / w.sum()
    rows = [(u, i, d) for u in range(300) for d in (0, 7) for i in rng.choice(ITEMS, 6, replace=False, p=share)]
    user, item, day = (np.array(x) for x in zip(*rows, strict=True))
    embeddings = read_embeddings(load_job(str(root / "plain.yaml")).store_at)
    at, weight = pa.array(day * DAY).cast(pa.timestamp("us", "UTC")), np.ones(len(rows))
    found: dict[str, list[np.ndarray]] = {"popular": [], "cosine": []}
    options = {"popular": {}, "cosine": {"neighbours": 5}}
    for rename in (lambda i: i, lambda i: ITEMS - 1 - i):
        ids = np.array([f"i{rename(i):02d}" for i in range(ITEMS)])
        log = pa.table({"user_id": user, "item_id": ids[item], "time": at, "weight": weight})
        case = make_case(embeddings, log, SplitSpec(method))
        for name, values in found.items():
            score = fit_baseline(Baseline(name, options[name]), case.log, 0, case.known)
            lists = rank_by_scores(score, case, 10)
            values.append(measure_users(lists, case.relevant, ITEMS, [10])["ndcg@10"])
    for name, (one, other) in found.items():
        spread = np.hypot(one.std() / np.sqrt(len(one)), other.std() / np.sqrt(len(other)))
        assert abs(one.mean() - other.mean()) < 3.5 * spread, name


def test_earlier_logs_of_incremental_profiles_are_said_to_be_left_out(root: Path, tmp_path: Path) -> None:
    log, note = events(), "with profiles.incremental: true, only the logs that interactions.path names are measured"
    for how, said in ((True, True), ("restart", False), (False, False)):
        found = evaluate(write_job(root, "nights", log, profiles={"incremental": how}))
        print_ranking(found, Console(file=(out := io.StringIO()), width=400))
        assert found["about"]["earlier_logs_left_out"] is said
        assert (note in out.getvalue()) is said
    path = write_job(root, "nights", log, profiles={"incremental": True})
    half = log["at"] < log["at"].median()
    log[half].to_parquet(tmp_path / "train.parquet", index=False)
    log[~half].to_parquet(tmp_path / "test.parquet", index=False)
    found = evaluate(path, train=tmp_path / "train.parquet", test=tmp_path / "test.parquet")
    assert found["about"]["earlier_logs_left_out"] is False


# --- own files ---------------------------------------------------------------------------------------------


def test_an_own_split_gives_the_figures_of_the_same_split(root: Path, tmp_path: Path) -> None:
    plain = evaluate(root / "plain.yaml")
    log, cut = events(), pd.Timestamp(plain["about"]["cut"])
    log[log["at"] < cut].to_parquet(tmp_path / "train.parquet", index=False)
    log[log["at"] >= cut].to_parquet(tmp_path / "test.parquet", index=False)
    own = evaluate(root / "plain.yaml", train=tmp_path / "train.parquet", test=tmp_path / "test.parquet")
    assert without_seconds(own) == without_seconds(plain)
    assert own["about"]["split"] == "own files"


def test_candidates_are_the_only_items_ranked(root: Path, tmp_path: Path) -> None:
    job, whole = load_job(str(root / "plain.yaml")), case_of(root / "plain.yaml")
    rng = np.random.default_rng(0)
    wanted: dict[int, set[int]] = {u: set(rng.choice(ITEMS, 8, replace=False).tolist()) for u in range(len(whole.who))}
    for u, i in zip(*whole.relevant, strict=True):
        wanted[u].add(int(i))
    del wanted[0]
    who = whole.who.to_pylist()
    names = [[*(f"i{i:02d}" for i in mine), "x"] for mine in wanted.values()]  # no item is called x
    lists = pa.table({"user_id": [who[u] for u in wanted], "item_ids": names})
    pairs = lists.to_pandas().explode("item_ids").rename(columns={"item_ids": "item_id"})
    pq.write_table(lists, tmp_path / "lists.parquet")
    pairs.to_parquet(tmp_path / "pairs.parquet", index=False)
    found = evaluate(root / "plain.yaml", candidates=tmp_path / "lists.parquet")
    exploded = evaluate(root / "plain.yaml", candidates=tmp_path / "pairs.parquet")
    assert without_seconds(found) == without_seconds(exploded)
    assert found["about"]["users_without_candidates"] == 1
    assert found["about"]["users"] == len(who) - 1
    assert found["about"]["held_out_not_candidates"] == 0
    table = pa.table({"user_id": pairs["user_id"], "item_id": pairs["item_id"]})
    case = case_of(root / "plain.yaml", candidates=table)
    score = fit_baseline(Baseline("ease"), case.log)
    for narrow, wide in (
        (serve(job, case), serve(job, whole)),
        (serve_baseline(score, case), serve_baseline(score, whole)),
    ):
        for row, user in enumerate(case.who.to_pylist()):
            u = who.index(user)
            expected = [i for i in wide.every.items[u].tolist() if i in wanted[u]]
            assert [i for i in narrow.every.items[row].tolist() if i >= 0] == expected


def test_figures_of_each_user_are_written(root: Path, tmp_path: Path) -> None:
    found = evaluate(root / "plain.yaml", per_user=tmp_path / "users.parquet")
    table = pq.read_table(tmp_path / "users.parquet").to_pandas()
    assert list(table.columns[:2]) == ["user_id", "row"]
    for name, row in found["rows"].items():
        mine = table[table.row == name]
        assert len(mine) == mine.user_id.nunique() == found["about"]["users"]
        for metric, value in row["metrics"].items():
            assert mine[metric].mean() == pytest.approx(value["mean"])
    assert {"precision@5", "ndcg@10", "recall@50", "auc"} <= set(table.columns)


def test_figures_of_each_user_are_written_with_pseudonyms(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_job(root, "plain2", events())
    raw = yaml.safe_load(path.read_text()) | {"privacy": {"pseudonyms": {"key_env": "EVALUATE_KEY"}}}
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(JobError, match="EVALUATE_KEY is not set"):
        evaluate(path, per_user=tmp_path / "users.parquet")
    monkeypatch.setenv("EVALUATE_KEY", "k" * 32)
    evaluate(path, per_user=tmp_path / "users.parquet")
    users = set(pq.read_table(tmp_path / "users.parquet")["user_id"].to_pylist())
    assert users <= set(check_key("EVALUATE_KEY").of(pa.array([f"u{u}" for u in range(USERS)])).to_pylist())


def table_at(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_files_that_cannot_be_used_are_one_plain_line(root: Path, tmp_path: Path) -> None:
    job, at = root / "plain.yaml", pa.array([NOW], pa.timestamp("us", "UTC"))
    strangers = table_at(tmp_path / "a.parquet", user=["zz"], item=["i01"], what=["like"], at=at)
    short = table_at(tmp_path / "b.parquet", user=["u1"], item=["i01"])
    numbers = table_at(tmp_path / "c.parquet", user_id=[1], item_id=["i01"])
    nobody = table_at(tmp_path / "d.parquet", user_id=["zz"], item_id=["i01"])
    bare = table_at(tmp_path / "e.parquet", user_id=["u1"])
    useless = table_at(tmp_path / "f.parquet", user_id=[f"u{u}" for u in range(USERS)], item_id=["x"] * USERS)
    log = str(root / "plain.parquet")
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"train": log}, "--train: given without --test"),
        ({"test": log}, "--test: given without --train"),
        ({"train": log, "test": "/nowhere.parquet"}, "--test: no file matches /nowhere.parquet"),
        ({"train": short, "test": log}, "--train: no column 'at' in"),
        ({"train": log, "test": strangers}, "--test: no user of .*a.parquet has an event in"),
        ({"train": log, "test": log}, "--test: .* holds no liked pair"),
        ({"candidates": "/nowhere.parquet"}, "--candidates: no file matches"),
        ({"candidates": bare}, "--candidates: no column 'item_id' in"),
        ({"candidates": numbers}, "--candidates: user_id of .* holds int64, and the job has large_string"),
        ({"candidates": nobody}, "--candidates: no user with something to find has candidates"),
        ({"candidates": useless}, "--candidates: no item to find is among the candidates"),
        ({"per_user": "/nowhere/x.parquet"}, "--per-user: there is no directory /nowhere"),
    ]
    for files, message in mistakes:
        with pytest.raises(JobError, match=message) as e:
            evaluate(job, **files)
        assert "\n" not in str(e.value)


# --- the line to believe -----------------------------------------------------------------------------------


def test_the_verdict_follows_the_interval() -> None:
    def said(mean: float, low: float, high: float, users: int = 942) -> str:
        return state_verdict("als", {"mean": mean, "low": low, "high": high}, users)

    assert said(0.024, 0.005, 0.043) == "yours beats als by 0.024 ± 0.019 (95%, 942 users)"
    assert said(-0.003, -0.012, 0.006) == (
        "yours and als cannot be told apart: −0.003 (−0.012 to +0.006), 95%, 942 users"
    )
    assert said(-0.024, -0.043, -0.005).startswith("als beats yours by 0.024 ± 0.019 (95%, 942 users): ")
    assert said(0.5, 0.5, 0.5, users=1).startswith("too few users")


def test_seeds_slices_and_the_verdict_are_in_the_result(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (evaluate(root / "plain.yaml", "random", seed=s) for s in (0, 1))
    assert (one["about"]["seed"], other["about"]["seed"]) == (0, 1)
    assert without_seconds(one) != without_seconds(other)
    json.dumps(one, allow_nan=False)
    assert one["best_baseline"] in one["verdict"]
    few = [row["slices"]["items of 1–5 users, among all"] for row in one["rows"].values()]
    assert len({row["users"] for row in few}) == 1
    print_ranking(one)
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"NDCG@10: {one['verdict']}"
    assert OWN in one["rows"]
