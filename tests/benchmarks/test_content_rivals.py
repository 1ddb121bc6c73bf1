"""Rivals that read what items are, compared with brute force and least squares, and asked about untouched items."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from benchmarks.content_rivals import content_knn, content_ridge, draw_triples, features_of, vbpr
from tests.benchmarks.cases import ITEMS, SPLIT, USERS, make_tables
from unisono.pipelines.ask.ranking_case import Case, make_case
from unisono.transforms.base.tables import to_vector_column

EVERYBODY = np.arange(8)


@pytest.fixture(scope="module")
def case() -> Case:
    embeddings, events = make_tables()
    return make_case(embeddings, events, SPLIT, 0.5)


def test_features_are_centred_and_of_one_size_per_modality(case: Case) -> None:
    rng = np.random.default_rng(0)
    some = rng.random(ITEMS) < 0.7
    pictures = to_vector_column(rng.normal(5, 9, (ITEMS, 3)).astype(np.float32), some)
    embeddings = case.embeddings.append_column("image_embedding", pictures)
    both = features_of(make_case(embeddings, make_tables()[1], SPLIT, 0.5))
    assert both.shape == (ITEMS, 5 + 3)
    for part, present in ((both[:, :5], np.ones(ITEMS, bool)), (both[:, 5:], some)):
        np.testing.assert_allclose(part[present].mean(0), 0, atol=1e-6)
        np.testing.assert_allclose((part[present] ** 2).sum(1).mean(), 1)
        assert not part[~present].any()


@pytest.mark.parametrize("normalised", [True, False])
def test_content_knn_equals_brute_force(case: Case, normalised: bool) -> None:
    features, log = features_of(case), case.log.toarray()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = content_knn(case, {"neighbours": 4, "power": 2, "normalised": normalised})(EVERYBODY)
    for i in range(ITEMS):
        others = [j for j in range(ITEMS) if j != i and not case.new[j]]
        cosine = {j: unit[i] @ unit[j] for j in others}
        near = {j: c**2 for j, c in sorted(cosine.items(), key=lambda pair: -pair[1])[:4] if c > 0}
        total = sum(near.values()) if normalised else 1
        for user in EVERYBODY:
            assert found[user, i] == pytest.approx(sum(s for j, s in near.items() if log[user, j]) / total, abs=1e-9)


@pytest.mark.parametrize("unobserved", [1.0, 0.2])
def test_content_ridge_equals_weighted_least_squares(case: Case, unobserved: float) -> None:
    features, log, touched = features_of(case), case.log.toarray(), ~case.new
    found = content_ridge(case, {"ridge": 1.5, "unobserved": unobserved})(EVERYBODY)
    for user in EVERYBODY:
        y = log[user, touched]
        root = np.sqrt(np.where(y > 0, 1.0, unobserved))
        x = np.hstack([features[touched], np.ones((touched.sum(), 1))])
        rows = np.vstack([root[:, None] * x, np.sqrt(1.5) * np.eye(6)[:5]])
        weights = np.linalg.lstsq(rows, np.concatenate([root * y, np.zeros(5)]), rcond=None)[0]
        np.testing.assert_allclose(found[user], features @ weights[:5] + weights[5], atol=1e-8)


VBPR = {
    "factors": 4, "content_factors": 4, "learning_rate": 0.1, "regularization": 0.01, "content_regularization": 0.0,
    "epochs": 40,
}  # fmt: skip
RIDGE, KNN = {"ridge": 1.0, "unobserved": 1.0}, {"neighbours": 8, "power": 1, "normalised": True}


@pytest.mark.parametrize(
    ("fit", "settings"), [(content_knn, KNN), (content_ridge, RIDGE), (vbpr, VBPR)], ids=["knn", "ridge", "vbpr"]
)
def test_untouched_items_of_the_users_own_group_score_higher(case: Case, fit, settings) -> None:
    if fit is vbpr:
        pytest.importorskip("torch")
    group = np.array([int(u[1:]) % 2 for u in case.train["user_id"].unique().to_pylist()])
    new = np.flatnonzero(case.new)
    scores = fit(case, settings)(np.arange(len(group)))[:, new]
    own = group[:, None] == new % 2
    wins = [(s[o][:, None] > s[~o]).mean() for s, o in zip(scores, own, strict=True)]
    assert len(new) >= 4
    assert np.mean(wins) > 0.9


def test_vbpr_fits_its_triples_and_repeats_with_a_seed(case: Case) -> None:
    pytest.importorskip("torch")
    scores = vbpr(case, VBPR, seed=1)(np.arange(case.log.shape[0]))
    np.testing.assert_array_equal(scores, vbpr(case, VBPR, seed=1)(np.arange(case.log.shape[0])))
    assert np.abs(scores - vbpr(case, VBPR, seed=2)(np.arange(case.log.shape[0]))).max() > 0.01
    have, warm = case.log.toarray() > 0, case.log.toarray().any(0)
    wins = [(s[h][:, None] > s[~h & warm]).mean() for s, h in zip(scores, have, strict=True) if h.any()]
    assert np.mean(wins) > 0.9


def test_triples_hold_every_pair_once_and_items_that_only_others_have() -> None:
    x = np.random.default_rng(0).random((USERS, 10)) < 0.4
    x[0] = True  # has every item: cannot be part of a triple
    x[:, 9] = False  # nobody has it: it is never drawn
    x[0, 9] = False
    batches = list(draw_triples(scipy.sparse.csr_array(x * 1.0), 16, np.random.default_rng(1)))
    assert all(len(b[0]) == 16 for b in batches[:-1])
    user, item, other = (np.concatenate(part) for part in zip(*batches, strict=True))
    assert sorted(zip(user.tolist(), item.tolist(), strict=True)) == [
        (u, i) for u, i in zip(*np.nonzero(x), strict=True) if u != 0
    ]
    assert not x[user, other].any()
    assert set(other.tolist()) <= set(range(9))
