"""Logs that were added before are recognized, and others are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.privacy.pseudonyms import check_key
from unisono.transforms.read.interactions import InteractionsSpec, check_interactions
from unisono.transforms.read.known_logs import KnownLog, check_new_logs, describe_logs

START = np.datetime64("2026-10-01", "us")


def log(n: int, seed: int = 0) -> pa.Table:
    """A log of which a longer one has the same beginning."""
    rng = np.random.default_rng(seed)
    return pa.table({
        "user": [f"u{u}" for u in rng.integers(0, 50, 5000)], "item": [f"i{i}" for i in rng.integers(0, 90, 5000)],
        "at": START + np.cumsum(rng.integers(0, 90, 5000)).astype("timedelta64[s]"),
        "what": rng.choice(["view", "buy"], 5000),
    }).slice(0, n)  # fmt: skip


def write(root: Path, name: str, table: pa.Table, **how: object) -> None:
    pq.write_table(table, root / f"{name}.parquet", **how)


def read(root: Path, pattern: str) -> list[KnownLog]:
    weights = {"view": 1.0, "buy": 5.0}
    spec = InteractionsSpec(f"{root}/{pattern}.parquet", "user", "item", "at", event="what", weights=weights)
    return describe_logs(check_interactions(spec))


def add(root: Path, pattern: str, before: list[KnownLog] | None = None) -> list[KnownLog]:
    new = read(root, pattern)
    check_new_logs(new, before or [])
    return new


@pytest.mark.parametrize("rows", [1, 4, 999, 1000, 1001, 3000])
def test_copies_are_refused(tmp_path: Path, rows: int) -> None:
    write(tmp_path, "day", log(rows))
    before = [KnownLog.of(json.loads(json.dumps(asdict(one)))) for one in add(tmp_path, "day")]
    shutil.copy(tmp_path / "day.parquet", tmp_path / "copy.parquet")
    write(tmp_path, "written-anew", log(rows), compression="none", row_group_size=300)
    write(tmp_path, "dictionary", log(rows).set_column(1, "item", log(rows)["item"].dictionary_encode()))
    for name in ("copy", "written-anew", "dictionary"):
        same = rf"{name}.parquet begins with the same events as .*/day.parquet, which is in the published state alre"
        with pytest.raises(JobError, match=f"^interactions.path: .*{same}") as e:
            add(tmp_path, name, before)
        assert "\n" not in str(e.value)
    with pytest.raises(JobError, match=r"day.parquet is in the published state already, and would count twice; name"):
        add(tmp_path, "day", before)


@pytest.mark.parametrize("rows", [1, 4, 999, 1000, 1001, 3000])
def test_logs_that_grew_and_their_copies_are_refused(tmp_path: Path, rows: int) -> None:
    write(tmp_path, "day", log(rows))
    before = add(tmp_path, "day")
    write(tmp_path, "day", log(rows + 500))
    grown = rf"day.parquet is in the published state already, with {rows:,} rows, and now has {rows + 500:,}; write new"
    with pytest.raises(JobError, match=grown):
        add(tmp_path, "day", before)
    shutil.copy(tmp_path / "day.parquet", tmp_path / "copy.parquet")
    says = "begins with the same events as" if rows >= 1000 else "is a copy of"
    with pytest.raises(JobError, match=rf"copy.parquet {says} .*/day.parquet, .* and would count twice; name the new"):
        add(tmp_path, "copy", before)


def test_other_logs_are_added(tmp_path: Path) -> None:
    write(tmp_path, "day-0", log(30))
    write(tmp_path, "day-1", log(2000))
    before = add(tmp_path, "day-[01]")
    (tmp_path / "day-0.parquet").unlink()
    write(tmp_path, "day-2", log(4000).slice(2000))
    write(tmp_path, "day-3", log(2000, seed=1))
    write(tmp_path, "day-4", log(2000).set_column(0, "user", log(2000, seed=1)["user"]))
    write(tmp_path, "day-5", log(2000).set_column(3, "what", log(2000, seed=1)["what"]))
    write(tmp_path, "day-6", log(0))
    write(tmp_path, "day-7", log(40))
    found = add(tmp_path, "day-[2-7]", before)
    # A file without rows is left out. A few equal events at the beginning may be chance.
    assert [Path(f.path).stem for f in found] == ["day-2", "day-3", "day-4", "day-5", "day-7"]
    assert [f.rows for f in found] == [2000] * 4 + [40]


def test_copies_in_one_run_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", log(1700))
    write(tmp_path, "b", log(900, seed=1))
    write(tmp_path, "c", log(2200))
    with pytest.raises(JobError, match=r"c.parquet begins with the same events as .*/a.parquet, and would count twice"):
        add(tmp_path, "*")


def test_entries_of_earlier_versions_are_known_by_their_path(tmp_path: Path) -> None:
    write(tmp_path, "day", log(300))
    size = (tmp_path / "day.parquet").stat().st_size
    before = [KnownLog.of({"path": str(tmp_path / "day.parquet"), "bytes": size})]
    with pytest.raises(JobError, match="is in the published state already, and would count twice"):
        add(tmp_path, "day", before)
    write(tmp_path, "day", log(800))
    with pytest.raises(JobError, match=rf"already, with {size:,} bytes, and now has [\d,]*; write new events"):
        add(tmp_path, "day", before)
    write(tmp_path, "other", log(800, seed=1))
    assert len(add(tmp_path, "other", before)) == 1


def test_users_are_hashed_as_the_run_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "day", log(1))
    plain = read(tmp_path, "day")
    spec = InteractionsSpec(f"{tmp_path}/day.parquet", "user", "item", "at")
    heads = []
    for key in ("a" * 32, "b" * 32):
        monkeypatch.setenv("KNOWN_LOGS_KEY", key)
        at = replace(check_interactions(spec), pseudonyms=check_key("KNOWN_LOGS_KEY"), user_type=pa.string())
        heads.append(describe_logs(at)[0].head)
    # A hash of one event would otherwise tell who it was: there are few users to try.
    assert len({*heads, plain[0].head}) == 3
