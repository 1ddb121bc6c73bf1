"""The encode stage: fetch and prepare ahead of the encoder, micro-batches, equal content encoded once.

A shard's raw column goes in, its embedding column comes out:

    distinct values ─ prefetch (threads: fetch, hash, prepare) ─ micro-batches (back-off) ─ assemble rows
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import with_output_types

from unisono.transforms.base.errors import InputError
from unisono.transforms.base.progress import advance
from unisono.transforms.base.tables import ShardTable, from_vector_column, one_chunk, to_vector_column, with_column
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.prefetch import Loaded, load, load_ahead, prefetch_pool
from unisono.transforms.encode.reuse import EMBEDDING, HASH
from unisono.transforms.encoders.base import JOINT, EncoderSpec
from unisono.transforms.encoders.registry import get_encoder
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.store.dead_letters import DeadLetter, dead_letter_table


@dataclass
class EncodeResult:
    """A shard with its embeddings.

    Attributes:
        table: `<m>_hash`, `<m>_encoder`, `<m>_embedding` in place of the raw column.
        letters: dead letters.
        encoded: distinct contents that went through the encoder.
        reused: rows that took an earlier run's embedding.
    """

    table: pa.Table
    letters: list[DeadLetter] = field(default_factory=list)
    encoded: int = 0
    reused: int = 0


class _Values:
    """The distinct raw values of a column, and which row holds which: lists give a row several entries.

    Attributes:
        distinct: Arrow strings (texts, URIs) or binary values.
        entry_value, entry_row: int64 [entries], each entry's distinct value and row, in row order.
    """

    def __init__(self, column: pa.ChunkedArray | pa.Array) -> None:
        array = one_chunk(column)
        if pa.types.is_list(array.type):
            rows = pc.list_parent_indices(array).to_numpy().astype(np.int64)
            array = pc.list_flatten(array)
        else:
            rows = np.arange(len(array), dtype=np.int64)
        valid = array.is_valid()
        self.entry_row = rows[valid.to_numpy(zero_copy_only=False)]
        array = array.filter(valid)
        if pa.types.is_string(array.type):
            encoded = array.dictionary_encode()
            self.distinct, self.entry_value = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
        else:  # bytes: a dictionary would copy them all; equal ones meet by their hash
            self.distinct, self.entry_value = array, np.arange(len(array), dtype=np.int64)

    def by_row(self) -> Iterator[tuple[int, list[int]]]:
        """Gives each row that has entries, with its distinct values."""
        if len(self.entry_row) == 0:
            return
        rows, starts = np.unique(self.entry_row, return_index=True)
        ends = [*starts[1:].tolist(), len(self.entry_row)]
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends, strict=True):
            yield row, self.entry_value[start:end].tolist()


class _Previous:
    """What an earlier run lends for these rows (see `unisono.transforms.encode.reuse`).

    A row of several entries has their hashes, comma-separated; its embedding is their mean.
    """

    def __init__(self, table: pa.Table, modality: str) -> None:
        self.row_hash: list[str | None] = [None] * len(table)
        self.vectors = np.empty((len(table), 0), np.float32)
        if HASH.format(modality) in table.schema.names:
            self.row_hash = table[HASH.format(modality)].to_pylist()
            self.vectors, _ = from_vector_column(table[EMBEDDING.format(modality)])

    def contents(self) -> set[str]:
        """Every content hash that occurs."""
        return {content for whole in self.row_hash if whole for content in whole.split(",")}

    def by_content(self) -> dict[str, np.ndarray]:
        """The embeddings that belong to one content alone."""
        return {h: self.vectors[row] for row, h in enumerate(self.row_hash) if h and "," not in h}


class _ShardEncoder:
    """Encodes one modality of one shard. Its steps share what is known of each content."""

    def __init__(
        self,
        table: pa.Table,
        modality: str,
        batcher: MicroBatcher,
        source: MediaSource | None,
        pool: ThreadPoolExecutor | None,
        on_rows: Callable[[int], None],
    ) -> None:
        self.table, self.modality, self.batcher = table, modality, batcher
        self.source, self.pool, self.on_rows = source, pool, on_rows
        self.values = _Values(table[modality])
        self.previous = _Previous(table, modality)
        self.vectors = self.previous.by_content()
        self.content: list[str | None] = [None] * len(self.values.distinct)
        self.unloadable: dict[int, InputError] = {}  # by distinct value
        self.lost: dict[int, tuple[tuple[str, InputError], ...]] = {}  # by distinct value, of joint inputs
        self.failures: dict[str, InputError] = {}  # by content
        self.encoded = 0
        self.loaded = 0

    def run(self) -> EncodeResult:
        """Encodes what an earlier run does not lend, and assembles the rows."""
        order: Sequence[int] = range(len(self.values.distinct))
        if self.modality == "text":  # like lengths together: the least padding
            lengths = pc.utf8_length(self.values.distinct).to_numpy(zero_copy_only=False)
            order = np.argsort(lengths, kind="stable").tolist()
        lent = self.previous.contents()
        self._load_and_encode(order, lent.__contains__)
        # A content may be lent as part of a row that has changed elsewhere: then it is wanted after all.
        changed = (vs for row, vs in self.values.by_row() if self._row_hash(vs) != self.previous.row_hash[row])
        wanted = {v for vs in changed for v in vs if self.content[v] and not self._is_known(self.content[v])}
        if wanted:
            self._load_and_encode(sorted(wanted), lambda _: False)
        result = self._assemble()
        self.on_rows(len(self.table))
        return result

    def _is_known(self, content: str | None) -> bool:
        return content in self.vectors or content in self.failures

    def _load_and_encode(self, which: Sequence[int], is_lent: Callable[[str], bool]) -> None:
        """Loads distinct values, encodes contents that have no embedding yet, files results by content."""
        encoder, distinct = self.batcher.encoder, self.values.distinct
        jobs = [functools.partial(load, i, distinct[i], self.source, encoder, is_lent) for i in which]
        for content, result in self.batcher.run(self._unknown(load_ahead(jobs, self.pool))):
            self.encoded += 1
            if isinstance(result, InputError):
                self.failures[content] = result
            else:
                self.vectors[content] = result

    def _unknown(self, loaded: Iterable[Loaded]) -> Iterator[tuple[str, object]]:
        """Passes on the prepared inputs whose content is new, in order, each content once."""
        queued: set[str] = set()
        for item in loaded:
            self.loaded += 1
            self.on_rows(len(self.table) * self.loaded // (len(self.values.distinct) + 1))
            if item.lost:
                self.lost[item.index] = item.lost
            if item.failure is not None:
                self.unloadable[item.index] = item.failure
                continue
            if item.content is None:  # nothing was left of a joint input
                continue
            content = str(item.content)
            self.content[item.index] = content
            if item.prepared is not None and content not in queued and not self._is_known(content):
                queued.add(content)
                yield content, item.prepared

    def _row_hash(self, values: Sequence[int]) -> str | None:
        """The hash of a row's contents; None beside a failure, so that tomorrow it is tried, and told, again."""
        contents = [self.content[v] for v in values]
        whole = not any(c is None or c in self.failures for c in contents) and self.lost.keys().isdisjoint(values)
        return ",".join(map(str, contents)) if whole else None

    def _assemble(self) -> EncodeResult:
        # A loop over rows: each has cost a fetch already.
        n, encoder = len(self.table), self.batcher.encoder
        out, present = np.zeros((n, encoder.dim), np.float32), np.zeros(n, bool)
        hashes: list[str | None] = [None] * n
        result = EncodeResult(self.table, encoded=self.encoded)
        for row, values in self.values.by_row():
            whole = self._row_hash(values)
            hashes[row] = whole
            if whole is not None and whole == self.previous.row_hash[row]:
                out[row], present[row] = self.previous.vectors[row], True
                result.reused += 1
                continue
            parts = [self.vectors[c] for v in values if (c := self.content[v]) and c not in self.failures]
            if parts:
                out[row], present[row] = _mean_of_units(parts), True
            if whole is None:
                result.letters.extend(self._letters(row, values))
        result.table = self._with_columns(out, present, hashes)
        return result

    def _letters(self, row: int, values: Sequence[int]) -> Iterator[DeadLetter]:
        item_id = str(self.table["item_id"][row].as_py())
        for v in values:
            for part, why in self.lost.get(v, ()):
                raw = self.values.distinct[v][part].as_py()
                uri = raw if isinstance(raw, str) and part != "text" else None
                detail = f"{part}: {why.detail}"
                yield DeadLetter(item_id, self.modality, "encode", why.reason, detail, uri)
            failure = self.unloadable.get(v) or self.failures.get(self.content[v] or "")
            if failure is not None:
                raw = self.values.distinct[v].as_py() if self.source else None
                uri = raw if isinstance(raw, str) else None
                yield DeadLetter(item_id, self.modality, "encode", failure.reason, failure.detail, uri)

    def _with_columns(self, vectors: np.ndarray, present: np.ndarray, hashes: list[str | None]) -> pa.Table:
        m = self.modality
        spent = [c for c in (m, HASH.format(m), EMBEDDING.format(m)) if c in self.table.schema.names]
        table = self.table.drop_columns(spent)
        encoder_id = pa.scalar(self.batcher.encoder.encoder_id)
        encoder_ids = pc.if_else(pa.array(present), encoder_id, pa.scalar(None, pa.string()))
        table = with_column(table, f"{m}_hash", pa.array(hashes, pa.string()))
        table = with_column(table, f"{m}_encoder", encoder_ids)
        return with_column(table, f"{m}_embedding", to_vector_column(vectors, present))


