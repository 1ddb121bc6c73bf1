"""The plan's part for recommendation lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require
from unisono.transforms.base.tables import unpack_vectors
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.rank.user_vectors import is_made_with, kind_of_items, read_ranking, reweigh, suits
from unisono.transforms.read.catalog import Catalog, check_catalog
from unisono.transforms.store.parquet import open_parquet, require_column
from unisono.transforms.store.runs import FileRecord, Manifest, Store


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
        shards: the number of user shards.
    """

    spec: RankingSpec
    shards: int


def check_filter(job: Job) -> ItemFilter | None:
    """Finds the column of `ranking.filter`; None if there is none.

    Raises:
        JobError: the catalogue has no such column, or it holds no booleans.
    """
    if job.ranking is None or job.ranking.filter is None:
        return None
    found = ItemFilter(check_catalog(job.read_catalog), job.ranking.filter)
    require_column(list(found.catalog.files), found.column, "ranking.filter", pa.types.is_boolean, "booleans")
    return found


def check_ranking(job: Job) -> None:
    """Checks what making ranking vectors needs.

    Raises:
        JobError: a library is missing, or `ranking` names a modality that does not exist.
    """
    require("numba", "ranking", "ranking")
    unknown = sorted(set(job.ranks.weights) - set(job.space_modalities))
    if unknown:
        have = ", ".join(job.space_modalities)
        raise JobError(f"ranking.weights: {unknown[0]} is no modality of the space; it has {have}")


def plan_lists(job: Job, shards: int) -> ListsPlan:
    """Checks everything that making lists needs.

    Args:
        shards: the number of user shards.

    Raises:
        JobError: the job file has no `ranking`, or see `check_ranking`.
    """
    if job.ranking is None:
        raise JobError("ranking: missing; `unisono recommend` needs it (at least `ranking: {k: 100}`)")
    check_ranking(job)
    return ListsPlan(job.ranks, shards)


def published_ranking(job: Job, store: Store, base: Manifest | None) -> tuple[dict[str, Any], bool, JobError | None]:
    """Reads what the published items say of their ranking vectors.

    Returns:
        What they will say in this run; whether this run must give them other ranking vectors; and the error to raise
        once the log and the people are checked, if the items must be made anew for this job.
    """
    items = base.part("items") if base else []
    made = read_ranking(_schema(store, items[0])) if items else {}
    try:
        if suits(job.ranks, job.late_modalities, made):
            return made, False, None
    except JobError as e:
        return made, False, e
    return {"ageing": False, **made, **kind_of_items(job.ranks, job.late_modalities)}, True, None


def must_reweigh(job: Job, store: Store, base: Manifest, items: Mapping[str, Any]) -> bool:
    """Says whether the published users need new ranking vectors, because the settings are not those they have.

    Args:
        job: the job.
        store: the store.
        base: the published run.
        items: what the published items say of their ranking vectors.

    Raises:
        JobError: the new settings need the log, or modality vectors that the published profiles do not have.
    """
    users = _schema(store, base.part("users")[0])
    if missing := [m for m in job.late_modalities if f"{m}_vector" not in users.names]:
        raise JobError(
            f"ranking.fusion: late needs a vector of each modality in users/, and the published profiles have none of "
            f"{missing[0]}; run `unisono profile` with this job file first"
        )
    if is_made_with(users, job.ranks, items):
        return False
    reweigh(unpack_vectors(users.empty_table()), job.ranks, items)
    return True


def _schema(store: Store, record: FileRecord) -> pa.Schema:
    with open_parquet(store.path(record.path)) as f:
        return f.schema_arrow
