"""User profiles: the time-decayed, event-weighted mean direction of the item vectors a user acted on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.typehints import with_output_types

from transforms.errors import JobError
from transforms.files import join
from transforms.interactions import TIME_TYPE
from transforms.item_matrix import HasPath, ItemMatrix, per_process
from transforms.parquet import open_parquet
from transforms.progress import NAMESPACE, advance
from transforms.tables import ShardTable, one_chunk, to_vector_column

_DAY_US = 86_400_000_000

# Item vectors are float32, so Σ w·v is off by up to 6e-8 · Σ|w|: below this, its direction is noise.
_MIN_RELATIVE_NORM = 1e-6


@dataclass(frozen=True)
class ProfileSpec:
    """How events make a profile.

    Attributes:
        half_life_days: after how many days an event weighs half; None: events do not age.
        min_events: users with fewer used events get no profile.
    """

    half_life_days: float | None = None
    min_events: int = 1

    def __post_init__(self) -> None:
        if self.half_life_days is not None and not 0 < self.half_life_days < float("inf"):
            raise JobError(
                f"profiles.half_life_days: {self.half_life_days} is no span of time; "
                "give days above 0, or null for events that do not age"
            )
        if self.min_events < 1:
            raise JobError(f"profiles.min_events: {self.min_events} is too few; give 1 or more")


@dataclass(frozen=True, eq=False)
class UserSums:
    """What profiles are made of, one row a user, sorted by user; only users with a used event.

    An event's weight is decayed to the user's own newest event, so two sums of one user (of two nights) add
    up once the older is multiplied by `decay` of the time between their `newest`.

    Attributes:
        user_ids: [u], ascending.
        vectors: Σ w·v, float64 [u, dim].
        weights: Σ w, float64 [u].
        magnitudes: Σ |w|, float64 [u].
        events: used events, int64 [u].
        newest: time of the newest used event, int64 [u], microseconds since 1970.
    """

    user_ids: pa.Array
    vectors: np.ndarray
    weights: np.ndarray
    magnitudes: np.ndarray
    events: np.ndarray
    newest: np.ndarray


def decay(age_us: np.ndarray, half_life_days: float | None) -> np.ndarray:
    """Gives what is left of an event's weight, 2^(−age / half-life), float64; ages in microseconds."""
    if half_life_days is None:
        return np.ones(len(age_us))
    return np.exp2(age_us / (-half_life_days * _DAY_US))


def profile_schema(user_type: pa.DataType, dim: int) -> pa.Schema:
    """The schema of user profiles."""
    fields = [
        ("user_id", user_type),
        pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ("events", pa.int64()),
        ("last_event", TIME_TYPE),
    ]
    return pa.schema(fields)


# --- sums --------------------------------------------------------------------------------------------------


def sum_events(table: pa.Table, items: ItemMatrix, spec: ProfileSpec) -> tuple[UserSums, dict[str, int]]:
    """Sums the item vectors of each user's events, weighted and decayed.

    The events of a user are added one by one in float64, oldest first (ties: by item, then weight), so the
    sums depend neither on the order of the rows nor on the other users of the shard.

    Args:
        table: events, as `clean_interactions` gives them, in any order.

    Returns:
        sums; counts: `events.rows`, `events.unknown_item` (of those, skipped), `users.seen` (in the table).

    Raises:
        JobError: item ids of another kind than the items'.
    """
    rows = items.lookup(table["item_id"])
    known = rows >= 0
    users, rank = _rank_users(table["user_id"])
    counts = {
        "events.rows": table.num_rows,
        "events.unknown_item": int(table.num_rows - known.sum()),
        "users.seen": len(users),
    }
    time = table["time"].cast(pa.int64()).to_numpy()[known]
    weight = table["weight"].to_numpy()[known]
    rank, rows = rank[known], rows[known]

    order = _order_events(rank, time, items.ranks, rows, weight)
    rank, time, rows, weight = rank[order], time[order], rows[order], weight[order]
    first = np.flatnonzero(np.diff(rank, prepend=-1))
    ends = np.append(first, len(rank))[1:]
    events = ends - first
    newest = time[ends - 1]
    weight = weight * decay(np.repeat(newest, events) - time, spec.half_life_days)

    vectors = np.zeros((len(first), items.dim))
    _add_rows_kernel()(np.asarray(items.vectors), rows, weight, first, ends, vectors)
    return (
        UserSums(
            user_ids=users.take(pa.array(rank[first])),
            vectors=vectors,
            weights=_segment_sums(weight, first),
            magnitudes=_segment_sums(np.abs(weight), first),
            events=events,
            newest=newest,
        ),
        counts,
    )


def _segment_sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, first) if len(first) else np.empty(0)


def _rank_users(ids: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Gives the distinct ids, ascending, and the place of each row's id among them, int64 [n]."""
    encoded = one_chunk(ids).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), place[encoded.indices.to_numpy()]


