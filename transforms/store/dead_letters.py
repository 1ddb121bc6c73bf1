"""Dead letters as tables: inputs that could not be used. They are kept and counted, and the run goes on."""

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

MAX_DETAIL = 500  # characters; a decoder's message can contain a whole file


class DeadLetter(NamedTuple):
    """One input that could not be used.

    Attributes:
        item_id: the item's id as text, also if the catalogue's ids are integers. None means that there is no item or no
            id.
        modality: the modality that the item loses. None means that the letter is not about a modality.
        stage: the stage that could not use the input.
        reason: why the input could not be used.
        detail: more about the reason, for a person.
        uri: where the input was fetched from. None means that it was not fetched.
    """

    item_id: str | None
    modality: str | None
    stage: str
    reason: Reason
    detail: str = ""
    uri: str | None = None


def dead_letter_table(letters: Iterable[DeadLetter]) -> pa.Table:
    """Makes a table of `SCHEMA`: details become one line and are cut to `MAX_DETAIL` characters."""
    # A loop over rows is fast enough, because a run has few dead letters.
    rows = ((*lt[:4], lt.detail[:MAX_DETAIL].replace("\n", " "), lt.uri) for lt in letters)
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
    """Makes dead letters for many rows at once.

    Args:
        item_ids: strings or integers, [n].
        mask: bool [n], True for the rows that get a dead letter.
        stage: the stage that could not use the rows.
        reason: why the rows could not be used.
        detail: more about the reason, the same for all rows.
        modality: the modality that the items lose, the same for all rows. None means that the letters are not about a
            modality.

    Returns:
        A table of `SCHEMA`, in the order of the rows.
    """
    ids = item_ids.filter(pa.array(mask)).cast(pa.string())
    n = len(ids)
    same = {"modality": modality, "stage": stage, "reason": str(reason), "detail": detail, "uri": None}
    columns = [ids if f.name == "item_id" else pa.repeat(pa.scalar(same[f.name], pa.string()), n) for f in SCHEMA]
    return pa.table(columns, schema=SCHEMA)


def count_by(table: pa.Table) -> dict[tuple[str, str, str], int]:
    """Counts dead letters by (stage, modality, reason). The modality is empty for letters that are not about one."""
    grouped = table.group_by(["stage", "modality", "reason"]).aggregate([([], "count_all")])
    return {
        (r["stage"], r["modality"] or "", r["reason"]): r["count_all"] for r in grouped.to_pylist()
    }


def sort_letters(table: pa.Table) -> pa.Table:
    """Sorts dead letters by all columns, because equal inputs must give equal files."""
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in SCHEMA.names]))
