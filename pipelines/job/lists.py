"""The plan's part for recommendation lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require
from unisono.transforms.rank.ranking import RankingSpec
from unisono.transforms.read.catalog import Catalog, check_catalog
from unisono.transforms.store.parquet import open_parquet, require_column
from unisono.transforms.store.runs import FileRecord, Store


@dataclass(frozen=True)
class ItemFilter:
    """The column of the catalogue that says which items may be recommended.

    Attributes:
        catalog: the catalogue's files.
        column: a boolean column, true where an item may be recommended.
    """

    catalog: Catalog
    column: str


@dataclass(frozen=True)
class ListsPlan:
    """What a run needs to rank items for users.

    Attributes:
        spec: how items are ranked.
        modalities: the modalities whose scores are added in late fusion; () in early fusion.
        shards: the number of user shards.
        filter: which items may be recommended. None means all items.
    """

    spec: RankingSpec
    modalities: tuple[str, ...]
    shards: int
    filter: ItemFilter | None


def needs_log(job: Job) -> bool:
    """Says whether ranking reads the interaction log."""
    return bool(job.ranking and (job.ranking.exclude_seen or job.ranking.counts_users))


def check_published_users(store: Store, users: Sequence[FileRecord], modalities: Sequence[str]) -> None:
    """Refuses late fusion for published profiles that were made for early fusion.

    Args:
        store: the store.
        users: the files of the published profiles.
        modalities: those whose scores are added in late fusion; () in early fusion.

    Raises:
        JobError: the profiles have no vector of a modality.
    """
    with open_parquet(store.path(users[0].path)) as f:
        names = f.schema_arrow.names
    if missing := [m for m in modalities if f"{m}_vector" not in names]:
        raise JobError(
            f"ranking.fusion: late needs a vector of each modality in users/, and the published profiles have none of "
            f"{missing[0]}; run `unisono profile` with this job file first"
        )


def plan_lists(job: Job, shards: int) -> ListsPlan:
    """Checks everything that ranking needs.

    Args:
        shards: the number of user shards.

    Raises:
        JobError: the job file has no `ranking`, a library is missing, or `ranking` names a modality or a column that
            does not exist.
    """
    if job.ranking is None:
        raise JobError("ranking: missing; `unisono recommend` needs it (at least `ranking: {k: 100}`)")
    require("numba", "ranking", "ranking")
    unknown = sorted(set(job.ranking.weights) - set(job.space_modalities))
    if unknown:
        have = ", ".join(job.space_modalities)
        raise JobError(f"ranking.weights: {unknown[0]} is no modality of the space; it has {have}")
    found = None
    if job.ranking.filter:
        found = ItemFilter(check_catalog(job.read_catalog), job.ranking.filter)
        require_column(list(found.catalog.files), found.column, "ranking.filter", pa.types.is_boolean, "booleans")
    return ListsPlan(job.ranking, job.late_modalities, shards, found)
