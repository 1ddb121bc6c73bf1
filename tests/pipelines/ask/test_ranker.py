"""Ranking for stored users and for sessions: against the files of the run, and against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.small_shop import WEIGHTS, make_shop, read_log, write_job
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.ranker import Ranker
from unisono.pipelines.ask.sessions import session_events
from unisono.pipelines.launch import run_job
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.runs import Store

HALF_LIFE = 30.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with two stores: learned ranking vectors, and users with vectors of each modality for late fusion."""
    folder = make_shop(tmp_path_factory.mktemp("shop"))
    for name, ranking in (("learned", {}), ("late", {"fusion": "late"})):
        job = write_job(folder, name, ranking=ranking, profiles={"min_events": 3})
        run_job(str(job), "people", [], items=True, users=True)
    return folder


def ranker_of(shop: Path, run_id: str, **ranking: object) -> Ranker:
    """Ranks the published users of the shop by a `recommend` run with other settings, and opens that run."""
    store = "late" if "interests" in ranking or "fusion" in ranking else "learned"
    job = write_job(shop, store, ranking=ranking, profiles={"min_events": 3})
    run_job(str(job), run_id, [], items=False, users=False, recommend=True)
    return Ranker(PublishedRun.open(Store(str(shop / store)), run_id))


RANKINGS: dict[str, dict] = {
    "learned": {},
    "maximum-is-weighted": {"interests": "maximum"},
    "profile": {"interests": "profile", "exclude_seen": False},
    "bonus": {"popularity_bonus": 0.6, "popularity_half_life_days": 10, "caution": 0.1},
    "penalty": {"popularity_penalty": 0.3, "interests": "weighted"},
    "diverse": {"diversity": 0.4, "filter": "open"},
    "late": {"fusion": "late", "weights": {"text": 2, "behaviour": 0.5}},
    "slices": {"slices": 2},
}


@pytest.mark.parametrize("name", RANKINGS)
def test_stored_users_get_the_lists_of_the_run(shop: Path, name: str) -> None:
    ranker = ranker_of(shop, name, **RANKINGS[name])
    served = ranker.run.table("recommendations")
    assert served.num_rows == 26
    found = ranker.for_users(served["user_id"])
    for column in ("user_id", "item_ids", "scores"):
        assert found[column].to_pylist() == served[column].to_pylist()


@pytest.mark.parametrize("name", ["learned", "bonus", "late"])
def test_a_users_whole_log_as_a_session_gives_the_same_list(shop: Path, name: str) -> None:
    ranker = ranker_of(shop, f"{name}-again", **RANKINGS[name])
    served = ranker.run.table("recommendations").sort_by("user_id")
    found = ranker.for_sessions(read_log(shop))
    assert found["user_id"].to_pylist() == served["user_id"].to_pylist()
    assert found["item_ids"].to_pylist() == served["item_ids"].to_pylist()
    for ours, stored in zip(found["scores"].to_pylist(), served["scores"].to_pylist(), strict=True):
        np.testing.assert_allclose(ours, stored, atol=1e-5)


# --- users -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranker(shop: Path) -> Ranker:
    """Ranks by the profile alone: what NumPy can do in a line."""
    return ranker_of(shop, "plain", interests="profile")


def test_users_come_in_the_order_asked_also_twice(ranker: Ranker) -> None:
    lists = {r["user_id"]: r for r in ranker.run.table("recommendations").to_pylist()}
    asked = ["u9", "newcomer", "u9", "u0"]
    assert ranker.for_users(asked).to_pylist() == [lists[u] for u in asked]
    assert ranker.for_users("u9").to_pylist() == [lists["u9"]]
    assert ranker.for_users([]).num_rows == 0


def test_a_shorter_list_is_the_beginning_of_a_longer_one(ranker: Ranker) -> None:
    ten, three, all_items = (ranker.for_users("u1", k)["item_ids"][0].as_py() for k in (10, 3, 1000))
    assert three == ten[:3] == all_items[:3]
    seen = {i for u, i in zip(*(read_log_columns(ranker)), strict=True) if u == "u1"}
    assert len(all_items) == 80 - len(seen & {f"i{n}" for n in range(80)})


def read_log_columns(ranker: Ranker) -> tuple[list[str], list[str]]:
    log = pq.read_table(ranker.job.log.path)
    return log["user"].to_pylist(), log["item"].to_pylist()