def _order_events(
    rank: np.ndarray, time: np.ndarray, item_ranks: np.ndarray, rows: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Sorts events by user, time, item and weight.

    User and time are packed into one integer, which sorts faster than four keys do; only events of one user
    at one time are then put in order by the rest.
    """
    if len(rank) == 0:
        return np.empty(0, np.int64)
    start, span = int(time.min()), int(time.max()) - int(time.min()) + 1
    if span * (int(rank.max()) + 1) >= 2**63:
        distinct, time = np.unique(time, return_inverse=True)
        start, span = 0, len(distinct)
    key = rank * span + (time - start)
    order = np.argsort(key)
    key = key[order]
    same = key[1:] == key[:-1]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        among = order[tied]
        order[tied] = among[np.lexsort((weight[among], item_ranks[rows[among]], key[tied]))]
    return order


@cache
def _add_rows_kernel() -> Callable[..., None]:
    """Compiles the segment sum: out[u] += Σ weight[e] · matrix[rows[e]] over the events e of user u.

    Compiled, a row is read from the memory map once and no gathered copy is made: 2.7 times the rate of
    SciPy's CSR product over gathered blocks and 4.9 times that of `np.add.reduceat`, each at its best block
    size. Compiling takes half a second a process.
    """
    import numba  # librosa's dependency; imported here, for `import transforms.profiles` must stay light

    @numba.njit(nogil=True)
    def add_rows(matrix, rows, weight, first, ends, out):  # type: ignore[no-untyped-def]
        for u in range(len(first)):
            total = out[u]
            for e in range(first[u], ends[u]):
                vector, w = matrix[rows[e]], weight[e]  # named outside the loop, which then vectorises
                for d in range(len(vector)):
                    total[d] += w * vector[d]

    return add_rows


# --- profiles ----------------------------------------------------------------------------------------------


def build_profiles(table: pa.Table, items: ItemMatrix, spec: ProfileSpec) -> tuple[pa.Table, dict[str, int]]:
    """Builds the profiles of a shard's users.

    An event weighs w · 2^(−Δt / half-life), with Δt measured back from the user's own newest used event.
    Measured from any other moment all weights of a user would change by one factor, which cancels in a
    direction; from here the newest weighs its full w and nothing underflows that matters. The vector is the
    direction of Σ w·v, not of Σ w·v / Σ w: a negative Σ w would flip it.

    Args:
        table: events, as `clean_interactions` gives them, in any order.

    Returns:
        users: user_id (ascending), vector float32 unit norm, events int64 (used), last_event (of those);
        counts: those of `sum_events`, and of `users.seen` the `users.rows` that have a profile and the
        `users.without_profile` (no known item, fewer events than `min_events`, or weights that cancel).

    Raises:
        JobError: item ids of another kind than the items'.
    """
    sums, counts = sum_events(table, items, spec)
    profiles = profiles_of_sums(sums, spec)
    n = profiles.num_rows
    return profiles, counts | {"users.rows": n, "users.without_profile": counts["users.seen"] - n}


def profiles_of_sums(sums: UserSums, spec: ProfileSpec) -> pa.Table:
    """Turns sums into profiles; users whose weights cancel or who have too few events are left out."""
    norm = np.sqrt(np.einsum("ud,ud->u", sums.vectors, sums.vectors))
    keep = (norm > _MIN_RELATIVE_NORM * sums.magnitudes) & (sums.events >= spec.min_events)
    vectors = (sums.vectors[keep] / norm[keep, None]).astype(np.float32)
    mask = pa.array(keep)
    columns = [
        sums.user_ids.filter(mask),
        to_vector_column(vectors),
        pa.array(sums.events[keep]),
        pa.array(sums.newest[keep]).cast(pa.timestamp("us")).cast(TIME_TYPE),
    ]
    return pa.table(columns, schema=profile_schema(sums.user_ids.type, sums.vectors.shape[1]))


class BuildProfiles(beam.PTransform):
    """Builds the profiles of each shard of events, `(shard, pa.Table)` as `ShardByUser` gives.

    Args:
        items: the items' files, as a side input: paths, or records with a `path`. Profiles wait for them.
        root: what relative paths of those files are joined to.
        cache_dir: where a machine keeps the item matrix; None: under its temporary directory.

    Returns:
        A dict of PCollections: `users` ((shard, pa.Table)), `counts` ((name, int), as `build_profiles` says).
    """

    def __init__(
        self, items: beam.pvalue.AsList, spec: ProfileSpec, root: str = "", cache_dir: str | None = None
    ) -> None:
        super().__init__()
        self._items = items
        self._args = (spec, root, cache_dir)

    def expand(self, shards: beam.PCollection) -> dict[str, beam.PCollection]:
        build = beam.ParDo(_BuildProfilesFn(*self._args), self._items)
        out = shards | "Build" >> build.with_outputs("counts", main="users")
        return {"users": out.users, "counts": out.counts}


@with_output_types(ShardTable, counts=tuple[str, int])
class _BuildProfilesFn(beam.DoFn):
    def __init__(self, spec: ProfileSpec, root: str, cache_dir: str | None) -> None:
        self._spec, self._root, self._cache_dir = spec, root, cache_dir
        self._matrix: ItemMatrix | None = None
        self._space: dict[bytes, bytes] = {}

    def process(self, element: ShardTable, items: Sequence[str | HasPath]) -> Iterable[object]:
        shard, events = element
        if self._matrix is None:
            self._matrix = per_process(items, self._root, self._cache_dir)
            self._space = _space_metadata(items, self._root)
        users, counts = build_profiles(events, self._matrix, self._spec)
        for name, n in counts.items():
            Metrics.counter(NAMESPACE, name).inc(n)
            yield beam.pvalue.TaggedOutput("counts", (name, n))
        advance("profiles", done=events.num_rows)
        result: ShardTable = (shard, users.replace_schema_metadata(self._space))
        yield result


def _space_metadata(items: Sequence[str | HasPath], root: str) -> dict[bytes, bytes]:
    """Takes over what the items' files say of their space: a profile lies in the same one."""
    first = items[0] if isinstance(items[0], str) else items[0].path
    with open_parquet(join(root, first) if root else first) as f:
        said = f.schema_arrow.metadata or {}
    return {k: v for k, v in said.items() if k in (b"unisono.space_id", b"unisono.dim")}
