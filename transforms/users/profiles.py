"""User profiles: the mean direction of the vectors of a user's items, weighted by event and age."""

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

from unisono.transforms.base.columns import HALF_LIFE, RANKING, SPACE, TASTE, TASTES
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
from unisono.transforms.users.directions import directions_of, popular_direction
from unisono.transforms.users.history import STAGE, leave_out_repeats_and_robots, order_history
from unisono.transforms.users.interests import find_interests, interest_type
from unisono.transforms.users.state import (
    UserState,
    check_state,
    merge_states,
    read_state,
    state_table,
    sum_history,
    times,
)
from unisono.transforms.users.sums import decay
from unisono.transforms.users.tastes import Tastes, TasteSpec, read_tastes, taste_vectors


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
    """The share of the profile that attention over the user's own items leaves as it is. 1 means no refinement."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 0.1
    """Temperature of that attention. The smaller it is, the more the nearest items count."""
    session_minutes: Annotated[float, Field(gt=0)] | None = None
    """A pause of this length ends a session; repeats within a session count once. null means that all events count."""
    max_events_per_day: Positive | None = 5000
    """A user with more events on one day counts as a robot. null means no limit."""
    robots: Literal["cap", "drop"] = "cap"
    """`cap`: the newest events of each of the robot's days count. `drop`: a robot gets no profile."""
    incremental: bool | Literal["restart"] = False
    """true: the log holds new events only, which are added to the published run's sums. `restart`: the log holds all
    events, and new sums begin with it. false: the log holds all events, and no sums are kept."""


