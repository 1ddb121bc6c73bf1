"""What an explanation knows of a user's events: after every kind of run, and when the log is another one by now."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import unisono
from tests.ranked_shop import (
    ITEMS,
    WEIGHTS,
    inner_products,
    make_ranked_shop,
    part,
    ranking_vectors,
    run_shop,
)
from unisono.transforms.store.runs import Store

FACTORS = 8
NEW = f"i{ITEMS - 2}"  # no event
LATE = {"fusion": "late", "method": "vectors", "popularity_bonus": 0.4}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ranked_shop(tmp_path_factory.mktemp("shop"))


def nights(shop: Path, store: str, **sections: Any) -> Store:
    """Runs two nights: items once, then profiles of both parts of the log, and lists."""
    log = pq.read_table(shop / "log.parquet")
    for name, events in (("a", log.slice(0, 800)), ("b", log.slice(800))):
        pq.write_table(events, shop / f"{store}-{name}.parquet")
    profiles = {"interests": 0, "recent_events": 4, "incremental": True, **sections.pop("profiles", {})}
    run_shop(shop, "items", store, "embed", **sections)
    for name in ("a", "b"):
        log_of = {"interactions": {"path": f"{store}-{name}.parquet"}}
        run_shop(shop, name, store, "profile", profiles=profiles, **sections, **log_of)
    return run_shop(shop, "lists", store, "recommend", profiles=profiles, **sections, **log_of)


def then_recommend(shop: Path, store: str, first: dict[str, Any], ranking: dict[str, Any]) -> Store:
    """Runs a whole night, and then `unisono recommend` with other settings."""
    run_shop(shop, "r", store, **first)
    return run_shop(shop, "again", store, "recommend", **(first | {"ranking": first.get("ranking", {}) | ranking}))


SHORT = {"profiles": {"min_events": 25}}
RUNS: dict[str, Callable[[Path, str], Store]] = {
    "learned": lambda shop, store: run_shop(shop, "r", store, ranking={"caution": 0.2}, profiles={"recent_events": 6}),
    "learned, cold users": lambda shop, store: then_recommend(
        shop, store, SHORT, {"popularity_penalty": 0.5, "trend": 2.0}
    ),
    "vectors": lambda shop, store: run_shop(shop, "r", store, ranking={"method": "vectors", "popularity_bonus": 0.4}),
    "late": lambda shop, store: then_recommend(
        shop, store, {"ranking": LATE, "behaviour": {"dim": 8}}, {"popularity_bonus": 0.0, "caution": 0.3}
    ),
    "nights": lambda shop, store: nights(shop, store, ranking={"caution": 0.1}),
    "nights, cold users": lambda shop, store: nights(shop, store, profiles={"min_events": 25, "recent_events": 100}),
    "nights, vectors": lambda shop, store: nights(shop, store, ranking={"method": "vectors", "caution": 0.1}),
}


class Runs:
    """The runs of `RUNS`, made when they are first needed."""

    def __init__(self, shop: Path) -> None:
        self._shop, self._made = shop, dict[str, Store]()

    def __getitem__(self, name: str) -> Store:
        if name not in self._made:
            self._made[name] = RUNS[name](self._shop, name.replace(", ", "-").replace(" ", "-"))
        return self._made[name]


@pytest.fixture(scope="module")
def runs(shop: Path) -> Runs:
    return Runs(shop)


def cases(store: Store) -> list[tuple[str, str, float]]:
    """Chooses users of every kind, each with a listed item, a new one and a disliked one, and the scores."""
    users, items, scores = inner_products(store)
    served = {r["user_id"]: r for r in part(store, "recommendations").to_pylist()}
    out = []
    for user in ("u00", "u17", "newcomer", "hater07"):
        asked = (served[user]["item_ids"][0], served[user]["item_ids"][-1], NEW, "i5")
        out += [(user, item, float(scores[users.index(user), items.index(item)])) for item in asked]
        first = served[user]["item_ids"][0]
        assert scores[users.index(user), items.index(first)] == pytest.approx(served[user]["scores"][0], abs=1e-5)
    return out


@pytest.mark.parametrize("name", RUNS)
def test_the_parts_add_up_to_the_score_of_the_list(runs: Runs, name: str) -> None:
    run = unisono.open(runs[name].root)
    for user, item, score in cases(runs[name]):
        found = run.explain(user, item)
        assert found.note == ""
        assert found.score == pytest.approx(score, abs=1e-5)
        assert sum(p for _, p in found.modalities) == pytest.approx(score, abs=1e-5)
        assert sum(p for *_, p in found.events) + found.rest == pytest.approx(found.score, abs=1e-9)
        assert len(found.events) <= 4 or name != "nights"


# --- what each event says ----------------------------------------------------------------------------------


def events_of(shop: Path, user: str, items: list[str]) -> list[dict]:
    log = pq.read_table(shop / "log.parquet").to_pylist()
    return [e | {"w": WEIGHTS[e["event"]]} for e in log if e["user"] == user and e["item"] in items]


def block(table: pa.Table, column: str) -> np.ndarray:
    return table[column].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1).astype(np.float64)


def parts_by_hand(
    shop: Path, store: Store, user: str, item: str, *, recent: int, min_events: int
) -> tuple[dict[tuple[str, int], float], float]:
    """Computes the part of each (item, time) of a user's events from the written history vectors, and their sum."""
    table = part(store, "items")
    ids = table["item_id"].to_pylist()
    history, new, ranking = block(table, "history_vector"), block(table, "history_vector_new"), ranking_vectors(table)
    target = ranking[ids.index(item)].astype(np.float64)
    events = sorted(events_of(shop, user, ids), key=lambda e: e["time"])
    newest, parts = events[-1]["time"], []
    for place, e in enumerate(events):
        w = max(e["w"], 0)
        newer = sum(o["time"] > e["time"] and o["w"] > 0 for o in events)
        late = 2 ** (-newer / 3) if place >= len(events) - recent else 0.0
        row = ids.index(e["item"])
        parts.append((w * (2 ** ((e["time"] - newest) / 86_400 / 30) + late) * history[row], w * new[row]))
    share = min(1.0, len(events) / min_events)
    out: dict[tuple[str, int], float] = {}
    for which, span in enumerate((slice(0, FACTORS), slice(FACTORS, 2 * FACTORS))):
        length = float(np.linalg.norm(sum(p[which] for p in parts)))
        for e, p in zip(events, parts, strict=True):
            key = e["item"], e["time"]
            out[key] = out.get(key, 0.0) + (share * float(p[which] @ target[span]) / length if length else 0.0)
    return out, sum(out.values())