def test_without_the_log_nothing_is_known_of_what_was_seen(ranker: Ranker) -> None:
    ids, vectors = ranker.run.vectors()
    users = ranker.run.table("users")
    profiles = np.array(users["vector"].to_pylist(), np.float32)
    best = np.argsort(-(profiles @ vectors.T), axis=1)[:, :5]
    found = ranker.for_users(users["user_id"], 5, use_log=False)
    assert found["item_ids"].to_pylist() == [[ids[int(i)].as_py() for i in row] for row in best]


def test_users_that_are_not_there_are_named(ranker: Ranker) -> None:
    with pytest.raises(JobError, match="user: 'nobody' is not in users/ of run plain"):
        ranker.for_users(["u1", "nobody"])
    with pytest.raises(JobError, match="k: 0; give 1 or more"):
        ranker.for_users("u1", 0)


# --- sessions ----------------------------------------------------------------------------------------------


def by_hand(ranker: Ranker, events: list[tuple[str, float, float]], min_events: int = 3) -> np.ndarray:
    """Computes the profile of (item, weight, age in days) events: warm, or mixed with what everybody likes."""
    ids, vectors = ranker.run.vectors()
    place = {i: n for n, i in enumerate(ids.to_pylist())}
    known = [(place[i], w * 0.5 ** (age / HALF_LIFE)) for i, w, age in events if i in place]
    total = sum((w * vectors[i].astype(float) for i, w in known), np.zeros(vectors.shape[1]))
    if len(known) < min_events:
        log = pq.read_table(ranker.job.log.path)
        log = [place[i] for i, e in zip(log["item"].to_pylist(), log["event"].to_pylist(), strict=True) if i in place
               and WEIGHTS[e] > 0]  # fmt: skip
        prior = vectors[log].astype(float).sum(0)
        prior /= np.linalg.norm(prior)
        mean = total / (sum(abs(w) for _, w in known) or 1.0)
        total = len(known) * mean + min_events * prior
    return total / np.linalg.norm(total)


START = 1_775_000_000
SESSIONS: dict[str, list[dict]] = {
    "warm": [{"item_id": f"i{n}", "event": ("view", "buy")[n % 2], "time": START + n * 86_400} for n in range(9)],
    "one event": [{"item_id": "i5", "event": "buy"}],
    "none": [],
    "unknown items alone": [{"item_id": "i83"}, {"item_id": "never heard of"}],
    "some unknown items": [{"item_id": i} for i in ("i83", "i1", "i2", "i3")],
    "negative weights alone": [{"item_id": f"i{n}", "event": "dislike"} for n in (1, 2, 3, 4)],
    "order alone": [{"item_id": f"i{n}", "weight": w} for n, w in ((4, 1), (7, -2), (8, 3.5))],
}


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_is_ranked_by_the_profile_of_its_events(ranker: Ranker, name: str) -> None:
    session = SESSIONS[name]
    newest = max((e.get("time", 0) for e in session), default=0)
    events = [
        (e["item_id"], WEIGHTS.get(e.get("event", ""), e.get("weight", 1)), (newest - e.get("time", newest)) / 86_400)
        for e in session
    ]
    profile = by_hand(ranker, events)
    made = ranker.session_profiles(session_events(session, ranker.profile_job, ranker.items.id_type))
    np.testing.assert_allclose([v[:-4] for v in made["ranking_vector"].to_pylist()], [profile], atol=1e-5)
    ids, vectors = ranker.run.vectors()
    scores = vectors @ profile
    order = [n for n in np.argsort(-scores).tolist() if ids[n].as_py() not in {e["item_id"] for e in session}][:10]
    (found,) = ranker.for_sessions(session).to_pylist()
    assert found["user_id"] == "session"
    assert found["item_ids"] == [ids[n].as_py() for n in order]
    np.testing.assert_allclose(found["scores"], scores[order], atol=1e-5)


def test_profiles_of_whole_logs_are_those_of_the_nightly_run(ranker: Ranker, shop: Path) -> None:
    events = session_events(read_log(shop), ranker.profile_job, ranker.items.id_type)
    made, stored = ranker.session_profiles(events), ranker.run.table("users").sort_by("user_id")
    assert made["user_id"].to_pylist() == stored["user_id"].to_pylist()
    np.testing.assert_allclose(made["ranking_vector"].to_pylist(), stored["ranking_vector"].to_pylist(), atol=1e-5)


