"""Whole runs: lists are the top k of the inner products of the written ranking vectors, and nights fold and forget."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.ranked_shop import (
    ITEMS,
    NEW,
    check_lists,
    inner_products,
    make_ranked_shop,
    part,
    ranking_vectors,
    run_shop,
)
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.runs import Store

NEW_IDS = [f"i{n}" for n in range(ITEMS - NEW, ITEMS)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ranked_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def log(shop: Path) -> pa.Table:
    return pq.read_table(shop / "log.parquet")


def shut_items(shop: Path) -> frozenset[str]:
    catalog = pq.read_table(shop / "catalog.parquet").to_pylist()
    return frozenset(r["item_id"] for r in catalog if not r["open"])


# --- lists are inner products ------------------------------------------------------------------------------

RANKINGS: dict[str, dict[str, Any]] = {
    "learned": {},
    "learned, three slices": {"slices": 3, "caution": 0.2, "popularity_penalty": 0.5, "filter": "open"},
    "vectors": {"method": "vectors", "popularity_bonus": 0.6, "caution": 0.2, "slices": 2, "exclude_seen": False},
    "late": {"fusion": "late", "method": "vectors", "weights": {"text": 2}, "popularity_penalty": 0.3, "trend": 0.5},
}


class Runs:
    """One nightly run for each of `RANKINGS`, with other numbers of shards, made when it is first needed."""

    def __init__(self, shop: Path) -> None:
        self._shop, self._made = shop, dict[str, Store]()

    def __getitem__(self, name: str) -> Store:
        if name not in self._made:
            shards = list(RANKINGS).index(name) + 1
            self._made[name] = run_shop(self._shop, "r", f"{shards}-shards", shards=shards, **sections_of(name))
        return self._made[name]


def sections_of(name: str) -> dict[str, Any]:
    return {"ranking": RANKINGS[name]} | ({"behaviour": {"dim": 8}} if name == "late" else {})


@pytest.fixture(scope="module")
def runs(shop: Path) -> Runs:
    return Runs(shop)


@pytest.mark.parametrize("name", RANKINGS)
def test_lists_are_the_top_k_of_inner_products(shop: Path, log: pa.Table, runs: Runs, name: str) -> None:
    shut = shut_items(shop) if "filter" in RANKINGS[name] else frozenset[str]()
    check_lists(runs[name], log, k=20, seen=RANKINGS[name].get("exclude_seen", True), shut=shut)


def test_shards_and_slices_change_no_bit(runs: Runs) -> None:
    one, two = (runs[n] for n in ("learned", "learned, three slices"))
    a, b = (part(s, "items") for s in (one, two))
    for column in ("history_vector", "history_vector_new"):
        assert a[column].equals(b[column])
    x, y = (ranking_vectors(t) for t in (a, b))
    old = ~np.isin(a["item_id"].to_pylist(), NEW_IDS)  # the scale of new items depends on the filter
    np.testing.assert_array_equal(x[old], y[old])
    x, y = (ranking_vectors(part(s, "users")) for s in (one, two))
    np.testing.assert_array_equal(x[:, :-4], y[:, :-4])


def test_learned_vectors_rank_better_than_chance(log: pa.Table, runs: Runs) -> None:
    """Users belong to three crowds, as items do. Without that, the lists of this shop would say nothing."""
    served = part(runs["learned"], "recommendations").to_pylist()
    own = [int(i[1:]) % 3 == int(r["user_id"][1:]) % 3 for r in served if r["user_id"][0] == "u" for i in
           r["item_ids"][:5]]  # fmt: skip
    assert np.mean(own) > 0.6
    assert log.num_rows > 1000


def test_new_items_have_their_share_of_the_first_places(runs: Runs) -> None:
    """The share is measured over the users who like something; one of them likes only an item that is gone."""
    served = part(runs["learned"], "recommendations").to_pylist()
    new = sum(i in NEW_IDS for r in served if r["user_id"][0] in "un" for i in r["item_ids"][:10])
    assert 19 <= new <= 21  # 5% of ten places of 42 users


def test_users_without_a_taste_are_ranked_by_popularity_of_late(log: pa.Table, runs: Runs) -> None:
    likes = log.filter(pc.is_in(log["event"], pa.array(["view", "buy"])))
    frame = log.to_pandas()
    frame["w"] = frame.event.map({"view": 1, "buy": 5, "dislike": -3, "shown": 0})
    assert len(likes) > 900
    pairs = frame[frame.w != 0].groupby(["user", "item"]).agg(t=("time", "max"), w=("w", "sum"), most=("w", "max"))
    pairs = pairs[(pairs.w > 0) & (pairs.most > 0)].reset_index()
    late = (0.5 ** ((frame.time.max() - pairs.t) / (14 * 86_400))).groupby(pairs["item"]).sum()
    order = [i for i in late.sort_values(ascending=False).index if i != "gone"]
    served = {r["user_id"]: r["item_ids"] for r in part(runs["learned"], "recommendations").to_pylist()}
    assert served["hater07"] == order[:20]
    # Events of weight 0 are no interest, and the items they show stay new and may be recommended.
    items = part(runs["learned"], "items")
    last = ranking_vectors(items)[items["item_id"].to_pylist().index(NEW_IDS[-1])]
    assert last[8:16].any()


def test_dislikes_are_no_popularity(runs: Runs) -> None:
    """Fifty users dislike i5 and nobody likes it: its common axes are those of an item without a like.

    Items without factors have the score 0, which is more than half of the others. A learned list would show a disliked
    item there, so it loses a point, which is a standard deviation.
    """
    for name in RANKINGS:
        items = part(runs[name], "items")
        axes = ranking_vectors(items)[items["item_id"].to_pylist().index("i5")][-4:]
        np.testing.assert_array_equal(axes, [0, 0, 1, -1 if "learned" in name else 0], err_msg=name)
        if name == "learned":  # It has events, so it is not new; nobody likes it, so it has no factors.
            assert not ranking_vectors(items)[items["item_id"].to_pylist().index("i5")][:-4].any()


# --- `recommend` alone -------------------------------------------------------------------------------------


def copied(store: Store, folder: Path) -> Store:
    shutil.copytree(store.root, folder / "store")
    return Store(str(folder / "store"))


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "bonus": ("learned", {"popularity_bonus": 0.7}),
    "trend and caution": ("learned", {"trend": 3.0, "caution": 0.4, "k": 7}),
    "penalty": ("vectors", {"popularity_bonus": 0.0, "popularity_penalty": 0.9, "caution": 0.0}),
    "profile alone": ("vectors", {"interests": "profile"}),
    "late": ("late", {"popularity_penalty": 0.0, "caution": 0.8}),
    "other weights": ("late", {"weights": {"text": 5}}),
    "half-life of popularity": ("learned", {"popularity_half_life_days": 2.0, "popularity_bonus": 0.5}),
    "vectors instead": ("learned", {"method": "vectors", "popularity_bonus": 0.5}),
}
SAME_OWN = ("bonus", "trend and caution", "penalty", "late", "half-life of popularity")  # all but the common axes


@pytest.mark.parametrize("name", CHANGES)
def test_recommend_writes_the_users_anew(
    shop: Path, log: pa.Table, runs: Runs, tmp_path: Path, name: str
) -> None:
    source, change = CHANGES[name]
    store = copied(runs[source], tmp_path)
    ranking = RANKINGS[source] | change
    run_shop(shop, "again", store.root, "recommend", **(sections_of(source) | {"ranking": ranking}))
    check_lists(store, log, k=ranking.get("k", 20), seen=ranking.get("exclude_seen", True))
    before, after = (ranking_vectors(part(store, "users", r)) for r in ("r", "again"))
    assert not np.array_equal(before, after)
    if name in SAME_OWN:
        np.testing.assert_array_equal(before[:, :-4], after[:, :-4])
    if name == "vectors instead":
        return
    # With the first settings again, the users are those of the first run.
    run_shop(shop, "back", store.root, "recommend", **sections_of(source))
    np.testing.assert_array_equal(ranking_vectors(part(store, "users", "back")), before)
    assert part(store, "recommendations", "back").equals(part(store, "recommendations", "r"))


def test_recommend_with_the_same_settings_leaves_the_users_where_they_are(
    shop: Path, runs: Runs, tmp_path: Path
) -> None:
    store = copied(runs["learned"], tmp_path)
    run_shop(shop, "again", store.root, "recommend", ranking={"k": 5, "filter": "open"})
    first = store.manifest("r")
    assert first is not None
    assert [f.path for f in store.published().part("users")] == [f.path for f in first.part("users")]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "recent": ("learned", {"recent": 4.0}, "ranking.recent: 4.0, .* run `unisono profile`"),
    "recent half-life": ("learned", {"recent_half_life": 9.0}, "ranking.recent_half_life: 9.0, "),
    "liked above": ("learned", {"liked_above": 2.0}, "ranking.liked_above: 2.0, "),
    "method": ("vectors", {"method": "learned"}, "ranking: needs ranking vectors that are learned from the log"),
    "fusion": ("vectors", {"fusion": "late"}, "ranking.fusion: late needs a vector of each modality in users/"),
    "exposure": ("learned", {"cold_exposure": 0.3}, "ranking.cold_exposure: 0.3, the published items were made with"),
    "quantile": ("learned", {"cold_quantile": 0.8}, "ranking.cold_quantile: 0.8, "),
    "factors": ("learned", {"factors": 5}, "ranking.factors: 5, the published items were made with 8"),
    "content": ("learned", {"content_users": 1.0}, "ranking.content_users: 1.0, "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_need_the_log_or_the_items_are_refused(shop: Path, runs: Runs, name: str) -> None:
    source, change, says = REFUSED[name]
    ranking = {n: v for n, v in RANKINGS[source].items() if not (name == "method" and n != "method")}
    with pytest.raises(JobError, match=says) as e:
        run_shop(
            shop, "refused", runs[source].root, "recommend", **(sections_of(source) | {"ranking": ranking | change})
        )
    assert "\n" not in str(e.value)
    assert runs[source].latest() == "r"


# --- order of rows and names -------------------------------------------------------------------------------


def shuffled(table: pa.Table, seed: int) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def test_the_order_of_rows_changes_no_bit(shop: Path, runs: Runs, tmp_path: Path) -> None:
    for seed, name in enumerate(("catalog.parquet", "log.parquet")):
        pq.write_table(shuffled(pq.read_table(shop / name), seed), tmp_path / name)
    other = run_shop(tmp_path, "r", shards=1, **sections_of("learned"))
    for name in ("factors", "items", "users", "recommendations"):
        assert part(other, name).equals(part(runs["learned"], name)), name


def test_names_of_items_change_nothing_but_ties(shop: Path, log: pa.Table, runs: Runs, tmp_path: Path) -> None:
    """Factors are learned from a start that the names decide, so this is about vectors from the joint space."""
    names = {f"i{n}": f"thing-{(n * 37) % 997}" for n in range(ITEMS)} | {"gone": "gone"}
    for name, column in (("catalog.parquet", "item_id"), ("log.parquet", "item")):
        table = pq.read_table(shop / name)
        renamed = pa.array([names[i] for i in table[column].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index(column), column, renamed), tmp_path / name)
    other = run_shop(tmp_path, "r", shards=3, **sections_of("vectors"))
    assert log.num_rows > 0
    users, items, scores = inner_products(runs["vectors"])
    same_users, renamed_items, renamed_scores = inner_products(other)
    assert users == same_users
    place = [renamed_items.index(names[i]) for i in items]
    np.testing.assert_allclose(renamed_scores[:, place], scores, atol=2e-5)


# --- nights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def items_alone(shop: Path) -> Store:
    return run_shop(shop, "items", "folded", "embed")


def folded(shop: Path, items: Store, folder: Path, parts: list[pa.Table], recent_events: int) -> pa.Table:
    """Runs `unisono profile` on each part of a log, one after the other, on published items. Returns users/."""
    store = copied(items, folder)
    for night, events in enumerate(parts):
        pq.write_table(events, shop / f"{folder.name}-{night}.parquet")
        run_shop(
            shop, f"night-{night}", store.root, "profile",
            interactions={"path": f"{folder.name}-{night}.parquet"},
            profiles={"incremental": True, "recent_events": recent_events, "min_events": 4, "interests": 0},
        )  # fmt: skip
    return part(store, "users")


@pytest.mark.parametrize("recent_events", [2, 100])
def test_profile_runs_add_up_to_one_pass(
    shop: Path, log: pa.Table, items_alone: Store, tmp_path: Path, recent_events: int
) -> None:
    cuts = [0, 500, 900, log.num_rows]
    parts = [log.slice(a, b - a) for a, b in pairwise(cuts)]
    late = [shuffled(parts[n], n) for n in (0, 2, 1)]  # the second part arrives after the third one
    found = []
    for name, nights in (("whole", [log]), ("parts", late)):
        folder = tmp_path / f"{name}-{recent_events}"
        folder.mkdir()
        found.append(folded(shop, items_alone, folder, nights, recent_events))
    whole, by_night = found
    for column in ("user_id", "events", "last_event", "cold"):
        assert whole[column].equals(by_night[column]), column
    assert max(whole["events"].to_pylist()) > 20
    np.testing.assert_allclose(ranking_vectors(by_night), ranking_vectors(whole), atol=1e-6)


def test_a_night_that_makes_items_anew_goes_on(shop: Path, log: pa.Table, tmp_path: Path) -> None:
    """Nightly runs fold too: factors are turned to the published ones, and lists follow the new vectors."""
    fold: dict[str, Any] = {"profiles": {"incremental": True, "interests": 0}}
    cut, store = 1000, str(tmp_path / "store")
    for night, events in enumerate((log.slice(0, cut), log.slice(cut))):
        pq.write_table(events, shop / f"nightly-{night}.parquet")
        made = run_shop(shop, f"n{night}", store, interactions={"path": f"nightly-{night}.parquet"}, **fold)
    check_lists(made, log, k=20)
    assert sum(part(made, "users")["events"].to_pylist()) == sum(i != "gone" for i in log["item"].to_pylist())


# --- forgetting --------------------------------------------------------------------------------------------


def test_the_forgotten_are_in_no_part_of_the_next_run(shop: Path, tmp_path: Path) -> None:
    """One user is in the new log, one only in the state; a third stays. The first was the only one to like i65."""
    base = pq.read_table(shop / "log.parquet")
    rows = {"user": ["leaver"] * 6, "item": [f"i{n}" for n in (65, 1, 4, 7, 10, 13)], "time": [1_771_000_000] * 6}
    base = pa.concat_tables([base, pa.table(rows | {"event": ["buy"] * 6}).cast(base.schema)])
    pq.write_table(base, shop / "first.parquet")
    pq.write_table(base.filter(pc.is_in(base["user"], pa.array(["leaver", "u01", "u02"]))), shop / "second.parquet")
    pq.write_table(pa.table({"user_id": ["leaver", "u09"]}), shop / "forget.parquet")
    fold: dict[str, Any] = {"profiles": {"incremental": True, "interests": 0}}
    store = str(tmp_path / "store")
    made = run_shop(shop, "one", store, interactions={"path": "first.parquet"}, **fold)
    assert "i65" in part(made, "factors")["item_id"].to_pylist()
    known = {r["item_id"]: r["users"] for r in part(made, "factors").to_pylist()}
    forget: dict[str, Any] = {"privacy": {"forget": "forget.parquet"}}
    made = run_shop(shop, "two", store, interactions={"path": "second.parquet"}, **fold, **forget)
    for name in ("users", "recommendations", "state"):
        ids = part(made, name)["user_id"].to_pylist()
        assert not {"leaver", "u09"} & set(ids), name
        assert {"u01", "u10", "newcomer"} <= set(ids), name
    # The factors know the remaining likes only, and an item that only the forgotten user liked is new again.
    likes = base.filter(pc.invert(pc.is_in(base["user"], pa.array(["leaver", "u09"])))).to_pandas()
    likes["w"] = likes.event.map({"view": 1, "buy": 5, "dislike": -3, "shown": 0})
    pairs = likes.groupby(["user", "item"]).w.agg(["sum", "max"]).reset_index()
    pairs = pairs[(pairs["sum"] > 0) & (pairs["max"] > 0) & (pairs["item"] != "gone")]  # the state keeps known items
    left = pairs.groupby("item").size().to_dict()
    found = {r["item_id"]: r["users"] for r in part(made, "factors").to_pylist()}
    assert found == left
    assert "i65" not in found
    assert sum(known.values()) > sum(found.values())
    items = part(made, "items")
    vector = ranking_vectors(items)[items["item_id"].to_pylist().index("i65")]
    assert not vector[:8].any()
    np.testing.assert_array_equal(vector[-4:-1], [0, 0, 1])


# --- what is popular is what people like -------------------------------------------------------------------


@pytest.mark.parametrize(
    "ranking", [{"trend": 1.0}, {"popularity_bonus": 0.6}, {"method": "vectors", "popularity_bonus": 0.6}]
)
def test_a_hated_item_heads_no_list(tmp_path: Path, ranking: dict[str, Any]) -> None:
    """50 people dislike i001, and nobody likes it. A newcomer, whose only item is unknown, sees what others view."""
    words = [f"{w} {w}" for w in ("red", "blue", "lamp", "chair", "vase", "mug", "rug", "clock", "shelf", "desk")]
    catalog = {"item_id": [f"i{n:03d}" for n in range(10)], "text": words}
    pq.write_table(pa.table(catalog), tmp_path / "catalog.parquet")
    rows = [(f"d{n}", "i001", "dislike") for n in range(50)]
    rows += [("v1", "i002", "view"), ("v2", "i003", "view"), ("newbie", "gone", "view")]
    columns = dict(zip(("user", "item", "event"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns | {"time": [1_770_000_000] * len(rows)}), tmp_path / "log.parquet")
    store = run_shop(tmp_path, "r", ranking={"k": 3, **ranking}, profiles={"interests": 0})
    check_lists(store, pq.read_table(tmp_path / "log.parquet"), k=3)
    served = {r["user_id"]: r for r in part(store, "recommendations").to_pylist()}
    assert set(served["newbie"]["item_ids"][:2]) == {"i002", "i003"}
    assert served["v1"]["item_ids"][0] == "i003"
    items, learned = part(store, "items"), "method" not in ranking
    np.testing.assert_array_equal(ranking_vectors(items)[1, -4:], [0, 0, 1, -1 if learned else 0])
    assert not learned or not any("i001" in r["item_ids"] for u, r in served.items() if not u.startswith("d"))