def _mean_of_units(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """One vector as it is; of several, the mean of their directions."""
    if len(vectors) == 1:
        return vectors[0]
    stacked = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    return (stacked / np.where(norms > 0, norms, 1)).mean(axis=0).astype(np.float32)


def encode_table(
    table: pa.Table,
    modality: str,
    batcher: MicroBatcher,
    source: MediaSource | None = None,
    pool: ThreadPoolExecutor | None = None,
    on_rows: Callable[[int], None] = lambda done: None,
) -> EncodeResult:
    """Replaces a shard's raw column by its embeddings.

    Args:
        table: item_id, the raw column `modality` (text: string; media: URI or bytes, one or a list; joint: a
            struct of these, as `join_parts` makes it),
            and, where an earlier run lends them, the columns of `unisono.transforms.encode.reuse`.
        modality: which column.
        batcher: around this process's encoder.
        source: fetches media; None for text.
        pool: the threads that fetch and prepare; None: none.
        on_rows: told, now and then, how many rows are done.

    Guarantees:
        The order of batches follows from the table alone: the same table gives the same rows.
    """
    return _ShardEncoder(table, modality, batcher, source, pool, on_rows).run()


def join_parts(table: pa.Table, parts: Sequence[str]) -> pa.Table:
    """Adds the raw column `joint`: a struct of the columns `parts`, null where all of them are. Copies nothing."""
    columns = [one_chunk(table[part]) for part in parts]
    missing = functools.reduce(pc.and_, (column.is_null() for column in columns))
    return with_column(table, JOINT, pa.StructArray.from_arrays(columns, names=list(parts), mask=missing))


class EncodeModality(beam.PTransform):
    """Encodes one modality of `(shard, table)`.

    Args:
        spec: the encoder. Of modality `joint` it takes the raw columns of its option `parts`, and leaves them
            to the encoders after it, but for `spent`.
        source: where media come from; None for text.
        dtype: of the stored embeddings, float16 or float32.
        spent: raw columns that no later encoder needs.

    Returns:
        A dict of PCollections: `shards`, `dead` (pa.Table), `counts` ((name, int)).
    """

    def __init__(
        self, spec: EncoderSpec, source: MediaSource | None, dtype: str = "float32", spent: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._args = (spec, source, dtype, tuple(spent))

    def expand(self, shards: beam.PCollection) -> dict[str, beam.PCollection]:
        fn = _EncodeModalityFn(*self._args)
        out = shards | "Encode" >> beam.ParDo(fn).with_outputs("dead", "counts", main="shards")
        return {"shards": out.shards, "dead": out.dead, "counts": out.counts}


@with_output_types(ShardTable, dead=pa.Table, counts=tuple[str, int])
class _EncodeModalityFn(beam.DoFn):
    def __init__(self, spec: EncoderSpec, source: MediaSource | None, dtype: str, spent: tuple[str, ...]) -> None:
        self._spec, self._source, self._dtype, self._spent = spec, source, dtype, spent

    def setup(self) -> None:
        self._batcher = MicroBatcher(get_encoder(self._spec))
        self._pool = prefetch_pool() if self._source else None

    def teardown(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def process(self, element: ShardTable) -> Iterable[object]:
        shard, table = element
        modality = self._spec.modality
        if modality == JOINT:
            table = join_parts(table, dict(self._spec.options)["parts"]).drop_columns(self._spent)
        stage = f"encode-{modality}"
        told = 0

        def on_rows(done: int) -> None:
            nonlocal told
            if done > told:
                advance(stage, done=done - told)
                told = done

        result = encode_table(table, modality, self._batcher, self._source, self._pool, on_rows)
        if result.letters:
            advance(stage, dead=len(result.letters))
            yield beam.pvalue.TaggedOutput("dead", dead_letter_table(result.letters))
        name = f"{modality}_embedding"
        if self._dtype == "float16":
            vectors, present = from_vector_column(result.table[name])
            result.table = with_column(result.table, name, to_vector_column(vectors.astype(np.float16), present))
        held = len(table) - result.table[name].null_count
        for key, count in (("embeddings", held), ("encoded", result.encoded), ("reused", result.reused)):
            yield beam.pvalue.TaggedOutput("counts", (f"{key}.{modality}", count))
        yield shard, result.table
