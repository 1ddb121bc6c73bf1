"""Ids that do not fit together, for the message about a log of unknown items."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.tables import one_chunk
from unisono.transforms.read.interactions import Interactions
from unisono.transforms.store.parquet import plain_type, read_first_rows
from unisono.transforms.store.runs import FileRecord, Store, read_table

_ROWS = 10_000


def name_unlike_ids(records: Iterable[FileRecord], store: Store, log: Interactions) -> str:
    """Names an id of an unknown item from the log, and an id of an item.

    Args:
        records: files of the run; those of items/ are read.
        store: where they are.
        log: the log. Only the first rows of its first file with rows are searched.

    Returns:
        Such as `the log has '1003.0', the catalogue '1003'`. Empty if the first rows hold no unknown item.
    """
    file = next(f for f in log.files if f.num_rows)
    column = read_first_rows(file, [log.spec.item], _ROWS)[log.spec.item]
    asked = one_chunk(column.cast(plain_type(column.type))).drop_null().unique()
    example = None
    for record in (r for r in records if r.part == "items" and r.rows):
        ids = one_chunk(read_table(store, record, ["item_id"])["item_id"])
        # Compared as text: an integer of the log may be too large for the catalogue's type.
        known = pc.is_in(asked.cast(pa.string()), value_set=ids.cast(pa.string()))
        asked = asked.filter(pc.invert(known))
        example = ids[0].as_py() if example is None else min(example, ids[0].as_py())
    if not len(asked) or example is None:
        return ""
    return f"the log has {asked[0].as_py()!r}, the catalogue {example!r}"
