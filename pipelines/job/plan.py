"""Everything that is checked before any work. A job that passes here can start."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from unisono.pipelines.job.items import ItemsPlan, default_shards, plan_items, published_id_type
from unisono.pipelines.job.job import Job
from unisono.pipelines.job.lists import (
    ItemFilter,
    ListsPlan,
    check_filter,
    check_ranking,
    must_reweigh,
    plan_lists,
    published_ranking,
)
from unisono.pipelines.job.people import PeoplePlan, plan_people
from unisono.pipelines.job.users import LogPlan, UsersPlan, check_item_ids, plan_log, plan_users
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.publish import now_utc
from unisono.transforms.store.runs import Manifest, Store


@dataclass(frozen=True)
class RunPlan:
    """What every part of a run needs.

    Attributes:
        job: the job file.
        store: where the run is written.
        run_id: names the run.
        created: the time of launch, ISO 8601.
        base: the published run at the time of launch, if there is one.
        shards: the number of item shards.
        filter: which items may be recommended. None means all items, or that nothing is ranked.
        reweigh: what the published items say of their ranking vectors, if the run gives the published users new ranking
            vectors. None means that it does not.
    """

    job: Job
    store: Store
    run_id: str
    created: str
    base: Manifest | None
    shards: int
    filter: ItemFilter | None = None
    reweigh: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """A job that has been checked against the world: one part for each thing that the run makes.

    Attributes:
        run: what every part needs.
        people: what is done for the people in the log, and the published files that are taken over.
        items: None if the run makes no item vectors.
        log: None if the run reads no log.
        users: None if the run makes no profiles.
        lists: None if the run makes no recommendations.
    """

    run: RunPlan
    people: PeoplePlan
    items: ItemsPlan | None = None
    log: LogPlan | None = None
    users: UsersPlan | None = None
    lists: ListsPlan | None = None

    @property
    def stage_totals(self) -> dict[str, int]:
        """How many rows each stage will see, where that is known. The progress view shows them."""
        totals: dict[str, int] = {}
        if self.items:
            names = ["read", "shard", *(f"encode-{s.modality}" for s, _ in self.items.encoders)]
            names += ["write-embeddings", "moments", "fuse", "write-items"]
            totals |= dict.fromkeys(names, self.items.catalog.rows)
        if self.log:
            totals |= {"interactions": self.log.interactions.rows}
        if self.log and self.users:
            totals |= {"profiles": self.log.interactions.rows}
        return totals


def default_run_id() -> str:
    """The time of launch, as an id that sorts."""
    return re.sub(r"[^0-9T]", "", now_utc()[:19])


def plan_run(job: Job, run_id: str | None, *, items: bool, users: bool, recommend: bool = False) -> Plan:
    """Checks a whole job.

    Args:
        job: a validated job file.
        run_id: None makes one from the clock.
        items: the run will read the catalogue and make item vectors.
        users: the run will read the log and make profiles, from the published run's items unless `items`.
        recommend: the run will rank items for users, for those of the published run unless `users`.

    Raises:
        JobError: anything that would stop the run later.
    """
    store = job.store_at
    latest = store.latest()
    base = store.manifest(latest) if latest else None
    items_plan = plan_items(job, base) if items else None
    learns = job.has_ranking_vectors and not job.privacy.noise
    published: dict[str, Any] = {}
    rerank, unsuited = False, None
    if job.ranking is not None and not items and (users or recommend) and base is not None:
        check_ranking(job)
        published, rerank, unsuited = published_ranking(job, store, base)
    for_items = bool(job.behaviour or learns) if items else rerank and learns
    reads_log = users or for_items or (recommend and job.ranks.exclude_seen)
    log = plan_log(job, base) if reads_log else None
    if (users or recommend) and not items:
        store.published()
    if log:
        check_item_ids(log, items_plan.catalog.id_type if items_plan else published_id_type(store, base))
    lists, reweigh = None, None
    if job.has_ranking_vectors:
        check_ranking(job)
    if recommend:
        if log is not None and users:
            user_shards = log.shards
        elif base is not None and base.part("users"):
            user_shards = len(base.part("users"))
            log = replace(log, shards=user_shards) if log else None
        else:
            raise JobError(f"store: the published run in {store.root} has no users/; run `unisono profile` first")
        lists = plan_lists(job, user_shards)
        if not users and base is not None and not unsuited and (must_reweigh(job, store, base, published) or rerank):
            reweigh = published
    anew = {part for part, wanted in (("users", reweigh is not None), ("items", rerank)) if wanted}
    people = plan_people(job, store, base, log, items=items, users=users, anew=anew)
    # Profiles alone can be made of items that have no ranking vectors; lists cannot.
    ranks = job.ranking is not None and not (unsuited and not published)
    if unsuited and (recommend or ranks):
        raise unsuited
    if log:
        pseudonymous = log.interactions.hiding(people.people.pseudonyms, people.people.forget)
        log = replace(log, interactions=pseudonymous)
    users_plan = replace(plan_users(job, store, base, log), ranks=ranks) if users and log else None
    at_filter = check_filter(job) if recommend or (items and job.has_ranking_vectors) else None
    run_id = run_id or default_run_id()
    store.check_new_run(run_id)
    shards = items_plan.shards if items_plan else job.shards or default_shards(1, base)
    run = RunPlan(
        job=job,
        store=store,
        run_id=run_id,
        created=now_utc(),
        base=base,
        shards=shards,
        filter=at_filter,
        reweigh=reweigh,
    )
    return Plan(run=run, people=people, items=items_plan, log=log, users=users_plan, lists=lists)
