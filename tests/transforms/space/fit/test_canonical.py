"""Canonical correlations and principal components against independent dense computations."""

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from sklearn.decomposition import PCA

from tests.transforms.space.sample import DIMS, cosines, draw, draw_views, moments_of, recall_of
from unisono.transforms.space.fit.methods import fit_space as fit
from unisono.transforms.space.fit.spec import SpaceSpec


def fit_space(moments, method="auto", dim=256, regularization=None, weighting=1.0):
    return fit(moments, SpaceSpec(method, dim, regularization, weighting))


def centred(batch):
    return {m: x.astype(np.float64) - x.astype(np.float64).mean(0) for m, (x, _) in batch.items()}


def ridge_rows(views, r):
    """Adds rows below the centred ones that make XᵀX equal to n (C + λI): one block of rows for each view."""
    n = len(next(iter(views.values())))
    sizes = [x.shape[1] for x in views.values()]
    out = {}
    for i, (m, x) in enumerate(views.items()):
        below = [np.zeros((d, x.shape[1])) for d in sizes]
        below[i] = np.sqrt(r * (x**2).sum() / x.shape[1]) * np.eye(x.shape[1])
        out[m] = np.concatenate([x, *below])
    assert all(len(x) == n + sum(sizes) for x in out.values())
    return out


@pytest.mark.parametrize("r", [0.0, 0.3])
def test_cca_is_the_svd_of_whitened_rows(r):
    batch = draw_views(dims={"image": 9, "text": 12})
    space = fit_space(moments_of(batch), "cca", 4, r, weighting=0)
    views = centred(batch)
    stacked = ridge_rows(views, r)
    # Björck and Golub 1973: the singular values of Q_aᵀ Q_b are the correlations, the canonical variables are Q_a U
    # and Q_b V.
    (q_a, r_a), (q_b, r_b) = np.linalg.qr(stacked["image"]), np.linalg.qr(stacked["text"])
    u, correlations, vt = np.linalg.svd(q_a.T @ q_b)
    axes = {"image": np.linalg.solve(r_a, u[:, :4]), "text": np.linalg.solve(r_b, vt[:4].T)}
    np.testing.assert_allclose(space.info.findings["spectrum"], correlations[:4], rtol=1e-9)
    assert space.method == "cca"
    for m, w in axes.items():
        assert cosines(space.projections[m].map, w).min() > 0.999999
        assert cosines(views[m] @ space.projections[m].map, views[m] @ w).min() > 0.999999
    # Canonical variables have unit variance in the metric that includes the ridge.
    for m, x in stacked.items():
        gram = space.projections[m].map.T @ x.T @ x @ space.projections[m].map / len(views[m])
        np.testing.assert_allclose(gram, np.eye(4), atol=1e-9)


@pytest.mark.parametrize("r", [0.0, 0.3])
def test_gcca_is_max_var_on_the_rows(r):
    batch = draw_views(n=400)
    space = fit_space(moments_of(batch), "gcca", 4, r, weighting=0)
    stacked = ridge_rows(centred(batch), r)
    # Kettenring 1971, Carroll 1968: the leading eigenvectors of the summed projections on each view's columns.
    projections = sum(x @ np.linalg.pinv(x) for x in stacked.values())
    values, common = np.linalg.eigh(projections)
    values, common = values[-4:], common[:, -4:]
    mine = sum(x @ space.projections[m].map for m, x in stacked.items())
    np.testing.assert_allclose(np.array(space.info.findings["spectrum"]) * 2 + 1, values[::-1], rtol=1e-9)
    assert cosines(mine, common[:, ::-1]).min() > 0.999999
    for m, x in stacked.items():
        assert cosines(space.projections[m].map, np.linalg.pinv(x) @ common[:, ::-1]).min() > 0.999999


