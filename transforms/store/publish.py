"""The last step of a run: check its counts, write the manifest, and then name the run in LATEST."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from unisono.transforms.base import files
from unisono.transforms.base.columns import FORGOTTEN_COUNT
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import ShardTable, concat_tables
from unisono.transforms.store.dead_letters import SCHEMA, count_by, sort_letters
from unisono.transforms.store.privacy import PrivacyStatement
from unisono.transforms.store.runs import FileRecord, Manifest, Store, WriteShards, write_file

Counts = Mapping[str, int]
_SHARDS_A_FILE = 16  # A run has few dead letters, so the letters of this many shards share one file.


@dataclass(frozen=True)
class PublishSpec:
    """The conditions for publishing a run, and what its manifest lists besides the run's own files.

    Attributes:
        makes_items: True if the run makes item vectors. Then catalogue rows must equal item vectors plus dead letters
            of stage `catalog`.
        max_dead_letter_fraction: the run is refused if its dead letters are more than this fraction of the catalogue
            rows, or more than this fraction of the events.
        inherited: files of an earlier run that this run uses.
        privacy: how the users in the log were protected, without the number of users who were left out.
        max_unknown_item_fraction: the run is refused if more than this fraction of its events are of unknown items.
        name_unlike_ids: for this message, names an unknown id of the log and an id of the catalogue, given the run's
            files. None means that the message does without.
    """

    makes_items: bool
    max_dead_letter_fraction: float
    inherited: tuple[FileRecord, ...] = ()
    privacy: PrivacyStatement = field(default_factory=PrivacyStatement)
    max_unknown_item_fraction: float = 1.0
    name_unlike_ids: Callable[[Iterable[FileRecord]], str] | None = None


def _dead(counts: Counts, *stages: str) -> dict[str, int]:
    """Returns the counts of dead letters of some stages, by `<stage>.<modality>.<reason>`."""
    return {k.removeprefix("dead."): n for k, n in counts.items() if k.startswith(tuple(f"dead.{s}." for s in stages))}


def check_books(counts: Counts, spec: PublishSpec, records: Iterable[FileRecord] = ()) -> None:
    """Refuses to publish a run whose counts do not add up, or in which too much failed.

    Args:
        counts: the run's counters: `catalog.rows`, `items.rows`, `interactions.rows`, `users.rows`, `events.rows`,
            `events.unknown_item` and `dead.<stage>.<modality>.<reason>`. A missing counter means 0, but without
            `users.rows` the run makes no user profiles.
        spec: the conditions.
        records: the run's files, from which messages name examples.

    Raises:
        JobError: catalogue rows are lost or counted twice, there is no item vector, there are too many dead letters or
            events of unknown items, or no event gave a user profile.
    """
    if spec.makes_items:
        _check_items(counts)
    _check_dead_letters(counts, spec.max_dead_letter_fraction)
    _check_events(counts, spec, records)


def _check_events(counts: Counts, spec: PublishSpec, records: Iterable[FileRecord]) -> None:
    rows, events = counts.get("interactions.rows", 0), counts.get("events.rows", 0)
    unknown, most = counts.get("events.unknown_item", 0), spec.max_unknown_item_fraction
    without_profiles = rows and "users.rows" in counts and not counts["users.rows"]
    if unknown <= most * events and not without_profiles:
        return
    named = spec.name_unlike_ids(records) if unknown and spec.name_unlike_ids else ""
    compare = f"{named}{'; ' if named else ''}compare interactions.item with catalog.id"
    if without_profiles:
        raise JobError(
            f"publish refused: none of {rows} events gave a user profile ({unknown} are of unknown items); {compare}"
        )
    raise JobError(
        f"publish refused: {unknown} of {events} events ({unknown / events:.1%}) are of unknown items, over "
        f"limits.max_unknown_item_fraction {most:.1%}; {compare}, or raise the limit"
    )


def _check_items(counts: Counts) -> None:
    rows, items = counts.get("catalog.rows", 0), counts.get("items.rows", 0)
    lost = sum(_dead(counts, "catalog").values())
    if rows != items + lost:
        raise JobError(
            f"publish refused: {rows} catalogue rows, but {items} item vectors + {lost} dead letters of stage "
            "catalog; this is an error in the pipeline, please report it"
        )
    if items == 0:
        raise JobError(f"publish refused: none of {rows} catalogue rows gave an item vector; see dead_letters/")


def _check_dead_letters(counts: Counts, most: float) -> None:
    inputs, events = _dead(counts, "catalog", "encode"), _dead(counts, "interactions")
    # Each failed modality of such a row has its own dead letter, so the row itself is not counted again.
    inputs.pop("catalog.-.no_modality", None)
    for dead, total, what in (
        (inputs, counts.get("catalog.rows", 0), "catalogue rows"),
        (events, counts.get("interactions.rows", 0), "events"),
    ):
        n = sum(dead.values())
        if n > most * total:
            worst = max(dead, key=lambda k: dead[k])
            raise JobError(
                f"publish refused: {n} dead letters for {total} {what} ({n / max(total, 1):.1%}), over "
                f"limits.max_dead_letter_fraction {most:.1%}; most are {worst} "
                f"({dead[worst]}); see dead_letters/, repair the inputs or raise the limit"
            )


class WriteDeadLetters(beam.PTransform):
    """Writes tables of dead letters, sorted, and counts them.

    Args:
        store: the store to write to.
        run_id: the run that the letters belong to.
        shards: the number of the run's item shards; it decides the number of files.

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
    """Chooses a table's file by its first id, because equal runs must write equal files."""
    first = (letters["item_id"][0].as_py() if letters.num_rows else None) or ""
    return sum(first.encode()) % number


class PublishRun(beam.PTransform):
    """Checks the run's counts, writes metrics.json and manifest.json, and then LATEST.

    Takes a PCollection of all `FileRecord`s of the run, waits for all of them and for all counts, and outputs the one
    `Manifest`.

    Args:
        store: the store that the run is in.
        run_id: the run to publish.
        spec: the conditions for publishing.
        created: UTC time of launch, ISO 8601.
        counts: PCollection of (name, int); the numbers of equal names are added.
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
    check_books(counts, spec, (*spec.inherited, *records))
    _remove_leftovers(store, run_id, records)
    metrics = json.dumps(dict(sorted(counts.items())), indent=1).encode() + b"\n"
    extra = write_file(store, "metrics", f"runs/{run_id}/metrics.json", metrics)
    privacy = spec.privacy.with_removed(counts.get(FORGOTTEN_COUNT, 0))
    manifest = Manifest(run_id, created, (*spec.inherited, *records, extra), privacy=privacy)
    files.write_bytes(store.run_path(run_id, "manifest.json"), manifest.to_json().encode())
    files.write_bytes(store.path("LATEST"), f"{run_id}\n".encode())
    return manifest


def _remove_leftovers(store: Store, run_id: str, records: Iterable[FileRecord]) -> None:
    """Deletes shard files that an earlier attempt at this run wrote with another number of shards.

    Anybody who reads all of `items/*.parquet` would otherwise see rows twice.
    """
    listed = {store.path(r.path) for r in records}
    (found,) = FileSystems.match([store.run_path(run_id, "*", "part-*.parquet")])
    leftovers = [f.path for f in found.metadata_list if f.path not in listed]
    if leftovers:
        FileSystems.delete(leftovers)


def now_utc() -> str:
    """Returns the current UTC time to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
