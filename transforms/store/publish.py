"""The last step of a run: check its books, write the manifest, and only then point LATEST at it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from unisono.transforms.base import files
from unisono.transforms.base.columns import COUNT
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import ShardTable, concat_tables
from unisono.transforms.store.dead_letters import SCHEMA, count_by, sort_letters
from unisono.transforms.store.runs import FileRecord, Manifest, Store, WriteShards, write_file

Counts = Mapping[str, int]
_SHARDS_A_FILE = 16  # dead letters are few: one file for so many shards


@dataclass(frozen=True)
class PublishSpec:
    """What a run must fulfil to be published.

    Attributes:
        makes_items: the run makes item vectors: rows in = item vectors + dead letters of stage `catalog`.
        max_dead_letter_fraction: dead letters over catalogue rows, and over events, above which it is refused.
        inherited: files of an earlier run that this one stands on.
        privacy: what the manifest says was done for the people in the log, but for what is counted.
    """

    makes_items: bool
    max_dead_letter_fraction: float
    inherited: tuple[FileRecord, ...] = ()
    privacy: Mapping[str, Any] = field(default_factory=dict)


def _dead(counts: Counts, *stages: str) -> dict[str, int]:
    return {k.removeprefix("dead."): n for k, n in counts.items() if k.startswith(tuple(f"dead.{s}." for s in stages))}


def check_books(counts: Counts, spec: PublishSpec) -> None:
    """Refuses a run whose rows do not add up, or in which too much failed.

    Args:
        counts: `catalog.rows`, `items.rows`, `interactions.rows`, `dead.<stage>.<modality>.<reason>` …
        spec: what must hold.

    Raises:
        JobError: in one line, with the numbers.
    """
    if spec.makes_items:
        rows, items = counts.get("catalog.rows", 0), counts.get("items.rows", 0)
        lost = sum(_dead(counts, "catalog").values())
        if rows != items + lost:
            raise JobError(
                f"publish refused: {rows} catalogue rows, but {items} item vectors + {lost} dead letters of stage "
                "catalog; this is a fault of the pipeline, please report it"
            )
        if items == 0:
            raise JobError(f"publish refused: none of {rows} catalogue rows gave an item vector; see dead_letters/")
    events = counts.get("interactions.rows", 0)
    lost_inputs, lost_events = _dead(counts, "catalog", "encode"), _dead(counts, "interactions")
    # What is wrong with such a row is counted already, by modality.
    lost_inputs.pop("catalog.-.no_modality", None)
    for dead, total, what in (
        (lost_inputs, counts.get("catalog.rows", 0), "catalogue rows"),
        (lost_events, events, "events"),
    ):
        n = sum(dead.values())
        if n > spec.max_dead_letter_fraction * total:
            worst = max(dead, key=lambda k: dead[k])
            raise JobError(
                f"publish refused: {n} dead letters for {total} {what} ({n / total:.1%}), over "
                f"limits.max_dead_letter_fraction {spec.max_dead_letter_fraction:.1%}; most are {worst} "
                f"({dead[worst]}); see dead_letters/, mend the inputs or raise the limit"
            )
    if events and "users.rows" in counts and not counts["users.rows"]:
        raise JobError(
            f"publish refused: none of {events} events gave a user profile ({counts.get('events.unknown_item', 0)} are "
            "of unknown items); compare interactions.item with catalog.id"
        )


class WriteDeadLetters(beam.PTransform):
    """Writes tables of dead letters, sorted, and counts them.

    Returns:
        A dict of PCollections: `files` (FileRecord), `counts` ((`dead.<stage>.<modality>.<reason>`, int)).
    """

    def __init__(self, store: Store, run_id: str, shards: int) -> None:
        super().__init__()
        self._store, self._run_id, self._files = store, run_id, max(1, shards // _SHARDS_A_FILE)

    def expand(self, letters: beam.PCollection) -> dict[str, beam.PCollection]:
        typed, number = tuple[int, pa.Table], self._files
        none = [(i, SCHEMA.empty_table()) for i in range(number)]
        every = letters.pipeline | "EveryFile" >> beam.Create(none)
        keyed = letters | "Key" >> beam.Map(lambda t: (_file_of(t, number), t)).with_output_types(typed)
        merged = (
            (every | "Typed" >> beam.Map(lambda e: e).with_output_types(typed), keyed)
            | "WithEmpty" >> beam.Flatten()
            | "Group" >> beam.GroupByKey()
            | "Merge" >> beam.MapTuple(_merge).with_output_types(typed)
        )
        counts = letters | "Count" >> beam.FlatMap(
            lambda t: [(f"dead.{s}.{m or '-'}.{r}", n) for (s, m, r), n in count_by(t).items()]
        )
        records = merged | "Write" >> WriteShards(self._store, self._run_id, "dead_letters", number, {})
        return {"files": records, "counts": counts}


def _merge(number: int, tables: Iterable[pa.Table]) -> ShardTable:
    return number, sort_letters(concat_tables(list(tables)))


def _file_of(letters: pa.Table, number: int) -> int:
    """Spreads tables over files by their first id, so that equal runs give equal files."""
    first = (letters["item_id"][0].as_py() if letters.num_rows else None) or ""
    return sum(first.encode()) % number


class PublishRun(beam.PTransform):
    """Checks the run, writes metrics.json and manifest.json, then LATEST. Waits for everything it is given.

    Args:
        store, run_id: of this run.
        spec: what must hold.
        created: UTC time of launch, ISO 8601.
        counts: PCollection of (name, int).

    Takes a PCollection of every `FileRecord` of the run; gives its one `Manifest`.
    """

    def __init__(
        self, store: Store, run_id: str, spec: PublishSpec, created: str, counts: beam.PCollection
    ) -> None:
        super().__init__()
        self._args = (store, run_id, spec, created)
        self._counts = counts

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        totals = self._counts | "Total" >> beam.CombinePerKey(sum)
        return (
            records.pipeline
            | "Once" >> beam.Create([self._args])
            | "Publish" >> beam.Map(_publish, beam.pvalue.AsList(records), beam.pvalue.AsDict(totals))
        )


def _publish(
    args: tuple[Store, str, PublishSpec, str], records: Iterable[FileRecord], counts: Counts
) -> Manifest:
    store, run_id, spec, created = args
    check_books(counts, spec)
    _remove_leftovers(store, run_id, records)
    metrics = json.dumps(dict(sorted(counts.items())), indent=1).encode() + b"\n"
    extra = write_file(store, "metrics", f"runs/{run_id}/metrics.json", metrics)
    listed, privacy = (*spec.inherited, *records, extra), with_counts(spec.privacy, counts)
    manifest = Manifest(run_id, created, listed, privacy=privacy or None)
    files.write_bytes(store.run_path(run_id, "manifest.json"), manifest.to_json().encode())
    files.write_bytes(store.path("LATEST"), f"{run_id}\n".encode())
    return manifest


def _remove_leftovers(store: Store, run_id: str, records: Iterable[FileRecord]) -> None:
    """Deletes shard files that an earlier try at this run left under another number of shards.

    Readers that take `items/*.parquet` whole would see those rows twice.
    """
    listed = {store.path(r.path) for r in records}
    (found,) = FileSystems.match([store.run_path(run_id, "*", "part-*.parquet")])
    leftovers = [f.path for f in found.metadata_list if f.path not in listed]
    if leftovers:
        FileSystems.delete(leftovers)


def now_utc() -> str:
    """The time of launch, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def with_counts(statement: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Adds what only the finished run knows: how many people were forgotten."""
    said = dict(statement)
    if "forget" in said:
        said["forget"] = said["forget"] | {"removed": counts.get(COUNT, 0)}
    return said
