"""Scores settings on a validation cut: the NDCG@10 of its users, with no joint space fitted.

The steps are those of `rank.learn` and `users.tastes`. What a setting does not change is kept: factors are fitted once
for each number of factors and regularization, and history vectors are made once for each `content_users`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.pipelines.tune.cuts import Catalogue, Cut, index_of
from unisono.transforms.base.columns import HISTORY, HISTORY_NEW
from unisono.transforms.base.tables import one_chunk, to_vector_column
from unisono.transforms.behaviour.factors import FactorSpec, fit_factors
from unisono.transforms.behaviour.likes import Likes, liked_pairs
from unisono.transforms.measure.rank_metrics import Ranked, measure_users
from unisono.transforms.rank.content import add_weighted
from unisono.transforms.rank.exposure import best_scores, draw_users
from unisono.transforms.rank.item_vectors import Popularity, Sample
from unisono.transforms.rank.learn import FactorTable, finished, model_of
from unisono.transforms.rank.model import RankingModel, add_common, with_new_items
from unisono.transforms.rank.sample import LearnSpec, is_touched, sample_of
from unisono.transforms.rank.topk import top_items
from unisono.transforms.rank.user_vectors import weights_of
from unisono.transforms.users.popularity import add_likes, count_likes
from unisono.transforms.users.tastes import Tastes, tastes_of

K = 10
_KEPT_BYTES = 300_000_000  # of the vectors that a cut keeps, for each kind of them


class _Kept:
    """Keeps the values that were used last."""

    def __init__(self, most: int) -> None:
        self._most, self._values = max(most, 1), dict[Hashable, Any]()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        value = self._values.pop(key) if key in self._values else make()
        self._values[key] = value
        while len(self._values) > self._most:
            del self._values[next(iter(self._values))]
        return value


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What was fitted to the likes of a cut.

    Attributes:
        table: the factors of all items that somebody likes.
        items: V, float32 [n, d], by the rows of the catalogue; zeros where an item has no factors.
        left: A, float32 [n, d].
        model: the model, with new items at scale 1.
    """

    table: FactorTable
    items: np.ndarray
    left: np.ndarray
    model: RankingModel


@dataclass(frozen=True, eq=False)
class _Vectors:
    """The vectors of all items: ranking vectors with new items at scale 1 and without the common axes, and history.

    Attributes:
        model: the model, with new items at scale 1.
        ranking: float64 [n, 2d].
        history: float32 [n, d].
        history_new: float32 [n, d].
    """

    model: RankingModel
    ranking: np.ndarray
    history: np.ndarray
    history_new: np.ndarray


