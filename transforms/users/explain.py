"""Explanations of scores: a user's vectors as sums of what each event contributed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import History
from unisono.transforms.users.interests import interest_members
from unisono.transforms.users.profiles import ProfileSpec
from unisono.transforms.users.sums import decay


def profile_parts(
    history: History, items: ItemMatrix, modalities: Mapping[str, np.ndarray], spec: ProfileSpec, cold: bool
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

    Returns:
        float64 [events, dim]. The rows add up to the profile, unless the user is cold.
    """
    weight = _weight_now(history, spec)
    vectors = np.asarray(items.vectors)[history.rows].astype(np.float64)
    parts = weight[:, None] * vectors
    if cold:
        return parts * (len(weight) / np.abs(weight).sum()) if len(weight) else parts
    parts /= np.linalg.norm(parts.sum(0))
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