def test_a_cold_session_without_the_log_has_an_empty_list(ranker: Ranker) -> None:
    events = {"user_id": ["warm", "cold", "warm", "warm"], "item_id": ["i1", "i2", "i3", "i4"]}
    found = ranker.for_sessions(events, 4, use_log=False).to_pylist()
    assert [(r["user_id"], len(r["item_ids"]), len(r["scores"])) for r in found] == [("cold", 0, 0), ("warm", 4, 4)]
    with_log = ranker.for_sessions(events, 4).to_pylist()
    assert [len(r["item_ids"]) for r in with_log] == [4, 4]
    assert with_log[1] == found[1]


def test_no_session_has_no_list(ranker: Ranker) -> None:
    none = pa.table({"user_id": pa.array([], pa.string()), "item_id": pa.array([], pa.string())})
    assert ranker.for_sessions(none).num_rows == 0


def test_items_of_the_session_can_be_recommended_if_the_job_says_so(shop: Path) -> None:
    ranker = ranker_of(shop, "again", interests="profile", exclude_seen=False)
    (found,) = ranker.for_sessions([{"item_id": i} for i in ("i1", "i2", "i3")], 3).to_pylist()
    assert set(found["item_ids"]) & {"i1", "i2", "i3"}


def test_a_run_of_items_alone_ranks_for_sessions(tmp_path: Path) -> None:
    job = write_job(make_shop(tmp_path), "bare", interactions=None, behaviour=None, ranking=None)
    run_job(str(job), "r", [], items=True, users=False)
    ranker = Ranker(PublishedRun.open(Store(str(tmp_path / "bare"))))
    (found,) = ranker.for_sessions([{"item_id": "i1"}], 5).to_pylist()
    assert found["item_ids"] == search_by_hand(ranker, "i1", 5)
    assert ranker.for_sessions([]).to_pylist() == [{"user_id": "session", "item_ids": [], "scores": []}]
    with pytest.raises(JobError, match="has no users/; run `unisono profile` first"):
        ranker.for_users("u1")


def search_by_hand(ranker: Ranker, item: str, k: int) -> list[str]:
    ids, vectors = ranker.run.vectors()
    names = ids.to_pylist()
    scores = vectors @ vectors[names.index(item)]
    return [names[n] for n in np.argsort(-scores).tolist() if names[n] != item][:k]


def test_noised_profiles_are_ranked_as_they_are_published(tmp_path: Path) -> None:
    job = write_job(
        make_shop(tmp_path), "noised", behaviour=None, profiles={"interests": 0}, ranking={"exclude_seen": False},
        privacy={"noise": {"epsilon": 8, "delta": 1e-5}},
    )  # fmt: skip
    run_job(str(job), "r", [], items=True, users=True, recommend=True)
    ranker = Ranker(PublishedRun.open(Store(str(tmp_path / "noised"))))
    served = ranker.run.table("recommendations")
    assert ranker.for_users(served["user_id"]).to_pylist() == served.to_pylist()
    # No profile may lean on the events of others, so a session without a known item has no list.
    assert [r["item_ids"] for r in ranker.for_sessions([]).to_pylist()] == [[]]


def test_incremental_profiles_are_ranked_as_a_recommend_run_ranks_them(tmp_path: Path) -> None:
    log = pq.read_table(make_shop(tmp_path) / "log.parquet").sort_by("time")
    ranking = {"popularity_bonus": 0.5, "popularity_half_life_days": 20}
    for number, part in enumerate((log.slice(0, 600), log.slice(600))):
        pq.write_table(part, tmp_path / f"log-{number}.parquet")
        job = write_job(
            tmp_path, "fold", behaviour=None, ranking=ranking, profiles={"incremental": True},
            interactions={"path": f"log-{number}.parquet"},
        )  # fmt: skip
        run_job(str(job), f"night-{number}", [], items=True, users=True)
    run_job(str(job), "lists", [], items=False, users=False, recommend=True)
    ranker = Ranker(PublishedRun.open(Store(str(tmp_path / "fold"))))
    served = ranker.run.table("recommendations")
    assert ranker.for_users(served["user_id"]).to_pylist() == served.to_pylist()
