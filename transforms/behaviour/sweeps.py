"""stub"""
from __future__ import annotations

import apache_beam as beam
import pyarrow as pa

from unisono.transforms.base.tables import concat_tables, to_vector_column
from unisono.transforms.behaviour.factors import fit_factors
from unisono.transforms.behaviour.likes import Likes, liked_pairs
from unisono.transforms.store.runs import read_table, shard_path, table_bytes, write_file


def factor_table(f):
    return pa.table({"item_id": f.item_ids, "users": f.users, "item_factor": to_vector_column(f.item_factors), "left_factor": to_vector_column(f.left_factors)})
class FactorItems(beam.PTransform):
    def __init__(self, spec, liked_above, store, run_id, shards=1, published=None, rows=0):
        super().__init__(); self.a=(spec, liked_above, store, run_id, published)
    def expand(self, events):
        spec, above, store, run_id, published = self.a
        def solve(pairs):
            start = concat_tables([read_table(store, r) for r in published]) if published else None
            f = fit_factors(Likes.of(pairs), spec, start)
            t = pa.table({"item_id": f.item_ids, "users": f.users, "item_factor": to_vector_column(f.item_factors), "left_factor": to_vector_column(f.left_factors)})
            return write_file(store, "factors", shard_path(run_id, "factors", 0, 1), table_bytes(t, {"run_id": run_id}), shard=0, rows=t.num_rows)
        return (events | beam.MapTuple(lambda _, t: liked_pairs(t, above)).with_output_types(pa.Table)
            | beam.CombineGlobally(lambda ts: concat_tables(list(ts))).without_defaults() | "S" >> beam.Map(solve))
