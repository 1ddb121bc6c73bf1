"""Forgetting: who is removed from tables, and how many are counted, compared with sets."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from unisono.transforms.base.errors import JobError
from unisono.transforms.privacy.forget import CountForgotten, Forget, ForgetUsers, check_forget, leave_out
from unisono.transforms.privacy.pseudonyms import MIN_KEY_BYTES, check_key


def write(folder: Path, *columns: pa.Array, name: str = "user_id") -> str:
    """Writes one file for each column, and returns a glob of the files."""
    for number, column in enumerate(columns):
        pq.write_table(pa.table({name: column}), folder / f"forget-{number}.parquet", row_group_size=2)
    return str(folder / "forget-*.parquet")


def checked(path: str, user_type: pa.DataType | None = None) -> Forget:
    return check_forget(path, user_type, "interactions.user", None)


def test_ids_are_read_from_every_file_and_row_group_once(tmp_path: Path) -> None:
    path = write(tmp_path, pa.array(["a", "b", "a", None, "c"]), pa.array(["c", "d"]))
    assert sorted(checked(path).load().to_pylist()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("ids", [[], [None, None]], ids=["empty", "nulls"])
def test_a_list_of_nobody_removes_nobody(tmp_path: Path, ids: list[None]) -> None:
    gone = checked(write(tmp_path, pa.array(ids, pa.int32())), pa.int64()).load()
    table = pa.table({"user_id": [1, 2]})
    kept, found = leave_out(table, "user_id", gone)
    assert kept.equals(table)
    assert found.num_rows == 0


def test_pseudonymous_data_is_compared_with_pseudonyms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNISONO_TEST_KEY", "k" * MIN_KEY_BYTES)
    pseudonyms = check_key("UNISONO_TEST_KEY")
    gone = check_forget(write(tmp_path, pa.array(["ann"])), None, "users/", pseudonyms).load()
    table = pa.table({"user_id": pseudonyms.of(pa.array(["bob", "ann"])), "n": [1, 2]})
    kept, found = leave_out(table, "user_id", gone)
    assert kept["n"].to_pylist() == [1]
    assert found["user_id"].to_pylist() == [table["user_id"][1].as_py()]


@pytest.mark.parametrize(
    ("ids", "gone", "kept", "found"),
    [
        (["a", "b", "a", None, "c"], ["a", "z"], ["b", None, "c"], ["a"]),
        ([3, 1, 2, 1], ["1", "3"], [2], ["3", "1"]),
        (["a"], ["b"], ["a"], []),
        (["a", "b"], ["b", "a"], [], ["a", "b"]),
    ],
    ids=["strings", "integers", "nobody", "everybody"],
)
def test_rows_of_the_forgotten_are_left_out_and_the_others_keep_their_order(
    ids: list[object], gone: list[str], kept: list[object], found: list[str]
) -> None:
    table = pa.table({"n": range(len(ids)), "who": ids})
    left, removed = leave_out(table, "who", pa.array(gone))
    assert left["who"].to_pylist() == kept
    assert left["n"].to_pylist() == [n for n, i in enumerate(ids) if str(i) not in gone]
    assert removed["user_id"].to_pylist() == found


@pytest.mark.parametrize(
    ("column", "name", "user_type", "says"),
    [
        (pa.array(["a"]), "user", None, r"privacy.forget: .*user_id"),
        (pa.array([0.5]), "user_id", None, r"privacy.forget: .*strings or integers"),
        (pa.array(["a"]), "user_id", pa.int64(), r"holds string, interactions.user int64; write both as strings or"),
        (pa.array([1]), "user_id", pa.string(), r"holds int64, interactions.user string"),
    ],
    ids=["no column", "floats", "strings for integers", "integers for strings"],
)
def test_a_list_that_cannot_be_compared_is_refused(
    tmp_path: Path, column: pa.Array, name: str, user_type: pa.DataType | None, says: str
) -> None:
    with pytest.raises(JobError, match=says):
        checked(write(tmp_path, column, name=name), user_type)


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"privacy.forget: "):
        checked(str(tmp_path / "nowhere.parquet"))


@pytest.mark.parametrize("gone", [["a", "b", "z"], []], ids=["some", "nobody"])
def test_the_forgotten_are_removed_and_counted_once_in_a_graph(tmp_path: Path, gone: list[str]) -> None:
    forget = checked(write(tmp_path, pa.array(gone, pa.string())))
    shards = [(0, ["a", "b", "a"]), (1, ["c", "a"]), (2, [])]
    with beam.Pipeline(FnApiRunner()) as p:
        tables = p | beam.Create([(s, pa.table({"user_id": pa.array(ids, pa.string())})) for s, ids in shards])
        left = tables | ForgetUsers(forget)
        rows = left["shards"] | beam.MapTuple(lambda s, t: (s, tuple(t["user_id"].to_pylist())))
        assert_that(rows, equal_to([(s, tuple(i for i in ids if i not in gone)) for s, ids in shards]), "Shards")
        count = left["found"] | CountForgotten()
        assert_that(count, equal_to([("users.forgotten", len({"a", "b", "c"} & set(gone)))]), "Count")
