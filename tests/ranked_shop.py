"""A shop for tests of ranking vectors: new items, dislikes, events of weight 0, users of every kind.

The lists that a run should have are computed here from its written files alone, in NumPy and float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.small_shop import WORDS
from unisono.pipelines.launch import run_job
from unisono.transforms.base.tables import hash_ids
from unisono.transforms.store.runs import Store, read_table

ITEMS, NEW, USERS, EVENTS = 70, 14, 40, 1100
WEIGHTS = {"view": 1, "buy": 5, "dislike": -3, "shown": 0}


def draw_log(seed: int = 3) -> pa.Table:
    """Draws 60 days of events of three crowds, in the order of time.

    The last `NEW` items have no event, but one of them was shown (weight 0). Item i5 is disliked by fifty users and
    liked by nobody.
    """
    rng = np.random.default_rng(seed)
    old = ITEMS - NEW
    who = rng.integers(0, USERS, EVENTS)
    own = rng.integers(0, old // 3, EVENTS) * 3 + who % 3
    item = np.where(rng.random(EVENTS) < 0.8, own, rng.integers(0, old, EVENTS))
    item = np.where(item == 5, 8, item)
    rows = list(zip(
        [f"u{u:02d}" for u in who], [f"i{i}" for i in item], rng.integers(0, 60 * 1440, EVENTS) * 60,
        rng.choice(["view", "buy", "dislike"], EVENTS, p=[0.6, 0.3, 0.1]), strict=True,
    ))  # fmt: skip
    rows += [(f"hater{n:02d}", "i5", 2_500_000 + n, "dislike") for n in range(50)]
    rows += [("newcomer", "i7", 5_000_000, "buy"), ("window", f"i{ITEMS - 1}", 4_000_000, "shown")]
    rows += [("window", "i2", 4_000_001, "shown"), ("elsewhere", "gone", 4_000_000, "view")]
    rows.sort(key=lambda r: r[2])
    columns = [pa.array(c) for c in zip(*rows, strict=True)]
    times = pa.array(np.array(columns[2].to_numpy()) + 1_770_000_000)
    return pa.table({"user": columns[0], "item": columns[1], "time": times, "event": columns[3]})


def make_ranked_shop(folder: Path) -> Path:
    """Writes catalog.parquet and log.parquet."""
    rng = np.random.default_rng(1)
    texts = [" ".join([WORDS[n % 3], WORDS[3 + n % 3], *rng.choice(WORDS, 4)]) for n in range(ITEMS)]
    catalog = {"item_id": [f"i{n}" for n in range(ITEMS)], "text": texts, "open": np.arange(ITEMS) % 6 > 0}
    pq.write_table(pa.table(catalog), folder / "catalog.parquet")
    pq.write_table(draw_log(), folder / "log.parquet")
    return folder


def run_shop(folder: Path, run_id: str, store: str = "store", parts: str = "nightly", **sections: Any) -> Store:
    """Runs a command on a shop: `nightly`, `embed`, `profile` or `recommend`. Sections are merged into the job."""
    job: dict[str, Any] = {
        "store": store,
        "catalog": {"path": "catalog.parquet", "id": "item_id", "text": ["text"]},
        "interactions": {
            "path": "log.parquet", "user": "user", "item": "item", "time": "time", "time_unit": "s", "event": "event",
            "weights": WEIGHTS,
        },
        "space": {"dim": 8},
        "ranking": {"k": 20, "device": "cpu"},
        "shards": 2,
    }  # fmt: skip
    for key, value in sections.items():
        job[key] = {**job.get(key, {}), **value} if isinstance(value, dict) else value
    if job["ranking"].get("method") != "vectors":
        job["ranking"] = {"factors": 8, **job["ranking"]}
    path = folder / f"{Path(store).name}-{run_id}.yaml"
    path.write_text(yaml.safe_dump(job))
    all_parts = {"items": parts in ("nightly", "embed"), "users": parts in ("nightly", "profile")}
    run_job(str(path), run_id, [], **all_parts, recommend=parts in ("nightly", "recommend"))
    return Store(str(folder / store))


def part(store: Store, name: str, run_id: str | None = None) -> pa.Table:
    """Reads a part of a run, sorted by id."""
    manifest = store.manifest(run_id) if run_id else store.published()
    assert manifest is not None
    table = pa.concat_tables([read_table(store, r) for r in manifest.part(name)])
    return table.sort_by(table.column_names[0]).combine_chunks()


def ranking_vectors(table: pa.Table) -> np.ndarray:
    """Returns the ranking vectors of items or users as they are stored: float32 [n, w]."""
    column = table["ranking_vector"].combine_chunks()
    assert column.type.value_type == pa.float32()
    return column.flatten().to_numpy().reshape(len(column), -1)


def inner_products(store: Store, run_id: str | None = None) -> tuple[list[str], list[str], np.ndarray]:
    """Returns the ids of users and items, and the inner products of their ranking vectors, float64 [users, items]."""
    users, items = part(store, "users", run_id), part(store, "items", run_id)
    u, i = (ranking_vectors(t).astype(np.float64) for t in (users, items))
    # Elementwise, so that items with the same vector have the same score to the last bit.
    return users["user_id"].to_pylist(), items["item_id"].to_pylist(), (u[:, None, :] * i[None]).sum(-1)


def check_lists(store: Store, log: pa.Table, *, k: int, seen: bool = True, shut: frozenset[str] = frozenset()) -> None:
    """Compares recommendations/ with the top k of the inner products of the ranking vectors: ids, order and scores.

    Items whose scores are the same float32 are in the order of the hash of their id.

    Args:
        store: the store.
        log: all events, of this run and those before.
        k: the length of a list.
        seen: whether items with an event whose weight is not 0 are left out.
        shut: the items that must not be recommended.
    """
    users, items, exact = inner_products(store)
    scores = exact.astype(np.float32)
    turned = {(e["user"], e["item"]) for e in log.to_pylist() if WEIGHTS[e["event"]]} if seen else set()
    served = {r["user_id"]: r for r in part(store, "recommendations").to_pylist()}
    assert sorted(served) == users
    ranks = hash_ids(pa.array(items))
    for row, user in enumerate(users):
        open_ = [n for n, i in enumerate(items) if (user, i) not in turned and i not in shut]
        order = sorted(open_, key=lambda n: (-float(scores[row, n]), int(ranks[n])))[:k]
        assert served[user]["item_ids"] == [items[n] for n in order], user
        np.testing.assert_allclose(served[user]["scores"], exact[row, order], atol=1e-5)
