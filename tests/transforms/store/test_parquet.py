"""Reading Parquet files: footers, columns and row groups, of files that pyarrow and DuckDB wrote."""

from __future__ import annotations

import struct
from pathlib import Path

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from tests.object_store import object_store, upload
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import is_id_type
from unisono.transforms.store import parquet
from unisono.transforms.store.parquet import (
    ReadRowGroups,
    list_parquet,
    plain_type,
    read_row_group,
    require_column,
)


def write(path: Path, row_group_size: int | None = None, **columns: object) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


# --- footers -----------------------------------------------------------------------------------------------


def test_files_are_sorted_and_each_comes_once(tmp_path: Path) -> None:
    for name, rows in (("b", 3), ("a", 0), ("c", 7)):
        write(tmp_path / f"{name}.parquet", row_group_size=4, x=range(rows))
    found = list_parquet([str(tmp_path / "*.parquet"), str(tmp_path / "b.parquet")], "catalog.path")
    assert [(f.ordinal, Path(f.path).stem, f.num_rows) for f in found] == [(0, "a", 0), (1, "b", 3), (2, "c", 7)]
    assert [f.row_groups for f in found[1:]] == [(3,), (4, 3)]
    assert [f.size for f in found] == [Path(f.path).stat().st_size for f in found]
    assert found[1].schema.names == ["x"]


def test_a_file_of_another_writer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "duck.parquet"
    query = f"copy (select i::int as id, 'item ' || i as t from range(10) r(i)) to '{path}' (format parquet)"
    duckdb.sql(query)
    (found,) = list_parquet(str(path), "catalog.path")
    assert found.num_rows == 10
    (table,) = read_row_group(str(path), 0, ["t", "id"])
    assert table.to_pydict() == {"t": [f"item {i}" for i in range(10)], "id": list(range(10))}


def test_a_file_whose_name_looks_compressed_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet.gz", x=[1, 2])
    assert list_parquet(path, "k")[0].num_rows == 2


def test_files_in_a_bucket_are_found_by_a_glob(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"log-{i}.parquet", x=range(i + 1))
    with object_store("logs"):
        upload(tmp_path, "gs://logs/2026")
        found = list_parquet("gs://logs/2026/log-*.parquet", "interactions.path")
        assert [(f.path, f.num_rows) for f in found] == [(f"gs://logs/2026/log-{i}.parquet", i + 1) for i in range(3)]
        (table,) = read_row_group(found[2].path, 0, ["x"])
        assert table["x"].to_pylist() == [0, 1, 2]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


BAD = {
    "nothing matches": (lambda p: p.unlink(), r"k: no file matches .*x\.parquet; give a file or a glob"),
    "torn": (torn, r"k: .*x\.parquet is not a readable Parquet file"),
    "empty": (lambda p: p.write_bytes(b""), r"k: .*x\.parquet is not a readable Parquet file"),
    "text": (lambda p: p.write_text("id,title\n1,x\n"), r"k: .*x\.parquet is not a readable Parquet file"),
    "a directory": (lambda p: (p.unlink(), p.mkdir()), r"k: .*x\.parquet is a directory; name its files: .*/\*\."),
}


@pytest.mark.parametrize(("spoil", "says"), BAD.values(), ids=BAD)
def test_what_is_no_parquet_file_is_refused_in_one_line(tmp_path: Path, spoil, says: str) -> None:
    path = tmp_path / "x.parquet"
    write(path, x=[1])
    spoil(path)
    with pytest.raises(JobError, match=f"^{says}") as e:
        list_parquet(str(path), "k")
    assert "\n" not in str(e.value)


def test_an_unknown_scheme_is_refused_in_one_line() -> None:
    with pytest.raises(JobError, match=r"^k: cannot list nowhere://x/\*\.parquet .*check path and access") as e:
        list_parquet("nowhere://x/*.parquet", "k")
    assert "\n" not in str(e.value)


# --- columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "plain"),
    [
        (pa.string(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.dictionary(pa.int8(), pa.int64()), pa.int64()),
        (pa.string_view(), pa.string()),
        (pa.binary_view(), pa.binary()),
        (pa.list_(pa.string()), pa.list_(pa.string())),
    ],
    ids=str,
)
def test_plain_types(dtype: pa.DataType, plain: pa.DataType) -> None:
    assert plain_type(dtype) == plain


def files_of(tmp_path: Path, *columns: pa.Array) -> list[parquet.ParquetFile]:
    for i, column in enumerate(columns):
        write(tmp_path / f"{i}.parquet", x=column, other=pa.nulls(len(column)))
    return list_parquet(str(tmp_path / "*.parquet"), "k")


def ids_of(files: list[parquet.ParquetFile]) -> pa.DataType:
    return require_column(files, "x", "interactions.user", is_id_type, "strings or integers")


