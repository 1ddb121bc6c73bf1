"""Files that an evaluation of rankings reads and writes beside the store: own splits, candidates, users' figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.pipelines.ask.trial import read_events
from unisono.pipelines.job.job import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.files import is_remote, write_bytes
from unisono.transforms.base.tables import concat_tables, is_id_type, one_chunk, same_id_kind
from unisono.transforms.measure.splits import Split, split_of_logs
from unisono.transforms.privacy.pseudonyms import check_key
from unisono.transforms.store.parquet import list_parquet, plain_type, read_rows, require_column
from unisono.transforms.store.runs import table_bytes

_LISTS = "item_ids"


@dataclass(frozen=True)
class EvaluationFiles:
    """Paths or globs of Parquet files; None means that there is no such file.

    Attributes:
        train: the events that may be seen, in the columns of the job's log. Given together with `test`.
        test: the held-out events, in the same columns.
        candidates: user_id, and item_id or item_ids (a list): only these items are ranked for a user.
        per_user: the file to write each user's figures to.
    """

    train: str | None = None
    test: str | None = None
    candidates: str | None = None
    per_user: str | None = None

    def __post_init__(self) -> None:
        if (self.train is None) != (self.test is None):
            given, missing = ("--test", "--train") if self.train is None else ("--train", "--test")
            raise JobError(f"{given}: given without {missing}; give both, or neither to split the job's log")
        if self.per_user and not is_remote(self.per_user):
            folder = os.path.dirname(os.path.abspath(self.per_user))
            if not os.path.isdir(folder):
                raise JobError(f"--per-user: there is no directory {folder}; make it, or give another path")


# --- what is read ------------------------------------------------------------------------------------------


def read_split(job: Job, train: str, test: str, relevant: float) -> tuple[Split, int]:
    """Reads a split from two logs whose columns are those of the job's log.

    Args:
        job: the job.
        train: files of the events that may be seen.
        test: files of the held-out events.
        relevant: see `SplitSpec`.

    Returns:
        The split, and the number of rows of both logs that could not be used.

    Raises:
        JobError: a file cannot be read, there is nothing to find, or no user is in both logs.
    """
    for path, key in ((train, "--train"), (test, "--test")):
        files = list_parquet(path, key)
        for column in job.log.columns:
            require_column(files, column, key, lambda _: True, "any")
    (seen, lost_seen), (held, lost_held) = read_events(job, train), read_events(job, test)
    for column in ("user_id", "item_id"):
        here, there = (t.schema.field(column).type for t in (seen, held))
        if not same_id_kind(here, there):
            raise JobError(f"--test: {column} holds {there}, and {here} in --train; write both alike")
    held = held.cast(seen.schema)
    both = pc.is_in(one_chunk(held["user_id"]), value_set=one_chunk(seen["user_id"].unique()))
    if not both.true_count:
        raise JobError(f"--test: no user of {test} has an event in {train}; give two parts of one log")
    split = split_of_logs(seen, held, relevant)
    if not split.held.num_rows:
        raise JobError(f"--test: {test} holds no liked pair that {train} does not hold too; there is nothing to find")
    return split, lost_seen + lost_held


def read_candidates(path: str, user_type: pa.DataType, item_type: pa.DataType) -> pa.Table:
    """Reads which items are ranked for each user.

    Args:
        path: Parquet files with `user_id`, and `item_id` or `item_ids` (a list).
        user_type: the type of the user ids of the log.
        item_type: the type of the item ids.

    Returns:
        user_id, item_id in these types, each pair once.

    Raises:
        JobError: a file cannot be read, a column is missing, or ids are of another kind than those of the log.
    """
    key = "--candidates"
    files = list_parquet(path, key)
    column = _LISTS if all(_LISTS in f.schema.names for f in files) else "item_id"
    found = require_column(files, "user_id", key, is_id_type, "strings or integers")
    items = require_column(
        files, column, key, lambda t: is_id_type(_value_type(t)), "strings or integers, or lists of them in item_ids"
    )
    for name, given, wanted in (("user_id", found, user_type), (column, _value_type(items), item_type)):
        if not same_id_kind(given, wanted):
            raise JobError(f"{key}: {name} of {path} holds {given}, and the job has {wanted}; write both alike")
    parts = []
    for table in read_rows(files, ["user_id", column]):
        user, item = (one_chunk(table[c].cast(plain_type(table[c].type))) for c in ("user_id", column))
        if _value_type(item.type) != item.type:
            user, item = user.take(pc.list_parent_indices(item)), pc.list_flatten(item)
        parts.append(pa.table({"user_id": user.cast(user_type), "item_id": item.cast(item_type)}).drop_null())
    if not sum(t.num_rows for t in parts):
        raise JobError(f"{key}: {path} holds no row; give the items that are ranked for each user")
    return concat_tables(parts).group_by(["user_id", "item_id"]).aggregate([])


def _value_type(dtype: pa.DataType) -> pa.DataType:
    """Returns the type of a list's values, or the type itself if it is no list."""
    lists = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    return dtype.value_type if lists else dtype


# --- what is written ---------------------------------------------------------------------------------------


def write_per_user(path: str, job: Job, who: pa.Array, rows: Mapping[str, Any]) -> None:
    """Writes the figures of each user and row to a Parquet file.

    The columns are user_id (a pseudonym, if the job has `privacy.pseudonyms`), row, and the metrics. A user without a
    value has null.

    Args:
        path: the file, local or gs://.
        job: the job.
        who: the ids of the users.
        rows: by name, rows whose `per_user` holds the values of each metric, float64 [who]. Other rows are left out.

    Raises:
        JobError: the file cannot be written, or the key of the pseudonyms is not in the environment.
    """
    hide = job.privacy.pseudonyms
    users = check_key(hide.key_env).of(who) if hide else who
    measured = {name: row["per_user"] for name, row in rows.items() if "per_user" in row}
    names = list(dict.fromkeys(metric for values in measured.values() for metric in values))
    tables = []
    for row, values in measured.items():
        columns = {"user_id": users, "row": pa.repeat(pa.scalar(row), len(users))}
        nothing = np.full(len(users), np.nan)
        metrics = {name: pa.array(values.get(name, nothing), from_pandas=True) for name in names}
        tables.append(pa.table(columns | metrics))
    try:
        write_bytes(path, table_bytes(concat_tables(tables)))
    except OSError as e:
        raise JobError(f"--per-user: cannot write {path} ({e}); give another path") from e
