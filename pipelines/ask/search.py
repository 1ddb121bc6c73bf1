"""Asks the published run's joint space with a text, a picture, a sound or an item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unisono.pipelines.ask.published import read_job, read_space
from unisono.transforms.base import files
from unisono.transforms.base.errors import InputError, JobError
from unisono.transforms.encoders.base import Encoder, text_tower_of
from unisono.transforms.encoders.registry import get_encoder, may_take_queries
from unisono.transforms.store.runs import Store, read_table
from unisono.transforms.store.small_vectors import read_vectors


@dataclass(frozen=True)
class Hit:
    """One found item."""

    rank: int
    score: float
    item_id: str | int
    title: str | None
    modalities: list[str] = field(default_factory=list)


class Searcher:
    """The published run of a store, held in memory: exact search over its item vectors.

    Args:
        store: to search.

    Raises:
        JobError: nothing is published there.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.manifest = store.published()
        columns = ["item_id", "title", "modalities", "vector"]
        parts = [read_table(store, r, columns) for r in self.manifest.part("items")]
        if not parts:
            raise JobError(f"store: the published run in {store.root} has no items/; run `unisono embed` first")
        self.items = pa.concat_tables(parts).combine_chunks()
        self.vectors, _ = read_vectors(self.items)
        self.space = read_space(store, self.manifest)
        self.job = read_job(store, self.manifest)

    def embed_query(self, modality: str, raw: str | bytes) -> np.ndarray:
        """Encodes a raw query and maps it into the joint space: float32 [dim], unit norm.

        A text asks every modality whose encoder takes words: text itself, and pictures or sounds through a text
        tower (CLIP, CLAP). Each answers with a unit vector; the query is their mean, scaled to unit norm.

        Raises:
            JobError: the run has no such modality, or the query cannot be used.
        """
        asked = self._text_encoders() if modality == "text" else self._own_encoder(modality)
        if not asked:
            have = ", ".join(self.space.modalities)
            takes = " and none of their encoders takes words" if modality == "text" else ""
            raise JobError(f"--{modality}: the published run has no {modality} modality; it has {have}{takes}")
        try:
            parts = [self.space.project(m, e.encode([e.prepare(raw)]))[0] for m, e in asked.items()]
        except InputError as e:
            raise JobError(f"--{modality}: {e}") from e
        if len(parts) == 1:
            return np.asarray(parts[0])
        total = np.sum(parts, axis=0, dtype=np.float64)
        return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), np.float32)

    def _own_encoder(self, modality: str) -> dict[str, Encoder]:
        if modality not in self.space.modalities:
            return {}
        encoder = get_encoder(self.job.encoder_spec(modality))
        fitted = self.space.info.encoder_ids.get(modality)
        if fitted and fitted != encoder.encoder_id:
            raise JobError(
                f"--{modality}: the run was made with encoder {fitted}, this machine has {encoder.encoder_id}; "
                "install the same version and checkpoint"
            )
        return {modality: encoder}

    def _text_encoders(self) -> dict[str, Encoder]:
        """What takes a text query into the embedding space of each modality that it can be asked of."""
        found = {}
        for modality in self.space.modalities:
            if modality not in self.job.modalities:  # behaviour: nothing encodes it
                continue
            if modality != "text" and not may_take_queries(self.job.encoder_spec(modality)):
                continue
            encoder = self._own_encoder(modality)[modality]
            tower = text_tower_of(encoder)
            if tower is not None or modality == "text":
                found[modality] = tower or encoder
        return found

    def row_of(self, item_id: str) -> int:
        """The row of an item.

        Raises:
            JobError: there is no such item.
        """
        ids = self.items["item_id"]
        try:
            row = pc.index(ids, pa.scalar(item_id).cast(ids.type)).as_py()
        except pa.ArrowInvalid:
            row = -1
        if row < 0:
            raise JobError(f"--item: no item {item_id!r} in the published run {self.manifest.run_id}")
        return int(row)

    def nearest(self, query: np.ndarray, k: int, leave_out: int | None = None) -> list[Hit]:
        """The `k` items of highest inner product, ties by row; without the row `leave_out`."""
        scores = self.vectors @ query
        k = min(k, len(scores) - (leave_out is not None))
        if leave_out is not None:
            scores[leave_out] = -np.inf
        if k == 0:
            return []
        top = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
        order = top[np.lexsort((top, -scores[top]))]
        rows = self.items.select(["item_id", "title", "modalities"]).take(pa.array(order)).to_pylist()
        return [
            Hit(rank, round(float(scores[i]), 4), r["item_id"], r["title"], r["modalities"])
            for rank, (i, r) in enumerate(zip(order.tolist(), rows, strict=True), start=1)
        ]








def search(
    store: Store,
    *,
    text: str | None = None,
    image: str | None = None,
    audio: str | None = None,
    item: str | None = None,
    k: int = 10,
) -> Sequence[Hit]:
    """Finds the items nearest to one query: a text, an image or audio file, or another item (itself left out).

    Raises:
        JobError: not exactly one query, or it cannot be used.
    """
    given = {m: v for m, v in (("text", text), ("image", image), ("audio", audio), ("item", item)) if v is not None}
    if len(given) != 1:
        raise JobError(f"search: give exactly one of --text, --image, --audio, --item; got {len(given)}")
    modality, value = next(iter(given.items()))
    searcher = Searcher(store)
    if modality == "item":
        row = searcher.row_of(value)
        return searcher.nearest(searcher.vectors[row], k, leave_out=row)
    raw: str | bytes = value
    if modality != "text":
        try:
            raw = files.read_bytes(value)
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or "no such file"
            raise JobError(f"--{modality}: cannot read {value} ({why})") from e
    return searcher.nearest(searcher.embed_query(modality, raw), k)


def print_hits(console: Console, hits: Sequence[Hit], title: str | None = None) -> None:
    """Prints search results as a table."""
    table = Table(
        "rank", "score", "id", "title", "modalities", title=title, title_justify="left", box=None, padding=(0, 2)
    )
    for h in hits:
        # As Text: a title may look like markup, "Screw [M4]".
        table.add_row(str(h.rank), f"{h.score:.3f}", Text(str(h.item_id)), Text(h.title or ""), " ".join(h.modalities))
    console.print(table)