@pytest.mark.parametrize(
    ("columns", "common"),
    [
        ([pa.array(["a"])], pa.string()),
        ([pa.array(["a"]), pa.array(["b"], pa.large_string())], pa.large_string()),
        ([pa.array([1], pa.int32()), pa.array([2], pa.uint8())], pa.int64()),
        ([pa.array([1], pa.int16()), pa.array([2], pa.int16())], pa.int16()),
        ([pa.array(["a"]).dictionary_encode(), pa.array(["b"])], pa.string()),
        ([pa.nulls(2), pa.array([1], pa.int32())], pa.int32()),
    ],
    ids=["one", "wide strings", "integers", "alike", "dictionary", "nothing but nulls"],
)
def test_the_common_type_holds_the_values_of_all_files(tmp_path: Path, columns: list, common: pa.DataType) -> None:
    files = files_of(tmp_path, *columns)
    assert ids_of(files) == common
    for column in columns:
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        assert plain.cast(common).to_pylist() == plain.to_pylist()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ([pa.array([0.5])], r"interactions\.user: column 'x' of .*0\.parquet is double; allowed: strings or integers"),
        ([pa.array(["a"]), pa.array([1])], r"column 'x' is string in .*0\.parquet and int64 in .*1\.parquet; write"),
        ([pa.array([2**63], pa.uint64()), pa.array([-1])], r"column 'x' is uint64 in .*0\.parquet and int64 in"),
    ],
    ids=["not allowed", "two kinds", "no integer type holds both"],
)
def test_a_wrong_column_is_refused_in_one_line(tmp_path: Path, columns: list, says: str) -> None:
    with pytest.raises(JobError, match=says) as e:
        ids_of(files_of(tmp_path, *columns))
    assert "\n" not in str(e.value)


def test_a_column_that_is_missing_or_there_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", user=["u"], n=[1])
    with pytest.raises(JobError, match=r"k: no column 'x' in .*a\.parquet; it has user \(string\), n \(int64\);"):
        require_column(list_parquet(str(tmp_path / "a.parquet"), "k"), "x", "k", is_id_type, "ids")
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    pq.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(JobError, match=r"k: 2 columns 'x' in .*b\.parquet"):
        require_column(list_parquet(str(tmp_path / "b.parquet"), "k"), "x", "k", is_id_type, "ids")


# --- row groups --------------------------------------------------------------------------------------------


def test_a_damaged_page_names_the_file(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [f"user number {i}" for i in range(5000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    footer = struct.unpack("<I", data[-8:-4])[0]
    data[100 : len(data) - footer - 100] = bytes(len(data) - footer - 200)
    path.write_bytes(data)
    assert list_parquet(str(path), "interactions.path")[0].num_rows == 5000  # The footer is whole.
    with pytest.raises(JobError, match=r"log\.parquet: row group 0 cannot be read .* write the file again"):
        list(read_row_group(str(path), 0, ["user"]))


def test_a_row_group_over_the_byte_limit_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("unisono.transforms.store.parquet._MAX_TABLE_BYTES", 10_000)
    table = pa.table({"user": [f"user number {i}" for i in range(5000)], "wide": ["x" * 50] * 5000})
    pq.write_table(table, tmp_path / "log.parquet", use_dictionary=False)
    pieces = list(read_row_group(str(tmp_path / "log.parquet"), 0, ["user"]))
    assert len(pieces) > 5
    assert pa.concat_tables(pieces).equals(table.select(["user"]))


@pytest.mark.parametrize("by_footer", [True, False], ids=["files", "ordinals and paths"])
def test_row_groups_come_with_their_place(tmp_path, by_footer):
    table = pa.table({"user": pa.array(range(100), pa.int32()), "unused": ["x"] * 100})
    for i, part in enumerate((table.slice(0, 70), table.slice(0, 0), table.slice(70))):
        pq.write_table(part, tmp_path / f"log-{i}.parquet", row_group_size=30)
    files = list_parquet([str(tmp_path / "*.parquet"), str(tmp_path / "log-0.parquet")], "interactions.path")
    assert [(f.ordinal, f.num_rows) for f in files] == [(0, 70), (1, 0), (2, 30)]
    elements = files if by_footer else [(f.ordinal, f.path) for f in files]

    def check(got: list) -> None:
        assert [(o, first, t.num_rows) for o, first, t in sorted(got, key=lambda e: e[:2])] == [
            (0, 0, 30), (0, 30, 30), (0, 60, 10), (2, 0, 30),
        ]
        for ordinal, first, t in got:
            start = first + (70 if ordinal else 0)
            assert t.equals(pa.table({"user": pa.array(range(start, start + len(t)), pa.int64())}))

    with beam.Pipeline(runner=FnApiRunner()) as p:
        assert_that(p | beam.Create(elements) | ReadRowGroups({"user": pa.int64()}), check)


def test_a_row_group_over_the_row_limit_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MAX_TABLE_ROWS", 64)
    path = write(tmp_path / "x.parquet", x=range(200), y=["y"] * 200)
    pieces = list(read_row_group(path, 0, ["y", "x"]))
    assert [p.num_rows for p in pieces] == [64, 64, 64, 8]
    assert pa.concat_tables(pieces)["x"].to_pylist() == list(range(200))
    assert pieces[0].column_names == ["y", "x"]


def test_the_first_row_of_a_piece_counts_from_the_start_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_TABLE_ROWS", 16)
    path = write(tmp_path / "x.parquet", row_group_size=40, x=range(100))

    def check(got: list) -> None:
        for _, first, table in got:
            assert table["x"].to_pylist() == list(range(first, first + len(table)))
        assert sum(len(table) for *_, table in got) == 100

    with beam.Pipeline(runner=FnApiRunner()) as p:
        assert_that(p | beam.Create(list_parquet(path, "k")) | ReadRowGroups(["x"]), check)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", x=[1])
    Path(path).unlink()
    with pytest.raises(JobError, match=r"x\.parquet: row group 0 cannot be read"):
        list(read_row_group(path, 0, ["x"]))


def test_a_fault_on_the_way_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", x=[1])

    def reset(*_: object) -> None:
        raise ConnectionResetError("by peer")

    monkeypatch.setattr(parquet, "open_parquet", reset)
    with pytest.raises(ConnectionResetError):  # Beam tries again; a JobError would end the run
        list(read_row_group(path, 0, ["x"]))
