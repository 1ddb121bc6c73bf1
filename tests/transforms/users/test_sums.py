"""Decay and sums over the events of users, against plain loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from unisono.transforms.users.sums import add_rows, decay, segment_sums

DAY_US = 86_400_000_000
COUNTS = np.array([0, 3, 0, 1, 7, 0])  # the events of each user; some have none, also the first and the last
FIRST = np.concatenate([[0], np.cumsum(COUNTS)])


@pytest.mark.parametrize("half_life", [0.5, 30.0])
def test_an_event_counts_half_after_a_half_life(half_life: float) -> None:
    days = np.array([0.0, half_life, 3 * half_life, 0.25])
    found = decay((days * DAY_US).astype(np.int64), half_life)
    np.testing.assert_allclose(found, [1, 0.5, 0.125, 0.5 ** (0.25 / half_life)], rtol=1e-12)


def test_without_a_half_life_nothing_ages() -> None:
    assert decay(np.array([0, 10**15]), None).tolist() == [1.0, 1.0]
    assert decay(np.empty(0, np.int64), None).shape == (0,)


def test_a_very_old_event_counts_nothing() -> None:
    assert decay(np.array([20_000 * DAY_US]), 1.0).tolist() == [0.0]


def test_rows_are_added_for_each_user_alone() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((5, 9)).astype(np.float32)
    rows, weight = rng.integers(0, 5, COUNTS.sum()), rng.standard_normal(COUNTS.sum())
    found = add_rows(matrix, rows, weight, FIRST)
    assert found.dtype == np.float64
    for user, (a, b) in enumerate(pairwise(FIRST.tolist())):
        expected = np.zeros(9)
        for row, w in zip(rows[a:b], weight[a:b], strict=True):
            expected += w * matrix[row].astype(np.float64)
        np.testing.assert_allclose(found[user], expected, atol=1e-12)
    assert not found[COUNTS == 0].any()


def test_many_users_are_added_in_threads_as_alone() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 60, 900)
    first = np.concatenate([[0], np.cumsum(counts)])
    matrix = rng.standard_normal((50, 4)).astype(np.float32)
    rows, weight = rng.integers(0, 50, first[-1]), rng.random(first[-1])
    found = add_rows(matrix, rows, weight, first)
    for user in (0, 450, 899):
        part = slice(first[user], first[user + 1])
        alone = add_rows(matrix, rows[part], weight[part], np.array([0, counts[user]]))
        np.testing.assert_array_equal(found[user], alone[0])


def test_values_are_added_for_each_user() -> None:
    values = np.arange(float(COUNTS.sum()))
    expected = [sum(values[a:b].tolist()) for a, b in pairwise(FIRST)]
    assert segment_sums(values, FIRST).tolist() == expected
    assert segment_sums(np.empty(0), np.zeros(3, int)).tolist() == [0.0, 0.0]
