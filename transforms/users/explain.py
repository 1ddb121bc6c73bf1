"""Explanations of scores: a user's vectors as sums of what each event contributed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import History
from unisono.transforms.users.interests import interest_members
from unisono.transforms.users.profiles import ProfileSpec
from unisono.transforms.users.sums import decay
from unisono.transforms.users.tastes import Tastes, event_weights


def profile_parts(
    history: History,
    items: ItemMatrix,
    modalities: Mapping[str, np.ndarray],
    spec: ProfileSpec,
    cold: bool,
    length: float | None = None,
) -> np.ndarray:
    """Splits a user's profile into the contributions of the user's events.

    Without refinement, the contribution of event e is w_e · v_e / ‖Σ w·v‖. With refinement, the share that the event
    has in the attended vectors is added.

    Args:
        history: all events of one user that count.
        items: the item matrix.
        modalities: the items' vectors in each modality, float32 [items, dim], zero rows where missing.
        spec: the settings that the profile was built with.
        cold: whether the user is cold. The prior contributes to such a profile too, so the contributions of the
            events are then not scaled to the length of the profile. They add up to n · (Σ w·v / Σ |w|), as in
            `directions.directions_of`.
        length: ‖Σ w·v‖ over all events of the user, if `history` does not have all. None means that it does.

    Returns:
        float64 [events, dim]. The rows add up to the profile, unless the user is cold.
    """
    weight = _weight_now(history, spec)
    vectors = np.asarray(items.vectors)[history.rows].astype(np.float64)
    parts = weight[:, None] * vectors
    if cold:
        return parts * (len(weight) / np.abs(weight).sum()) if len(weight) else parts
    parts /= np.linalg.norm(parts.sum(0)) if length is None else length
    if spec.delta == 1:
        return parts
    profile = parts.sum(0)
    attended, used = np.zeros_like(parts), 0
    for matrix in modalities.values():
        share, seen = _attention(history, weight, matrix, profile, spec)
        used += bool(share.any())
        attended += share[:, None] * seen
    if not used:
        return parts
    mixed = spec.delta * parts + (1 - spec.delta) * attended / used
    return mixed / np.linalg.norm(mixed.sum(0))


def taste_parts(
    history: History, tastes: Tastes, recent: int, *, newest: int, events: int, older: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the two blocks of a user's taste into the contributions of the user's events.

    Args:
        history: the events of one user.
        tastes: the history vectors, and the settings that the taste was made with.
        recent: `profiles.recent_events`.
        newest: the time of the user's newest event, in `history` or not, microseconds since 1970.
        events: the number of all events of the user.
        older: float64 [2d], the sums over events that `history` does not have, see `tastes.sum_older`. None means that
            it has all.

    Returns:
        float64 [events, d] each: for items with events, and for new items. The rows add up to the block, without what
        `older` adds.
    """
    long, late = event_weights(history, np.array([newest]), tastes.spec)
    latest = np.arange(len(long)) >= len(long) - recent
    weight = long + (tastes.spec.recent or 0.0) * np.where(latest, late, 0.0)
    warm = weight[:, None] * tastes.history[history.rows].astype(np.float64)
    new = np.where(history.weight > tastes.spec.liked_above, history.weight, 0.0)[:, None] * tastes.history_new[
        history.rows
    ].astype(np.float64)
    d = tastes.history.shape[1]
    share = min(1.0, events / tastes.spec.min_events)
    parts = []
    for rows, rest in ((warm, slice(0, d)), (new, slice(d, None))):
        length = np.linalg.norm(rows.sum(0) + (0.0 if older is None else older[rest]))
        parts.append(rows * (share / length) if length > 0 else np.zeros_like(rows))
    return parts[0], parts[1]


def _weight_now(history: History, spec: ProfileSpec) -> np.ndarray:
    """Returns the weights of one user's events after decay, float64 [events]."""
    if len(history.time) == 0:
        return history.weight
    return history.weight * decay(history.time[-1] - history.time, spec.half_life_days)


def _attention(
    history: History, weight: np.ndarray, matrix: np.ndarray, profile: np.ndarray, spec: ProfileSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each event's share of attention in one modality, float64 [events], and its item's vector there.

    The shares add up to 1, or are all 0 if no recent liked item has the modality; `attention.ModalityView` has the
    formula.
    """
    vectors = matrix[history.rows].astype(np.float64)
    recent = np.arange(len(weight)) >= len(weight) - spec.recent_events
    open_ = recent & (weight > 0) & vectors.any(1)
    share = np.where(open_, weight, 0.0) * np.exp((vectors @ profile - 1) / spec.temperature)
    return (share / share.sum() if share.any() else share), vectors


def interest_parts(history: History, items: ItemMatrix, spec: ProfileSpec, number: int) -> np.ndarray:
    """Splits one interest of a user into the contributions of the user's events.

    Args:
        history: all events of one user that count.
        items: the item matrix.
        spec: the settings that the interests were found with.
        number: index of the interest in the user's list.

    Returns:
        float64 [events, dim]. The rows add up to the vector of the interest.

    Raises:
        JobError: numba is not installed.
    """
    weight = _weight_now(history, spec)
    recent = history.newest(spec.recent_events)
    gone = len(history.time) - len(recent.time)
    member = interest_members(recent, weight[gone:], items, most=max(spec.interests, 1), split=spec.interest_split)
    inside = np.array([member.get(row) == number for row in history.rows.tolist()], bool)
    inside[:gone] = False
    parts = np.where(inside, weight, 0.0)[:, None] * np.asarray(items.vectors)[history.rows]
    norm = np.linalg.norm(parts.sum(0))
    return parts / norm if norm > 0 else parts


def modality_parts(history: History, matrix: np.ndarray, spec: ProfileSpec) -> np.ndarray:
    """Splits a user's vector of one modality into the contributions of the user's events.

    Args:
        history: all events of one user that count.
        matrix: the items' vectors in the modality, float32 [items, dim], zero rows where missing.
        spec: the settings that the vector was built with.

    Returns:
        float64 [events, dim]. The rows add up to the vector of the modality.
    """
    weight = _weight_now(history, spec)
    weight[: max(0, len(weight) - spec.recent_events)] = 0
    parts = np.maximum(weight, 0)[:, None] * matrix[history.rows]
    norm = np.linalg.norm(parts.sum(0))
    return parts / norm if norm > 0 else parts
