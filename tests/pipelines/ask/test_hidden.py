"""The items that `ranking.filter` hides, from catalogues of several files and types."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unisono.pipelines.ask.hidden import read_hidden
from unisono.pipelines.job.load import parse_job
from unisono.transforms.base.errors import JobError


def hidden(root: Path, column: str | None, *tables: pa.Table) -> pa.Array | None:
    for number, table in enumerate(tables):
        pq.write_table(table, root / f"part-{number}.parquet", row_group_size=2)
    job = {"store": "s", "catalog": {"path": "part-*.parquet", "id": "id", "text": "t"}, "ranking": {"filter": column}}
    return read_hidden(parse_job(job, str(root / "job.yaml")))


def catalog(ids: list, shown: list[bool | None], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": pa.array(ids, kind), "on": pa.array(shown, pa.bool_())})


def test_ids_of_all_files(tmp_path: Path) -> None:
    one = catalog(["a", "b", "c", None, "d"], [True, False, None, False, True]).set_column(
        0, "id", pa.array(["a", "b", "c", None, "d"]).dictionary_encode()
    )
    two = catalog(["e", "f", "b"], [False, True, False], pa.large_string())
    found = hidden(tmp_path, "on", one, two)
    assert found is not None
    assert sorted(found.to_pylist()) == ["b", "c", "e"]
    found = hidden(tmp_path, "on", catalog([1, 2], [False, True], pa.int32()), catalog([2**40], [False]))
    assert found is not None
    assert sorted(found.to_pylist()) == [1, 2**40]


def test_nothing_is_hidden(tmp_path: Path) -> None:
    assert hidden(tmp_path, None, catalog(["a"], [False])) is None
    found = hidden(tmp_path, "on", catalog(["a", "b"], [True, True]), catalog([], [], pa.string()))
    assert found is not None
    assert found.type == pa.string()
    assert len(found) == 0


def test_a_column_that_is_no_boolean_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"ranking.filter: column 'id' of .* is string; allowed: booleans"):
        hidden(tmp_path, "id", catalog(["a"], [True]))
