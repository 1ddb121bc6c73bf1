"""Publishing: every condition broken once and caught, and what is on disk afterwards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from unisono.transforms.base.errors import JobError, Reason
from unisono.transforms.store import publish
from unisono.transforms.store.dead_letters import SCHEMA, DeadLetter, dead_letter_table
from unisono.transforms.store.privacy import ForgetStatement, PrivacyStatement
from unisono.transforms.store.publish import PublishRun, PublishSpec, WriteDeadLetters, check_books
from unisono.transforms.store.runs import FileRecord, Store, read_table, shard_path, table_bytes, write_file

# 100 catalogue rows: 3 have no item vector, 2 items lost a modality. 50 events; one of them is bad.
GOOD = {
    "catalog.rows": 100,
    "items.rows": 97,
    "dead.catalog.-.null_id": 1,
    "dead.catalog.-.duplicate_id": 1,
    "dead.catalog.-.no_modality": 1,
    "dead.encode.image.not_found": 2,
    "interactions.rows": 50,
    "dead.interactions.-.null_user": 1,
    "users.rows": 10,
}
ITEMS = PublishSpec(makes_items=True, max_dead_letter_fraction=0.04)
USERS = PublishSpec(makes_items=False, max_dead_letter_fraction=0.04)


# --- the conditions ----------------------------------------------------------------------------------------


def test_a_good_run_passes_at_the_very_limit() -> None:
    check_books(GOOD, ITEMS)  # 4 of 100 rows; `no_modality` is not counted again
    check_books(GOOD | {"dead.interactions.-.null_item": 1}, ITEMS)  # 2 of 50 events
    for one_more in ({"dead.encode.image.not_found": 3}, {"dead.interactions.-.null_item": 2}):
        with pytest.raises(JobError, match="max_dead_letter_fraction"):
            check_books(GOOD | one_more, ITEMS)


BROKEN = {
    "a row is lost": (
        {"items.rows": 96},
        r"100 catalogue rows, but 96 item vectors \+ 3 dead letters of stage catalog",
    ),
    "an item is written twice": ({"items.rows": 98}, r"100 catalogue rows, but 98 item vectors \+ 3 dead letters"),
    "a letter is counted twice": (
        {"dead.catalog.-.null_id": 2},
        r"100 catalogue rows, but 97 item vectors \+ 4 dead letters",
    ),
    "the catalogue was not read": ({"catalog.rows": 0}, r"0 catalogue rows, but 97 item vectors"),
    "no item vector": (
        {"items.rows": 0, "dead.catalog.-.no_modality": 98},
        r"none of 100 catalogue rows gave an item vector; see dead_letters/",
    ),
    "too many bad rows": (
        {"items.rows": 96, "dead.catalog.-.duplicate_id": 2},
        r"5 dead letters for 100 catalogue rows \(5\.0%\), over limits\.max_dead_letter_fraction 4\.0%; most are ",
    ),
    "too many bad media": (
        {"dead.encode.image.not_found": 30},
        r"32 dead letters for 100 catalogue rows \(32\.0%\).*; most are encode\.image\.not_found \(30\); see dead_let",
    ),
    "too many bad events": (
        {"dead.interactions.-.time_out_of_range": 40},
        r"41 dead letters for 50 events \(82\.0%\).*; most are interactions\.-\.time_out_of_range \(40\)",
    ),
    "letters of events that were not counted": (
        {"interactions.rows": 0},
        r"1 dead letters for 0 events",
    ),
    "no profile": (
        {"users.rows": 0, "events.unknown_item": 49},
        r"none of 50 events gave a user profile \(49 are of unknown items\); compare interactions\.item with",
    ),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_each_broken_condition_refuses_the_run_in_one_line(change: dict[str, int], says: str) -> None:
    with pytest.raises(JobError, match=f"^publish refused: {says}") as e:
        check_books(GOOD | change, ITEMS)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("key", ["catalog.rows", "items.rows"])
def test_a_counter_that_is_missing_counts_as_none(key: str) -> None:
    with pytest.raises(JobError, match="publish refused"):
        check_books({k: n for k, n in GOOD.items() if k != key}, ITEMS)


def test_a_run_without_a_catalogue_is_checked_by_its_events_alone() -> None:
    alone = {k: n for k, n in GOOD.items() if k.split(".")[0] in ("interactions", "users") or "interactions" in k}
    check_books(alone, USERS)
    check_books({}, USERS)  # neither a log nor a catalogue: recommendations alone
    with pytest.raises(JobError, match="none of 50 events"):
        check_books(alone | {"users.rows": 0}, USERS)
    check_books({k: n for k, n in alone.items() if k != "users.rows"}, USERS)  # it makes no profiles


def test_letters_of_users_and_rows_without_modality_refuse_nothing() -> None:
    check_books(GOOD | {"dead.profiles.-.too_many_events": 1000}, ITEMS)
    check_books(GOOD | {"items.rows": 48, "dead.catalog.-.no_modality": 50}, ITEMS)
    with pytest.raises(JobError, match="max_dead_letter_fraction"):
        check_books(GOOD | {"dead.encode.audio.too_long": 1000}, ITEMS)


def test_too_many_events_of_unknown_items_refuse_the_run() -> None:
    spec = PublishSpec(True, 0.04, max_unknown_item_fraction=0.5)
    counts = GOOD | {"events.rows": 49, "events.unknown_item": 24}
    check_books(counts, spec)
    check_books(counts | {"events.unknown_item": 49}, PublishSpec(True, 0.04))
    check_books(counts | {"events.rows": 0, "events.unknown_item": 0}, spec)
    says = r"^publish refused: 25 of 49 events \(51\.0%\) are of unknown items, over limits\.max_unknown_item_fraction"
    with pytest.raises(JobError, match=says + r" 50\.0%; compare interactions\.item with catalog\.id, or raise the"):
        check_books(counts | {"events.unknown_item": 25}, spec)
    record = FileRecord("items", "items.parquet", 0, 3, 9, "")
    named = replace(spec, name_unlike_ids=lambda records: f"of {list(records) == [record]}")
    with pytest.raises(JobError, match=says + r" 50\.0%; of True; compare interactions"):
        check_books(counts | {"events.unknown_item": 25}, named, [record])


COUNT = st.integers(0, 40)


@given(COUNT, COUNT, COUNT, COUNT, COUNT, st.floats(0, 1))
def test_it_agrees_with_the_plain_sums(rows: int, items: int, null: int, empty: int, missing: int, most: float) -> None:
    counts = {
        "catalog.rows": rows,
        "items.rows": items,
        "dead.catalog.-.null_id": null,
        "dead.catalog.-.no_modality": empty,
        "dead.encode.text.empty_text": missing,
    }
    good = rows == items + null + empty and items > 0 and null + missing <= most * rows
    try:
        check_books(counts, PublishSpec(True, most))
    except JobError:
        assert not good
    else:
        assert good


# --- dead letters ------------------------------------------------------------------------------------------


def letters(*ids: str | None, reason: Reason = Reason.NOT_FOUND, modality: str | None = "image") -> pa.Table:
    return dead_letter_table(DeadLetter(i, modality, "encode", reason) for i in ids)


TABLES = [
    letters("b", "a"),
    letters("c", None, reason=Reason.NULL_ID, modality=None),
    letters("a", reason=Reason.TRUNCATED),
    letters("b"),
    SCHEMA.empty_table(),
]


def write_letters(store: Store, tables: Iterable[pa.Table], shards: int) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as p:
        out = p | beam.Create(list(tables)).with_output_types(pa.Table) | WriteDeadLetters(store, "r", shards)
        rows = [row for table in TABLES for row in table.to_pylist()]
        expected = Counter(f"dead.{r['stage']}.{r['modality'] or '-'}.{r['reason']}" for r in rows)

        def add_up(found: list[tuple[str, int]]) -> None:
            total: Counter[str] = Counter()
            for name, n in found:
                total[name] += n
            assert total == expected

        assert_that(out["counts"], add_up, "Counts")


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize(("shards", "files"), [(1, 1), (16, 1), (40, 2), (64, 4)])
def test_letters_are_written_counted_and_equal_whatever_their_order(tmp_path: Path, shards: int, files: int) -> None:
    first, second = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    write_letters(first, TABLES, shards)
    write_letters(second, TABLES[::-1], shards)
    folders = [Path(store.run_path("r", "dead_letters")) for store in (first, second)]
    assert len(digests(folders[0])) == files
    assert digests(folders[0]) == digests(folders[1])
    pattern = folders[0] / "*.parquet"
    query = f"select item_id, modality, stage, reason, detail, uri from '{pattern}'"
    found = duckdb.connect().execute(query).fetchall()
    written = [tuple(row.values()) for table in TABLES for row in table.to_pylist()]
    assert Counter(found) == Counter(written)


def test_without_letters_there_is_an_empty_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with beam.Pipeline(runner=FnApiRunner()) as p:
        none = p | beam.Create([]).with_output_types(pa.Table)
        out = none | WriteDeadLetters(store, "r", 4)
        assert_that(out["counts"], equal_to([]))
    table = pq.read_table(Path(store.run_path("r", "dead_letters")))
    assert table.num_rows == 0
    assert table.column_names == SCHEMA.names


# --- the publish -------------------------------------------------------------------------------------------


def write_items(store: Store, run_id: str, rows: list[int]) -> list[FileRecord]:
    """Writes a shard of items for each number of rows."""
    records = []
    for shard, n in enumerate(rows):
        table = pa.table({"item_id": [f"i{shard}-{i}" for i in range(n)]})
        path = shard_path(run_id, "items", shard, len(rows))
        records.append(write_file(store, "items", path, table_bytes(table), shard, n))
    return records


def run_publish(store: Store, run_id: str, records: list[FileRecord], rows: int, spec: PublishSpec) -> None:
    counts = [("catalog.rows", rows), *(("items.rows", r.rows) for r in records), ("users.forgotten", 3)]
    with beam.Pipeline(runner=FnApiRunner()) as p:
        totals = p | "Counts" >> beam.Create(counts)
        files = p | "Files" >> beam.Create(records)
        _ = files | PublishRun(store, run_id, spec, "2026-11-01T00:00:00+00:00", totals)


def test_a_published_run_lists_every_file_as_it_is_on_disk(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    inherited = tuple(write_items(store, "earlier", [4]))
    records = write_items(store, "r", [2, 0, 5])
    run_publish(store, "r", records, 7, PublishSpec(True, 0.1, inherited))
    assert (tmp_path / "LATEST").read_text() == "r\n"
    manifest = store.published()
    assert (manifest.run_id, manifest.created) == ("r", "2026-11-01T00:00:00+00:00")
    assert {f.path for f in manifest.files} == {
        "runs/r/metrics.json", *(r.path for r in records), *(r.path for r in inherited),
    }  # fmt: skip
    for record in manifest.files:
        data = (tmp_path / record.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (record.bytes, record.sha256)
    assert sum(read_table(store, r).num_rows for r in manifest.part("items")) == 11
    metrics = json.loads((tmp_path / "runs/r/metrics.json").read_text())
    assert metrics == {"catalog.rows": 7, "items.rows": 7, "users.forgotten": 3}
    assert list(metrics) == sorted(metrics)
    assert "privacy" not in json.loads((tmp_path / "runs/r/manifest.json").read_text())


def test_the_manifest_says_how_many_people_were_left_out(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    spec = PublishSpec(True, 0.1, privacy=PrivacyStatement(forget=ForgetStatement(("gone.parquet",))))
    run_publish(store, "r", write_items(store, "r", [1]), 1, spec)
    written = json.loads((tmp_path / "runs/r/manifest.json").read_text())
    assert written["privacy"] == {"forget": {"files": ["gone.parquet"], "removed": 3}}


@pytest.mark.parametrize("rows", [6, 8], ids=["too many item vectors", "a row is lost"])
def test_a_refused_run_leaves_the_published_one_alone(tmp_path: Path, rows: int) -> None:
    store = Store(str(tmp_path))
    run_publish(store, "good", write_items(store, "good", [1]), 1, PublishSpec(True, 0.1))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    records = write_items(store, "bad", [2, 5])
    with pytest.raises(JobError, match=f"publish refused: {rows} catalogue rows, but 7 item vectors"):
        run_publish(store, "bad", records, rows, PublishSpec(True, 0.1))
    assert store.latest() == "good"
    assert store.manifest("bad") is None
    assert not (tmp_path / "runs/bad/metrics.json").exists()
    assert all(path.read_bytes() == data for path, data in before.items())


def test_files_of_an_attempt_with_other_shards_are_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_items(store, "other", [3, 3])
    write_items(store, "r", [3, 2, 2])
    (tmp_path / "runs/r/items/notes.txt").write_text("not a shard")
    records = write_items(store, "r", [4, 3])
    run_publish(store, "r", records, 7, PublishSpec(True, 0.1))
    folder = tmp_path / "runs/r/items"
    assert sorted(p.name for p in folder.iterdir()) == [
        "notes.txt", "part-00000-of-00002.parquet", "part-00001-of-00002.parquet",
    ]  # fmt: skip
    assert len(list((tmp_path / "runs/other/items").iterdir())) == 2


def test_latest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    records = write_items(store, "r", [1])
    written: list[str] = []
    real = publish.files.write_bytes

    def write(path: str, data: bytes) -> None:
        written.append(path.removeprefix(store.root + "/"))
        real(path, data)

    monkeypatch.setattr(publish.files, "write_bytes", write)
    publish._publish((store, "r", PublishSpec(True, 0.1), "now"), records, {"catalog.rows": 1, "items.rows": 1})
    assert written == ["runs/r/metrics.json", "runs/r/manifest.json", "LATEST"]


def test_the_time_of_launch_is_utc_to_the_second() -> None:
    assert len(publish.now_utc()) == len("2026-11-01T00:00:00+00:00")
    assert publish.now_utc().endswith("+00:00")
