"""The model behind learned ranking vectors: how factors and content become the ranking vectors of items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.numpy

from unisono.transforms.base.columns import row_lengths
from unisono.transforms.rank.content import ContentScale, solve_content
from unisono.transforms.space.fit.moments import Moments

COMMON = 4  # the axes that are the same for all users: popularity of late, popularity, uncertainty, newness
WEEK_US = 7 * 86_400_000_000  # the order of events says nothing about trends in a shorter log
_NEW_RIDGE = 0.3  # in mean squares of a factor; chosen on MovieLens-100k's new items
_NOTHING = 1e-6  # a factor of this size comes from rounding
_FLOOR = 1e-3  # in mean variances of a factor: the least variance of a direction


@dataclass(frozen=True, eq=False)
class RankingModel:
    """Maps from factors and content to ranking vectors and history vectors.

    The factors are turned so that the item factors have unit covariance. The length of a user's sum of left factors is
    then the standard deviation of that user's scores, so scores of all users are of one size.

    Attributes:
        turn: item factors times this are the ranking vectors of items with likes, float64 [d, d].
        turn_left: left factors times this are history vectors, float64 [d, d].
        turn_new: item factors times this are history vectors for new items, float64 [d, d].
        scale: how embeddings become content columns.
        content: content columns times this predict [item factors | left factors], float64 [k, 2d].
        content_users: with this many likes, the history vector of an item is half what its content predicts.
        new_items: s, the scale of the ranking vectors of items without any event.
        newness: what is added to the score of such an item, at most 0. A few good matches are then shown rather than
            many fair ones.
        ageing: whether the log spans at least a week.
        comparable: keys of earlier models whose sums of history vectors can be added to.
    """

    turn: np.ndarray
    turn_left: np.ndarray
    turn_new: np.ndarray
    scale: ContentScale
    content: np.ndarray
    content_users: float = 0.0
    new_items: float = 0.0
    newness: float = 0.0
    ageing: bool = False
    comparable: tuple[str, ...] = field(default=())

    @property
    def factors(self) -> int:
        """d, the number of factors."""
        return len(self.turn)

    @property
    def key(self) -> str:
        """Names the history vectors. It changes whenever one of them could."""
        parts = (self.turn_left, self.turn_new, self.content, np.array(self.content_users))
        body = b"".join(part.tobytes() for part in parts)
        return hashlib.sha256(body).hexdigest()[:16]

    def item_vectors(
        self, content: np.ndarray, factors: np.ndarray, left: np.ndarray, *, likes: np.ndarray, untouched: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Computes the vectors of some items.

        Args:
            content: float64 [n, k], the items' content columns.
            factors: float [n, d], the items' factors; zeros where an item has none.
            left: float [n, d], the items' left factors.
            likes: int64 [n], the users who like the item; 0 where it has no factors.
            untouched: bool [n], where an item has no event at all.

        Returns:
            The ranking vectors without the common axes, float64 [n, 2d]; the history vectors and the history vectors
            for new items, float64 [n, d] each. A history vector leans on what content predicts, wholly for an item
            without factors, and half for one with `content_users` likes.
        """
        d = self.factors
        predicted = content @ self.content
        taken, taken_left = predicted[:, :d], predicted[:, d:]
        here = likes[:, None] > 0
        share = np.where(here, likes[:, None] / np.maximum(likes[:, None] + self.content_users, 1e-30), 0.0)
        ranking = np.concatenate(
            [
                np.where(here, factors @ self.turn, 0.0),
                np.where(untouched[:, None], self.new_items * (taken @ self.turn), 0.0),
            ],
            axis=1,
        )
        history = (share * left + (1 - share) * taken_left) @ self.turn_left
        return ranking, history, (share * factors + (1 - share) * taken) @ self.turn_new

    def to_bytes(self) -> bytes:
        """Returns the model as a safetensors file."""
        about = {
            "content_users": self.content_users,
            "new_items": self.new_items,
            "newness": self.newness,
            "ageing": self.ageing,
            "comparable": list(self.comparable),
            "sizes": dict(self.scale.sizes),
        }
        tensors = {n: np.ascontiguousarray(getattr(self, n)) for n in ("turn", "turn_left", "turn_new", "content")}
        tensors |= {f"mean.{m}": np.ascontiguousarray(v) for m, v in self.scale.means.items()}
        return safetensors.numpy.save(tensors, {"unisono": json.dumps(about, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> RankingModel:
        """Reads what `to_bytes` returned."""
        tensors = safetensors.numpy.load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about: dict[str, Any] = json.loads(head["__metadata__"]["unisono"])
        sizes = about["sizes"]
        scale = ContentScale({m: tensors[f"mean.{m}"] for m in sorted(sizes)}, {m: sizes[m] for m in sorted(sizes)})
        return cls(
            turn=tensors["turn"],
            turn_left=tensors["turn_left"],
            turn_new=tensors["turn_new"],
            scale=scale,
            content=tensors["content"],
            content_users=about["content_users"],
            new_items=about["new_items"],
            newness=about["newness"],
            ageing=about["ageing"],
            comparable=tuple(about["comparable"]),
        )


def solve_model(
    factors: np.ndarray,
    moments: Moments,
    scale: ContentScale,
    *,
    width: int,
    ageing: bool,
    content_users: float = 0.0,
) -> RankingModel:
    """Solves everything but the scale of new items.

    Args:
        factors: V, float [n, d], the factors of all items that somebody likes.
        moments: the weighted moments of content and [item factors | left factors], see `content.add_weighted`.
        scale: how embeddings become content columns.
        width: d, for a log in which nobody likes anything.
        ageing: whether the log spans at least a week.
        content_users: see `RankingModel`.
    """
    v = np.asarray(factors, np.float64).reshape(-1, width)
    if not v.size or np.abs(v).max() < _NOTHING:  # as much as zero: no direction means anything
        v = np.zeros((0, width))
    spread = v - v.mean(0) if len(v) else v
    covariance = spread.T @ spread / max(len(v), 1)
    size = max(np.trace(covariance) / width, 1e-30)
    values, axes = np.linalg.eigh(covariance + _FLOOR * size * np.eye(width))
    whiten, unwhiten = (axes * values**-0.5) @ axes.T, (axes * values**0.5) @ axes.T
    gram = v.T @ v
    ridge = _NEW_RIDGE * max(np.trace(gram) / width, 1e-30)
    turn_new = np.linalg.inv(gram + ridge * np.eye(width)) @ unwhiten
    columns = sum(len(m) for m in scale.means.values())
    content = solve_content(moments, columns, 2 * width)
    if not len(v):
        nothing = np.zeros((width, width))
        return RankingModel(nothing, nothing, nothing, scale, np.zeros_like(content), content_users, ageing=ageing)
    return RankingModel(whiten, unwhiten, turn_new, scale, content, content_users, ageing=ageing)


def with_new_items(
    model: RankingModel, new_items: float, comparable: Sequence[str] = (), newness: float = 0.0
) -> RankingModel:
    """Sets the scale of new items, their newness and the comparable keys."""
    return replace(model, new_items=new_items, comparable=tuple(comparable), newness=newness)


def common_axes(late: np.ndarray, likes: np.ndarray, most_late: float, most_likes: float) -> np.ndarray:
    """Computes the axes of items that are the same for all users, all but newness.

    Args:
        late: float64 [n], the users who like the item, counted less the longer ago it was.
        likes: int64 [n], the users who like the item.
        most_late: the largest `late` of all items.
        most_likes: the largest `likes` of all items.

    Returns:
        float64 [n, 3]: log(1 + late) / log(1 + max late), log(1 + likes) / log(1 + max likes), 1 / √(1 + likes).
    """
    parts = [np.log1p(n) / np.log1p(most) if most > 0 else np.zeros(len(n)) for n, most in
             ((late, most_late), (likes, most_likes))]  # fmt: skip
    return np.stack([*parts, 1 / np.sqrt(1.0 + likes)], axis=1)


def user_weights(*, trend: float, gain: float, caution: float) -> np.ndarray:
    """Returns the weights of users on the common axes, float64 [4].

    Args:
        trend: what an item gains that is more popular of late than over the whole log.
        gain: what the most popular item of late gains.
        caution: what an item loses that nobody likes.
    """
    return np.array([trend + gain, 0.0 - trend, 0.0 - caution, 1.0])  # 0 − 0 is 0, and −0 would show as such


def add_common(tastes: np.ndarray, weights: np.ndarray, learned: bool) -> np.ndarray:
    """Completes the ranking vectors of users.

    A user without a taste is served by what is popular of late. With part of a taste, such as a user with fewer than
    `profiles.min_events` events, the two are mixed.

    Args:
        tastes: float32 [u, w]. For learned vectors, two blocks as `tastes.taste_vectors` returns them.
        weights: as `user_weights` returns them.
        learned: whether the tastes are learned. Otherwise all users have the weights as they are.

    Returns:
        float32 [u, w + 4].
    """
    common = np.tile(weights, (len(tastes), 1))
    if learned:
        half = tastes.shape[1] // 2
        lengths = np.maximum(row_lengths(tastes[:, :half]), row_lengths(tastes[:, half:])).astype(np.float64)
        share = np.minimum(lengths, 1.0)[:, None]
        share[share > 1 - 1e-6] = 1.0
        alone = np.array([1.0, 0.0, *weights[2:]])
        common = share * common + (1 - share) * alone
    return np.concatenate([tastes, common.astype(np.float32)], axis=1)
