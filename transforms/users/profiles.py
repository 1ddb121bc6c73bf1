"""User profiles: the time-decayed, event-weighted mean direction of the item vectors a user acted on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.typehints import with_output_types
from pydantic import Field

from unisono.transforms.base.columns import HALF_LIFE, SPACE
from unisono.transforms.base.errors import Reason
from unisono.transforms.base.progress import NAMESPACE, advance
from unisono.transforms.base.settings import Positive, Share, settings
from unisono.transforms.base.tables import ShardTable, one_chunk, to_vector_column
from unisono.transforms.base.threads import InOrder, at_end_of_bundle
from unisono.transforms.privacy.noise import Draw, NoiseSpec, noised_profiles, secure_normal, withhold
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.store import dead_letters
from unisono.transforms.store.dead_letters import dead_letters_of_rows
from unisono.transforms.store.item_matrix import HasPath, ItemMatrix, first_schema, modality_vectors, per_process
from unisono.transforms.users.attention import ModalityView, refine_profiles, view_modality
from unisono.transforms.users.history import STAGE, limit_a_day, once_a_session, order_history
from unisono.transforms.users.interests import find_interests, interest_type
from unisono.transforms.users.state import (
    UserState,
    add_rows,
    check_state,
    decay,
    merge_states,
    read_state,
    state_table,
    sum_history,
    times,
)

# Item vectors are float32, so Σ w·v is off by up to 6e-8 · Σ|w|: below this, its direction is noise.
_MIN_RELATIVE_NORM = 1e-6


@settings("profiles")
class ProfileSpec:
    """How a user's history becomes one vector."""

    half_life_days: Annotated[float, Field(gt=0)] | None = 30.0
    """After this many days an event has half its weight. null means that events do not age."""
    min_events: Positive = 1
    """A user with fewer usable events is cold: the profile leans on what everybody likes."""
    interests: Annotated[int, Field(ge=0, le=100)] = 3
    """The most interest vectors a user gets beside the profile. 0 means none."""
    interest_split: Share = 0.02
    """Two interests stay apart if they differ by more than this share of the user's scatter."""
    recent_events: Positive = 100
    """Interests, affinities and refinement use this many of a user's newest events."""
    delta: Share = 1.0
    """The share of the profile that is kept when attention over the user's own items refines it. 1: no refinement."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 0.1
    """Temperature of that attention. The smaller it is, the more the nearest items count."""
    session_minutes: Annotated[float, Field(gt=0)] | None = None
    """A pause of this length ends a session; repeats within a session count once. null means that all events count."""
    max_events_per_day: Positive | None = 5000
    """A user with more events on one day is taken for a robot. null means no limit."""
    robots: Literal["cap", "drop"] = "cap"
    """`cap`: the newest events of each of the robot's days count. `drop`: a robot gets no profile."""
    incremental: bool | Literal["restart"] = False
    """true: the log holds new events only, which are added to the published run's sums. `restart`: the log holds all
    events, and new sums begin with it. false: the log holds all events, and no sums are kept."""


