"""The ranking vectors of users: a taste or a profile, and weights on the axes that are the same for all users."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.columns import RANKING, RANKING_VECTOR, TASTE
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, one_chunk, to_vector_column
from unisono.transforms.rank.model import COMMON, add_common, user_weights
from unisono.transforms.rank.spec import RankingSpec
from unisono.transforms.users.tastes import TasteSpec

_LEARNED = {"ageing", "key", "comparable"}  # what items say besides `kind_of_items`


def taste_spec(spec: RankingSpec, *, half_life_days: float | None, min_events: int) -> TasteSpec:
    """Gathers the settings of tastes. `spec.liked_above` must be set.

    Args:
        spec: the settings of the ranking.
        half_life_days: `profiles.half_life_days`.
        min_events: `profiles.min_events`.
    """
    return TasteSpec(half_life_days, spec.recent, spec.recent_half_life, spec.liked_above or 0.0, min_events)


def weights_of(spec: RankingSpec, ageing: bool) -> np.ndarray:
    """Returns the weights of users on the common axes, float64 [3].

    Args:
        spec: the settings.
        ageing: whether the log that the items were ranked by spans a week.
    """
    trend = spec.trend
    if trend is None:
        trend = 1.0 if spec.learned and ageing else 0.0
    return user_weights(trend=trend, gain=spec.gain, caution=spec.caution)


def made_with(spec: RankingSpec) -> dict[str, Any]:
    """Lists the settings that the ranking vectors of users are made with, besides the weights."""
    if spec.learned:
        names = ("recent", "recent_half_life", "liked_above")
        return {"method": "learned"} | {n: getattr(spec, n) for n in names}
    return {"method": "vectors", "fusion": spec.fusion, "weights": dict(spec.weights)}


def add_ranking_vectors(users: pa.Table, spec: RankingSpec, items: Mapping[str, Any]) -> pa.Table:
    """Turns profiles into the rows of users/: `taste` goes, `ranking_vector` comes.

    Args:
        users: a table of `profile_schema`.
        spec: the settings.
        items: what the items' files say of their ranking vectors, as `read_ranking` returns it.
    """
    if spec.learned:
        own, _ = from_vector_column(users[TASTE])
        users = users.drop_columns([TASTE])
    else:
        own = queries_of(users, spec, items.get("modalities", ()))
    vectors = add_common(own, weights_of(spec, bool(items["ageing"])), spec.learned)
    return _with_vectors(users, vectors, spec, items)


def reweigh(users: pa.Table, spec: RankingSpec, items: Mapping[str, Any]) -> pa.Table:
    """Makes the ranking vectors of published users anew with other settings.

    Args:
        users: a table of users/ with its schema metadata.
        spec: the settings.
        items: see `add_ranking_vectors`.

    Raises:
        JobError: the new settings need the log.
    """
    before = read_ranking(users.schema)
    if not spec.learned:
        own = queries_of(users, spec, items.get("modalities", ()))
    elif RANKING_VECTOR not in users.column_names or before.get("made", {}).get("method") != "learned":
        raise JobError(
            "ranking: the published users have no learned ranking vectors; run `unisono profile` or `unisono nightly`"
        )
    else:
        was, now = before.get("made", {}), made_with(spec)
        if changed := [n for n in now if was.get(n) != now[n]]:
            raise JobError(
                f"ranking.{changed[0]}: {now[changed[0]]}, the published users were made with "
                f"{was.get(changed[0])}; run `unisono profile`, or keep it"
            )
        own = from_vector_column(users[RANKING_VECTOR])[0][:, :-COMMON]
    vectors = add_common(own, weights_of(spec, bool(items["ageing"])), spec.learned)
    return _with_vectors(users, vectors, spec, items)


def is_made_with(users: pa.Schema, spec: RankingSpec, items: Mapping[str, Any]) -> bool:
    """Says whether published users have the ranking vectors that these settings make."""
    before = read_ranking(users)
    return bool(before) and before == _about(spec, items)


def read_ranking(schema: pa.Schema) -> dict[str, Any]:
    """Reads what the files of items/ or users/ say of their ranking vectors; empty if they have none."""
    found = (schema.metadata or {}).get(RANKING)
    return dict(json.loads(found)) if found else {}


def kind_of_items(spec: RankingSpec, modalities: Sequence[str] = ()) -> dict[str, Any]:
    """Lists the settings that the ranking vectors of items depend on, other than what is learned.

    Args:
        spec: the settings.
        modalities: the modalities of late fusion.
    """
    counted = {"half_life_days": spec.popularity_half_life_days, "liked_above": spec.liked_above or 0.0}
    if spec.learned:
        return {"method": "learned", "learned_with": spec.learned_with, **counted}
    late = {"modalities": list(modalities), "weights": dict(spec.weights)} if spec.fusion == "late" else {}
    return {"method": "vectors", "fusion": spec.fusion, **late, **counted}


def suits(spec: RankingSpec, modalities: Sequence[str], items: Mapping[str, Any]) -> bool:
    """Says whether published items have the ranking vectors that these settings make.

    Args:
        spec: the settings.
        modalities: the modalities of late fusion.
        items: what the published items say of their ranking vectors, see `read_ranking`.

    Raises:
        JobError: they do not, and the items must be made anew for it.
    """
    if spec.learned and items.get("method") != "learned":
        have = "have vectors that are not learned" if items else "have none"
        raise JobError(
            f"ranking: needs ranking vectors that are learned from the log, and the published items {have}; run "
            "`unisono embed` or `unisono nightly` with `ranking` and `interactions` in the job file"
        )
    wanted = kind_of_items(spec, modalities)
    for key, mine in wanted.get("learned_with", {}).items():
        if mine != items.get("learned_with", {}).get(key, mine):
            raise JobError(
                f"ranking.{key}: {mine}, the published items were made with {items['learned_with'][key]}; run "
                "`unisono embed` or `unisono nightly`, or keep it"
            )
    return all(items.get(k) == v for k, v in wanted.items()) and set(items) - set(wanted) <= _LEARNED


def _about(spec: RankingSpec, items: Mapping[str, Any]) -> dict[str, Any]:
    weights = weights_of(spec, bool(items["ageing"])).tolist()
    own = {} if spec.learned else {"interests": spec.interests or "weighted"}
    return {"made": made_with(spec) | own, "weights": weights, "items": items.get("key", "")}


def _with_vectors(
    users: pa.Table, vectors: np.ndarray, spec: RankingSpec, items: Mapping[str, Any]
) -> pa.Table:
    column = to_vector_column(vectors.astype(np.float32))
    field = pa.field(RANKING_VECTOR, column.type, nullable=False)  # Parquet stores nullable vectors as lists
    if RANKING_VECTOR in users.column_names:
        users = users.set_column(users.column_names.index(RANKING_VECTOR), field, column)
    else:
        users = users.append_column(field, column)
    about = {RANKING: json.dumps(_about(spec, items), sort_keys=True).encode()}
    return users.replace_schema_metadata({**(users.schema.metadata or {}), **about})


# --- profiles as queries -----------------------------------------------------------------------------------


def queries_of(users: pa.Table, spec: RankingSpec, modalities: Sequence[str] = ()) -> np.ndarray:
    """Turns profiles into the vectors that are compared with item vectors, for `ranking.method: vectors`.

    With late fusion, a query holds the user's vectors of all modalities one after the other, each multiplied by the
    weight of its modality, and zeros for a modality without a vector. With `interests: weighted`, it is the sum of
    the user's interests, each by its weight; a user without interests is served by the profile.

    Args:
        users: profiles with the columns `vector` and `interests`; for late fusion, with a column `<m>_vector` for each
            of `modalities`.
        spec: the settings.
        modalities: the modalities of late fusion, in the order of `late_matrix`.

    Returns:
        float32 [u, dim], or [u, modalities · dim] for late fusion.
    """
    if spec.fusion == "late":
        parts = []
        for m in modalities:
            vectors, present = from_vector_column(users[f"{m}_vector"])
            parts.append(np.where(present[:, None], vectors * np.float32(spec.weights.get(m, 1.0)), np.float32(0)))
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)
    vectors, _ = from_vector_column(users["vector"])
    if spec.interests == "profile" or "interests" not in users.column_names:
        return vectors
    flat, weight, counts = read_interests(users["interests"])
    out = np.zeros((users.num_rows, vectors.shape[1]))
    np.add.at(out, np.repeat(np.arange(users.num_rows), counts), flat * weight[:, None].astype(np.float64))
    return np.where((counts > 0)[:, None], out, vectors).astype(np.float32)


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
