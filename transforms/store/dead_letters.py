"""Inputs that could not be used, as tables: kept, counted, and never a reason to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.errors import Reason

SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("modality", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("uri", pa.string()),
    ]
)

_MAX_DETAIL = 500  # a decoder's message can hold a whole file


class DeadLetter(NamedTuple):
    """One input set aside. `item_id` is its text form whatever the catalogue's id type."""

    item_id: str | None
    modality: str | None
    stage: str
    reason: Reason
    detail: str = ""
    uri: str | None = None


def dead_letter_table(letters: Iterable[DeadLetter]) -> pa.Table:
    """Lays dead letters out as a table of `SCHEMA`. Rows are looped over: letters are few."""
    rows = ((*lt[:4], lt.detail[:_MAX_DETAIL].replace("\n", " "), lt.uri) for lt in letters)
    columns = list(zip(*rows, strict=True))
    if not columns:
        return SCHEMA.empty_table()
    return pa.table([pa.array(c, pa.string()) for c in columns], schema=SCHEMA)


def dead_letters_of_rows(
    item_ids: pa.Array | pa.ChunkedArray,
    mask: np.ndarray,
    stage: str,
    reason: Reason,
    detail: str = "",
    modality: str | None = None,
) -> pa.Table:
    """Gives a dead letter to every row of `item_ids` where `mask` (bool [n]) holds, without a loop."""
    ids = item_ids.filter(pa.array(mask)).cast(pa.string())
    n = len(ids)
    same = {"modality": modality, "stage": stage, "reason": str(reason), "detail": detail, "uri": None}
    columns = [ids if f.name == "item_id" else pa.repeat(pa.scalar(same[f.name], pa.string()), n) for f in SCHEMA]
    return pa.table(columns, schema=SCHEMA)


def count_by(table: pa.Table) -> dict[tuple[str, str, str], int]:
    """Counts letters by (stage, modality or "", reason)."""
    grouped = table.group_by(["stage", "modality", "reason"]).aggregate([([], "count_all")])
    return {
        (r["stage"], r["modality"] or "", r["reason"]): r["count_all"] for r in grouped.to_pylist()
    }


def sort_letters(table: pa.Table) -> pa.Table:
    """Sorts letters by every column, so that equal inputs give equal files."""
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in SCHEMA.names]))
