"""How many turned to each item."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa

from transforms.tables import concat_tables


class CountItems(beam.PTransform):
    """Counts the rows of each item: takes (shard, table with item_id), gives one table (item_id, n), by item."""

    def expand(self, seen: beam.PCollection) -> beam.PCollection:
        return (
            seen
            | "PerShard" >> beam.MapTuple(lambda _, t: _count_items(t)).with_output_types(pa.Table)
            | "Sum" >> beam.CombineGlobally(_sum_counts).without_defaults()
        )


def _count_items(pairs: pa.Table) -> pa.Table:
    counted = pairs.group_by("item_id").aggregate([([], "count_all")])
    return pa.table({"item_id": counted["item_id"], "n": counted["count_all"]})


def _sum_counts(tables: Iterable[pa.Table]) -> pa.Table:
    merged = concat_tables(list(tables)).group_by("item_id").aggregate([("n", "sum")])
    return pa.table({"item_id": merged["item_id"], "n": merged["n_sum"]}).sort_by("item_id")