class Bench:
    """One cut, ready to be scored with any settings of `ranking` and `profiles` that keep `liked_above`.

    Args:
        catalogue: the items.
        cut: the cut.
        number: the number of the cut, for its temporary files.
        job: the job; its `ranking.liked_above` counts.
    """

    def __init__(self, catalogue: Catalogue, cut: Cut, number: int, job: Job) -> None:
        self._catalogue, self.cut = catalogue, cut
        self._above = job.ranks.liked_above or 0.0
        self._likes = Likes.of(liked_pairs(cut.train, self._above))
        self._index = index_of(self._likes.item_ids, catalogue.home, f"cut-{number}")
        self._place = catalogue.index.lookup(self._likes.item_ids)  # the likes' items in the catalogue
        self._drawn = draw_users(cut.train, self._above)
        self._hidden_ids = one_chunk(catalogue.ids).filter(pa.array(catalogue.hidden))
        counts = self._popularity(None)[0].rows(catalogue.ids)
        self._untouched = counts["users"] == 0
        known = np.zeros(len(self._untouched), bool)
        known[self._place[self._place >= 0]] = True
        self._known, self._counted = known, np.where(known, counts["likes"], 0)
        self._popularities = _Kept(8)
        most = int(_KEPT_BYTES / (32 * 64 * max(len(known), 1)))
        self._fits, self._vectors = _Kept(min(most, 6)), _Kept(min(most, 6))

    def ndcg(self, spec: LearnSpec) -> np.ndarray:
        """Measures lists of 10 made with some settings: float64 [users of the cut]."""
        at, cut = spec.ranking, self.cut
        popularity, common = self._popularities.get(
            at.popularity_half_life_days, lambda: self._popularity(at.popularity_half_life_days)
        )
        fitted = self._fits.get(at.factor_spec, lambda: self._fit(at.factor_spec, popularity))
        made = self._vectors.get((at.factor_spec, at.content_users), lambda: self._make(fitted, at.content_users))
        tastes = Tastes(spec.tastes(popularity.ageing), made.history, made.history_new)
        own = tastes_of(cut.history, tastes, spec.profiles.recent_events)
        users = add_common(own, weights_of(at, popularity.ageing), learned=True).astype(np.float32)
        items = self._scaled(fitted, made, common, spec)
        rows, scores = top_items(
            users, items, K, exclude=cut.seen if at.exclude_seen else None,
            ranks=self._catalogue.index.ranks, hidden=self._catalogue.hidden,
        )  # fmt: skip
        found: np.ndarray = measure_users(Ranked(rows, scores), cut.relevant, len(items), [K])[f"ndcg@{K}"]
        return found

    def _popularity(self, half_life_days: float | None) -> tuple[Popularity, np.ndarray]:
        """Returns the popularity of items and their common axes, float64 [n, 4]."""
        counts = add_likes([count_likes(self.cut.train, self._above, half_life_days)], half_life_days)
        popularity = Popularity.of(counts)
        return popularity, popularity.learned_axes(self._catalogue.ids)

    def _fit(self, spec: FactorSpec, popularity: Popularity) -> _Fitted:
        found, at = fit_factors(self._likes, spec), self._place
        items, left = (np.zeros((len(self._known), spec.factors), np.float32) for _ in range(2))
        items[at[at >= 0]], left[at[at >= 0]] = found.item_factors[at >= 0], found.left_factors[at >= 0]
        known = self._known
        target = np.concatenate([items[known], left[known]], axis=1)
        moments = add_weighted(self._catalogue.content[known], target, self._counted[known])
        table = FactorTable(self._index, found.item_factors, found.left_factors)
        model = with_new_items(model_of(moments, self._catalogue.scale, table, popularity, 0.0), 1.0)
        return _Fitted(table, items, left, model)

    def _make(self, fitted: _Fitted, content_users: float) -> _Vectors:
        model = replace(fitted.model, content_users=content_users)
        ranking, history, new = model.item_vectors(
            self._catalogue.content, fitted.items, fitted.left, likes=self._counted, untouched=self._untouched
        )
        return _Vectors(model, ranking, history.astype(np.float32), new.astype(np.float32))

    def _scaled(self, fitted: _Fitted, made: _Vectors, common: np.ndarray, spec: LearnSpec) -> np.ndarray:
        """Returns the ranking vectors of all items, with new items scaled for their exposure: float32 [n, 2d + 4]."""
        new = self._untouched
        whole = np.concatenate([made.ranking, common], axis=1).astype(np.float32)
        if not new.any():
            return whole
        hidden = self._hidden_ids if len(self._hidden_ids) else None
        sample = sample_of(
            self._drawn, [self._touched(made)], spec, ageing=made.model.ageing, hidden=hidden
        )
        allowed = ~self._catalogue.hidden & (new | (self._counted > 0))  # as in `item_vectors.tops_of`
        tops = best_scores(sample.vectors, whole, new, allowed, self._shut(sample))
        model = finished(made.model, [tops], sample, fitted.table, spec)
        whole[new, : made.ranking.shape[1]] = model.new_items * made.ranking[new]
        whole[new, -1] = model.newness
        return whole

    def _touched(self, made: _Vectors) -> pa.Table:
        """Returns the history vectors of the items that the drawn users turned to."""
        ids = pa.table({"item_id": one_chunk(self._catalogue.ids)})
        here = np.flatnonzero(is_touched(ids, self._drawn).to_numpy())
        columns = (to_vector_column(v[here]) for v in (made.history, made.history_new))
        return ids.take(pa.array(here)).append_column(HISTORY, next(columns)).append_column(HISTORY_NEW, next(columns))

    def _shut(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        item = self._catalogue.index.lookup(sample.item_ids)
        return sample.user[item >= 0], item[item >= 0]
