"""Recommendation lists: the items that score highest for each user, without seen and hidden items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import with_output_types
from pydantic import Field

from unisono.transforms.base.columns import row_lengths
from unisono.transforms.base.extras import is_installed
from unisono.transforms.base.progress import advance
from unisono.transforms.base.settings import NonNegative, Positive, Share, settings
from unisono.transforms.base.tables import ShardTable, from_vector_column, one_chunk
from unisono.transforms.rank.lists import diversify, list_table, merge_ranked
from unisono.transforms.rank.topk import top_items
from unisono.transforms.store.item_matrix import HasPath, ItemMatrix, modality_vectors, per_process

_POOL = 4  # for each place of a list, diversity chooses from this many candidates

Interests = Literal["profile", "maximum", "weighted"]
INTERESTS = get_args(Interests)


@settings("ranking")
class RankingSpec:
    """How items are ranked for users."""

    k: Positive = 100
    """Length of a user's list."""
    interests: Interests = "maximum"
    """`profile`: an item's score comes from the profile alone. `maximum`: from the interest it suits best, where each
    interest is drawn half way to the profile. `weighted`: from all interests, each by its importance."""
    fusion: Literal["early", "late"] = "early"
    """`early`: users and items are compared by their fused vectors. `late`: modality by modality, and the scores are
    added."""
    weights: dict[str, NonNegative] = Field(default_factory=dict)
    """For `fusion: late`: the weight of each modality. A modality that is not named weighs 1."""
    exclude_seen: bool = True
    """Items that the user has interacted with are not recommended. Known are the items of the log that
    `interactions.path` names; of the earlier logs of incremental profiles, each user's newest
    `profiles.recent_events` events."""
    filter: str | None = None
    """A boolean column of the catalogue, true where an item may be recommended."""
    diversity: Share = 0.0
    """How much likeness to items higher in the list counts against an item (maximal marginal relevance). 0 means not
    at all."""
    popularity_penalty: NonNegative = 0.0
    """Subtracted from the score of the most popular item, and from the others in proportion to the logarithm of
    1 + their interactions."""
    popularity_bonus: NonNegative = 0.0
    """The opposite of `popularity_penalty`: added in the same proportion. Only one of the two may be given."""
    popularity_half_life_days: Annotated[float, Field(gt=0)] | None = None
    """For either of them: after this many days an interaction counts half. null means that interactions do not age."""
    caution: NonNegative = 0.0
    """Subtracted from the score of an item that nobody has interacted with, and divided by √(1 + users) from the
    others. The vector of an item that few users have touched is a guess, but has full length all the same."""
    slices: Positive = 1
    """How many parts the items are split into, each searched on its own. More than 1 is for item vectors that one
    worker cannot hold."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where scores are computed. `auto` means CUDA if torch finds it."""

    def __post_init__(self) -> None:
        if self.weights and self.fusion == "early":
            raise ValueError("weights: weigh modalities of late fusion; set ranking.fusion: late, or leave out")
        if self.popularity_penalty and self.popularity_bonus:
            raise ValueError("popularity_bonus: given beside popularity_penalty, its opposite; leave one out")
        if self.popularity_half_life_days is not None and not self.popularity_gain:
            raise ValueError("popularity_half_life_days: belongs to popularity_bonus or popularity_penalty; give one")

    @property
    def popularity_gain(self) -> float:
        """What the most popular item gains in score; negative for a penalty."""
        return self.popularity_bonus - self.popularity_penalty

    @property
    def counts_users(self) -> bool:
        """Whether scores depend on how many users interacted with an item."""
        return bool(self.popularity_gain or self.caution)

    @property
    def pool(self) -> int:
        """How many candidates are searched for each list."""
        return self.k * _POOL if self.diversity else self.k


# --- users as queries --------------------------------------------------------------------------------------


