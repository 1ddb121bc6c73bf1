"""`none`, `whiten`, `procrustes` and `ridge` against dense computations by other libraries, with half missing."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from tests.transforms.space.sample import DIMS, SAME, draw, linear_of, moments_of, principal, rows_of, same_up_to_sign
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import SpaceSpec


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_none_is_centred_cosines(missing):
    batch = draw(dims=SAME, missing=missing)
    space = fit_space(moments_of(batch), SpaceSpec("none", 9))
    for a, b in itertools.product(SAME, SAME):
        x, y = (batch[m][0][:50].astype(np.float64) - rows_of(batch, m).mean(0) for m in (a, b))
        want = (x @ y.T) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
        got = space.project(a, batch[a][0][:50]).astype(float) @ space.project(b, batch[b][0][:50]).T
        np.testing.assert_allclose(got, want, atol=1e-6)
    pooled = np.mean([np.cov(rows_of(batch, m).T, ddof=0) for m in SAME], axis=0)
    short = fit_space(moments_of(batch), SpaceSpec("none", 3))
    same_up_to_sign(linear_of(short, "text").map, np.linalg.eigh(pooled)[1][:, ::-1][:, :3])


@pytest.mark.parametrize("remove", [0, 2])
@pytest.mark.parametrize("r", [1e-6, 0.3])
def test_zca_is_the_inverse_square_root(r, remove):
    batch = draw(dims=SAME)
    space = fit_space(moments_of(batch), SpaceSpec("whiten", 9, r, remove_top=remove))
    for m in SAME:
        x = rows_of(batch, m)
        covariance = np.cov(x.T, ddof=0)
        shrunk = covariance + r * np.trace(covariance) / 9 * np.eye(9)
        whitening = scipy.linalg.fractional_matrix_power(shrunk, -0.5)
        top = principal(x, 9)[:, :remove]
        whitening = whitening @ (np.eye(9) - top @ top.T)
        # The map is the whitening times one orthonormal matrix that all modalities share.
        got = linear_of(space, m).map
        np.testing.assert_allclose(got @ got.T, whitening @ whitening.T, atol=1e-6 * np.abs(whitening).max() ** 2)
    turns = [np.linalg.lstsq(linear_of(space, m).map, linear_of(space, "text").map, rcond=None)[0] for m in SAME]
    assert space.info.findings["whitening"] == "zca"
    assert all(np.isfinite(t).all() for t in turns)


def test_pca_whitening_gives_unit_variances():
    batch = draw(missing=0.3)
    space = fit_space(moments_of(batch), SpaceSpec("whiten", 6, 0.0))
    assert space.info.findings["whitening"] == "pca"
    assert space.info.unaligned == tuple(DIMS)
    for m in DIMS:
        x = rows_of(batch, m)
        pca = PCA(6, svd_solver="full").fit(x)
        deviation = np.sqrt(pca.explained_variance_ * (len(x) - 1) / len(x))
        same_up_to_sign(linear_of(space, m).map, pca.components_.T / deviation)
        np.testing.assert_allclose(np.cov((x @ linear_of(space, m).map).T, ddof=0), np.eye(6), atol=1e-6)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("hub", ["text", "image"])
def test_procrustes_is_that_of_scipy(hub, missing):
    batch = draw(missing=missing)
    dim = 7  # the length of the shortest embedding: SciPy pads neither side
    space = fit_space(moments_of(batch), SpaceSpec("procrustes", dim, hub=hub))
    axes = linear_of(space, hub).map
    same_up_to_sign(axes, principal(rows_of(batch, hub), dim))
    for m in DIMS:
        if m == hub:
            continue
        x, y = rows_of(batch, m, hub), rows_of(batch, hub, m)
        x, y = x - x.mean(0), (y - y.mean(0)) @ axes
        if x.shape[1] == dim:
            want = scipy.linalg.orthogonal_procrustes(x, y)[0]
        else:  # the polar factor of XᵀY, computed without the SVD
            cross = x.T @ y
            want = cross @ scipy.linalg.fractional_matrix_power(cross.T @ cross, -0.5)
        np.testing.assert_allclose(linear_of(space, m).map, want, atol=1e-6)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("r", [0.01, 0.5])
def test_ridge_is_that_of_scikit_learn(r, missing):
    batch = draw(missing=missing)
    space = fit_space(moments_of(batch), SpaceSpec("ridge", 8, r, hub="text"))
    axes = linear_of(space, "text").map
    for m in ("audio", "image"):
        x, y = rows_of(batch, m, "text"), rows_of(batch, "text", m) @ axes
        strength = r * np.trace(np.cov(x.T, ddof=0)) / x.shape[1]
        if missing:  # available cases: C_mm is computed from all rows of m
            own = np.cov(rows_of(batch, m).T, ddof=0)
            own += r * np.trace(own) / len(own) * np.eye(len(own))
            want = np.linalg.lstsq(own, (x - x.mean(0)).T @ (y - y.mean(0)) / len(x), rcond=None)[0]
        else:
            want = Ridge(alpha=len(x) * strength).fit(x, y).coef_.T
        np.testing.assert_allclose(linear_of(space, m).map, want, atol=1e-6)
    assert fit_space(moments_of(batch), SpaceSpec("ridge", 8)).info.findings["hub"] in DIMS


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
def test_a_modality_that_never_meets_the_hub_keeps_its_own_axes(method):
    batch = draw(missing=0.0)
    first = np.arange(1500) < 700
    batch["audio"], batch["text"] = (batch["audio"][0], first), (batch["text"][0], ~first)
    space = fit_space(moments_of(batch), SpaceSpec(method, 5, hub="text"))
    assert space.info.unaligned == ("audio",)
    same_up_to_sign(linear_of(space, "audio").map, principal(rows_of(batch, "audio"), 5))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(SpaceSpec("none", 4), r"space\.method: none leaves .* audio 7, image 9, text 12", id="none"),
        pytest.param(SpaceSpec("ridge", 4, hub="joint"), r"space\.hub: 'joint' cannot be used; .*audio", id="hub"),
        pytest.param(SpaceSpec("whiten", 4, remove_top=7), r"space\.remove_top: 7 of the 7 axes that audio", id="top"),
    ],
)
def test_bad_settings_are_named(spec, message):
    with pytest.raises(JobError, match=message):
        fit_space(moments_of(draw(missing=0.0)), spec)