def profile_schema(
    user_type: pa.DataType,
    dim: int,
    item_type: pa.DataType,
    modalities: Sequence[str] = (),
    vectors: bool = False,
    taste: int = 0,
) -> pa.Schema:
    """Returns the schema of the files in users/.

    Args:
        user_type: type of the user ids.
        dim: length of an item vector.
        item_type: type of the item ids.
        modalities: modalities with a column `<m>_affinity`.
        vectors: whether each of them has a column `<m>_vector` too.
        taste: length of the column `taste`. 0 means that there is none.
    """
    fields = [
        ("user_id", user_type),
        pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ("interests", interest_type(dim, item_type)),
        *((f"{m}_affinity", pa.float32()) for m in modalities),
        *((f"{m}_vector", pa.list_(pa.float32(), dim)) for m in modalities if vectors),
        ("events", pa.int64()),
        ("last_event", TIME_TYPE),
        ("cold", pa.bool_()),
        *([pa.field(TASTE, pa.list_(pa.float32(), taste), nullable=False)] if taste else []),
    ]
    return pa.schema(fields)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What is the same for the profiles of all shards.

    Attributes:
        items: the item matrix.
        modalities: the items' vectors in each modality, by its name: float32 [items, dim], zero rows where an item
            lacks the modality.
        prior: float32 [dim], the direction of what everybody likes. None means that cold users get no profile.
        with_vectors: whether a profile has a vector for each of `modalities`.
        tastes: what tastes are made from. None means that profiles have no taste.
    """

    items: ItemMatrix
    modalities: Mapping[str, np.ndarray] = field(default_factory=dict)
    prior: np.ndarray | None = None
    with_vectors: bool = False
    tastes: Tastes | None = None


@dataclass(frozen=True, eq=False)
class Built:
    """The profiles of a shard's users.

    Attributes:
        users: a table of `profile_schema`, sorted by user_id.
        sums: the state that a later run adds its events to.
        dead: dead letters of stage `profiles`.
        counts: numbers by name. `events.rows`: the events; `events.unknown_item`: the events whose item is unknown;
            `events.set_aside`: the events left out as repeats or as a robot's. `users.seen`: the users; `users.rows`:
            the users with a profile; `users.cold`: the cold users with a profile; `users.without_profile`: the users
            without a profile; `users.without_usable_event`: the users whose events are all dead letters.
    """

    users: pa.Table
    sums: UserState
    dead: pa.Table
    counts: dict[str, int]


# --- one shard ---------------------------------------------------------------------------------------------


def build_profiles(
    table: pa.Table,
    around: Surroundings,
    spec: ProfileSpec,
    *,
    state: pa.Table | None = None,
    users_of_dead: pa.Table | None = None,
) -> Built:
    """Builds the profiles of a shard's users.

    The weight w of an event decays to w · 2^(−Δt / half-life), where Δt is the time from the event to the user's own
    newest event. Any other reference time would multiply all weights of a user by one factor, which does not change
    a direction; with this one, the newest event keeps its weight and only negligible weights can underflow. The
    profile is the direction of Σ w·v. It is not the direction of Σ w·v / Σ w, which a negative Σ w would reverse.

    Args:
        table: events in the columns of `clean_interactions`, in any order.
        around: the item vectors and the prior.
        spec: the settings.
        state: sums of earlier events, which `table` does not contain again. None means that there are none.
        users_of_dead: user_id of the users who have events that became dead letters; these users are counted. None
            means that there are none.

    Raises:
        JobError: one of `table` and the items has strings as item ids, and the other has integers; or numba is not
            installed.
    """
    items = around.items
    history, unknown = order_history(table, items)
    counts = {"events.rows": table.num_rows, "events.unknown_item": unknown, "events.set_aside": 0}
    used, everybody = len(history.time), history.user_ids
    history, dead = leave_out_repeats_and_robots(
        history, spec.session_minutes, spec.max_events_per_day, spec.robots == "drop"
    )
    counts["events.set_aside"] = used - len(history.time)
    sums = sum_history(history, items, spec.half_life_days, spec.recent_events, around.tastes)
    if state is not None:
        sums = merge_states(
            read_state(state, items),
            sums,
            items,
            half_life_days=spec.half_life_days,
            recent=spec.recent_events,
            tastes=around.tastes,
        )
    users, cancelled = profiles_of(sums, around, spec)
    if cancelled.any():
        dead = pa.concat_tables([dead, _letters_of_cancelled(sums, cancelled)])
    counts |= _count_users(users, sums, everybody, users_of_dead)
    return Built(users, sums, dead, counts)


def _count_users(
    users: pa.Table, sums: UserState, everybody: pa.Array, users_of_dead: pa.Table | None
) -> dict[str, int]:
    """Counts users for `Built.counts`.

    Args:
        users: the profiles.
        sums: the sums that they were built from.
        everybody: ids of the users of the new events, with the users who were left out as robots.
        users_of_dead: see `build_profiles`.
    """
    counts = {}
    seen = len(sums.user_ids) + pc.is_in(everybody, value_set=sums.user_ids).false_count
    if users_of_dead is not None:
        known = pa.concat_arrays([everybody, sums.user_ids])
        lost = pc.is_in(one_chunk(users_of_dead["user_id"]), value_set=known).false_count
        counts["users.without_usable_event"] = lost
        seen += lost
    return counts | {
        "users.seen": seen,
        "users.rows": users.num_rows,
        "users.cold": int(np.count_nonzero(users["cold"].to_numpy())),
        "users.without_profile": seen - users.num_rows,
    }


def _letters_of_cancelled(sums: UserState, cancelled: np.ndarray) -> pa.Table:
    letters = dead_letters_of_rows(sums.user_ids, cancelled, STAGE, Reason.WEIGHTS_CANCEL)
    index = dead_letters.SCHEMA.get_field_index("detail")
    detail = pa.array([f"user={u}" for u in letters["item_id"].to_pylist()], pa.string())  # few rows
    nobody = pa.nulls(letters.num_rows, pa.string())
    return letters.set_column(index, "detail", detail).set_column(0, "item_id", nobody)


def profiles_of(sums: UserState, around: Surroundings, spec: ProfileSpec) -> tuple[pa.Table, np.ndarray]:
    """Turns the sums of all users into profiles; without a prior, cold users get none.

    Returns:
        A table of `profile_schema`, and bool [users]: whether the user's events cancel (see `directions_of`).
    """
    vectors, cold, cancelled = directions_of(sums, around.prior, spec.min_events)
    keep = ~cold if around.prior is None else np.ones(len(cold), bool)
    recent = sums.recent
    weight = recent.weight * decay(np.repeat(sums.newest, recent.counts) - recent.time, spec.half_life_days)
    temperature = spec.temperature if spec.delta < 1 else None
    views = {
        m: view_modality(recent, weight, matrix=around.modalities[m], profiles=vectors, temperature=temperature)
        for m in around.modalities
    }
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
    items, tastes = around.items, around.tastes
    if tastes:
        own = taste_vectors(recent, tastes, newest=sums.newest, events=sums.events, older=sums.older)
        columns.append(to_vector_column(own))
    schema = profile_schema(
        sums.user_ids.type, items.dim, items.id_type, list(views), around.with_vectors, tastes.width if tastes else 0
    )
    table = pa.table(columns, schema=schema)
    return table if keep.all() else table.filter(pa.array(keep)), cancelled


def _modality_vectors(view: ModalityView) -> pa.Array:
    vectors = view.vectors
    return to_vector_column(vectors, np.any(vectors, axis=1))


def _interests(
    sums: UserState, weight: np.ndarray, cold: np.ndarray, items: ItemMatrix, spec: ProfileSpec
) -> pa.Array:
    """Finds the interests of users who are not cold; cold users get empty lists."""
    if spec.interests == 0:
        none = pa.array([], interest_type(items.dim, items.id_type).value_type)
        return pa.ListArray.from_arrays(pa.array(np.zeros(len(cold) + 1, np.int32)), none)
    warm = np.repeat(~cold, sums.recent.counts)
    return find_interests(
        sums.recent.keep(warm), weight[warm], items, most=spec.interests, split=spec.interest_split
    )


def publish_noised(built: Built, noise: NoiseSpec, draw: Draw = secure_normal) -> Built:
    """Replaces profiles by what may be published with noise: one noised vector for each user with a usable event."""
    users = noised_profiles(built.users, built.sums.user_ids, noise, draw)
    rows = users.num_rows
    counts = {"users.rows": rows, "users.cold": 0, "users.without_profile": built.counts["users.seen"] - rows}
    return replace(built, users=users, dead=withhold(built.dead), counts=built.counts | counts)


# --- Beam --------------------------------------------------------------------------------------------------


class BuildProfiles(beam.PTransform):
    """Builds profiles from shards of events, `(shard, pa.Table)` as `ShardByUser` returns them.

    Args:
        items: the files of items/ as a side input, so that profiles wait for them: paths, or records with a `path`.
        spec: the settings.
        root: the directory that relative paths of those files are joined to.
        cache_dir: the directory for the item matrix on each machine. None means the machine's temporary directory.
        popularity: PCollection of one table (item_id, n) that the prior is made from. None means that cold users get
            no profile.
        state: PCollection of (shard, pa.Table), the state of an earlier run in the same shards. None means that there
            is no state.
        keep_state: whether the output `state` has elements, for a later run.
        users_of_dead: PCollection of (shard, pa.Table), see `build_profiles`. None means that there are no such users.
        noise: the noise added to the published profiles. None means no noise. With noise there must be no prior,
            because a prior is made from everybody's events.
        modalities: the modalities that profiles have an affinity to.
        modality_vectors: whether profiles have a vector for each of these modalities.
        tastes: how tastes are made from the items' history vectors. None means that profiles have no taste.

    Returns:
        A dict of PCollections: `users` and `state` of (shard, pa.Table), `dead` of pa.Table, and `counts` of
        (name, int) with the names of `Built.counts`.

    Raises:
        ValueError: `noise` is given together with `popularity` or `keep_state`.
    """

    def __init__(
        self,
        items: beam.pvalue.AsList,
        spec: ProfileSpec,
        root: str = "",
        *,
        cache_dir: str | None = None,
        popularity: beam.PCollection | None = None,
        state: beam.PCollection | None = None,
        keep_state: bool = False,
        users_of_dead: beam.PCollection | None = None,
        noise: NoiseSpec | None = None,
        modalities: Sequence[str] = (),
        modality_vectors: bool = False,
        tastes: TasteSpec | None = None,
    ) -> None:
        super().__init__()
        if noise and (popularity is not None or keep_state):
            raise ValueError("noise hides neither a prior nor a state; leave out `popularity` and `keep_state`")
        self._items, self._popularity, self._state, self._users_of_dead = items, popularity, state, users_of_dead
        self._args = (spec, root, cache_dir, keep_state, noise, tuple(modalities), modality_vectors, tastes)

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
        tastes: TasteSpec | None,
    ) -> None:
        self._spec, self._root, self._cache_dir, self._keep_state = spec, root, cache_dir, keep_state
        self._noise, self._modalities, self._with_vectors = noise, modalities, modality_vectors
        self._tastes = tastes
        self._around: Surroundings | None = None
        self._items_metadata: dict[bytes, bytes] = {}  # schema metadata of the items' files
        self._space: dict[bytes, bytes] = {}  # the part of it that names the space

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
            around = self._around
            check_state(state, self._items_metadata, around.items.dim, self._spec.half_life_days, around.tastes)
        for done in self._ahead.put(self._build, shard, events, state, users_of_dead.get(shard)):
            yield from self._outputs(*done)

    def finish_bundle(self) -> Iterable[object]:
        yield from at_end_of_bundle(output for done in self._ahead.rest() for output in self._outputs(*done))

    def _build(
        self, shard: int, events: pa.Table, state: pa.Table | None, users_of_dead: pa.Table | None
    ) -> tuple[int, Built]:
        assert self._around is not None
        built = build_profiles(events, self._around, self._spec, state=state, users_of_dead=users_of_dead)
        return shard, publish_noised(built, self._noise) if self._noise else built

    def _outputs(self, shard: int, built: Built) -> Iterable[object]:
        assert self._around is not None
        for name, n in built.counts.items():
            Metrics.counter(NAMESPACE, name).inc(n)
            yield beam.pvalue.TaggedOutput("counts", (name, n))
        if self._keep_state:
            table = state_table(built.sums, self._around.items)
            marks = self._space | {HALF_LIFE: str(self._spec.half_life_days).encode()}
            if self._around.tastes:
                marks[TASTES] = self._around.tastes.key.encode()
            yield beam.pvalue.TaggedOutput("state", (shard, table.replace_schema_metadata(marks)))
        if built.dead.num_rows:
            yield beam.pvalue.TaggedOutput("dead", built.dead)
        advance("profiles", done=built.counts["events.rows"], dead=built.dead.num_rows)
        yield shard, built.users.replace_schema_metadata(self._space)

    def _open(self, items: Sequence[str | HasPath], popularity: pa.Table | None) -> None:
        matrix = per_process(items, self._root, self._cache_dir)
        modalities = {m: modality_vectors(items, m, self._root, self._cache_dir) for m in self._modalities}
        prior = None if popularity is None else popular_direction(popularity, matrix)
        tastes = None
        if self._tastes:
            tastes = read_tastes(items, self._tastes, self._root, self._cache_dir)
        self._around = Surroundings(matrix, modalities, prior, self._with_vectors, tastes)
        self._items_metadata = first_schema(items, self._root).metadata or {}
        self._space = {k: v for k, v in self._items_metadata.items() if k in (SPACE, b"unisono.dim", RANKING)}
