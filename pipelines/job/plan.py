"""Everything that is looked at before any work: a job that passes here can start."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace

import pyarrow as pa

from unisono.pipelines.job.config import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.files import exists
from unisono.transforms.base.tables import same_id_kind
from unisono.transforms.behaviour.behaviour import BEHAVIOUR
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import EncoderInfo, describe_encoder
from unisono.transforms.privacy.forget import check_forget
from unisono.transforms.privacy.pseudonyms import check_key
from unisono.transforms.privacy.statement import People
from unisono.transforms.read.catalog import Catalog, check_catalog
from unisono.transforms.read.interactions import Interactions, check_interactions
from unisono.transforms.space.fit.methods import METHODS, max_dim
from unisono.transforms.store.parquet import open_parquet, require_column
from unisono.transforms.store.publish import now_utc
from unisono.transforms.store.runs import FileRecord, Manifest, Store, read_json

ROWS_A_SHARD = 4096  # a shard is the unit of retry: seconds of encoding, tens of MB of embeddings
MOST_ROWS_A_SHARD = 4 * ROWS_A_SHARD  # a grown catalogue keeps its shards up to here
EVENTS_A_SHARD = 262_144
DEFAULT_DIM = 128
CLOCK_SLACK_S = 86_400  # events so far ahead of the launch are of the future; less is a clock or a zone
FOLDED = "state/logs.json"  # the logs that a state holds


@dataclass(frozen=True)
class Plan:
    """A job that has been checked against the world.

    Attributes:
        catalog: None where the pipeline reads no catalogue.
        interactions: None where it reads no log.
        encoders: by modality, those of the catalogue's columns.
        dim: axes of the joint space.
        base: the published run when this one was launched.
        shards, user_shards: of items and of users.
        users, recommend: the run makes profiles, recommendations.
        late_modalities: those whose scores are added, where `ranking.fusion` is late.
        state: files of the published run's sums, to which an incremental run's events are added.
        folded: the logs that are added up to now, those of this run last.
        filter_catalog: the catalogue's files, where `ranking.filter` names a column of theirs.
        people: what is done for the people in the log.
        standing: files of the published run that this one stands on and leaves where they are.
        carried: files of the published run that this one writes anew, without those who are forgotten.
    """

    job: Job
    run_id: str
    created: str
    store: Store
    shards: int
    user_shards: int
    catalog: Catalog | None = None
    interactions: Interactions | None = None
    encoders: tuple[tuple[EncoderSpec, EncoderInfo], ...] = ()
    dim: int = 0
    base: Manifest | None = None
    users: bool = False
    recommend: bool = False
    late_modalities: tuple[str, ...] = ()
    filter_catalog: Catalog | None = None
    state: tuple[FileRecord, ...] = ()
    folded: tuple[dict[str, object], ...] = ()
    people: People = field(default_factory=People)
    standing: tuple[FileRecord, ...] = ()
    carried: tuple[FileRecord, ...] = ()

    @property
    def encoder_ids(self) -> dict[str, str]:
        """The encoder_id of each modality."""
        return {spec.modality: info.encoder_id for spec, info in self.encoders}

    @property
    def encoder_metadata(self) -> dict[str, str]:
        """The encoder_ids as the Parquet metadata of a run's files names them."""
        return {f"encoder_id.{m}": e for m, e in self.encoder_ids.items()}

    @property
    def stage_totals(self) -> dict[str, int]:
        """How many rows each stage will see, where that is known: for the progress view."""
        totals: dict[str, int] = {}
        if self.catalog:
            names = ["read", "shard", *(f"encode-{s.modality}" for s, _ in self.encoders)]
            names += ["write-embeddings", "moments", "fuse", "write-items"]
            totals |= dict.fromkeys(names, self.catalog.rows)
        if self.interactions:
            totals |= {"interactions": self.interactions.rows}
        if self.interactions and self.users:
            totals |= {"profiles": self.interactions.rows}
        return totals


