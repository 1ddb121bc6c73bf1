"""Ranking metrics, compared with scikit-learn and with plain code over sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.rank_metrics import (
    Ranked,
    area_under_curve,
    bootstrap_interval,
    keep_candidates,
    measure_lists,
    measure_users,
)

KS = (1, 5, 10, 40)


def pairs_of(relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The held-out pairs of a mask [u, n]: user indices and item indices."""
    user, item = np.nonzero(relevant)
    return user, item


def example(seed: int, levels: int | None, users: int = 60, items: int = 30) -> tuple[np.ndarray, np.ndarray, Ranked]:
    """Draws scores [u, n] and held-out items [u, n], and ranks the items.

    Each user has seen some items, which are not candidates. User 0 has no held-out item, user 1 has all but two held
    out, and user 2 has no candidate that is not held out.

    Args:
        seed: seed of the random numbers.
        levels: number of different scores. None means that all scores are different.
        users: u.
        items: n.
    """
    rng = np.random.default_rng(seed)
    scores = rng.random((users, items)) if levels is None else rng.integers(0, levels, (users, items)) / levels
    relevant = rng.random((users, items)) < 0.15
    relevant[0], relevant[1] = False, True
    relevant[1, :2] = False
    seen = (rng.random((users, items)) < 0.3) & ~relevant
    seen[2] = ~relevant[2]
    scores = np.where(seen, -np.inf, scores)
    order = np.lexsort((np.broadcast_to(rng.permutation(items), scores.shape), -scores))
    falling = np.take_along_axis(scores, order, 1)
    return scores, relevant, Ranked(np.where(falling > -np.inf, order, -1), falling)


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_measures_equal_set_code(levels: int | None) -> None:
    _, relevant, ranked = example(1, levels)
    found = measure_users(ranked, pairs_of(relevant), relevant.shape[1], KS)
    for u in range(len(relevant)):
        wanted = set(np.flatnonzero(relevant[u]).tolist())
        row = [i for i in ranked.items[u].tolist() if i >= 0]
        for k in KS:
            if not wanted:
                names = ("precision", "recall", "ndcg", "map", "hit", "mrr")
                assert all(math.isnan(found[f"{m}@{k}"][u]) for m in names)
                continue
            top = row[:k]
            ranks = [i for i, item in enumerate(top, 1) if item in wanted]
            assert found[f"recall@{k}"][u] == pytest.approx(len(wanted & set(top)) / len(wanted))
            assert found[f"precision@{k}"][u] == pytest.approx(len(wanted & set(top)) / k)
            assert found[f"hit@{k}"][u] == bool(wanted & set(top))
            assert found[f"mrr@{k}"][u] == pytest.approx(1 / ranks[0] if ranks else 0)
            precise = sum(len(wanted & set(top[:i])) / i for i in ranks)
            assert found[f"map@{k}"][u] == pytest.approx(precise / min(len(wanted), k))


def test_keep_candidates_keeps_the_order() -> None:
    _, relevant, ranked = example(4, None)
    chosen = np.random.default_rng(6).random(relevant.shape) < 0.3
    width = int(chosen.sum(1).max())
    found = keep_candidates(ranked, pairs_of(chosen), relevant.shape[1], width)
    assert found.items.shape == (len(relevant), width)
    for u, (items, scores) in enumerate(zip(ranked.items, ranked.scores, strict=True)):
        kept = [(i, s) for i, s in zip(items, scores, strict=True) if i >= 0 and chosen[u, i]]
        kept += [(-1, -np.inf)] * (width - len(kept))
        assert [*zip(found.items[u], found.scores[u], strict=True)] == kept


def test_hidden_items_do_not_count_against_coverage() -> None:
    shown = np.array([True, False, True, True, False])
    ranked = Ranked.of_lists(np.array([0, 2, 2, 3]), np.array([2, 2]))
    found = measure_lists(ranked, np.array([4, 9, 2, 0, 9]), 10, [2], shown)
    assert found["coverage@2"] == 1.0
    assert found["popularity@2"] == pytest.approx(np.mean([4, 2, 2, 0]) / np.mean([4, 2, 0]))
    assert found["gini@2"] == pytest.approx((1 * -2 + 1 * 0 + 2 * 2) / (3 * 4))


def test_ndcg_equals_sklearn() -> None:
    scores, relevant, ranked = example(2, None)
    found = measure_users(ranked, pairs_of(relevant), relevant.shape[1], KS)
    real = np.where(np.isfinite(scores), scores, -1.0)  # scikit-learn ranks the seen items last
    for k in KS:
        for u in range(1, len(relevant)):
            assert found[f"ndcg@{k}"][u] == pytest.approx(ndcg_score([relevant[u]], [real[u]], k=k), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 3], ids=["distinct", "ties"])
