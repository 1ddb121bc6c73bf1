"""The plan's part for the people in the log, and for the published files that a run takes over."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from unisono.pipelines.job.job import Job
from unisono.pipelines.job.users import LogPlan
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import same_id_kind
from unisono.transforms.privacy.forget import check_forget
from unisono.transforms.privacy.pseudonyms import check_key
from unisono.transforms.privacy.statement import People
from unisono.transforms.store.parquet import open_parquet
from unisono.transforms.store.runs import FileRecord, Manifest, Store


@dataclass(frozen=True)
class PeoplePlan:
    """What is done for the people in the log, and which published files this run takes over.

    Attributes:
        people: pseudonyms, forgotten people, noise.
        standing: files of the published run that this run's manifest names and leaves where they are.
        carried: files of the published run that this run writes anew, without the forgotten people, or with new ranking
            vectors.
    """

    people: People
    standing: tuple[FileRecord, ...]
    carried: tuple[FileRecord, ...]


def plan_people(
    job: Job,
    store: Store,
    base: Manifest | None,
    log: LogPlan | None,
    *,
    items: bool,
    users: bool,
    anew: Set[str] = frozenset(),
) -> PeoplePlan:
    """Checks what `privacy` needs, and that the published people were hidden in the same way.

    Args:
        base: the published run, if there is one.
        log: the log that this run reads, if any.
        items: this run makes item vectors.
        users: this run makes profiles.
        anew: the published parts that this run gives new ranking vectors, `users` and `items`.

    Raises:
        JobError: a key or list is missing or of a wrong kind, or the published people were hidden in another way.
    """
    taken = _taken_over(job, base, items, users)
    people = _check_people(job, store, base, taken, log)
    written = anew | ({"state", "users"} if people.forget else set())
    carried = tuple(f for f in taken if f.part in written)
    return PeoplePlan(people, tuple(f for f in taken if f not in carried), carried)


def _taken_over(job: Job, base: Manifest | None, items: bool, users: bool) -> tuple[FileRecord, ...]:
    """Chooses the published files that this run takes over.

    A run without a catalogue takes over the items. A run that makes neither items nor users takes over the users too.
    With `profiles.incremental`, a run that makes no profiles takes over the sums in state/ as well.
    """
    kept: set[str] = set() if items else {"embeddings", "behaviour", "space", "items", "quality", "factors", "ranking"}
    if not users:
        kept |= set() if items else {"users"}
        kept |= {"state", "folded"} if job.profiles.incremental else set()
    return tuple(f for f in base.files if f.part in kept) if base else ()


def _check_people(
    job: Job, store: Store, base: Manifest | None, taken: tuple[FileRecord, ...], log: LogPlan | None
) -> People:
    at = job.privacy
    pseudonyms = check_key(at.pseudonyms.key_env) if at.pseudonyms else None
    # The published users and state that this run will read or take over.
    stored = base.part("users") + base.part("state") if base else []
    used = [f for f in stored if f in taken or (log and f in log.state)]
    user_type, whose = (log.interactions.user_type, "interactions.user") if log else (None, "")
    if used:
        with open_parquet(store.path(used[0].path)) as f:
            published = f.schema_arrow.field("user_id").type
        if log and not pseudonyms and not same_id_kind(published, log.interactions.user_type):
            raise JobError(
                f"interactions.user: column {job.log.user!r} holds {log.interactions.user_type}, the published "
                f"{used[0].part}/ {published}; write both as strings or both as integers"
            )
        if not (log or pseudonyms):
            user_type, whose = published, f"the published {used[0].part}/"
    forget = check_forget(at.forget, user_type, whose, pseudonyms) if at.forget else None
    people = People(pseudonyms, forget, at.noise)
    if used and base:
        remedy = "begin anew over the whole log (profiles.incremental: restart)"
        if used[0].part == "users":
            remedy = "run `unisono profile` first"
        people.check_same(base.privacy, f"{used[0].part}/", remedy)
    if people.noise and any(f.part == "behaviour" for f in taken):
        raise JobError(
            "privacy.noise: the published items are made of the events as they are (behaviour), which noise does not "
            "cover; run `unisono nightly` without `behaviour`"
        )
    return people