def _power_of_two(rows: int, rows_a_shard: int) -> int:
    return 1 << max(0, -(-rows // rows_a_shard) - 1).bit_length()


def _default_shards(rows: int, base: Manifest | None) -> int:
    """A power of two of about `ROWS_A_SHARD` rows each; kept from the published run, so that it can be reused."""
    kept = len(base.part("embeddings")) if base else 0
    return kept if kept and rows <= kept * MOST_ROWS_A_SHARD else _power_of_two(rows, ROWS_A_SHARD)


def default_run_id() -> str:
    """The time of launch, as an id that sorts."""
    return re.sub(r"[^0-9T]", "", now_utc()[:19])


def plan_run(job: Job, run_id: str | None, *, items: bool, users: bool, recommend: bool = False) -> Plan:
    """Checks a job whole.

    Args:
        job: a validated job file.
        run_id: None: made from the clock.
        items: the run will read the catalogue and make item vectors.
        users: the run will read the log and make profiles (from the published run's items unless `items`).
        recommend: the run will rank items for users (those of the published run unless `users`).

    Raises:
        JobError: whatever would stop the run later.
    """
    store, run_id = job.store_at, run_id or default_run_id()
    latest = store.latest()
    base = store.manifest(latest) if latest else None
    catalog = check_catalog(job.catalog_spec) if items else None
    encoders = []
    if items:
        _check_media_root(job)
        for modality in job.modalities:
            spec = job.encoder_spec(modality)
            encoders.append((spec, describe_encoder(spec)))
    dims = [(s.modality, info.dim) for s, info in encoders]
    if job.behaviour:
        dims.append((BEHAVIOUR, job.behaviour.dim))
    dim = _check_space(job, dims) if items else 0
    interactions = _check_log(job) if users or (items and job.behaviour) or (recommend and _needs_log(job)) else None
    if (users or recommend) and not items:
        store.published()
    if recommend and not users and not (base and base.part("users")):
        raise JobError(f"store: the published run in {store.root} has no users/; run `unisono profile` first")
    late = _check_ranking(job) if recommend else ()
    hidden = _check_filter(job) if recommend and job.ranking and job.ranking.filter else None
    if interactions:
        id_type = catalog.id_type if catalog else _published_id_type(store)
        if not same_id_kind(id_type, interactions.item_type):
            raise JobError(
                f"interactions.item: column {job.interactions_spec.item!r} holds {interactions.item_type}, "
                f"the catalogue's ids are {id_type}; write both as strings or both as integers"
            )
    standing = _standing(job, base, items, users)
    people = _check_people(job, store, base, standing, interactions)
    carried = _must_carry(people, standing)
    standing = tuple(f for f in standing if f not in carried)
    if interactions:
        interactions = interactions.hiding(people.pseudonyms, people.forget)
    store.check_new_run(run_id)
    shards = job.shards or _default_shards(catalog.rows if catalog else 1, base)
    user_shards = job.shards or _power_of_two(interactions.rows if interactions else 1, EVENTS_A_SHARD)
    state = tuple(base.part("state")) if base and interactions and job.profiles.incremental is True else ()
    folded = _check_folded(job, store, base, interactions) if users and interactions else ()
    if state:
        user_shards = len(state)
    if recommend and not users and base:
        user_shards = len(base.part("users"))
    return Plan(
        job, run_id, now_utc(), store, shards, user_shards, catalog, interactions, tuple(encoders), dim, base,
        users, recommend, late, hidden, state, folded, people, standing, carried,
    )  # fmt: skip


def _standing(job: Job, base: Manifest | None, items: bool, users: bool) -> tuple[FileRecord, ...]:
    """The published run's files that this one stands on.

    A run without a catalogue stands on the items; one that makes neither items nor users, on the users too. The
    sums of incremental profiles are yesterday's logs: a run that does not add to them hands them on.
    """
    kept: set[str] = set() if items else {"embeddings", "behaviour", "space", "items", "quality"}
    if not users:
        kept |= set() if items else {"users"}
        kept |= {"state", "folded"} if job.profiles.incremental else set()
    return tuple(f for f in base.files if f.part in kept) if base else ()


def _check_people(
    job: Job, store: Store, base: Manifest | None, standing: tuple[FileRecord, ...], log: Interactions | None
) -> People:
    """Looks at what `privacy` needs, and at the published people that this run's stand beside."""
    at = job.privacy
    pseudonyms = check_key(at.pseudonyms.key_env) if at.pseudonyms else None
    stored = base.part("users") + base.part("state") if base else []
    # Sums are added to, users ranked, both handed on; a run that begins anew uses neither.
    used = [f for f in stored if f in standing or (log and f.part == "state" and job.profiles.incremental is True)]
    user_type, whose = (log.user_type, "interactions.user") if log else (None, "")
    if used:
        with open_parquet(store.path(used[0].path)) as f:
            published = f.schema_arrow.field("user_id").type
        if log and not pseudonyms and not same_id_kind(published, log.user_type):
            raise JobError(
                f"interactions.user: column {job.interactions_spec.user!r} holds {log.user_type}, the published "
                f"{used[0].part}/ {published}; write both as strings or both as integers"
            )
        if not (log or pseudonyms):
            user_type, whose = published, f"the published {used[0].part}/"
    forget = check_forget(at.forget, user_type, whose, pseudonyms) if at.forget else None
    people = People(pseudonyms, forget, job.noise_spec)
    if used:
        assert base is not None
        remedy = "begin anew over the whole log (profiles.incremental: restart)"
        if used[0].part == "users":
            remedy = "run `unisono profile` first"
        people.check_same(base.privacy, f"{used[0].part}/", remedy)
    if people.noise and any(f.part == "behaviour" for f in standing):
        raise JobError(
            "privacy.noise: the published items are made of the events as they are (behaviour), which noise does not "
            "cover; run `unisono nightly` without `behaviour`"
        )
    return people


def _must_carry(people: People, standing: tuple[FileRecord, ...]) -> tuple[FileRecord, ...]:
    return tuple(f for f in standing if f.part in ("state", "users")) if people.forget else ()


def _check_folded(
    job: Job, store: Store, base: Manifest | None, interactions: Interactions
) -> tuple[dict[str, object], ...]:
    """Lists the logs that will have been added up after an incremental run; refuses one twice, and a missing past."""
    how = job.profiles.incremental
    logs: list[dict[str, object]] = [{"path": f.path, "bytes": f.size} for f in interactions.files]
    if not how or how == "restart" or base is None:
        return tuple(logs)
    if not base.part("state"):
        if base.part("users"):
            raise JobError(
                f"profiles.incremental: the published run {base.run_id} kept no sums to add to; "
                "run once with profiles.incremental: restart over the whole log"
            )
        return tuple(logs)
    before = read_json(store, base.part("folded")[0].path)
    again = [f for f in logs if f in before]
    if again:
        raise JobError(
            f"interactions.path: {again[0]['path']} is in the published state already, and would count twice; "
            "name the new logs only, or set profiles.incremental: restart to start again from all of them"
        )
    return (*before, *logs)


def _check_log(job: Job) -> Interactions:
    latest_us = int((time.time() + CLOCK_SLACK_S) * 1e6)
    return check_interactions(replace(job.interactions_spec, latest_us=latest_us))


def _needs_log(job: Job) -> bool:
    return bool(job.ranking and (job.ranking.exclude_seen or job.ranking_spec.counts_users))


def _check_ranking(job: Job) -> tuple[str, ...]:
    """Gives the modalities of late fusion, none where fusion is early."""
    if job.ranking is None:
        raise JobError("ranking: missing; `unisono recommend` needs it (at least `ranking: {k: 100}`)")
    unknown = sorted(set(job.ranking.weights) - set(job.space_modalities))
    if unknown:
        have = ", ".join(job.space_modalities)
        raise JobError(f"ranking.weights: {unknown[0]} is no modality of the space; it has {have}")
    if job.ranking_spec.fusion == "early":
        return ()
    return tuple(m for m in job.space_modalities if job.ranking.weights.get(m, 1.0) > 0)


def _check_filter(job: Job) -> Catalog:
    assert job.ranking is not None
    assert job.ranking.filter is not None
    catalog = check_catalog(job.catalog_spec)
    require_column(list(catalog.files), job.ranking.filter, "ranking.filter", pa.types.is_boolean, "booleans")
    return catalog


def _check_space(job: Job, dims: list[tuple[str, int]]) -> int:
    """Gives the number of axes, before a GPU has worked for a space that cannot be fitted."""
    method, most = job.space.method, max_dim(job.space.method, dict(dims), job.space.hub)
    have = ", ".join(m for m, _ in dims)
    if method not in METHODS:
        raise JobError(f"space.method: {method} is not built in; choose one of {', '.join(METHODS)}")
    if method == "cca" and len(dims) != 2:
        raise JobError(f"space.method: cca aligns two modalities, the catalogue has {have}; use gcca or auto")
    if job.space.dim is not None and job.space.dim > most:
        lengths = ", ".join(f"{m} {d}" for m, d in dims)
        raise JobError(f"space.dim: {job.space.dim} is over {most}, the most that embeddings of {lengths} allow")
    if method == "none" and len({d for _, d in dims}) > 1:
        lengths = ", ".join(f"{m} {d}" for m, d in dims)
        raise JobError(f"space.method: none needs embeddings of one length, the encoders give {lengths}; use gcca")
    named: dict[str, list[str]] = {
        "fusion.weights": [m for m, _ in job.weights()],
        "space.hub": [job.space.hub] if job.space.hub else [],
    }
    for key, modalities in named.items():
        if unknown := sorted(set(modalities) - {m for m, _ in dims}):
            raise JobError(f"{key}: {unknown[0]} is no modality of the catalogue; it has {have}")
    dim = job.space.dim or min(DEFAULT_DIM, most)
    if job.output.dim is not None and job.output.dim > dim:
        raise JobError(f"output.dim: {job.output.dim} is over space.dim, {dim}; give no more than that")
    return dim


def _check_media_root(job: Job) -> None:
    root = job.media_source.root
    media = job.catalog.image or job.catalog.audio
    if media and not job.catalog.media_root and any(c in root for c in "*?["):
        raise JobError(f"catalog.media_root: required, for catalog.path names many directories ({root})")
    if media and job.catalog.media_root and "://" not in root and not exists(root):
        raise JobError(f"catalog.media_root: no directory {root}; relative URIs resolve there")


def _published_id_type(store: Store) -> pa.DataType:
    records: list[FileRecord] = store.published().part("items")
    if not records:
        raise JobError(f"store: the published run in {store.root} has no items/; run `unisono embed` first")
    with open_parquet(store.path(records[0].path)) as f:
        return f.schema_arrow.field("item_id").type