@pytest.mark.parametrize("missing", [0.1, 0.5])
@pytest.mark.parametrize("r", [1e-6, 0.2])
@pytest.mark.parametrize("dims", [DIMS, {"image": 9, "text": 12}], ids=["three", "two"])
def test_missing_modalities_agree_with_pandas_and_scipy(dims, missing, r):
    batch = draw_views(3000, dims, missing)
    space = fit_space(moments_of(batch), "auto", 4, r, weighting=0)
    columns: dict[tuple[str, int], np.ndarray] = {}
    for m, (x, present) in batch.items():
        columns |= {(m, j): np.where(present, x[:, j].astype(float), np.nan) for j in range(x.shape[1])}
    frame = pd.DataFrame(columns)
    covariance = frame.cov()
    weight = np.zeros_like(covariance.to_numpy())
    spans, start = {}, 0
    for m, d in dims.items():
        spans[m] = slice(start, start := start + d)
    both, metric = covariance.to_numpy().copy(), np.zeros_like(weight)
    for a in dims:
        for b in dims:
            n = int((batch[a][1] & batch[b][1]).sum())
            both[spans[a], spans[b]] *= (n - 1) / n  # pandas divides by n − 1
        own = both[spans[a], spans[a]]
        own += r * np.trace(own) / len(own) * np.eye(len(own))
        metric[spans[a], spans[a]] = own
    values, vectors = scipy.linalg.eigh(both, metric)
    np.testing.assert_allclose(
        np.array(space.info.findings["spectrum"]) * (len(dims) - 1) + 1, values[::-1][:4], rtol=1e-8
    )
    for m in dims:
        w = vectors[spans[m], ::-1][:, :4]
        x = frame[m].dropna().to_numpy() - frame[m].mean().to_numpy()
        assert cosines(space.projections[m].map, w).min() > 0.999999
        assert cosines(x @ space.projections[m].map, x @ w).min() > 0.999999
        np.testing.assert_allclose(space.projections[m].mean, frame[m].mean(), rtol=1e-9)


def test_weighting_scales_axes_by_their_correlation():
    batch = draw(missing=0.2)
    flat = fit_space(moments_of(batch), "gcca", 4, 0.1, weighting=0.0)
    bent = fit_space(moments_of(batch), "gcca", 4, 0.1, weighting=2.0)
    for m in DIMS:
        want = flat.projections[m].map * np.array(flat.info.findings["spectrum"]) ** 2
        np.testing.assert_allclose(bent.projections[m].map, want, atol=1e-9)


def test_one_modality_is_pca():
    batch = draw_views(dims={"text": 12})
    space = fit_space(moments_of(batch), "auto", 5)
    reference = PCA(5, svd_solver="full").fit(batch["text"][0].astype(np.float64))
    assert space.method == "pca"
    assert cosines(space.projections["text"].map, reference.components_.T).min() > 0.999999
    np.testing.assert_allclose(space.info.findings["spectrum"], reference.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(space.projections["text"].map, axis=0), 1, rtol=1e-12)


def test_default_regularization_does_not_overfit_few_rows():
    batch = draw_views(900, {"audio": 256, "image": 256, "text": 256}, seed=3, factors=12, noise=0.6)
    train, test = np.arange(720), np.arange(720, 900)
    moments = moments_of({m: (x[train], p[train]) for m, (x, p) in batch.items()})
    default, chance = recall_of(fit_space(moments, "gcca", 64), batch, test)
    bare, _ = recall_of(fit_space(moments, "gcca", 64, 1e-6, weighting=0), batch, test)
    assert default > 8 * chance
    assert default > 1.5 * bare


def test_a_null_space_adds_no_axes():
    """There are fewer rows than values: the number of axes follows from the rank, not from rounding errors."""
    batch = draw_views(20, {"image": 40, "text": 50})
    space = fit_space(moments_of(batch), "cca", 40, 0.0, weighting=0)
    assert space.info.findings["rank"] == {"image": 19, "text": 19}
    assert space.dim == 19
    assert space.info.axes_asked == 40
    for m, x in centred(batch).items():
        np.testing.assert_allclose((x @ space.projections[m].map).std(0), 1, rtol=1e-6)


def test_pairs_that_no_item_has_both_of():
    batch = draw_views()
    first = np.arange(2000) < 1000
    batch["image"] = (batch["image"][0], first)
    batch["audio"] = (batch["audio"][0], ~first)
    chain = fit_space(moments_of(batch), "gcca", 4, 0.1)
    assert chain.info.unseen_pairs == ("audio-image",)
    assert chain.info.unaligned == ()
    # No item has image and audio; text connects them.
    rate, chance = recall_of(chain, {m: batch[m] for m in ("audio", "image")}, np.arange(500))
    assert rate > 5 * chance
    # No item has audio and another modality: audio keeps its own neighbours.
    batch["text"] = (batch["text"][0], first)
    alone = fit_space(moments_of(batch), "gcca", 4, 0.1)
    assert alone.info.unaligned == ("audio",)
    own = PCA(4).fit(batch["audio"][0][~first].astype(np.float64)).components_.T
    assert cosines(alone.projections["audio"].map, own).min() > 0.999999
    # No item has two modalities.
    batch["text"] = (batch["text"][0], np.zeros(2000, bool))
    none = fit_space(moments_of(batch), "gcca", 4, 0.1)
    assert none.info.unaligned == ("audio", "image")
    assert none.dim == 4
    assert np.isfinite(none.project("image", batch["image"][0])).all()
