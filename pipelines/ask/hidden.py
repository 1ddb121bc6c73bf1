"""The items that may not be recommended, read from the catalogue on one machine."""

from __future__ import annotations

import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.transforms.base.tables import is_id_type, one_chunk
from unisono.transforms.read.catalog import hidden_items
from unisono.transforms.store.parquet import list_parquet, read_rows, require_column


def read_hidden(job: Job) -> pa.Array | None:
    """Reads the ids of the items that `ranking.filter` does not let through; None if the job has no filter.

    Raises:
        JobError: the catalogue has no such column of booleans.
    """
    column, id_column = job.ranking.filter if job.ranking else None, job.catalog.id
    if column is None:
        return None
    files = list_parquet(job.catalog.path, "catalog.path")
    require_column(files, column, "ranking.filter", pa.types.is_boolean, "booleans")
    kind = require_column(files, id_column, "catalog.id", is_id_type, "strings or integers")
    ids = [hidden_items(rows, id_column, column)["item_id"] for rows in read_rows(files, [id_column, column])]
    return pa.concat_arrays([pa.array([], kind), *(one_chunk(i).cast(kind) for i in ids)]).unique()