def profile_schema(
    user_type: pa.DataType, dim: int, item_type: pa.DataType, modalities: Sequence[str] = (), vectors: bool = False
) -> pa.Schema:
    """The schema of user profiles; `vectors`: with one for each modality."""
    fields = [
        ("user_id", user_type),
        pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ("interests", interest_type(dim, item_type)),
        *((f"{m}_affinity", pa.float32()) for m in modalities),
        *((f"{m}_vector", pa.list_(pa.float32(), dim)) for m in modalities if vectors),
        ("events", pa.int64()),
        ("last_event", TIME_TYPE),
        ("cold", pa.bool_()),
    ]
    return pa.schema(fields)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What a shard's profiles are made with.

    Attributes:
        items: the item vectors.
        modalities: by name the items' vectors of one modality, float32 [items, dim], zero rows where missing.
        prior: float32 [dim], the direction of what everybody likes; None: cold users get no profile.
        with_vectors: a profile has a vector for each of `modalities`, too.
    """

    items: ItemMatrix
    modalities: Mapping[str, np.ndarray] = field(default_factory=dict)
    prior: np.ndarray | None = None
    with_vectors: bool = False


@dataclass(frozen=True, eq=False)
class Built:
    """A shard of profiles.

    Attributes:
        users: `profile_schema`, by user_id.
        sums: all that the next night needs.
        dead: dead letters of stage `profiles`.
        counts: `events.rows`, `events.unknown_item` (of those, skipped), `events.set_aside` (repeats, robots),
            `users.seen`, and of these `users.rows` (have a profile; `users.cold` of them are cold) and
            `users.without_profile` (of them `users.without_usable_event`: every event is a dead letter).
    """

    users: pa.Table
    sums: UserState
    dead: pa.Table
    counts: dict[str, int]


def popular_direction(counts: pa.Table, items: ItemMatrix) -> np.ndarray | None:
    """Gives the direction of the item vectors' mean, each weighted by how many turned to it: float32 [dim].

    None where nobody turned to a known item, or the vectors cancel.

    Args:
        counts: item_id, n.
    """
    rows = items.lookup(counts["item_id"])
    known = rows >= 0
    n = np.zeros(len(items))
    n[rows[known]] = counts["n"].to_numpy()[known]
    picked = np.flatnonzero(n)
    total = add_rows(items.vectors, picked, n[picked], np.array([0, len(picked)]))[0]
    norm = float(np.linalg.norm(total))
    return (total / norm).astype(np.float32) if norm > _MIN_RELATIVE_NORM * n.sum() else None


# --- one shard ---------------------------------------------------------------------------------------------


def build_profiles(
    table: pa.Table,
    around: Surroundings,
    spec: ProfileSpec,
    state: pa.Table | None = None,
    users_of_dead: pa.Table | None = None,
) -> Built:
    """Builds the profiles of a shard's users.

    An event weighs w · 2^(−Δt / half-life), with Δt measured back from the user's own newest used event.
    Measured from any other moment all weights of a user would change by one factor, which cancels in a
    direction; from here the newest weighs its full w and nothing underflows that matters. The vector is the
    direction of Σ w·v, not of Σ w·v / Σ w: a negative Σ w would flip it.

    Args:
        table: events, as `clean_interactions` gives them, in any order.
        state: of earlier nights, whose events the table does not hold again; None: there is none.
        users_of_dead: user_id of those who have events that became dead letters, to be counted; None: of none.

    Raises:
        JobError: item ids of another kind than the items'.
    """
    items = around.items
    history, unknown = order_history(table, items)
    counts = {"events.rows": table.num_rows, "events.unknown_item": unknown, "events.set_aside": 0}
    used, dead = len(history.time), dead_letters.SCHEMA.empty_table()
    everybody = history.user_ids
    if spec.session_minutes is not None:
        history = once_a_session(history, spec.session_minutes)
    if spec.max_events_per_day is not None:
        history, dead = limit_a_day(history, spec.max_events_per_day, spec.robots == "drop")
    counts["events.set_aside"] = used - len(history.time)
    sums = sum_history(history, items, spec.half_life_days, spec.recent_events)
    if state is not None:
        sums = merge_states(read_state(state, items), sums, items, spec.half_life_days, spec.recent_events)
    users, cancelled = profiles_of(sums, around, spec)
    if cancelled.any():
        letters = _letters_of_cancelled(sums, cancelled)
        dead = pa.concat_tables([dead, letters])
    dropped = pc.is_in(everybody, value_set=sums.user_ids).false_count
    seen = len(sums.user_ids) + dropped
    if users_of_dead is not None:
        known = pa.concat_arrays([everybody, sums.user_ids])
        lost = pc.is_in(one_chunk(users_of_dead["user_id"]), value_set=known).false_count
        counts["users.without_usable_event"] = lost
        seen += lost
    counts |= {
        "users.seen": seen,
        "users.rows": users.num_rows,
        "users.cold": int(np.count_nonzero(users["cold"].to_numpy())),
        "users.without_profile": seen - users.num_rows,
    }
    return Built(users, sums, dead, counts)


def _letters_of_cancelled(sums: UserState, cancelled: np.ndarray) -> pa.Table:
    letters = dead_letters_of_rows(sums.user_ids, cancelled, STAGE, Reason.WEIGHTS_CANCEL)
    index = dead_letters.SCHEMA.get_field_index("detail")
    detail = pa.array([f"user={u}" for u in letters["item_id"].to_pylist()], pa.string())  # few
    nobody = pa.nulls(letters.num_rows, pa.string())
    return letters.set_column(index, "detail", detail).set_column(0, "item_id", nobody)


def profiles_of(sums: UserState, around: Surroundings, spec: ProfileSpec) -> tuple[pa.Table, np.ndarray]:
    """Turns sums into profiles, and says whose weights cancel (bool [users]).

    A user with fewer events than `min_events`, or none that leaves a direction, is cold. A cold user's
    profile is the direction of n · (Σ w·v / Σ |w|) + min_events · prior, n the user's events: of no event
    nothing but the prior is left, and with every event its part shrinks.
    """
    norm = np.sqrt(np.einsum("ud,ud->u", sums.vectors, sums.vectors))
    personal = norm > _MIN_RELATIVE_NORM * sums.magnitudes
    cancelled = ~personal & (sums.magnitudes > 0)
    cold = ~personal | (sums.events < spec.min_events)
    # Float64 divided into float32 at once; the cold, who are few, are put in afterwards.
    vectors = np.empty(sums.vectors.shape, np.float32)
    np.divide(sums.vectors, np.where(personal, norm, 1.0)[:, None], out=vectors, casting="same_kind")
    if around.prior is None:
        keep = ~cold
    else:
        keep = np.ones(len(cold), bool)
        mean = np.divide(norm, sums.magnitudes, out=np.zeros(len(norm)), where=personal)
        own = np.where(personal[cold, None], sums.vectors[cold] / np.where(personal, norm, 1.0)[cold, None], 0.0)
        mixed = own * (sums.events * mean)[cold, None] + spec.min_events * around.prior.astype(np.float64)
        length = np.sqrt(np.einsum("ud,ud->u", mixed, mixed))[:, None]
        vectors[cold] = np.divide(mixed, length, out=np.tile(around.prior, (len(mixed), 1)) * 1.0, where=length > 1e-6)
    recent = sums.recent
    weight = recent.weight * decay(np.repeat(sums.newest, recent.counts) - recent.time, spec.half_life_days)
    temperature = spec.temperature if spec.delta < 1 else None
    views = {m: view_modality(recent, weight, around.modalities[m], vectors, temperature) for m in around.modalities}
    if spec.delta < 1:
        refined = refine_profiles(vectors, views, spec.delta)
        vectors = np.where(cold[:, None], vectors, refined)
    interests = _interests(sums, weight, cold, around.items, spec)
    columns = [
        sums.user_ids,
        to_vector_column(vectors),
        interests,
        *(pa.array(v.affinity.astype(np.float32), mask=np.isnan(v.affinity)) for v in views.values()),
        *(_modality_vectors(v) for v in views.values() if around.with_vectors),
        pa.array(sums.events),
        times(sums.newest, sums.events > 0),
        pa.array(cold),
    ]
    items = around.items
    schema = profile_schema(sums.user_ids.type, items.dim, items.id_type, list(views), around.with_vectors)
    table = pa.table(columns, schema=schema)
    return table if keep.all() else table.filter(pa.array(keep)), cancelled


def _modality_vectors(view: ModalityView) -> pa.Array:
    vectors = view.vectors
    return to_vector_column(vectors, np.any(vectors, axis=1))


def _interests(
    sums: UserState, weight: np.ndarray, cold: np.ndarray, items: ItemMatrix, spec: ProfileSpec
) -> pa.Array:
    """The interests of warm users; empty lists for the others."""
    if spec.interests == 0:
        none = pa.array([], interest_type(items.dim, items.id_type).value_type)
        return pa.ListArray.from_arrays(pa.array(np.zeros(len(cold) + 1, np.int32)), none)
    warm = np.repeat(~cold, sums.recent.counts)
    return find_interests(sums.recent.keep(warm), weight[warm], items, spec.interests, spec.interest_split)


def publish_noised(built: Built, noise: NoiseSpec, draw: Draw = secure_normal) -> Built:
    """Leaves of a shard what may be published under `noise`: of everybody with a usable event a noised vector."""
    users = noised_profiles(built.users, built.sums.user_ids, noise, draw)
    rows = users.num_rows
    counts = {"users.rows": rows, "users.cold": 0, "users.without_profile": built.counts["users.seen"] - rows}
    return replace(built, users=users, dead=withhold(built.dead), counts=built.counts | counts)


# --- Beam --------------------------------------------------------------------------------------------------


class BuildProfiles(beam.PTransform):
    """Builds the profiles of each shard of events, `(shard, pa.Table)` as `ShardByUser` gives.

    Args:
        items: the items' files, as a side input: paths, or records with a `path`. Profiles wait for them.
        root: what relative paths of those files are joined to.
        cache_dir: where a machine keeps the item matrix; None: under its temporary directory.
        popularity: PCollection of one table (item_id, n), for the prior; None: cold users get no profile.
        state: PCollection of (shard, pa.Table), the state of earlier nights by the same shards; None: none.
        keep_state: give `state`, for the nights to come.
        users_of_dead: PCollection of (shard, pa.Table), see `build_profiles`; None: of none.
        modalities: those that profiles have an affinity to.
        modality_vectors: profiles have a vector for each of them, too.
        noise: what hides the published profiles; None: they are published as they are. With it no prior is used, for
            a prior is made of everybody's events.

    Returns:
        A dict of PCollections: `users`, `state` ((shard, pa.Table)), `dead` (pa.Table), `counts` ((name, int),
        as `Built` says).
    """

    def __init__(
        self,
        items: beam.pvalue.AsList,
        spec: ProfileSpec,
        root: str = "",
        cache_dir: str | None = None,
        popularity: beam.PCollection | None = None,
        state: beam.PCollection | None = None,
        keep_state: bool = False,
        users_of_dead: beam.PCollection | None = None,
        noise: NoiseSpec | None = None,
        *,
        modalities: Sequence[str] = (),
        modality_vectors: bool = False,
    ) -> None:
        super().__init__()
        if noise and (popularity is not None or keep_state):
            raise ValueError("noise covers neither a prior nor a state")
        self._items, self._popularity, self._state, self._users_of_dead = items, popularity, state, users_of_dead
        self._args = (spec, root, cache_dir, keep_state, noise, tuple(modalities), modality_vectors)

    def expand(self, shards: beam.PCollection) -> dict[str, beam.PCollection]:
        if self._state is None:
            joined = shards | "NoState" >> beam.MapTuple(lambda shard, t: (shard, (t, None)))
        else:
            both = {"events": shards, "state": self._state}
            joined = both | "WithState" >> beam.CoGroupByKey() | "OneState" >> beam.MapTuple(_with_state)
        popularity: Any = [] if self._popularity is None else beam.pvalue.AsList(self._popularity)
        lost: Any = {} if self._users_of_dead is None else beam.pvalue.AsDict(self._users_of_dead)
        build = beam.ParDo(_BuildProfilesFn(*self._args), self._items, popularity, lost)
        out = joined | "Build" >> build.with_outputs("counts", "state", "dead", main="users")
        return {"users": out.users, "counts": out.counts, "state": out.state, "dead": out.dead}


def _with_state(shard: int, both: dict[str, Iterable[pa.Table]]) -> tuple[int, tuple[pa.Table, pa.Table | None]]:
    (events,) = both["events"]
    return shard, (events, next(iter(both["state"]), None))


@with_output_types(ShardTable, counts=tuple[str, int], state=ShardTable, dead=pa.Table)
class _BuildProfilesFn(beam.DoFn):
    def __init__(
        self,
        spec: ProfileSpec,
        root: str,
        cache_dir: str | None,
        keep_state: bool,
        noise: NoiseSpec | None,
        modalities: tuple[str, ...],
        modality_vectors: bool,
    ) -> None:
        self._spec, self._root, self._cache_dir, self._keep_state = spec, root, cache_dir, keep_state
        self._noise, self._modalities, self._with_vectors = noise, modalities, modality_vectors
        self._around: Surroundings | None = None
        self._said: dict[bytes, bytes] = {}  # the metadata of the items' files
        self._space: dict[bytes, bytes] = {}

    def start_bundle(self) -> None:
        self._ahead: InOrder[tuple[int, Built]] = InOrder()

    def process(
        self,
        element: tuple[int, tuple[pa.Table, pa.Table | None]],
        items: Sequence[str | HasPath],
        popularity: Sequence[pa.Table],
        users_of_dead: Mapping[int, pa.Table],
    ) -> Iterable[object]:
        shard, (events, state) = element
        if self._around is None:
            self._open(items, next(iter(popularity), None))
        assert self._around is not None
        if state is not None:
            check_state(state, self._said, self._around.items.dim, self._spec.half_life_days)
        for done in self._ahead.put(self._build, shard, events, state, users_of_dead.get(shard)):
            yield from self._give(*done)

    def finish_bundle(self) -> Iterable[object]:
        yield from at_end_of_bundle(output for done in self._ahead.rest() for output in self._give(*done))

    def _build(
        self, shard: int, events: pa.Table, state: pa.Table | None, users_of_dead: pa.Table | None
    ) -> tuple[int, Built]:
        assert self._around is not None
        built = build_profiles(events, self._around, self._spec, state, users_of_dead)
        return shard, publish_noised(built, self._noise) if self._noise else built

    def _give(self, shard: int, built: Built) -> Iterable[object]:
        assert self._around is not None
        for name, n in built.counts.items():
            Metrics.counter(NAMESPACE, name).inc(n)
            yield beam.pvalue.TaggedOutput("counts", (name, n))
        if self._keep_state:
            table = state_table(built.sums, self._around.items)
            marks = self._space | {HALF_LIFE: str(self._spec.half_life_days).encode()}
            yield beam.pvalue.TaggedOutput("state", (shard, table.replace_schema_metadata(marks)))
        if built.dead.num_rows:
            yield beam.pvalue.TaggedOutput("dead", built.dead)
        advance("profiles", done=built.counts["events.rows"], dead=built.dead.num_rows)
        yield shard, built.users.replace_schema_metadata(self._space)

    def _open(self, items: Sequence[str | HasPath], popularity: pa.Table | None) -> None:
        matrix = per_process(items, self._root, self._cache_dir)
        modalities = {m: modality_vectors(items, m, self._root, self._cache_dir) for m in self._modalities}
        prior = None if popularity is None else popular_direction(popularity, matrix)
        self._around = Surroundings(matrix, modalities, prior, self._with_vectors)
        self._said = first_schema(items, self._root).metadata or {}
        self._space = {k: v for k, v in self._said.items() if k in (SPACE, b"unisono.dim")}
