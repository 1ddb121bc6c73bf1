"""Encodes one modality of one shard: each distinct content once, unless an earlier run has encoded it already.

    distinct values ─ prefetch (threads: fetch, hash, prepare) ─ micro-batches ─ rows

A *value* is what the raw column holds: a text, a URI, the bytes of a file, or a struct of these. A *content* is what a
value refers to (the bytes of the file at a URI), named by its hash.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import EMBEDDING, unit_rows
from unisono.transforms.base.errors import InputError
from unisono.transforms.base.modalities import JOINT
from unisono.transforms.base.tables import from_vector_column, one_chunk, to_vector_column, with_column
from unisono.transforms.encode.columns import ENCODER, HASH, PREVIOUS_EMBEDDING, PREVIOUS_HASH
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.prefetch import Loaded, load, load_ahead
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.store.dead_letters import DeadLetter

_STAGE = "encode"


@dataclass
class EncodeResult:
    """A shard with its embeddings.

    Attributes:
        table: the rows. The raw column is replaced by `<m>_hash`, `<m>_encoder` and `<m>_embedding`, as
            `embeddings_schema` describes them.
        letters: the dead letters.
        encoded: the number of distinct contents that went through the encoder.
        reused: the number of rows that took the embedding of an earlier run.
    """

    table: pa.Table
    letters: list[DeadLetter] = field(default_factory=list)
    encoded: int = 0
    reused: int = 0


def encode_table(
    table: pa.Table,
    modality: str,
    batcher: MicroBatcher,
    source: MediaSource | None = None,
    pool: ThreadPoolExecutor | None = None,
    on_rows: Callable[[int], None] = lambda done: None,
) -> EncodeResult:
    """Replaces the raw column of a shard by its embeddings.

    Args:
        table: item_id, the raw column `modality`, and the columns that `add_previous` adds, if it found any. The raw
            column holds strings for text; URIs or bytes, single or in lists, for image and audio; and for joint the
            structs that `join_parts` makes.
        modality: the name of the raw column.
        batcher: holds this process's encoder.
        source: where media are fetched from. None means that the column holds texts.
        pool: the threads that fetch and prepare. None means that no threads are used.
        on_rows: called now and then with the number of rows that are done.

    Returns:
        The result for this shard.

    Raises:
        JobError: the encoder fails on every input of a batch.

    Guarantees:
        The batches and their order follow from the table alone, so the same table gives the same rows.
    """
    return _ShardEncoder(table, modality, batcher, source, pool, on_rows).run()


def join_parts(table: pa.Table, parts: Sequence[str]) -> pa.Table:
    """Adds the raw column `joint`: structs of the columns `parts`, null where all of them are null. Copies no data."""
    columns = [one_chunk(table[part]) for part in parts]
    missing = functools.reduce(pc.and_, (column.is_null() for column in columns))
    return with_column(table, JOINT, pa.StructArray.from_arrays(columns, names=list(parts), mask=missing))


class _Values:
    """The distinct values of a raw column, and the rows that hold them.

    A row has one entry for its value, or one for each element of its list. Null has no entry.

    Attributes:
        distinct: the distinct values, an Arrow array.
        entry_value: int64 [entries], the place in `distinct` of each entry's value, in the order of rows.
        entry_row: int64 [entries], the row of each entry, ascending.
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
        else:  # A dictionary would copy bytes and structs. Equal ones are found later, by the hash of the content.
            self.distinct, self.entry_value = array, np.arange(len(array), dtype=np.int64)

    def by_row(self) -> Iterator[tuple[int, list[int]]]:
        """Yields each row that has entries, with the places of its values in `distinct`."""
        if len(self.entry_row) == 0:
            return
        rows, starts = np.unique(self.entry_row, return_index=True)
        ends = [*starts[1:].tolist(), len(self.entry_row)]
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends, strict=True):
            yield row, self.entry_value[start:end].tolist()


class _Previous:
    """The embeddings of an earlier run for these rows, from the columns that `add_previous` adds.

    Attributes:
        row_hash: the `<m>_hash` of each row in the earlier run.
        vectors: [rows, dim], the embedding of each row that has a hash.
    """

    def __init__(self, table: pa.Table, modality: str) -> None:
        self.row_hash: list[str | None] = [None] * len(table)
        self.vectors = np.empty((len(table), 0), np.float32)
        if modality + PREVIOUS_HASH in table.schema.names:
            self.row_hash = table[modality + PREVIOUS_HASH].to_pylist()
            self.vectors, _ = from_vector_column(table[modality + PREVIOUS_EMBEDDING])

    def contents(self) -> set[str]:
        """Returns the hash of every content of the rows."""
        return {content for whole in self.row_hash if whole for content in whole.split(",")}

    def by_content(self) -> dict[str, np.ndarray]:
        """Returns the embedding of each content that is the only one of a row."""
        return {h: self.vectors[row] for row, h in enumerate(self.row_hash) if h and "," not in h}


