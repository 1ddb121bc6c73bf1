"""Who likes what: liked pairs of users and items, by user and by item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unisono.transforms.base.tables import one_chunk

_MILLIONTHS = 1e6  # weights are added as whole millionths: sums of floats depend on the order of the rows


def liked_pairs(events: pa.Table, liked_above: float) -> pa.Table:
    """Finds the pairs of a user and an item that the user likes.

    A pair is liked if the weight of at least one of its events is above `liked_above`, and the weights of all its
    events sum to more than 0. An event whose weight is 0 or negative never makes a pair liked.

    Args:
        events: user_id, item_id and weight, in any order.
        liked_above: see above. A value below 0 counts as 0.

    Returns:
        A table of user_id and item_id, each pair once, in no particular order.
    """
    weight = events["weight"]
    millionths = pc.round(pc.multiply(weight, _MILLIONTHS)).cast(pa.int64())
    pairs = pa.table({
        "user_id": events["user_id"],
        "item_id": events["item_id"],
        "likes": pc.greater(weight, max(liked_above, 0.0)),
        "total": millionths,
    })
    pairs = pairs.group_by(["user_id", "item_id"]).aggregate([("likes", "any"), ("total", "sum")])
    liked = pairs.filter(pc.and_(pairs["likes_any"], pc.greater(pairs["total_sum"], 0)))
    return liked.select(["user_id", "item_id"])


@dataclass(frozen=True, eq=False)
class Likes:
    """Liked pairs as two sparse matrices, by user and by item. Users and items without a like are not in it.

    Attributes:
        user_ids: [u], ascending.
        item_ids: [m], ascending.
        first_of_user: int64 [u + 1]: user i likes the items `items[first_of_user[i] : first_of_user[i + 1]]`.
        items: int32 [p], positions in `item_ids`; ascending for each user.
        first_of_item: int64 [m + 1]: the users of item j are `users[first_of_item[j] : first_of_item[j + 1]]`.
        users: int32 [p], positions in `user_ids`; ascending for each item.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    first_of_user: np.ndarray
    items: np.ndarray
    first_of_item: np.ndarray
    users: np.ndarray

    @classmethod
    def of(cls, pairs: pa.Table) -> Likes:
        """Sorts pairs by user and by item.

        Args:
            pairs: user_id and item_id, each pair once, in any order, such as `liked_pairs` returns them.
        """
        user_ids, user = _numbered(pairs["user_id"])
        item_ids, item = _numbered(pairs["item_id"])
        first_of_user, items = _grouped(user, item, len(user_ids), len(item_ids))
        first_of_item, users = _grouped(item, user, len(item_ids), len(user_ids))
        return cls(user_ids, item_ids, first_of_user, items, first_of_item, users)


def _numbered(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Returns the distinct ids of a column, ascending, and the position of each row's id among them, int32 [n]."""
    encoded = one_chunk(one_chunk(column).dictionary_encode())
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return encoded.dictionary.take(pa.array(order)), place[encoded.indices.to_numpy()]


def _grouped(row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each row begins, int64 [rows + 1], and the columns of each row, ascending, int32 [n]."""
    keys = row.astype(np.int64)
    keys *= max(columns, 1)
    keys += column
    keys.sort()
    first = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=rows), out=first[1:])
    keys %= max(columns, 1)
    return first, keys.astype(np.int32)
