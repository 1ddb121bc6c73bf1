"""Catalogues are read and grouped into shards."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from unisono.transforms.base.errors import JobError
from unisono.transforms.read.catalog import (
    CatalogSpec,
    ReadCatalog,
    ShardByItem,
    check_catalog,
    compose_text,
    merge_shard,
    read_items,
)


def write(path: Path, **columns) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return str(path)


TEXT = {
    "two columns": (("a", "b"), [("x", "y"), ("x", None), (None, None), ("", " ")], ["x\ny", "x", None, ""]),
    "an empty column leaves no joiner": (("a", "b"), [("", "y"), ("x", "")], ["y", "x"]),
    "template": ("{a}: {b}", [("x", "y"), ("x", None), (None, None)], ["x: y", "x:", None]),
    "template with one column": ("Title {a}", [("x", "-"), (None, "-")], ["Title x", None]),
}


@pytest.mark.parametrize(("text", "rows", "expected"), TEXT.values(), ids=TEXT)
def test_compose_text(text, rows, expected) -> None:
    a, b = zip(*rows, strict=True)
    table = pa.table({"a": pa.array(a, pa.string()), "b": pa.array(b, pa.string())})
    assert compose_text(table, text).to_pylist() == expected


def test_text_takes_numbers_and_lists() -> None:
    table = pa.table({"year": [1999, 2001, 2002], "genres": [["War", "Drama"], [], ["Art", None]]})
    assert compose_text(table, ("year", "genres")).to_pylist() == ["1999\nWar, Drama", "2001", "2002\nArt"]


def test_null_ids_become_dead_letters(tmp_path: Path) -> None:
    path = write(tmp_path / "c.parquet", id=["a", None, "c"], t=["x", "y", "z"])
    catalog = check_catalog(CatalogSpec(path, "id", ("t",)))
    items, dead = read_items(pq.read_table(path), catalog, 0)
    assert items["item_id"].to_pylist() == ["a", "c"]
    assert items["title"].to_pylist() == ["x", "z"]
    assert dead.select(["stage", "reason", "item_id"]).to_pylist() == [
        {"stage": "catalog", "reason": "null_id", "item_id": None}
    ]


def test_the_first_row_of_an_id_stays() -> None:
    late = pa.table({"item_id": ["b", "a"], "title": ["late b", "a"], "row": [7, 8]})
    early = pa.table({"item_id": ["b", "b"], "title": ["early b", "second b"], "row": [1, 2]})
    table, dead = merge_shard([late, early])
    assert table.to_pylist() == [{"item_id": "a", "title": "a"}, {"item_id": "b", "title": "early b"}]
    assert dead["reason"].to_pylist() == ["duplicate_id"] * 2


BAD = {
    "no file": ({"path": "nothing-*.parquet"}, "catalog.path"),
    "no column": ({"id": "sku"}, "catalog.id: no column 'sku'"),
    "wrong id type": ({"id": "price"}, "catalog.id"),
    "wrong text type": ({"text": ("blob",)}, "catalog.text"),
    "wrong image type": ({"image": "price"}, "catalog.image"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_a_bad_catalogue_is_one_line(tmp_path: Path, change, said) -> None:
    path = write(tmp_path / "c.parquet", id=["a"], t=["x"], price=[1.5], blob=[b"x"])
    fields = {"path": path, "id": "id", "text": ("t",)} | change
    if fields["path"].startswith("nothing"):
        fields["path"] = str(tmp_path / fields["path"])
    with pytest.raises(JobError, match=said) as e:
        check_catalog(CatalogSpec(**fields))
    assert "\n" not in str(e.value)


def test_an_empty_catalogue_and_a_broken_file_are_job_errors(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", id=pa.array([], pa.string()), t=pa.array([], pa.string()))
    with pytest.raises(JobError, match="without a single row"):
        check_catalog(CatalogSpec(empty, "id", ("t",)))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 but not really")
    with pytest.raises(JobError, match=r"broken\.parquet"):
        check_catalog(CatalogSpec(str(broken), "id", ("t",)))


@pytest.mark.parametrize("kind", ["string", "integer", "large_string"])
def test_every_row_reaches_one_shard(tmp_path: Path, kind: str) -> None:
    n, shards = 50, 7
    ids = [f"i{i}" for i in range(n)] if kind != "integer" else list(range(n))
    dtype = {"string": pa.string(), "integer": pa.int32(), "large_string": pa.large_string()}[kind]
    for part in (0, 1):
        half = pa.array(ids[part * 25 : part * 25 + 25], dtype)
        write(tmp_path / f"c-{part}.parquet", id=half, t=[str(i) for i in range(25)])
    catalog = check_catalog(CatalogSpec(str(tmp_path / "c-*.parquet"), "id", ("t",)))
    assert catalog.rows == n
    out = tmp_path / "out"
    out.mkdir()
    with beam.Pipeline(runner=FnApiRunner()) as p:
        read = p | ReadCatalog(catalog)
        sharded = read["items"] | ShardByItem(shards, catalog)
        _ = sharded["shards"] | beam.MapTuple(lambda s, t: pq.write_table(t, out / f"{s}.parquet"))
    tables = {int(f.stem): pq.read_table(f) for f in out.glob("*.parquet")}
    assert set(tables) == set(range(shards))  # including the empty shards
    assert {str(t.schema.field("item_id").type) for t in tables.values()} == {str(dtype)}
    assert sorted(i for t in tables.values() for i in t["item_id"].to_pylist()) == sorted(ids)
    for t in tables.values():
        assert t["item_id"].to_pylist() == sorted(t["item_id"].to_pylist())
