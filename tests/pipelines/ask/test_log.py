"""The log of a run, read again as the run read it: against DuckDB and the run's own counts."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.small_shop import WEIGHTS, make_shop, write_job
from unisono.pipelines.ask.log import open_log, pseudonyms_of, read_events, total_log
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.launch import run_job
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.runs import Store

KEY = "0123456789abcdef0123456789abcdef"


def run_shop(folder: Path, name: str, run_id: str = "r", users: bool = True, **sections: Any) -> PublishedRun:
    """Runs a job over a small shop: items and profiles."""
    run_job(str(write_job(folder, name, **sections)), run_id, [], items=True, users=users)
    return PublishedRun.open(Store(str(folder / name)))


def events_of(run: PublishedRun, users: pa.Array | None = None) -> pa.Table:
    log = open_log(run, run.job)
    return pa.concat_tables([log.schema.empty_table(), *read_events(log, users)])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def run(shop: Path) -> PublishedRun:
    return run_shop(shop, "plain")


def test_every_event_is_read_with_its_weight(shop: Path, run: PublishedRun) -> None:
    raw = pq.read_table(shop / "log.parquet")
    events = events_of(run)
    assert events["user_id"].to_pylist() == raw["user"].to_pylist()
    assert events["item_id"].to_pylist() == raw["item"].to_pylist()
    assert events["weight"].to_pylist() == [WEIGHTS[e] for e in raw["event"].to_pylist()]
    assert events["time"].cast(pa.int64()).to_pylist() == [t * 1_000_000 for t in raw["time"].to_pylist()]


def test_events_of_some_users_alone(run: PublishedRun) -> None:
    every = events_of(run)
    wanted = pa.array(["u3", "newcomer", "nobody"])
    assert events_of(run, wanted).equals(every.filter(pc.is_in(every["user_id"], value_set=wanted)))


def test_events_after_the_launch_are_left_out_as_the_run_left_them_out(tmp_path: Path) -> None:
    log = pq.read_table(make_shop(tmp_path) / "log.parquet")
    late = log.slice(0, 1).set_column(2, "time", pa.array([4_000_000_000]))
    pq.write_table(pa.concat_tables([log, late]), tmp_path / "log.parquet")
    run = run_shop(tmp_path, "late")
    counts = json.loads(Path(run.store.run_path("r", "metrics.json")).read_text())
    assert counts["dead.interactions.-.time_in_future"] == 1
    assert events_of(run).num_rows == counts["events.rows"] == log.num_rows


def test_people_are_hidden_and_forgotten_as_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    pq.write_table(pa.table({"user_id": ["u2", "u5"]}), make_shop(tmp_path) / "forget.parquet")
    privacy = {"pseudonyms": {"key_env": "SHOP_KEY"}, "forget": "forget.parquet"}
    run = run_shop(tmp_path, "hidden", privacy=privacy)
    raw = [u for u in pq.read_table(tmp_path / "log.parquet")["user"].to_pylist() if u not in ("u2", "u5")]
    hidden = [hmac.new(KEY.encode(), u.encode(), hashlib.sha256).hexdigest()[:32] for u in raw]
    assert events_of(run)["user_id"].to_pylist() == hidden
    pseudonyms = pseudonyms_of(run, run.job)
    assert pseudonyms is not None
    assert pseudonyms.of(pa.array(raw[:3])).to_pylist() == hidden[:3]
    monkeypatch.setenv("SHOP_KEY", KEY[::-1])
    with pytest.raises(JobError, match="SHOP_KEY holds another key here"):
        events_of(run)


def test_a_job_without_a_log_says_so(shop: Path) -> None:
    run = run_shop(shop, "silent", users=False, interactions=None, behaviour=None)
    with pytest.raises(JobError, match="interactions: missing"):
        total_log(run, run.job)


# --- totals ------------------------------------------------------------------------------------------------


def test_totals_are_what_duckdb_counts(shop: Path, run: PublishedRun) -> None:
    totals = total_log(run, run.job)
    file = f"read_parquet('{shop / 'log.parquet'}')"
    liked = "event in ('view', 'buy')"  # a dislike makes no item popular
    n = duckdb.execute(f"select item, count(*) from {file} where {liked} group by 1 order by 1").fetchall()
    counts = totals.counts.sort_by("item_id")
    assert list(zip(counts["item_id"].to_pylist(), counts["n"].to_pylist(), strict=True)) == n
    known = duckdb.execute(f"select distinct user, item from {file} order by 1, 2").fetchall()
    pairs = totals.pairs.sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    assert list(zip(pairs["user_id"].to_pylist(), pairs["item_id"].to_pylist(), strict=True)) == known
    mine = totals.of_users(pa.array(["u4"]))
    assert sorted(mine["item_id"].to_pylist()) == sorted(i for u, i in known if u == "u4")


def test_an_incremental_run_also_knows_the_events_of_earlier_logs_once(tmp_path: Path) -> None:
    log = pq.read_table(make_shop(tmp_path) / "log.parquet").sort_by("time")
    sections: dict[str, Any] = {"profiles": {"incremental": True, "recent_events": 1000}, "behaviour": None}
    for number, part in enumerate((log.slice(0, 600), log.slice(600))):
        pq.write_table(part, tmp_path / f"log-{number}.parquet")
        run = run_shop(tmp_path, "fold", f"night-{number}", interactions={"path": f"log-{number}.parquet"}, **sections)
    totals = total_log(run, run.job)
    # The state keeps events of known items alone; the last log has them all.
    known = set(run.table("items", ["item_id"])["item_id"].to_pylist())
    old = [r for r in log.slice(0, 600).to_pylist() if r["item"] in known]
    events = old + log.slice(600).to_pylist()
    assert sum(totals.counts["n"].to_pylist()) == sum(e["event"] != "dislike" for e in events)
    assert totals.pairs.num_rows == len({(e["user"], e["item"]) for e in events})
