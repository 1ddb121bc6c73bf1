"""Logs with faults: each fault becomes a dead letter with its reason, or an error in one line."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.nights.test_users_in_the_graph import Shop, part
from tests.transforms.read.test_interactions import SPEC, log
from unisono.pipelines.graph.unknown_items import name_unlike_ids
from unisono.pipelines.job.load import load_job
from unisono.pipelines.job.plan import plan_run
from unisono.transforms.base.errors import JobError
from unisono.transforms.read.interactions import Interactions, InteractionsSpec, clean_interactions
from unisono.transforms.store.parquet import list_parquet
from unisono.transforms.store.runs import Store, table_bytes, write_file

WHEN = 1_770_000_000  # seconds since 1970: February 2026
SETTINGS = {
    "event": "event", "weights": {"view": 1, "dislike": -1}, "user": "user", "item": "item", "time": "time",
    "time_unit": "s",
}  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def rows(user: list, item: list, when: list, event: list) -> pa.Table:
    kinds = [("user", pa.string()), ("item", pa.string()), ("time", pa.int64()), ("event", pa.string())]
    return pa.table([user, item, when, event], schema=pa.schema(kinds))


def test_every_fault_of_a_log_is_named(shop):
    good = shop.log.append_column("event", pa.array(["view"] * shop.log.num_rows))
    soon = int(time.time()) + 30 * 86_400
    bad = rows(
        ["u01", "ghost", "u02", "u03", "u04", "u05", None, "u06", "ghost"],
        ["i001", "i002", "i003", "i004", "i005", "i006", "i007", None, "i001"],
        [soon, WHEN * 1000, WHEN * 1_000_000, WHEN * 10**9, 1_770_000, None, WHEN, WHEN, WHEN],
        ["view", "view", "view", "view", "view", "view", "view", "view", "share"],
    )
    undecided = rows(["wavering"] * 2, ["i001"] * 2, [WHEN] * 2, ["view", "dislike"])
    n = 200_000  # test_user_profiles.py has a user with a million events.
    rng = np.random.default_rng(0)
    item = pa.array([f"i{i:03d}" for i in range(140)]).take(pa.array(rng.integers(0, 140, n)))
    when = WHEN - WHEN % 86_400 + rng.integers(0, 2 * 86_400, n)
    robot = pa.table([pa.array(["robot"] * n), item, when, pa.array(["view"] * n)], schema=bad.schema)
    shop.log = pa.concat_tables([good, bad, undecided, robot])
    path = {"path": "log-r.parquet"}
    profiles, ranking = {"incremental": True, "max_events_per_day": 1000}, {"k": 5, "device": "cpu"}
    store = shop.run("r", interactions=SETTINGS | path, behaviour={"dim": 12}, profiles=profiles, ranking=ranking,
                     limits={"max_dead_letter_fraction": 0.01}, parts={"recommend": True})  # fmt: skip
    letters = part(store, "dead_letters").to_pylist()
    assert Counter((d["stage"], d["reason"]) for d in letters) == {
        ("interactions", "time_in_future"): 1,
        ("interactions", "time_out_of_range"): 4,
        ("interactions", "null_time"): 1,
        ("interactions", "null_user"): 1,
        ("interactions", "null_item"): 1,
        ("interactions", "unknown_event"): 1,
        ("profiles", "weights_cancel"): 1,
        ("profiles", "too_many_events"): 1,
    }
    detail = {d["reason"]: d["detail"] for d in letters}
    assert detail["time_in_future"].startswith(f"user=u01 time={soon}")
    assert detail["unknown_event"].endswith("event=share")
    assert detail["weights_cancel"] == "user=wavering"
    assert detail["too_many_events"].endswith(f"1000 allowed, {n - 2000} left out")
    counts = json.loads(Path(store.run_path("r", "metrics.json")).read_text())
    assert counts["users.without_usable_event"] == counts["users.without_profile"] == 1  # `ghost`
    assert counts["users.seen"] == 63
    users = {u["user_id"]: u for u in part(store, "users").to_pylist()}
    assert "ghost" not in users
    assert users["wavering"]["cold"]
    assert users["robot"]["events"] == 2000
    state = {s["user_id"]: s for s in part(store, "state").to_pylist()}
    assert len(state["robot"]["recent"]) == 100


def test_a_log_in_another_unit_is_not_published(shop):
    column = pa.array(shop.log["time"].to_numpy() * 1000)
    shop.log = shop.log.set_column(2, "time", column)
    with pytest.raises(JobError, match=r"publish refused: 4000 dead letters .*interactions.-.time_out_of_range") as e:
        shop.run("r")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("taken_for", ["s", "ms", "us", "ns"])
def test_timestamps_made_with_a_wrong_unit_are_dead_letters(shop, unit, taken_for):
    """As after pandas' `to_datetime(column, unit=…)` with a wrong unit: the type is right, but the years are wrong."""
    raw = [WHEN * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]] * 3
    events, dead = clean_interactions(log(ts=pa.array(raw, pa.timestamp(taken_for, "UTC"))), SPEC)
    if unit == taken_for:
        assert events.num_rows == 3
    else:
        assert dead["reason"].to_pylist() == ["time_out_of_range"] * 3


