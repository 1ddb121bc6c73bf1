"""The users whose lists the scale of new items is chosen on, with the ranking vectors that they will have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import HISTORY, HISTORY_NEW
from unisono.transforms.base.tables import concat_tables, from_vector_column, hash_ids, one_chunk
from unisono.transforms.rank.item_vectors import Sample
from unisono.transforms.rank.model import add_common
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.rank.user_vectors import taste_spec, weights_of
from unisono.transforms.users.history import leave_out_repeats_and_robots, order_history
from unisono.transforms.users.profiles import ProfileSpec
from unisono.transforms.users.tastes import Tastes, TasteSpec, tastes_of


@dataclass(frozen=True)
class LearnSpec:
    """The settings that ranking vectors are learned with.

    Attributes:
        ranking: the section `ranking`, with `liked_above` set.
        profiles: the section `profiles`.
    """

    ranking: RankingSpec
    profiles: ProfileSpec

    def tastes(self, ageing: bool) -> TasteSpec:
        """Returns the settings of tastes for a log that spans a week, or less."""
        at = self.profiles
        found = taste_spec(self.ranking, half_life_days=at.half_life_days, min_events=at.min_events)
        return found.after(ageing)


@dataclass(frozen=True, eq=False)
class TouchedItems:
    """The items that the sampled users turned to.

    Attributes:
        ids: [n], distinct.
        ranks: int64 [n], as in `ItemMatrix`.
    """

    ids: pa.Array
    ranks: np.ndarray

    @classmethod
    def of(cls, ids: pa.Array) -> TouchedItems:
        """Ranks items by the hash of their id."""
        ranks = np.empty(len(ids), np.int64)
        ranks[np.argsort(hash_ids(ids), kind="stable")] = np.arange(len(ids))
        return cls(ids, ranks)

    def lookup(self, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Finds the row of each id, int64 [m]; −1 where the item is unknown."""
        found = pc.index_in(one_chunk(ids).cast(self.ids.type), value_set=self.ids)
        return found.fill_null(-1).to_numpy().astype(np.int64)


def is_touched(table: pa.Table, events: pa.Table) -> pa.ChunkedArray:
    """Says which items of a table with `item_id` occur in events, bool [n]."""
    ids = table["item_id"]
    return pc.is_in(ids, value_set=one_chunk(events["item_id"]).unique().cast(ids.type))


def touched_rows(table: pa.Table, events: pa.Table) -> pa.Table:
    """Selects from a table of `learned_columns` the history vectors of the items that occur in events."""
    return table.filter(is_touched(table, events)).select(["item_id", HISTORY, HISTORY_NEW])


def sample_of(
    events: pa.Table,
    touched: Sequence[pa.Table],
    spec: LearnSpec,
    *,
    ageing: bool,
    hidden: pa.Array | None = None,
) -> Sample:
    """Makes the ranking vectors of the users whose lists the scale of new items is chosen on.

    Args:
        events: the events of these users, see `exposure.draw_users`.
        touched: the history vectors of their items in any number of tables, see `touched_rows`.
        spec: the settings.
        ageing: whether the log spans at least a week.
        hidden: ids of the items that must not be recommended. None means that there are none.
    """
    ids, width = one_chunk(events["item_id"]).slice(0, 0), spec.ranking.factors
    history_vectors = history_new = np.zeros((0, width), np.float32)
    if touched:
        table = concat_tables(list(touched))
        ids = one_chunk(table["item_id"])
        history_vectors, history_new = (from_vector_column(table[c])[0] for c in (HISTORY, HISTORY_NEW))
    at = spec.profiles
    history, _ = order_history(events, TouchedItems.of(ids))
    history, _ = leave_out_repeats_and_robots(
        history, at.session_minutes, at.max_events_per_day, at.robots == "drop"
    )
    own = tastes_of(history, Tastes(spec.tastes(ageing), history_vectors, history_new), at.recent_events)
    vectors = add_common(own, weights_of(spec.ranking, ageing), learned=True)
    seen = events.filter(pc.not_equal(events["weight"], 0.0)) if spec.ranking.exclude_seen else events.slice(0, 0)
    user = pc.index_in(one_chunk(seen["user_id"]).cast(history.user_ids.type), value_set=history.user_ids)
    there = user.is_valid()
    return Sample(
        vectors.astype(np.float32),
        user.drop_null().to_numpy().astype(np.int64),
        one_chunk(seen["item_id"]).filter(there),
        hidden,
    )
