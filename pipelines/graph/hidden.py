"""The items that may not be recommended, read from the catalogue."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa

from unisono.pipelines.job.lists import ItemFilter
from unisono.transforms.read.catalog import hidden_items
from unisono.transforms.store.parquet import ReadRowGroups


def hidden_ids(root: beam.Pipeline, at: ItemFilter, name: str = "Filter") -> beam.PCollection:
    """Reads tables of `item_id`, the items that may not be recommended.

    Args:
        root: the graph.
        at: the column that says which items may.
        name: begins the names of the steps.
    """
    id_column, column = at.catalog.spec.id, at.column

    def closed(ordinal: int, row: int, table: pa.Table) -> Iterable[pa.Table]:
        hidden = hidden_items(table, id_column, column)
        if hidden.num_rows:
            yield hidden

    return (
        root
        | f"{name}Files" >> beam.Create(list(at.catalog.files))
        | f"{name}Rows" >> ReadRowGroups([id_column, column])
        | f"{name}Closed" >> beam.FlatMapTuple(closed).with_output_types(pa.Table)
    )
