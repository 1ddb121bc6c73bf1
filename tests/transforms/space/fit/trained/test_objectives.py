"""The loss, the views, the mixtures and the score of trained methods against plain loops."""

import numpy as np
import pytest
import torch

from unisono.transforms.space.fit.trained.objectives import (
    mean_reciprocal_rank,
    mix_items,
    siglip,
    siglip_start,
    split_views,
)


def test_siglip_is_its_double_sum():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 5))
    want = 0.0
    for i in range(7):
        for j in range(7):
            logit = 2.0 * (a[i] @ b[j]) - 1.5
            want += np.log1p(np.exp(-logit if i == j else logit)) / 7
    got = siglip(torch.tensor(a), torch.tensor(b), torch.tensor(np.log(2.0)), torch.tensor(-1.5))
    assert float(got) == pytest.approx(want, rel=1e-12)


def test_views_share_nothing_and_lose_nothing():
    rng = np.random.default_rng(0)
    present = rng.random((3, 4000)) < 0.6
    one, other = split_views(present, rng)
    assert (one | other == present).all()
    several = present.sum(0) > 1
    assert not (one & other)[:, several].any()
    assert one[:, several].any(0).all()
    assert other[:, several].any(0).all()
    assert (one == present)[:, ~several].all()
    assert (other == present)[:, ~several].all()
    whole = present.all(0)
    for m in range(3):  # each modality is on either side equally often
        assert 0.4 < one[m, whole].mean() < 0.6


def test_mixtures_have_one_share_for_all_modalities():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4)).astype(np.float32)
    y = np.concatenate([x, x], axis=1)
    present = rng.random((2, 50)) < 0.8
    values, both = mix_items({"a": [torch.tensor(x)], "b": [torch.tensor(y)]}, present, np.random.default_rng(5))
    mixed = values["a"][0].numpy()
    np.testing.assert_array_equal(values["b"][0].numpy()[:, 4:], mixed)
    for i in range(50):  # each mixture lies between two rows, closer to its own row
        found = []
        for j in range(50):
            line = x[j] - x[i]
            share = (mixed[i] - x[i]) @ line / max(line @ line, 1e-9)
            if np.allclose(x[i] + share * line, mixed[i], atol=1e-5) and -1e-6 <= share <= 0.5 + 1e-6:
                found.append((both[:, i] == (present[:, i] & present[:, j])).all())
        assert any(found)


def test_the_start_matches_a_batch_with_one_right_pair_in_each_row():
    start = siglip_start(101)
    assert 1 / (1 + np.exp(-start["loss.bias"])) == pytest.approx(1 / 101)
    assert siglip_start(1)["loss.bias"] == 0


def test_the_score_is_the_mean_over_pairs_and_directions():
    rng = np.random.default_rng(0)
    vectors = {m: rng.standard_normal((30, 4)).astype(np.float32) for m in ("a", "b", "c")}
    present = {m: rng.random(30) < 0.7 for m in vectors}
    want = []
    for m in vectors:
        for other in vectors:
            if m != other:
                rows = np.flatnonzero(present[m] & present[other])
                x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors[m], vectors[other]))
                score = x[rows] @ y[rows].T
                want.append(np.mean([1 / (1 + (s > s[i]).sum()) for i, s in enumerate(score)]))
    assert mean_reciprocal_rank(vectors, present) == pytest.approx(np.mean(want), rel=1e-5)
    assert mean_reciprocal_rank(vectors, dict.fromkeys(vectors, np.zeros(30, bool))) == 0.0
