"""Fits the joint space as a step of the Beam graph and writes it to the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import apache_beam as beam
import numpy as np
import pyarrow as pa

from unisono.transforms.base import files
from unisono.transforms.base.columns import EMBEDDING, in_sample
from unisono.transforms.base.tables import concat_tables, sort_by_id, to_vector_column
from unisono.transforms.space.fit.methods import needs_sample
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.run import FitSettings, fit_run
from unisono.transforms.space.space import Space
from unisono.transforms.store.runs import FileRecord, Store, read_table, write_file
from unisono.transforms.store.small_vectors import read_vectors

# About how many items the sample has.
SAMPLE_ROWS = 20_000  # for a method that sees only the moments; then fusion, order of axes and quality use the sample
TRAINING_ROWS = 100_000  # for a method that is itself fitted on the sample


def sample_fraction(method: str, rows: int) -> float:
    """Returns the fraction of the items that a space is fitted and measured on.

    Args:
        method: the alignment method of the space.
        rows: the number of rows of the catalogue.
    """
    wanted = TRAINING_ROWS if needs_sample(method) else SAMPLE_ROWS
    return min(1.0, wanted / max(rows, 1))


class SampleEmbeddings(beam.PTransform):
    """Draws a sample of the items by hash of their ids, the same on every machine, and adds named items.

    It takes tables with `item_id` and `<m>_embedding` columns and returns tables of these columns. Tables without a
    drawn row are dropped.

    Args:
        fraction: about this fraction of the items is drawn.
        named: ids of items that are always drawn.
    """

    def __init__(self, fraction: float, named: Sequence[str] = ()) -> None:
        super().__init__()
        self._args = (fraction, tuple(named))

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        return tables | "Draw" >> beam.FlatMap(_draw, *self._args).with_output_types(pa.Table)


def _draw(table: pa.Table, fraction: float, named: tuple[str, ...]) -> Iterable[pa.Table]:
    keep = in_sample(table["item_id"], fraction)
    if named:
        keep = keep | np.isin(table["item_id"].cast(pa.string()).to_numpy(zero_copy_only=False), named)
    columns = ["item_id", *(c for c in table.column_names if c.endswith(EMBEDDING))]
    drawn = table.select(columns).filter(pa.array(keep))
    if drawn.num_rows:
        yield drawn


class SampleVectors(beam.PTransform):
    """Reads the item vectors of an earlier run for the items that `SampleEmbeddings` draws.

    It takes the FileRecords of the earlier run's items/ and returns tables of `item_id` and `vector` (float32, unit
    rows).

    Args:
        store: where the earlier run lies.
        fraction: as for `SampleEmbeddings`.
    """

    def __init__(self, store: Store, fraction: float) -> None:
        super().__init__()
        self._args = (store, fraction)

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        read = beam.FlatMap(_read_vectors, *self._args).with_output_types(pa.Table)
        return records | "Spread" >> beam.Reshuffle() | "Read" >> read


def _read_vectors(record: FileRecord, store: Store, fraction: float) -> Iterable[pa.Table]:
    table = read_table(store, record, ["item_id", "vector"])
    table = table.filter(pa.array(in_sample(table["item_id"], fraction)))
    if table.num_rows:
        vectors, _ = read_vectors(table)
        yield pa.table({"item_id": table["item_id"], "vector": to_vector_column(vectors)})


class FitSpace(beam.PTransform):
    """Fits the `Space` of a run to its `Moments`, a PCollection of one element, and writes space/ and quality.json.

    Args:
        store: where to write.
        run_id: the run to write to.
        settings: see `fit.run.fit_run`.
        sample: a PCollection of tables, as `SampleEmbeddings` returns them.
        previous: a PCollection of tables, as `SampleVectors` returns them. None means that nothing is published.
        published: the file of the published space. None means that nothing is published.
        made: a PCollection of (modality, encoder_id) for embeddings that the run computes from the log. None means that
            there are none.

    Returns:
        A dict of PCollections. `space`: one element, the bytes of `Space.to_bytes`. `files`: FileRecords of the files
        that were written.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        settings: FitSettings,
        sample: beam.PCollection,
        *,
        previous: beam.PCollection | None = None,
        published: FileRecord | None = None,
        made: beam.PCollection | None = None,
    ) -> None:
        super().__init__()
        self._args = (store, run_id, settings, published)
        self._sample, self._previous, self._made = sample, previous, made

    def expand(self, moments: beam.PCollection) -> dict[str, beam.PCollection]:
        also = {"sample": self._sample, "previous": self._previous, "made": self._made}
        sides = {name: beam.pvalue.AsList(p) for name, p in also.items() if p is not None}
        out = moments | "Solve" >> beam.ParDo(_FitSpaceFn(*self._args), **sides).with_outputs("files", main="space")
        return {"space": out.space, "files": out.files}


class _FitSpaceFn(beam.DoFn):
    def __init__(self, store: Store, run_id: str, settings: FitSettings, published: FileRecord | None) -> None:
        self._store, self._run_id, self._settings, self._published = store, run_id, settings, published

    def process(
        self,
        moments: Moments,
        sample: Sequence[pa.Table],
        previous: Sequence[pa.Table] = (),
        made: Sequence[tuple[str, str]] = (),
    ) -> Iterable[object]:
        settings = replace(self._settings, encoder_ids={**self._settings.encoder_ids, **dict(made)})
        old = None
        if self._published is not None:
            old = Space.from_bytes(files.read_bytes(self._store.path(self._published.path)))
        drawn = sort_by_id(concat_tables(list(sample))) if sample else _nothing(moments)
        known = concat_tables(list(previous)) if previous else None
        space, quality = fit_run(moments, drawn, settings, old, known)
        data = space.to_bytes()
        report = json.dumps(quality, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        for part, name, content in (
            ("space", "space/space.safetensors", data),
            ("space", "space/space.json", space.to_json().encode()),
            ("quality", "quality.json", report),
        ):
            path = f"runs/{self._run_id}/{name}"
            yield beam.pvalue.TaggedOutput("files", write_file(self._store, part, path, content))
        yield data


def _nothing(moments: Moments) -> pa.Table:
    """Makes a sample without rows."""
    columns: dict[str, pa.Array] = {"item_id": pa.array([], pa.string())}
    for m, dim in moments.dims.items():
        columns[m + EMBEDDING] = to_vector_column(np.empty((0, dim), np.float32))
    return pa.table(columns)
