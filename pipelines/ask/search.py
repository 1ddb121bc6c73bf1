"""Finds the items of a run that are nearest to a text, an image, a sound or other items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unisono.pipelines.ask.published import PublishedRun
from unisono.transforms.base import files
from unisono.transforms.base.errors import InputError, JobError
from unisono.transforms.base.nearest import best_columns
from unisono.transforms.base.tables import one_chunk
from unisono.transforms.encoders.base import Encoder, text_tower_of
from unisono.transforms.encoders.registry import get_encoder, may_take_queries
from unisono.transforms.space.space import Space

_SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32


class Searcher:
    """The items of a run, held in memory for exact search.

    Args:
        run: The run.

    Attributes:
        items: item_id, title, modalities: a row per item.
        vectors: The item vectors, float32 [n, dim], unit rows, in the order of `items`.

    Raises:
        JobError: The run has no items.
    """

    def __init__(self, run: PublishedRun) -> None:
        self.run = run
        self.items: pa.Table = run.table("items", ["item_id", "title", "modalities"]).combine_chunks()
        self.vectors: np.ndarray = run.vectors()[1]

    @property
    def space(self) -> Space:
        """The joint space of the items."""
        return self.run.space

    # --- queries ---

    def search(
        self,
        *,
        text: str | None = None,
        image: str | bytes | None = None,
        audio: str | bytes | None = None,
        item: str | int | None = None,
        k: int = 10,
    ) -> pa.Table:
        """Finds the items nearest to one query; see `unisono.Run.search`.

        Raises:
            JobError: There is not exactly one query, or the query cannot be used.
        """
        queries = {"text": text, "image": image, "audio": audio, "item": item}
        given = [name for name, query in queries.items() if query is not None]
        if len(given) != 1:
            raise JobError(f"search: give exactly one of text, image, audio, item; got {', '.join(given) or 'none'}")
        if item is not None:
            row = self.row_of(item)
            return self.nearest(self.vectors[row], k, leave_out=row)
        query = next(q for q in (text, image, audio) if q is not None)
        return self.nearest(self.embed_query(given[0], query if text is not None else _media_bytes(given[0], query)), k)

    def similar(self, item_ids: object, k: int = 10) -> pa.Table:
        """Finds the items nearest to each of many items; see `unisono.Run.similar`.

        Raises:
            JobError: An item is not in the run, or `k` is below 1.
        """
        ids = self.run.ids_of("items", item_ids, "item")
        rows = self._rows_of(ids)
        found, scores = self._top(self.vectors[rows], k, leave_out=rows)
        query, place = np.indices(found.shape).reshape(2, -1)
        return pa.table({
            "query_item_id": ids.take(pa.array(query)),
            "rank": pa.array(place + 1, pa.int64()),
            "item_id": one_chunk(self.items["item_id"]).take(pa.array(found.reshape(-1))),
            "score": pa.array(scores.reshape(-1), pa.float32()),
        })  # fmt: skip

    def nearest(self, query: np.ndarray, k: int, leave_out: int | None = None) -> pa.Table:
        """Finds the `k` items of highest inner product with one query; ties go to the earlier row.

        Args:
            query: float32 [dim].
            k: At least 1.
            leave_out: The row of an item that must not be found. None means every item can be found.

        Returns:
            rank int64 (1 is best), score float32, item_id, title, modalities.

        Raises:
            JobError: `k` is below 1.
        """
        found, scores = self._top(query[None], k, None if leave_out is None else np.array([leave_out]))
        rows = found[0]
        ranks = {"rank": pa.array(np.arange(1, len(rows) + 1)), "score": pa.array(scores[0], pa.float32())}
        chosen = self.items.take(pa.array(rows))
        return pa.table(ranks | {name: one_chunk(chosen[name]) for name in chosen.column_names})

    def _top(self, queries: np.ndarray, k: int, leave_out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Finds each query's k best rows, int64, and their scores, float32. `leave_out` is one row of each query."""
        if k < 1:
            raise JobError(f"k: {k}; give 1 or more")
        k = min(k, len(self.vectors) - (leave_out is not None))
        rows, best = np.empty((len(queries), max(k, 0)), np.int64), np.empty((len(queries), max(k, 0)), np.float32)
        if k <= 0:
            return rows, best
        step = max(1, _SCORES_AT_ONCE // len(self.vectors))
        for start in range(0, len(queries), step):
            block = slice(start, min(start + step, len(queries)))
            scores = queries[block] @ self.vectors.T
            if leave_out is not None:
                scores[np.arange(len(scores)), leave_out[block]] = -np.inf
            rows[block] = best_columns(scores, k)
            best[block] = np.take_along_axis(scores, rows[block], 1)
        return rows, best

    # --- a query as a vector or a row ---

    def embed_query(self, modality: str, raw: str | bytes) -> np.ndarray:
        """Encodes a raw query and maps it into the joint space.

        A text is encoded by every modality whose encoder takes text: the text encoder, and the text tower of an image
        or audio encoder (CLIP, CLAP). The query is the mean of their unit vectors, scaled to unit length.

        Args:
            modality: `text`, `image` or `audio`.
            raw: The text, or the bytes of the media file.

        Returns:
            float32 [dim], unit length.

        Raises:
            JobError: The run has no such modality, or the query cannot be used.
        """
        encoders = self._text_encoders() if modality == "text" else self._own_encoder(modality)
        if not encoders:
            have = ", ".join(self.space.modalities)
            takes = ", and none of their encoders takes text" if modality == "text" else ""
            raise JobError(f"{modality}: the run has no modality {modality}; it has {have}{takes}")
        try:
            parts = [self.space.project(m, e.encode([e.prepare(raw)]))[0] for m, e in encoders.items()]
        except InputError as e:
            raise JobError(f"{modality}: {e}") from e
        if len(parts) == 1:
            return np.asarray(parts[0])
        total = np.sum(parts, axis=0, dtype=np.float64)
        return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), np.float32)

    def _own_encoder(self, modality: str) -> dict[str, Encoder]:
        """Loads the encoder of a modality, by the modality's name; empty if the run does not have the modality."""
        if modality not in self.space.modalities:
            return {}
        encoder = get_encoder(self.run.job_of("space").encoder_spec(modality))
        fitted = self.space.info.encoder_ids.get(modality)
        if fitted and fitted != encoder.encoder_id:
            raise JobError(
                f"{modality}: the run was made with encoder {fitted}, this machine has {encoder.encoder_id}; "
                "install the same version and checkpoint"
            )
        return {modality: encoder}

    def _text_encoders(self) -> dict[str, Encoder]:
        """Loads an encoder of text queries for each modality that has one, by the modality's name."""
        job, found = self.run.job_of("space"), {}
        for modality in self.space.modalities:
            if modality not in job.modalities:  # `behaviour`: nothing encodes it
                continue
            if modality != "text" and not may_take_queries(job.encoder_spec(modality)):
                continue
            encoder = self._own_encoder(modality)[modality]
            tower = text_tower_of(encoder)
            if tower is not None or modality == "text":
                found[modality] = tower or encoder
        return found

    def row_of(self, item_id: str | int) -> int:
        """Returns the row of an item.

        Raises:
            JobError: The item is not in the run.
        """
        return int(self._rows_of(self.run.ids_of("items", item_id, "item"))[0])

    def _rows_of(self, ids: pa.Array) -> np.ndarray:
        rows = pc.index_in(ids, value_set=one_chunk(self.items["item_id"]))
        if rows.null_count:
            first = ids.filter(rows.is_null())[0].as_py()
            raise JobError(f"item: no item {first!r} in items/ of run {self.run.manifest.run_id}")
        return rows.to_numpy().astype(np.int64)


def _media_bytes(modality: str, value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return files.read_bytes(value)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or "no such file"
        raise JobError(f"{modality}: cannot read {value} ({why})") from e


def print_hits(console: Console, hits: pa.Table, title: str | None = None) -> None:
    """Prints the items that `Searcher.nearest` found.

    Args:
        console: Where to print.
        hits: rank, score, item_id, title, modalities.
        title: A line above the table. None means no such line.
    """
    heads: Sequence[str] = ("rank", "score", "id", "title", "modalities")
    table = Table(*heads, title=title, title_justify="left", box=None, padding=(0, 2))
    for h in hits.to_pylist():
        cells = str(h["rank"]), f"{h['score']:.3f}", Text(str(h["item_id"]))
        # As Text: rich would take a title such as "Screw [M4]" for markup.
        table.add_row(*cells, Text(h["title"] or ""), " ".join(h["modalities"]))
    console.print(table)