def queries_of(users: pa.Table, spec: RankingSpec, modalities: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Turns profiles into the query vectors that are compared with the items.

    With late fusion a user has one query: the user's vectors of all modalities one after the other, each multiplied
    by the weight of its modality, and zeros for a modality without a vector.

    Args:
        users: profiles with the columns `vector` and `interests`; for late fusion, with a column `<m>_vector` for each
            of `modalities`.
        spec: the settings.
        modalities: the modalities of late fusion, in the order of `late_matrix`.

    Returns:
        queries: float32 [r, dim].
        first: int64 [users + 1]; user i has the queries `first[i]` to `first[i + 1]`.
    """
    n = users.num_rows
    if spec.fusion == "late":
        weights = dict(spec.weights)
        parts = []
        for m in modalities:
            vectors, present = from_vector_column(users[f"{m}_vector"])
            parts.append(np.where(present[:, None], vectors * np.float32(weights.get(m, 1.0)), np.float32(0)))
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False), np.arange(n + 1)
    vectors, _ = from_vector_column(users["vector"])
    if spec.interests == "profile" or "interests" not in users.column_names:
        return vectors, np.arange(n + 1)
    flat, weight, counts = read_interests(users["interests"])
    first = np.concatenate([[0], np.cumsum(counts)])
    if spec.interests == "weighted":
        owner = np.repeat(np.arange(n), counts)
        out = np.zeros((n, vectors.shape[1]))
        np.add.at(out, owner, flat * weight[:, None].astype(np.float64))
        return np.where((counts > 0)[:, None], out, vectors).astype(np.float32), np.arange(n + 1)
    lone = counts == 0  # a user without interests, such as a cold user, is served by the profile
    ends = np.concatenate([[0], np.cumsum(np.where(lone, 1, counts))])
    queries = np.empty((int(ends[-1]), vectors.shape[1]), np.float32)
    queries[ends[:-1][lone]] = vectors[lone]
    own = np.repeat(ends[:-1] - first[:-1], counts) + np.arange(len(flat))
    # An interest comes from a few events, so it is noisy. On the demo's synthetic data, recall@20 is 0.104 with
    # interests as they are, 0.128 with the profile, and 0.134 with the directions half way between the two.
    mixed = flat.astype(np.float64) + np.repeat(vectors, counts, axis=0)
    length = row_lengths(mixed)[:, None]
    queries[own] = np.divide(mixed, length, out=flat.astype(np.float64), where=length > 1e-6)
    return queries, ends


def read_interests(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads a column `interests`.

    Returns:
        vectors: float32 [r, dim], the interests of all users one after the other.
        weights: float32 [r], the weight of each interest.
        counts: int64 [n], the number of interests of each user.
    """
    lists = one_chunk(column)
    counts = pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)
    flat = lists.flatten()
    vectors, _ = from_vector_column(pc.struct_field(flat, "vector"))
    return vectors, pc.struct_field(flat, "weight").to_numpy(zero_copy_only=False), counts


# --- items -------------------------------------------------------------------------------------------------


