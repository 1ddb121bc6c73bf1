"""Recommendation lists as tables: how they are made, merged and made diverse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.tables import hash_ids, one_chunk
from unisono.transforms.store.item_matrix import ItemMatrix

_MMR_USERS = 64  # users whose candidates are compared with each other at once


def recommendation_schema(user_type: pa.DataType, item_type: pa.DataType) -> pa.Schema:
    """Returns the schema of the files in recommendations/; items and scores are best first."""
    return pa.schema(
        [("user_id", user_type), ("item_ids", pa.list_(item_type)), ("scores", pa.list_(pa.float32()))]
    )


def list_table(users: pa.ChunkedArray, ids: pa.Array, scores: np.ndarray, counts: np.ndarray) -> pa.Table:
    """Makes a table of `recommendation_schema`.

    Args:
        users: ids of the users, [n].
        ids: ids of the listed items, the lists of all users one after the other.
        scores: float32, the score of each listed item.
        counts: int64 [n], the length of each user's list.
    """
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    columns = [
        one_chunk(users),
        pa.ListArray.from_arrays(ends, ids),
        pa.ListArray.from_arrays(ends, pa.array(scores, pa.float32())),
    ]
    return pa.table(columns, schema=recommendation_schema(users.type, ids.type))


def merge_ranked(parts: Sequence[pa.Table], k: int) -> pa.Table:
    """Merges the lists of the same users on several slices of the items.

    Args:
        parts: tables of `recommendation_schema`, one for each slice, with the same users in the same order.
        k: length of the merged lists.

    Returns:
        Each user's best k items. Items with equal scores are sorted by the hash of their id.
    """
    if len(parts) == 1:
        return parts[0]
    n = parts[0].num_rows
    user = np.concatenate([np.repeat(np.arange(n), pc.list_value_length(p["item_ids"]).to_numpy()) for p in parts])
    ids = pa.concat_arrays([one_chunk(p["item_ids"]).flatten() for p in parts])
    scores = np.concatenate([one_chunk(p["scores"]).flatten().to_numpy() for p in parts])
    order = np.lexsort((hash_ids(ids), -scores, user))
    start = np.searchsorted(user[order], np.arange(n))
    kept = order[np.arange(len(order)) - start[user[order]] < k]
    counts = np.bincount(user[kept], minlength=n)
    return list_table(parts[0]["user_id"], ids.take(pa.array(kept)), scores[kept], counts)


def diversify(ranked: pa.Table, items: ItemMatrix, k: int, diversity: float) -> pa.Table:
    """Chooses k of each user's candidates by maximal marginal relevance.

    The next item in a list is the candidate with the highest (1 − diversity) · score − diversity · (highest cosine
    with an item that was already chosen).

    Args:
        ranked: candidates, a table of `recommendation_schema`.
        items: the item matrix.
        k: length of the lists.
        diversity: from 0 to 1.

    Returns:
        A table of `recommendation_schema`. The scores are those of `ranked`, so they need not fall along a list.

    Source: Carbonell and Goldstein, "The use of MMR", SIGIR 1998.
    """
    counts = pc.list_value_length(ranked["item_ids"]).to_numpy()
    flat = one_chunk(ranked["item_ids"]).flatten()
    values = one_chunk(ranked["scores"]).flatten().to_numpy()
    ends = np.concatenate([[0], np.cumsum(counts)])
    rows = items.lookup(flat)
    width = int(counts.max(initial=0))
    chosen: list[np.ndarray] = []
    for start in range(0, ranked.num_rows, _MMR_USERS):
        block = slice(start, min(start + _MMR_USERS, ranked.num_rows))
        place = ends[:-1][block, None] + np.arange(width)
        real = np.arange(width) < counts[block, None]
        place = np.where(real, place, 0)
        if width == 0:
            break
        vectors = np.asarray(items.vectors)[rows[place]]
        alike = vectors @ vectors.transpose(0, 2, 1)  # one product for each user, so blocks do not change the result
        gain = np.where(real, (1 - diversity) * values[place].astype(np.float64), -np.inf)
        nearest = np.zeros(gain.shape)
        who = np.arange(len(gain))
        for step in range(min(k, width)):
            pick = np.argmax(gain - diversity * nearest, axis=1)
            open_ = np.isfinite(gain[who, pick])
            chosen.append(np.stack([place[who, pick], who + start, np.full(len(who), step)])[:, open_])
            likeness = alike[who, pick].astype(np.float64)
            nearest = likeness if step == 0 else np.maximum(nearest, likeness)
            gain[who, pick] = -np.inf
    picked, user, step_of = np.concatenate(chosen, axis=1) if chosen else np.empty((3, 0), np.int64)
    picked = picked[np.lexsort((step_of, user))]
    per_user = np.bincount(user, minlength=ranked.num_rows)
    return list_table(ranked["user_id"], flat.take(pa.array(picked)), values[picked], per_user)
