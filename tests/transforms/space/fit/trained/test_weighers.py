"""What holds for every trained weigher, and for a space in which everything is trained."""

from dataclasses import replace

import numpy as np
import pytest

from tests.transforms.space.fit.trained.conftest import fit, make_table
from tests.transforms.space.sample import report_of
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.nearest import retrieval
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fit.trained import weighers
from unisono.transforms.space.fuse import fuse
from unisono.transforms.space.space import BLOCK_ROWS, Space


@pytest.fixture(scope="module", params=["gated", "attention"])
def full(request, spaces, circles):
    """A space with everything that can be trained: heads, cross-attention and a weigher."""
    return fit_fusion(spaces["attention"], circles[0], FusionSpec(request.param, epochs=3))


def _arrays(aligned):
    return [{**a} for a in (aligned.vectors, aligned.present, aligned.weights)]


def test_round_trip(full, circles):
    again = Space.from_bytes(full.to_bytes())
    assert again.space_id == full.space_id
    e = embeddings_of(circles[1])
    for a, b in zip(_arrays(full.align(e)), _arrays(again.align(e)), strict=True):
        for m in a:
            np.testing.assert_array_equal(a[m], b[m])


def test_a_row_does_not_depend_on_its_batch(full, circles):
    e = embeddings_of(circles[0])
    order = np.random.default_rng(2).permutation(700)
    whole = _arrays(full.align(e))
    part = _arrays(full.align({m: (x[order], p[order]) for m, (x, p) in e.items()}))
    one = _arrays(full.align({m: (x[611:612], p[611:612]) for m, (x, p) in e.items()}))
    for a, b, c in zip(whole, part, one, strict=True):
        for m in a:
            np.testing.assert_array_equal(a[m][order], b[m])
            np.testing.assert_array_equal(a[m][611:612], c[m])


def test_absent_rows_may_hold_anything(full, circles):
    e = embeddings_of(circles[0])
    junk = {m: (np.where(p[:, None], x, v), p) for (m, (x, p)), v in zip(e.items(), (np.nan, 1e30, -7.0), strict=True)}
    for a, b in zip(_arrays(full.align(e)), _arrays(full.align(junk)), strict=True):
        for m in a:
            np.testing.assert_array_equal(a[m], b[m])


def test_an_item_without_any_modality_has_no_vector(full, circles):
    e = {m: (x[:5], np.array([False, True, False, True, True])) for m, (x, _) in embeddings_of(circles[1]).items()}
    aligned = full.align(e)
    fused = fuse(aligned.vectors, aligned.weights)
    assert fused.ok.tolist() == [False, True, False, True, True]
    np.testing.assert_allclose(np.linalg.norm(fused.vectors[fused.ok], axis=1), 1.0, atol=1e-6)
    assert (fused.vectors[~fused.ok] == 0).all()


def test_too_few_pairs_leave_equal_weights(circles):
    few = circles[0].slice(0, 30)
    fused = fit_fusion(fit(few, "gcca"), few, FusionSpec("gated"))
    training = report_of(fused).findings["training"]
    assert training == {"epoch": 0, "why": training["why"]}
    assert "of at least 40 items" in training["why"]
    assert fused.weigher is not None
    assert fused.weigher.weigh(np.ones((3, BLOCK_ROWS, 8)), np.ones((3, BLOCK_ROWS), bool)) == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["gated", "attention"])
def test_learned_weights_find_items_by_their_rest(method, monkeypatch):
    """In some items a modality is noise, and its last value says so. Only weights that look at the vectors can know."""
    rng = np.random.default_rng(0)
    n, dim = 1000, 12
    latent = rng.standard_normal((n, dim))
    noisy = rng.random(n) < 0.5
    vectors = {m: latent + 0.4 * rng.standard_normal((n, dim)) for m in ("audio", "image", "text")}
    vectors["image"][noisy] = rng.standard_normal((noisy.sum(), dim))
    for m, x in vectors.items():
        vectors[m] = np.concatenate([x, np.where((m == "image") & noisy, 3.0, -3.0)[:, None]], axis=1)
    everything = dict.fromkeys(vectors, np.ones(n, bool))
    table = make_table(vectors, everything)
    train_rows, test = table.slice(0, 600), table.slice(600)
    moments = Moments.zero().add(embeddings_of(train_rows))
    space = fit_space(moments, SpaceSpec("none", dim=dim + 1), train_rows)
    monkeypatch.setattr(weighers, "RECIPE", replace(weighers.RECIPE, rate=1e-2))
    learned = fit_fusion(space, train_rows, FusionSpec(method))
    aligned = learned.align(embeddings_of(test))
    bad = noisy[600:]
    share = aligned.weights["image"] / sum(aligned.weights.values())
    assert share[bad].mean() < 0.8 * share[~bad].mean()
    e = embeddings_of(test)

    def found(s):
        rest = s.align({m: (x, np.full(400, m != "text")) for m, (x, _) in e.items()})
        return retrieval(fuse(rest.vectors, rest.weights).vectors, rest_of_it)["mrr"]

    rest_of_it = space.project("text", e["text"][0])
    assert found(learned) > 1.1 * found(fit_fusion(space, train_rows, FusionSpec("mean")))
