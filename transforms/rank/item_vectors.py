"""The ranking vectors of items, shard by shard: learned from the log, or made of the item vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import HISTORY, HISTORY_NEW, RANKING, RANKING_COLUMNS, RANKING_VECTOR
from unisono.transforms.base.tables import one_chunk, to_vector_column
from unisono.transforms.rank.content import ContentScale, add_weighted
from unisono.transforms.rank.exposure import Tops, best_scores, scale_for_exposure, scale_for_length
from unisono.transforms.rank.model import COMMON, WEEK_US, RankingModel, common_axes, with_new_items
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.store.small_vectors import read_vectors

_VECTOR = "_vector"
MARGIN = 1 / 6  # in median lengths of new items; chosen on MovieLens-100k, where 1/5 does nearly as well
UNLIKED = -1.0  # added to the score of an item that nobody likes who turned to it; a user's scores deviate by 1


@dataclass(frozen=True, eq=False)
class Popularity:
    """How popular items are.

    Attributes:
        counts: a table as `popularity.add_likes` returns it. None means that there is no event.
        most_late: the largest `late` of all items.
        most_likes: the largest `likes` of all items.
        ageing: whether the log spans at least a week.
    """

    counts: pa.Table | None
    most_late: float = 0.0
    most_likes: float = 0.0
    ageing: bool = False

    @classmethod
    def of(cls, counts: pa.Table | None) -> Popularity:
        """Reads a table as `popularity.add_likes` returns it."""
        if counts is None or not counts.num_rows:
            return cls(None)
        late, likes = (float(pc.max(counts[c]).as_py()) for c in ("late", "likes"))
        return cls(counts, late, likes, counts["newest"][0].as_py() - counts["oldest"][0].as_py() >= WEEK_US)

    def rows(self, ids: pa.ChunkedArray) -> dict[str, np.ndarray]:
        """Returns `late`, `likes` and `users` of items by their ids, [n] each; 0 for an item without an event."""
        out = {"late": np.zeros(len(ids)), "likes": np.zeros(len(ids), np.int64), "users": np.zeros(len(ids), np.int64)}
        if self.counts is not None:
            # Looking up the many counted ids among the few of a shard builds the smaller hash table.
            place = pc.index_in(one_chunk(self.counts["item_id"]).cast(ids.type), value_set=one_chunk(ids))
            found = place.is_valid()
            at = place.drop_null().to_numpy()
            for name in out:
                out[name][at] = one_chunk(self.counts[name]).filter(found).to_numpy()
        return out

    def axes(self, ids: pa.ChunkedArray, newness: np.ndarray | float = 0.0) -> np.ndarray:
        """Returns the common axes of items, float64 [n, 4]: `model.common_axes`, and newness."""
        n = self.rows(ids)
        known = common_axes(n["late"], n["likes"], self.most_late, self.most_likes)
        return np.concatenate([known, np.broadcast_to(newness, len(known))[:, None]], axis=1)

    def learned_axes(self, ids: pa.ChunkedArray, newness: float = 0.0) -> np.ndarray:
        """Returns the common axes of items whose ranking vectors are learned, float64 [n, 4].

        The last one is `newness` for items without any event, and lower for items that have events and no like.
        """
        n = self.rows(ids)
        unliked = np.where(n["likes"] == 0, UNLIKED, 0.0)
        return self.axes(ids, np.where(n["users"] == 0, newness, unliked))


@dataclass(frozen=True, eq=False)
class FactorRows:
    """The factors of some items.

    Attributes:
        items: V, float32 [n, d]; zeros where an item has none.
        left: A, float32 [n, d].
        known: bool [n], where an item has factors.
    """

    items: np.ndarray
    left: np.ndarray
    known: np.ndarray


# --- learned -----------------------------------------------------------------------------------------------


def weighted_moments(table: pa.Table, scale: ContentScale, factors: FactorRows, popularity: Popularity) -> Moments:
    """Makes the moments of the regression from content to factors, see `content.add_weighted`.

    Args:
        table: embeddings, `item_id` and `<m>_embedding`, [n].
        scale: how embeddings become content columns.
        factors: of the same items.
        popularity: of all items.
    """
    known = factors.known
    if not known.any():
        return Moments.zero()
    users = popularity.rows(table["item_id"])["likes"][known]
    target = np.concatenate([factors.items[known], factors.left[known]], axis=1)
    return add_weighted(scale.columns(table.filter(pa.array(known))), target, users)


def learned_columns(
    table: pa.Table,
    model: RankingModel,
    factors: FactorRows,
    popularity: Popularity,
    kind: Mapping[str, object] | None = None,
) -> pa.Table:
    """Adds `ranking_vector`, `history_vector` and `history_vector_new` to a table of embeddings.

    A ranking vector is [V' | 0 | common axes] for an item with likes, [0 | s·M' | common axes] for an item without any
    event, and [0 | 0 | common axes] for one that has events and no like, which loses a point. V' are factors, and M' is
    what content predicts. `kind` goes into the metadata, see `user_vectors.kind_of_items`.
    """
    counts = popularity.rows(table["item_id"])
    untouched = counts["users"] == 0
    likes = np.where(factors.known, counts["likes"], 0)
    ranking, history, new = model.item_vectors(
        model.scale.columns(table), factors.items, factors.left, likes=likes, untouched=untouched
    )
    ranking = np.concatenate([ranking, popularity.learned_axes(table["item_id"], model.newness)], axis=1)
    for name, vectors in ((RANKING_VECTOR, ranking), (HISTORY, history), (HISTORY_NEW, new)):
        table = table.append_column(
            pa.field(name, pa.list_(pa.float32(), vectors.shape[1]), nullable=False),
            to_vector_column(vectors.astype(np.float32)),
        )
    learned = {"ageing": model.ageing, "key": model.key, "comparable": list(model.comparable)}
    return _described(table, {"method": "learned", **(kind or {}), **learned})


def recount(table: pa.Table, popularity: Popularity, kind: Mapping[str, object]) -> pa.Table:
    """Counts the popularity of published items anew; what was learned stays.

    Args:
        table: a table of items/ with learned ranking vectors, and with its schema metadata.
        popularity: of all items.
        kind: see `user_vectors.kind_of_items`.
    """
    vectors = np.array(read_vectors(table, RANKING_VECTOR)[0])
    vectors[:, -COMMON:-1] = popularity.axes(table["item_id"])[:, :-1]
    field = table.schema.field(RANKING_VECTOR)
    at = table.column_names.index(RANKING_VECTOR)
    about = json.loads(table.schema.metadata[RANKING])
    return _described(table.set_column(at, field, to_vector_column(vectors)), {**about, **kind})


@dataclass(frozen=True, eq=False)
class Sample:
    """The users whose lists the scale of new items is chosen on.

    Attributes:
        vectors: float32 [u, 2d + 4], their ranking vectors.
        user: index of the user of each pair that must not be listed, int64 [p].
        item_ids: the item of each pair, [p].
        hidden: ids of the items that must not be recommended. None means that there are none.
    """

    vectors: np.ndarray
    user: np.ndarray
    item_ids: pa.Array
    hidden: pa.Array | None = None


def tops_of(table: pa.Table, sample: Sample, popularity: Popularity) -> Tops:
    """Finds the best scores of the sampled users among the items of a table, see `exposure.best_scores`.

    Args:
        table: a table of `learned_columns`, of a model whose scale of new items is 1 and whose newness is 0.
        sample: the users.
        popularity: of all items.
    """
    ids = one_chunk(table["item_id"])
    vectors, _ = read_vectors(table, RANKING_VECTOR)
    counts = popularity.rows(table["item_id"])
    new = counts["users"] == 0
    at = pc.index_in(sample.item_ids.cast(ids.type), value_set=ids)
    here = at.is_valid().to_numpy(zero_copy_only=False)
    shut = sample.user[here], at.drop_null().to_numpy().astype(np.int64)
    allowed = new | (counts["likes"] > 0)  # new items need not stay behind items that nobody likes
    if sample.hidden is not None:
        allowed &= ~pc.is_in(ids, value_set=sample.hidden.cast(ids.type)).to_numpy(zero_copy_only=False)
    return best_scores(sample.vectors, vectors, new, allowed, shut)


def scale_new_items(model: RankingModel, tops: Tops, sample: Sample, spec: RankingSpec, length: float) -> RankingModel:
    """Sets the scale of new items, by `ranking.cold_quantile` or `ranking.cold_exposure`.

    Args:
        model: the model.
        tops: the best scores of the sampled users among all items, with scale 1 and newness 0.
        sample: the users.
        spec: the settings.
        length: for `cold_quantile`, that quantile of the lengths of the other items; otherwise the largest of these
            lengths. New items do not become longer than that in the median, even if they then take less than their
            share: few new items would be shown to nearly everybody.
    """
    most = scale_for_length(length, tops[2])
    if spec.cold_quantile is not None:
        newness = -most * MARGIN * float(np.median(tops[2])) if len(tops[2]) else 0.0
        return with_new_items(model, most, model.comparable, newness)
    common = sample.vectors[:, -COMMON:] @ np.array([0.0, 0.0, 1.0, 0.0])  # where an item without events stands
    scale, newness = scale_for_exposure(tops[0], tops[1], common, spec.cold_exposure)
    return with_new_items(model, min(scale, most), model.comparable, newness)


def comparable_with(mine: np.ndarray, published: np.ndarray, users: np.ndarray) -> bool:
    """Says whether sums of published history vectors can be added to sums of new ones.

    They can if the vectors of the same items have a mean cosine of at least 0.9, weighted by users. Spaces have the
    same limit.

    Args:
        mine: float [n, d], the new history vectors of items that both have.
        published: float [n, d].
        users: int64 [n].
    """
    if mine.shape != published.shape or not users.sum():
        return False
    along = np.einsum("nd,nd->n", mine, published)
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(published, axis=1)
    cosine = np.divide(along, lengths, out=np.zeros(len(along)), where=lengths > 0)
    return float(np.average(cosine, weights=users)) >= 0.9


# --- made of the item vectors ------------------------------------------------------------------------------


def vector_columns(
    table: pa.Table,
    spec: RankingSpec,
    modalities: Sequence[str],
    popularity: Popularity,
    kind: Mapping[str, object],
) -> pa.Table:
    """Adds `ranking_vector` to a table of items: the item vector or the vectors of all modalities, and the common axes.

    Args:
        table: a table of items/.
        spec: the settings.
        modalities: the modalities of late fusion, see `late_matrix`; () for early fusion.
        popularity: of all items.
        kind: goes into the metadata, see `user_vectors.kind_of_items`.
    """
    table = table.drop_columns([c for c in RANKING_COLUMNS if c in table.column_names])
    if spec.fusion == "late":
        parts = {m: _modality(table, m) for m in modalities}
        own = late_matrix(parts, spec.weights)
    else:
        own, _ = read_vectors(table)
    vectors = np.concatenate([own, popularity.axes(table["item_id"])], axis=1).astype(np.float32)
    field = pa.field(RANKING_VECTOR, pa.list_(pa.float32(), vectors.shape[1]), nullable=False)
    about = {**kind, "ageing": popularity.ageing}
    return _described(table.append_column(field, to_vector_column(vectors)), about)


def _modality(table: pa.Table, name: str) -> np.ndarray:
    if name + _VECTOR not in table.column_names:  # the modality could not be fitted, as behaviour in a log of few pairs
        return np.zeros(read_vectors(table)[0].shape, np.float32)
    vectors, present = read_vectors(table, name + _VECTOR)
    return np.where(present[:, None], vectors, np.float32(0))


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


def _described(table: pa.Table, about: Mapping[str, object]) -> pa.Table:
    metadata = {**(table.schema.metadata or {}), RANKING: json.dumps(about, sort_keys=True).encode()}
    return table.replace_schema_metadata(metadata)