def late_matrix(parts: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Joins the modality vectors of each item into one row, for scores that are averages over modalities.

    The part of modality m in an item's row is v_m / Σ w, where the sum runs over the modalities that the item has. The
    part in a user's query is w_m · p_m. So the inner product is Σ w_m p_m·v_m / Σ w_m over the item's modalities, and
    an item does not score lower for a modality that it lacks.

    Args:
        parts: the items' vectors in each modality, float32 [n, dim], zero rows where missing.
        weights: the weight of each modality. A modality that is not named has weight 1.

    Returns:
        float32 [n, modalities · dim].
    """
    names = list(parts)
    n, dim = parts[names[0]].shape
    out = np.empty((n, len(names) * dim), np.float32)
    total = np.zeros(n)
    for m in names:
        total += weights.get(m, 1.0) * np.any(parts[m], axis=1)
    total[total == 0] = 1.0
    for i, m in enumerate(names):
        np.divide(parts[m], total[:, None], out=out[:, i * dim : (i + 1) * dim], casting="same_kind")
    return out


def item_bias(
    items: ItemMatrix,
    hidden: Sequence[pa.Table],
    popularity: pa.Table | None = None,
    gain: float = 0.0,
    caution: float = 0.0,
) -> np.ndarray:
    """Computes the number that is added to every score of an item.

    It is gain · log(1 + n) / log(1 + max n) − caution / √(1 + users), and −inf for a hidden item.

    Args:
        items: the item matrix.
        hidden: tables with `item_id`: the items that must not be recommended.
        popularity: item_id, n, users, as `popularity.add_users` returns them. None means 0 for every item.
        gain: what the most popular item gains; negative for a penalty.
        caution: what an item without users loses.

    Returns:
        float32 [items].
    """
    bias = np.full(len(items), -caution)
    if popularity is not None and popularity.num_rows:
        n, users = (popularity[name].to_numpy().astype(np.float64) for name in ("n", "users"))
        rows = items.lookup(popularity["item_id"])
        known = rows >= 0
        bias[rows[known]] = (gain * np.log1p(n) / np.log1p(n.max()) - caution / np.sqrt(1 + users))[known]
    for table in hidden:
        rows = items.lookup(table["item_id"])
        bias[rows[rows >= 0]] = -np.inf
    return bias.astype(np.float32)


# --- one shard of users against a slice of the items -------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shelf:
    """The items, in the form in which they are ranked.

    Attributes:
        items: the item matrix, which finds ids and rows.
        matrix: float32 [items, d], the vectors that are compared with queries: the item vectors, or `late_matrix`.
        bias: float32 [items], see `item_bias`.
        modalities: the modalities of late fusion; empty for early fusion.
    """

    items: ItemMatrix
    matrix: np.ndarray
    bias: np.ndarray
    modalities: tuple[str, ...] = ()


def make_shelf(
    items: ItemMatrix,
    parts: Mapping[str, np.ndarray],
    spec: RankingSpec,
    hidden: Sequence[pa.Table],
    popularity: pa.Table | None,
) -> Shelf:
    """Puts items into the form in which they are ranked.

    Args:
        items: the item matrix.
        parts: for late fusion, the items' vectors in each modality whose scores are added, see `late_matrix`. Early
            fusion does not use them.
        spec: the settings.
        hidden: tables of `item_id`, the items that must not be recommended.
        popularity: how many users interacted with each item, see `item_bias`. None means that it does not count.
    """
    bias = item_bias(items, hidden, popularity, spec.popularity_gain, spec.caution)
    if spec.fusion == "early":
        return Shelf(items, np.asarray(items.vectors), bias)
    return Shelf(items, late_matrix(parts, spec.weights), bias, tuple(parts))


def rank_items(users: pa.Table, seen: pa.Table | None, shelf: Shelf, spec: RankingSpec) -> pa.Table:
    """Finds each user's best items on a shelf.

    Args:
        users: profiles, a row for each user.
        seen: user_id, item_id: pairs that must not be recommended. None means that there are none.
        shelf: the items.
        spec: the settings.

    Returns:
        A table of `recommendation_schema`, in the order of `users`, with up to `spec.pool` items for each user.

    Raises:
        JobError: numba is not installed.
    """
    queries, first = queries_of(users, spec, shelf.modalities)
    exclude = None
    if seen is not None and seen.num_rows:
        user = pc.index_in(seen["user_id"].cast(users["user_id"].type), value_set=one_chunk(users["user_id"]))
        user = user.fill_null(-1).to_numpy().astype(np.int64)
        item = shelf.items.lookup(seen["item_id"])
        known = (user >= 0) & (item >= 0)
        exclude = user[known], item[known]
    rows, scores = _search(queries, first, exclude, shelf, spec)
    found = rows >= 0
    return list_table(users["user_id"], shelf.items.ids(rows[found]), scores[found], found.sum(1))


def _search(
    queries: np.ndarray,
    first: np.ndarray,
    exclude: tuple[np.ndarray, np.ndarray] | None,
    shelf: Shelf,
    spec: RankingSpec,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds each user's best items by the best of the user's queries, with the bias as one more axis."""
    counts, hidden = np.diff(first), np.isneginf(shelf.bias)
    owner = np.repeat(np.arange(len(counts)), counts)
    if exclude is not None:
        at = np.repeat(np.arange(len(exclude[0])), counts[exclude[0]])
        start = np.cumsum(counts[exclude[0]]) - counts[exclude[0]]
        exclude = first[exclude[0][at]] + np.arange(len(at)) - start[at], exclude[1][at]
    bias = np.where(hidden, 0, shelf.bias)[:, None]
    rows, scores = top_items(
        np.hstack([queries, np.ones((len(queries), 1), np.float32)]), np.hstack([shelf.matrix, bias]), spec.pool,
        exclude=exclude, ranks=shelf.items.ranks, hidden=hidden, device=_device(spec.device),
    )  # fmt: skip
    if (counts == 1).all():
        return rows, scores
    item, score, user = rows.ravel(), scores.ravel(), np.repeat(owner, rows.shape[1])
    order = np.lexsort((-score, item, user))
    order = order[item[order] >= 0]
    new = np.ones(len(order), bool)
    new[1:] = (user[order][1:] != user[order][:-1]) | (item[order][1:] != item[order][:-1])
    order = order[new]
    order = order[np.lexsort((shelf.items.ranks[item[order]], -score[order], user[order]))]
    place = np.arange(len(order)) - np.searchsorted(user[order], user[order])
    order, place = order[place < spec.pool], place[place < spec.pool]
    rows, scores = np.full((len(counts), spec.pool), -1), np.full((len(counts), spec.pool), -np.inf, np.float32)
    rows[user[order], place], scores[user[order], place] = item[order], score[order]
    return rows, scores


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    if not is_installed("torch"):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# --- Beam --------------------------------------------------------------------------------------------------


def distinct_pairs(events: pa.Table) -> pa.Table:
    """Returns the distinct pairs (user_id, item_id) of a shard's events."""
    return events.select(["user_id", "item_id"]).group_by(["user_id", "item_id"]).aggregate([])


class RecommendItems(beam.PTransform):
    """Ranks items for shards of users: from `(shard, (users, seen pairs or None))` to `(shard, pa.Table)`.

    Each shard of users is searched against each slice of the items, and the lists are merged by shard.

    Args:
        items: the files of items/ as a side input: paths, or records with a `path`.
        spec: the settings.
        modalities: the modalities of late fusion.
        hidden: PCollection of tables with `item_id`, the items that must not be recommended. None means that there are
            none.
        popularity: PCollection of one table, as `CountUsers` returns it. None means that popularity does not count.
        root: the directory that relative paths of `items` are joined to.
        cache_dir: the directory for the item matrix on each machine. None means the machine's temporary directory.
    """

    def __init__(
        self,
        items: beam.pvalue.AsList,
        spec: RankingSpec,
        *,
        modalities: Sequence[str] = (),
        hidden: beam.PCollection | None = None,
        popularity: beam.PCollection | None = None,
        root: str = "",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self._items, self._spec, self._place = items, spec, (root, cache_dir)
        self._modalities, self._hidden, self._popularity = tuple(modalities), hidden, popularity

    def expand(self, users: beam.PCollection) -> beam.PCollection:
        hidden: Any = [] if self._hidden is None else beam.pvalue.AsList(self._hidden)
        popularity: Any = [] if self._popularity is None else beam.pvalue.AsList(self._popularity)
        slices = self._spec.slices
        fn = _RankSliceFn(self._spec, self._modalities, *self._place)
        return (
            users
            | "Slices" >> beam.FlatMapTuple(lambda shard, pair: [(shard, s, *pair) for s in range(slices)])
            | "Spread" >> beam.Reshuffle()
            | "Rank" >> beam.ParDo(fn, self._items, hidden, popularity)
            | "ByUserShard" >> beam.GroupByKey()
            | "Merge" >> beam.ParDo(_MergeFn(self._spec, *self._place), self._items)
        )


def _files_of_slice(files: Sequence[str | HasPath], number: int, slices: int) -> list[str | HasPath]:
    return sorted(files, key=lambda f: f if isinstance(f, str) else f.path)[number::slices]


@with_output_types(ShardTable)
class _RankSliceFn(beam.DoFn):
    def __init__(self, spec: RankingSpec, modalities: tuple[str, ...], root: str, cache_dir: str | None) -> None:
        self._spec, self._modalities, self._root, self._cache_dir = spec, modalities, root, cache_dir
        self._shelf: tuple[int, Shelf] | None = None

    def process(
        self,
        element: tuple[int, int, pa.Table, pa.Table | None],
        items: Sequence[str | HasPath],
        hidden: Sequence[pa.Table],
        popularity: Sequence[pa.Table],
    ) -> Iterable[ShardTable]:
        shard, number, users, seen = element
        files = _files_of_slice(items, number, self._spec.slices)
        if not files:
            return
        if self._shelf is None or self._shelf[0] != number:
            self._shelf = number, self._open(files, hidden, popularity)
        ranked = rank_items(users, seen, self._shelf[1], self._spec)
        advance("recommend", done=users.num_rows)
        yield shard, ranked

    def _open(
        self, files: Sequence[str | HasPath], hidden: Sequence[pa.Table], popularity: Sequence[pa.Table]
    ) -> Shelf:
        items = per_process(files, self._root, self._cache_dir)
        parts = {m: modality_vectors(files, m, self._root, self._cache_dir) for m in self._modalities}
        return make_shelf(items, parts, self._spec, hidden, next(iter(popularity), None))


@with_output_types(ShardTable)
class _MergeFn(beam.DoFn):
    def __init__(self, spec: RankingSpec, root: str, cache_dir: str | None) -> None:
        self._spec, self._root, self._cache_dir = spec, root, cache_dir

    def process(
        self, element: tuple[int, Iterable[pa.Table]], items: Sequence[str | HasPath]
    ) -> Iterable[ShardTable]:
        shard, parts = element
        ranked = merge_ranked(list(parts), self._spec.pool)
        if self._spec.diversity:
            ranked = diversify(
                ranked, per_process(items, self._root, self._cache_dir), self._spec.k, self._spec.diversity
            )
        yield shard, ranked
