"""Why a user was matched with an item: the score as a sum over modalities, and over the user's events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.history import History
from unisono.transforms.users.interests import interest_members
from unisono.transforms.users.profiles import ProfileSpec
from unisono.transforms.users.state import decay


def profile_parts(
    history: History, items: ItemMatrix, modalities: Mapping[str, np.ndarray], spec: ProfileSpec, cold: bool
) -> np.ndarray:
    """Splits a user's profile into what each event brought: float64 [events, dim], whose sum is the profile.

    Args:
        history: of one user, all events that count.
        cold: the user is; what is missing to the profile is the prior's part then, and the parts are scaled
            as if it had no length of its own (see `unisono.transforms.users.profiles.profiles_of`).

    Without refinement part e is w_e · v_e / ‖Σ w·v‖; with it the attended vectors of the recent events join.
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
    if len(history.time) == 0:
        return history.weight
    return history.weight * decay(history.time[-1] - history.time, spec.half_life_days)


def _attention(
    history: History, weight: np.ndarray, matrix: np.ndarray, profile: np.ndarray, spec: ProfileSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Gives each event's share of attention in a modality, and the item's vector there."""
    vectors = matrix[history.rows].astype(np.float64)
    recent = np.arange(len(weight)) >= len(weight) - spec.recent_events
    open_ = recent & (weight > 0) & vectors.any(1)
    share = np.where(open_, weight, 0.0) * np.exp((vectors @ profile - 1) / spec.temperature)
    return (share / share.sum() if share.any() else share), vectors


def interest_parts(history: History, items: ItemMatrix, spec: ProfileSpec, number: int) -> np.ndarray:
    """Splits one interest of a user, by its place, into what each event brought: float64 [events, dim]."""
    weight = _weight_now(history, spec)
    recent = history.newest(spec.recent_events)
    gone = len(history.time) - len(recent.time)
    member = interest_members(recent, weight[gone:], items, max(spec.interests, 1), spec.interest_split)
    inside = np.array([member.get(row) == number for row in history.rows.tolist()], bool)
    inside[:gone] = False
    parts = np.where(inside, weight, 0.0)[:, None] * np.asarray(items.vectors)[history.rows]
    norm = np.linalg.norm(parts.sum(0))
    return parts / norm if norm > 0 else parts


def modality_parts(history: History, matrix: np.ndarray, spec: ProfileSpec) -> np.ndarray:
    """Splits a user's vector of one modality into what each event brought: float64 [events, dim]."""
    weight = _weight_now(history, spec)
    weight[: max(0, len(weight) - spec.recent_events)] = 0
    parts = np.maximum(weight, 0)[:, None] * matrix[history.rows]
    norm = np.linalg.norm(parts.sum(0))
    return parts / norm if norm > 0 else parts


def of_one_user(history: History, user: int) -> History:
    """Cuts one user's events out of a history."""
    where = slice(int(history.first[user]), int(history.first[user + 1]))
    return replace(
        history,
        user_ids=history.user_ids.slice(user, 1),
        first=np.array([0, where.stop - where.start]),
        time=history.time[where],
        rows=history.rows[where],
        weight=history.weight[where],
    )