def test_auc_equals_sklearn(levels: int | None) -> None:
    scores, relevant, ranked = example(3, levels)
    found = area_under_curve(ranked, pairs_of(relevant), relevant.shape[1])
    for u in range(len(relevant)):
        candidates = np.isfinite(scores[u])
        truth = relevant[u, candidates]
        if truth.all() or not truth.any():
            assert math.isnan(found[u])
        else:
            assert found[u] == pytest.approx(roc_auc_score(truth, scores[u, candidates]), abs=1e-12)
    assert np.isnan(found[[0, 2]]).all()


def test_lists_measures_by_hand() -> None:
    items = np.array([[0, 1, -1], [0, 2, 3]])
    ranked = Ranked(items, np.where(items >= 0, -np.arange(3.0), -np.inf))
    turned = np.array([7, 3, 1, 0, 0])
    found = measure_lists(ranked, turned, 7, [1, 2])
    assert found["coverage@1"] == pytest.approx(1 / 5)
    assert found["coverage@2"] == pytest.approx(3 / 5)
    assert found["novelty@2"] == pytest.approx((0 + 1 + 0 + 2) / 4)
    assert found["popularity@2"] == pytest.approx(((7 + 3 + 7 + 1) / 4) / (11 / 5))
    shown = [2, 1, 1, 0, 0]  # the Gini coefficient is the mean absolute difference, divided by twice the mean
    gini = sum(abs(a - b) for a in shown for b in shown) / (2 * 25 * np.mean(shown))
    assert found["gini@2"] == pytest.approx(gini)
    empty = Ranked(np.full((2, 3), -1), np.full((2, 3), -np.inf))
    assert math.isnan(measure_lists(empty, turned, 7, [1])["novelty@1"])


def test_bootstrap_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(200):
        mean, low, high = bootstrap_interval(rng.normal(2.0, 1.0, 80), draws=500, seed=seed)
        assert low <= mean <= high
        inside += low <= 2.0 <= high
    assert 0.89 <= inside / 200 <= 0.99
    values = np.append(rng.normal(0, 1, 400), np.nan)
    mean, low, high = bootstrap_interval(values)
    assert (mean, low, high) == bootstrap_interval(values)
    assert mean == pytest.approx(np.nanmean(values))
    # With 400 users, the normal approximation is close.
    half = 1.96 * np.nanstd(values) / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert all(math.isnan(x) for x in bootstrap_interval(np.array([np.nan])))


def test_lists_of_different_lengths_become_rows() -> None:
    lists = [[4, 0], [], [7, 1, 2]]
    ranked = Ranked.of_lists(np.array([i for one in lists for i in one]), np.array([len(one) for one in lists]))
    assert [[i for i in row if i >= 0] for row in ranked.items.tolist()] == lists
    np.testing.assert_array_equal(np.isfinite(ranked.scores), ranked.items >= 0)
    assert Ranked.of_lists(np.array([], int), np.array([0, 0])).items.shape == (2, 0)
    assert Ranked.of_lists(np.array([], int), np.array([], int)).items.shape == (0, 0)


def test_places_after_the_end_of_a_list_are_no_hits() -> None:
    ranked = Ranked.of_lists(np.array([2]), np.array([0, 1]))
    found = measure_users(ranked, (np.array([0, 1]), np.array([0, 2])), 3, [2])
    assert found["recall@2"].tolist() == [0, 1]
    assert found["hit@2"].tolist() == [0, 1]
    # The −1 of user 1 must not be read as the last item of user 0.
    ranked = Ranked.of_lists(np.array([9]), np.array([1, 0]))
    assert measure_users(ranked, (np.array([0, 1]), np.array([9, 3])), 10, [1])["hit@1"].tolist() == [1, 0]


def test_lists_of_some_users() -> None:
    _, _, ranked = example(7, None)
    for users in (np.array([5, 2]), np.arange(60) % 7 == 0):
        np.testing.assert_array_equal(ranked.of_users(users).items, ranked.items[users])
        np.testing.assert_array_equal(ranked.of_users(users).scores, ranked.scores[users])
    with pytest.raises(ValueError, match="differ"):
        Ranked(np.zeros((2, 3), int), np.zeros((2, 2)))


def test_impossible_lengths_are_refused() -> None:
    _, relevant, ranked = example(6, None)
    with pytest.raises(JobError, match="--k"):
        measure_users(ranked, pairs_of(relevant), relevant.shape[1], [0])