@pytest.mark.parametrize("known", [0, 1, 1900])
def test_a_log_whose_items_are_unknown_is_not_published(shop, known):
    item = [i if n < known else f"{i}.0" for n, i in enumerate(shop.log["item"].to_pylist())]
    clean, shop.log = shop.log, shop.log.set_column(1, "item", pa.array(item))
    says = rf"publish refused: {4000 - known} of 4000 events .* are of unknown items, over limits.max_unknown_item_f"
    if not known:
        says = r"publish refused: none of 4000 events gave a user profile \(4000 are of unknown items\)"
    example = next((i for i in item if i.endswith(".0")), "")
    # The example of the log is among the first rows that are unknown; that of the catalogue is its first id.
    with pytest.raises(JobError, match=says + r".*; the log has 'i\d{3}\.0', the catalogue 'i000'; compare inter") as e:
        shop.run("r")
    assert repr(example) in str(e.value)
    assert "\n" not in str(e.value)
    # A catalogue that lost items, but fewer than half of the events', passes.
    shop.log = clean
    store = shop.run("fewer", items=90)
    counts = json.loads(Path(store.run_path("fewer", "metrics.json")).read_text())
    assert 0.3 < counts["events.unknown_item"] / counts["events.rows"] < 0.5
    shop.log = pa.concat_tables([shop.log, shop.log.set_column(1, "item", pa.array(["gone"] * 4000))])
    shop.run("raised", items=90, limits={"max_unknown_item_fraction": 0.9})


def test_integer_ids_that_do_not_fit_are_named(tmp_path):
    pq.write_table(pa.table({"item": pa.array([None, 7, 2**40, 8])}), tmp_path / "log.parquet")
    store, (file,) = Store(str(tmp_path)), list_parquet(str(tmp_path / "log.parquet"), "k")
    log = Interactions(InteractionsSpec("log.parquet", "user", "item", "time"), (file,), 4, pa.string(), pa.int64())
    table = pa.table({"item_id": pa.array([8, 7, 9], pa.int32())})
    record = write_file(store, "items", "items.parquet", table_bytes(table, {}), 0, 3)
    assert name_unlike_ids([record], store, log) == f"the log has {2**40}, the catalogue 8"
    every = pa.table({"item_id": pa.array([7, 8, 2**40])})
    record = write_file(store, "items", "items.parquet", table_bytes(every, {}), 0, 3)
    assert name_unlike_ids([record], store, log) == ""


def test_ids_of_another_type_are_refused_before_work(shop):
    numbers = shop.log.set_column(1, "item", pa.array(range(shop.log.num_rows)))
    strings, shop.log = shop.log, numbers
    with pytest.raises(JobError, match=r"interactions.item: column 'item' holds int64, the catalogue's ids are string"):
        shop.run("r")
    shop.log = strings
    shop.run("one", events=slice(0, 2000), profiles={"incremental": True})
    shop.log = strings.set_column(0, "user", pa.array(range(strings.num_rows)))
    with pytest.raises(JobError, match=r"interactions.user: column 'user' holds int64, the published state/ string"):
        shop.run("two", events=slice(2000, 4000), profiles={"incremental": True})
    pq.write_table(shop.log, shop.root / "log-one.parquet")
    body = load_job(str(shop.root / "job.yaml")).model_copy(update={"ranking": None})
    assert body.interactions is not None
    job = body.model_dump(mode="json") | {"ranking": {"k": 3}, "profiles": {}}
    (shop.root / "job.yaml").write_text(json.dumps(job))
    with pytest.raises(JobError, match=r"interactions.user: column 'user' holds int64, the published users/ string"):
        plan_run(load_job(str(shop.root / "job.yaml")), "three", items=False, users=False, recommend=True)