@pytest.mark.parametrize(
    ("name", "recent", "min_events"),
    [("learned", 6, 1), ("learned, cold users", 100, 25), ("nights", 4, 1), ("nights, cold users", 100, 25)],
)
def test_each_event_has_the_part_that_the_formula_gives_it(
    shop: Path, runs: Runs, name: str, recent: int, min_events: int
) -> None:
    run = unisono.open(runs[name].root)
    for user, item, score in cases(runs[name]):
        if user == "hater07":
            continue
        expected, whole = parts_by_hand(shop, runs[name], user, item, recent=recent, min_events=min_events)
        found = run.explain(user, item)
        assert found.events
        told: dict[tuple[str, int], float] = {}
        for i, when, _, p in found.events:
            key = i, int(np.datetime64(when.removesuffix("Z").replace(" ", "T"), "s").astype(int))
            told[key] = told.get(key, 0.0) + p
        for key, p in told.items():
            assert p == pytest.approx(expected[key], abs=1e-5), (user, item, key)
        if "nights" not in name or min_events > 1:  # otherwise some events are only in the sums of the state
            assert found.rest == pytest.approx(score - whole, abs=1e-5)


# --- sessions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["learned", "learned, cold users", "vectors", "late"])
def test_a_users_whole_log_as_a_session_has_the_list_of_the_user(shop: Path, runs: Runs, name: str) -> None:
    store = runs[name]
    log = pq.read_table(shop / "log.parquet").rename_columns(["user_id", "item_id", "time", "event"])
    found = unisono.open(store.root).recommend(events=log)
    served = part(store, "recommendations")
    assert found["user_id"].to_pylist() == served["user_id"].to_pylist()
    for mine, stored in zip(found.to_pylist(), served.to_pylist(), strict=True):
        np.testing.assert_allclose(mine["scores"], stored["scores"], atol=1e-5)
        assert mine["item_ids"] == stored["item_ids"], mine["user_id"]


def test_stored_users_are_ranked_as_in_the_lists(runs: Runs) -> None:
    store = runs["learned, cold users"]
    served = part(store, "recommendations")
    found = unisono.open(store.root).recommend(users=served["user_id"])
    assert found.sort_by("user_id").to_pylist() == served.to_pylist()


# --- another log by now ------------------------------------------------------------------------------------


def replaced(shop: Path, how: str) -> pa.Table | None:
    log = pq.read_table(shop / "log.parquet")
    if how == "deleted":
        return None
    if how == "without the user":
        return log.filter(pc.not_equal(log["user"], "u00"))
    if how == "longer":
        return pa.concat_tables([log, log.filter(pc.equal(log["user"], "u00")).slice(0, 1)])
    turn = {f"i{n}": f"i{(n + 1) % 50}" for n in range(ITEMS)}  # the same number of events at the same times
    return log.set_column(1, "item", pa.array([turn.get(i, i) for i in log["item"].to_pylist()]))


@pytest.mark.parametrize("how", ["deleted", "without the user", "longer", "of other items"])
@pytest.mark.parametrize("name", ["learned", "vectors"])
def test_after_the_log_was_rotated_the_events_cannot_be_told(shop: Path, runs: Runs, name: str, how: str) -> None:
    store, path = runs[name], shop / "log.parquet"
    cases_before = [c for c in cases(store) if c[0] == "u00"]
    table = replaced(shop, how)
    shutil.copy(path, shop / "kept")
    try:
        if table is None:
            path.unlink()
        else:
            pq.write_table(table, path)
        run = unisono.open(store.root)
        for user, item, score in cases_before:
            found = run.explain(user, item)
            assert found.note.startswith("The events cannot be told")
            assert "\n" not in found.note
            assert found.events == ()
            assert found.score == found.rest == pytest.approx(score, abs=1e-5)
            assert sum(p for _, p in found.modalities) == pytest.approx(score, abs=1e-5)
    finally:
        shutil.move(shop / "kept", path)


def test_settings_of_a_later_recommend_run_do_not_change_how_profiles_were_made(shop: Path) -> None:
    """The `recommend` run writes users/ anew, but their tastes are still those of the run before it."""
    run_shop(shop, "r", "later", profiles={"half_life_days": 3.0, "interests": 0})
    other = {"half_life_days": 300.0, "min_events": 40, "interests": 0}
    store = run_shop(shop, "again", "later", "recommend", ranking={"popularity_bonus": 0.5}, profiles=other)
    run = unisono.open(store.root)
    for user, item, score in cases(store):
        found = run.explain(user, item)
        assert found.note == ""
        events = sum(p for *_, p in found.events)
        taste = sum(p for name, p in found.modalities if name in ("behaviour", "text"))
        assert found.score == pytest.approx(score, abs=1e-5)
        assert events == pytest.approx(taste, abs=1e-5)
