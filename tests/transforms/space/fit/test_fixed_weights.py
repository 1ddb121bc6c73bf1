"""Weights that are the same for every item: given, balanced, and learned from the modalities' reliability."""

import itertools

import numpy as np
import pytest

from tests.transforms.space.sample import NAMES, aligned_rows, draw, moments_of, report_of, table_of, weights_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.fixed_weights import reliability
from unisono.transforms.space.fit.fusion import fit_fusion, inner_moments
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec


def test_given_weights_are_used_as_they_are_and_mean_balances():
    batch = draw(800)
    space, table = fit_space(moments_of(batch), SpaceSpec("gcca", 6, 0.1)), table_of(batch)
    given = fit_fusion(space, table, FusionSpec("weighted", {"text": 3.0}))
    np.testing.assert_array_equal(weights_of(given), [1, 1, 3])
    assert report_of(given).modalities["text"].weight == 3.0
    balanced = weights_of(fit_fusion(space, table, FusionSpec("mean")))
    z = aligned_rows(space, table)
    parts = [w**2 * (z[m][~np.isnan(z[m][:, 0])] @ z[m][~np.isnan(z[m][:, 0])].T).std() for w, m in
             zip(balanced, NAMES, strict=True)]  # fmt: skip
    np.testing.assert_allclose(parts, parts[0], rtol=1e-6)
    assert balanced.mean() == pytest.approx(1)
    assert inner_moments(space, table).count("text") == batch["text"][1].sum()


def test_learned_weights_follow_agreement_on_held_out_items():
    batch = draw(1500, missing=0.1, factors=6)
    rng = np.random.default_rng(5)
    audio, present = batch["audio"]
    noise = 6 * rng.standard_normal(audio.shape).astype(np.float32)
    batch["audio"] = audio + noise, present
    train = {m: (x[:1000], p[:1000]) for m, (x, p) in batch.items()}
    space = fit_space(moments_of(train), SpaceSpec("gcca", 6, 0.1))
    rows = table_of(batch).slice(1000)
    found = reliability(space, rows)
    # Computed independently: the mean reciprocal rank, by sorting.
    z = aligned_rows(space, rows)
    want: dict[str, list[float]] = {m: [] for m in NAMES}
    for a, b in itertools.permutations(NAMES, 2):
        both = ~np.isnan(z[a][:, 0] + z[b][:, 0])
        order = np.argsort(-(z[a][both] @ z[b][both].T), axis=1)
        rank = np.argmax(order == np.arange(both.sum())[:, None], axis=1) + 1
        chance = np.mean(1 / np.arange(1, both.sum() + 1))
        for m in (a, b):
            want[m].append(max(((1 / rank).mean() - chance) / (1 - chance), 0))
    for m in NAMES:
        assert found[m] == pytest.approx(np.mean(want[m]), rel=1e-3)
    out = fit_fusion(space, table_of(train), FusionSpec("weighted", "learned"), (space, rows))
    plain = fit_fusion(space, table_of(train), FusionSpec("mean"))
    assert weights_of(out)[0] < weights_of(plain)[0]  # audio is the first modality
    assert report_of(out).findings["reliability"] == found
    with pytest.raises(JobError, match=r"fusion\.weights: learned needs items"):
        fit_fusion(space, table_of(train), FusionSpec("weighted", "learned"))