class _ShardEncoder:
    """Does the work of `encode_table`.

    Attributes:
        vectors: the embedding of each content that has one.
        content: the hash of each distinct value's content. None means that it is not known.
        unloadable: why a distinct value could not be fetched or prepared, by its place in `distinct`.
        lost: the parts of a joint value that cannot be used, and why, by its place in `distinct`.
        failures: why a content could not be encoded.
        encoded: the number of contents that went through the encoder.
        loaded: the number of values that were fetched and prepared.
    """

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
        self.unloadable: dict[int, InputError] = {}
        self.lost: dict[int, tuple[tuple[str, InputError], ...]] = {}
        self.failures: dict[str, InputError] = {}
        self.encoded = 0
        self.loaded = 0

    def run(self) -> EncodeResult:
        """Encodes every content without a known embedding, and assembles the rows."""
        order: Sequence[int] = range(len(self.values.distinct))
        if self.modality == "text":  # texts of similar length share a batch, which then needs little padding
            lengths = pc.utf8_length(self.values.distinct).to_numpy(zero_copy_only=False)
            order = np.argsort(lengths, kind="stable").tolist()
        known = self.previous.contents()
        self._load_and_encode(order, known.__contains__)
        # A content may be known only as a part of a row whose other contents have changed. It has no embedding of its
        # own then, so it is encoded after all.
        changed = (vs for row, vs in self.values.by_row() if self._row_hash(vs) != self.previous.row_hash[row])
        wanted = {v for vs in changed for v in vs if self.content[v] and not self._is_done(self.content[v])}
        if wanted:
            self._load_and_encode(sorted(wanted), lambda _: False)
        result = self._assemble()
        self.on_rows(len(self.table))
        return result

    def _is_done(self, content: str | None) -> bool:
        """Says whether a content has an embedding or has failed."""
        return content in self.vectors or content in self.failures

    def _load_and_encode(self, which: Sequence[int], is_known: Callable[[str], bool]) -> None:
        """Fetches and prepares values, and encodes their contents.

        Args:
            which: places in `distinct`, in the order in which they are encoded.
            is_known: returns True for the hash of a content that need not be prepared.
        """
        encoder, distinct = self.batcher.encoder, self.values.distinct
        jobs = [functools.partial(load, i, distinct[i], self.source, encoder, is_known) for i in which]
        for content, result in self.batcher.run(self._to_encode(load_ahead(jobs, self.pool))):
            self.encoded += 1
            if isinstance(result, InputError):
                self.failures[content] = result
            else:
                self.vectors[content] = result

    def _to_encode(self, loaded: Iterable[Loaded]) -> Iterator[tuple[str, object]]:
        """Notes the outcome of each load, and yields each content that has to be encoded, once, with its input."""
        queued: set[str] = set()
        for item in loaded:
            self.loaded += 1
            self.on_rows(len(self.table) * self.loaded // (len(self.values.distinct) + 1))
            if item.lost:
                self.lost[item.index] = item.lost
            if item.failure is not None:
                self.unloadable[item.index] = item.failure
                continue
            if item.content is None:  # no part of a joint value can be used
                continue
            self.content[item.index] = item.content
            if item.prepared is not None and item.content not in queued and not self._is_done(item.content):
                queued.add(item.content)
                yield item.content, item.prepared

    def _row_hash(self, values: Sequence[int]) -> str | None:
        """Returns the `<m>_hash` of a row: None if any content failed, so the next run retries it."""
        contents = [self.content[v] for v in values]
        whole = not any(c is None or c in self.failures for c in contents) and self.lost.keys().isdisjoint(values)
        return ",".join(map(str, contents)) if whole else None

    def _assemble(self) -> EncodeResult:
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
        """Yields a dead letter for each value of a row, or part of a joint value, that cannot be used."""
        item_id = str(self.table["item_id"][row].as_py())
        for v in values:
            for part, why in self.lost.get(v, ()):
                raw = self.values.distinct[v][part].as_py()
                uri = raw if isinstance(raw, str) and part != "text" else None
                detail = f"{part}: {why.detail}"
                yield DeadLetter(item_id, self.modality, _STAGE, why.reason, detail=detail, uri=uri)
            failure = self.unloadable.get(v) or self.failures.get(self.content[v] or "")
            if failure is not None:
                raw = self.values.distinct[v].as_py() if self.source else None
                uri = raw if isinstance(raw, str) else None
                yield DeadLetter(item_id, self.modality, _STAGE, failure.reason, detail=failure.detail, uri=uri)

    def _with_columns(self, vectors: np.ndarray, present: np.ndarray, hashes: list[str | None]) -> pa.Table:
        m = self.modality
        spent = [c for c in (m, m + PREVIOUS_HASH, m + PREVIOUS_EMBEDDING) if c in self.table.schema.names]
        table = self.table.drop_columns(spent)
        encoder_id = pa.scalar(self.batcher.encoder.encoder_id)
        encoder_ids = pc.if_else(pa.array(present), encoder_id, pa.scalar(None, pa.string()))
        table = with_column(table, m + HASH, pa.array(hashes, pa.string()))
        table = with_column(table, m + ENCODER, encoder_ids)
        return with_column(table, m + EMBEDDING, to_vector_column(vectors, present))


def _mean_of_units(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Averages the unit vectors of several embeddings: float32 [dim]. A single embedding is returned unscaled."""
    if len(vectors) == 1:
        return vectors[0]
    mean: np.ndarray = unit_rows(np.asarray(vectors, np.float64)).mean(axis=0)
    return mean.astype(np.float32)
