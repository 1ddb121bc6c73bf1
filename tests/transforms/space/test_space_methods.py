"""Each closed form of the joint space against an independent dense computation, half of it missing."""

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.linalg
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids, to_vector_column
from unisono.transforms.space.fit.methods import METHODS, fit_space, max_dim
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.parts.anchors import AnchorMap
from unisono.transforms.space.parts.linear import LinearMap
from unisono.transforms.space.space import Space

DIMS = {"audio": 7, "image": 9, "text": 12}
SAME = {"audio": 9, "image": 9, "text": 9}


def draw(n=1500, dims=DIMS, missing=0.5, seed=0, factors=4):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, factors)) * np.linspace(2.0, 0.6, factors)
    out = {}
    for m, d in dims.items():
        x = common @ np.linalg.qr(rng.standard_normal((d, d)))[0][:factors] + 0.7 * rng.standard_normal((n, d))
        out[m] = (x * np.linspace(2, 0.5, d) + rng.standard_normal(d)).astype(np.float32), rng.random(n) >= missing
    return out


def moments_of(batch, order=(2, 0, 4, 1, 3)):
    """In five pieces, merged in some order."""
    n = len(next(iter(batch.values()))[1])
    pieces = np.array_split(np.arange(n), 5)
    out = Moments.zero()
    for i in order:
        out.merge(Moments.zero().add({m: (x[pieces[i]], p[pieces[i]]) for m, (x, p) in batch.items()}))
    return out


def table_of(batch):
    n = len(next(iter(batch.values()))[1])
    columns = {f"{m}_embedding": to_vector_column(x, p) for m, (x, p) in batch.items()}
    return pa.table({"item_id": [f"i{i:05d}" for i in range(n)], **columns})


def rows_of(batch, a, b=None):
    """Embeddings of `a`, float64, where `a` and `b` are present."""
    both = batch[a][1] & (batch[a][1] if b is None else batch[b][1])
    return batch[a][0][both].astype(np.float64)


def same_up_to_sign(got, want, tolerance=1e-6):
    sign = np.sign((got * want).sum(0))
    np.testing.assert_allclose(got, want * sign, atol=tolerance * np.abs(want).max(), rtol=0)


def map_of(space: Space, modality: str) -> np.ndarray:
    """The matrix of a modality whose projection is linear."""
    part = space.projections[modality]
    assert isinstance(part, LinearMap)
    return part.map


def principal(x, k):
    return PCA(k, svd_solver="full").fit(x).components_.T


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
    same_up_to_sign(map_of(short, "text"), np.linalg.eigh(pooled)[1][:, ::-1][:, :3])


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
        # The map is the whitening, turned by one orthonormal matrix that all modalities share.
        got = map_of(space, m)
        np.testing.assert_allclose(got @ got.T, whitening @ whitening.T, atol=1e-6 * np.abs(whitening).max() ** 2)
    turns = [np.linalg.lstsq(map_of(space, m), map_of(space, "text"), rcond=None)[0] for m in SAME]
    assert space.info["whitening"] == "zca"
    assert all(np.isfinite(t).all() for t in turns)


def test_pca_whitening_gives_unit_variances():
    batch = draw(missing=0.3)
    space = fit_space(moments_of(batch), SpaceSpec("whiten", 6, 0.0))
    assert space.info["whitening"] == "pca"
    for m in DIMS:
        x = rows_of(batch, m)
        pca = PCA(6, svd_solver="full").fit(x)
        deviation = np.sqrt(pca.explained_variance_ * (len(x) - 1) / len(x))
        same_up_to_sign(map_of(space, m), pca.components_.T / deviation)
        np.testing.assert_allclose(np.cov((x @ map_of(space, m)).T, ddof=0), np.eye(6), atol=1e-6)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("hub", ["text", "image"])
def test_procrustes_is_that_of_scipy(hub, missing):
    batch = draw(missing=missing)
    dim = 7  # as short as the shortest, so that SciPy can pad neither side
    space = fit_space(moments_of(batch), SpaceSpec("procrustes", dim, hub=hub))
    axes = map_of(space, hub)
    same_up_to_sign(axes, principal(rows_of(batch, hub), dim))
    for m in DIMS:
        if m == hub:
            continue
        x, y = rows_of(batch, m, hub), rows_of(batch, hub, m)
        x, y = x - x.mean(0), (y - y.mean(0)) @ axes
        if x.shape[1] == dim:
            want = scipy.linalg.orthogonal_procrustes(x, y)[0]
        else:  # the polar factor of XᵀY, by another road than the SVD
            cross = x.T @ y
            want = cross @ scipy.linalg.fractional_matrix_power(cross.T @ cross, -0.5)
        np.testing.assert_allclose(map_of(space, m), want, atol=1e-6)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("r", [0.01, 0.5])
def test_ridge_is_that_of_scikit_learn(r, missing):
    batch = draw(missing=missing)
    space = fit_space(moments_of(batch), SpaceSpec("ridge", 8, r, hub="text"))
    axes = map_of(space, "text")
    for m in ("audio", "image"):
        x, y = rows_of(batch, m, "text"), rows_of(batch, "text", m) @ axes
        strength = r * np.trace(np.cov(x.T, ddof=0)) / x.shape[1]
        if missing:  # available cases: C_mm over all rows of m
            own = np.cov(rows_of(batch, m).T, ddof=0)
            own += r * np.trace(own) / len(own) * np.eye(len(own))
            want = np.linalg.lstsq(own, (x - x.mean(0)).T @ (y - y.mean(0)) / len(x), rcond=None)[0]
        else:
            want = Ridge(alpha=len(x) * strength).fit(x, y).coef_.T
        np.testing.assert_allclose(map_of(space, m), want, atol=1e-6)
    assert fit_space(moments_of(batch), SpaceSpec("ridge", 8)).info["hub"] in DIMS


def test_csa_weighting_scales_axes_by_their_correlation():
    batch = draw(missing=0.2)
    flat = fit_space(moments_of(batch), SpaceSpec("gcca", 4, 0.1, weighting=0.0))
    bent = fit_space(moments_of(batch), SpaceSpec("gcca", 4, 0.1, weighting=2.0))
    for m in DIMS:
        want = map_of(flat, m) * np.array(flat.info["spectrum"]) ** 2
        np.testing.assert_allclose(map_of(bent, m), want, atol=1e-9)


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_anchors_are_sparse_cosines(missing):
    batch = draw(dims=DIMS, missing=missing)
    table = table_of(batch)
    space = fit_space(moments_of(batch), SpaceSpec("anchors", 28, 0.2, anchors=28), table)
    whole = np.all([p for _, p in batch.values()], axis=0)
    ids = np.array([f"i{i:05d}" for i in range(1500)])
    by_hash = ids[whole][np.argsort(hash_ids(pa.array(ids[whole])))]
    assert space.info["anchors"] == by_hash[:28].tolist()
    rows = np.array([int(i[1:]) for i in space.info["anchors"]])
    relative = {}
    for m in DIMS:
        x = rows_of(batch, m)
        covariance = np.cov(x.T, ddof=0)
        metric = np.linalg.inv(covariance + 0.2 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
        all_ = batch[m][0].astype(np.float64) - x.mean(0)
        norm = np.sqrt(np.einsum("ij,jk,ik->i", all_, metric, all_))
        cosines = all_ @ metric @ all_[rows].T / np.outer(norm, norm[rows])
        kept = np.sort(cosines, axis=1)[:, ::-1][:, 6, None]  # a quarter of 28
        sparse = np.where(cosines >= kept, cosines, 0.0)
        relative[m] = sparse - sparse[batch[m][1]].mean(0)
    for a, b in itertools.product(DIMS, DIMS):
        x, y = relative[a][:60], relative[b][:60]
        want = x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
        got = space.project(a, batch[a][0][:60]).astype(float) @ space.project(b, batch[b][0][:60]).T
        np.testing.assert_allclose(got, want, atol=1e-6)
    again = Space.from_bytes(space.to_bytes())
    assert isinstance(again.projections["text"], AnchorMap)
    np.testing.assert_array_equal(
        again.project("text", batch["text"][0]), space.project("text", batch["text"][0])
    )


def test_named_anchors():
    batch = draw(missing=0.3)
    batch["audio"][1][3] = False
    table, whole = table_of(batch), np.flatnonzero(np.all([p for _, p in batch.values()], axis=0))
    names = tuple(f"i{i:05d}" for i in whole[5:25])
    space = fit_space(moments_of(batch), SpaceSpec("anchors", 8, anchors=names), table)
    assert tuple(space.info["anchors"]) == names
    for name, why in (("nobody", "is not in the catalogue"), ("i00003", "lacks one of")):
        with pytest.raises(JobError, match=rf"space\.anchors: '{name}' {why}"):
            fit_space(moments_of(batch), SpaceSpec("anchors", 8, anchors=(*names, name)), table)


@pytest.mark.parametrize("method", ["none", "whiten", "procrustes", "ridge", "gcca", "anchors"])
def test_order_of_merging_does_not_show_and_bytes_round_trip(method):
    batch = draw(dims=SAME, missing=0.5)
    spaces = [
        fit_space(moments_of(batch, order), SpaceSpec(method, 5), table_of(batch))
        for order in ((0, 1, 2, 3, 4), (4, 2, 0, 3, 1))
    ]
    assert spaces[0].to_bytes() == spaces[1].to_bytes()
    again = Space.from_bytes(spaces[0].to_bytes())
    assert again.space_id == spaces[0].space_id
    x = batch["text"][0]
    np.testing.assert_array_equal(again.project("text", x[7:300]), spaces[0].project("text", x)[7:300])


def test_aligned_modalities_find_each_other_and_none_does_not():
    """Planted: modalities share factors behind different rotations."""
    dims = dict.fromkeys(DIMS, 32)
    batch = draw(1200, dims, missing=0.1, factors=10)
    fit = {m: (x[:1000], p[:1000]) for m, (x, p) in batch.items()}

    def recall(method):
        space = fit_space(moments_of(fit), SpaceSpec(method, 10), table_of(fit))
        a, b = (space.project(m, batch[m][0][1000:]) for m in ("text", "image"))
        score = a @ b.T
        return float(((score > np.diag(score)[:, None]).sum(1) < 10).mean())

    none = recall("none")
    assert none < 0.1
    for method in ("procrustes", "ridge", "gcca", "anchors"):
        assert recall(method) > 4 * none, method


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(SpaceSpec("none", 4), r"space\.method: none leaves .* audio 7, image 9, text 12", id="none"),
        pytest.param(SpaceSpec("ridge", 4, hub="video"), r"space\.hub: 'video' cannot be used; .*audio", id="hub"),
        pytest.param(SpaceSpec("whiten", 4, remove_top=7), r"space\.remove_top: 7 of the 7 axes that audio", id="top"),
        pytest.param(SpaceSpec("procrustes", 8, hub="audio"), r"space\.dim: 8 is not in 1 … 7", id="dim"),
        pytest.param(SpaceSpec("anchors", 4), r"space\.method: anchors is fitted on a sample", id="no-sample"),
    ],
)
def test_bad_settings_are_named(spec, message):
    with pytest.raises(JobError, match=message):
        fit_space(moments_of(draw(missing=0.0)), spec)


def test_job_file_knows_every_method():
    from typing import get_args

    from unisono.pipelines.job.config import FusionConfig, SpaceMethod
    from unisono.transforms.space.fit.fusion import FUSIONS

    assert set(METHODS) <= set(get_args(SpaceMethod))
    assert set(FUSIONS) <= set(get_args(FusionConfig.model_fields["method"].annotation))
    assert max_dim("anchors", DIMS) == 28


def test_moments_less_undoes_add():
    batch = draw()
    whole, part = moments_of(batch), {m: (x[100:400], p[100:400]) for m, (x, p) in batch.items()}
    rest = {m: (np.delete(x, np.s_[100:400], 0), np.delete(p, np.s_[100:400])) for m, (x, p) in batch.items()}
    got = whole.less(Moments.zero().add(part))
    frame = pd.DataFrame(np.where(rest["text"][1][:, None], rest["text"][0].astype(float), np.nan))
    n = rest["text"][1].sum()
    assert got.count("text") == n
    np.testing.assert_allclose(got.covariance("text", "text"), frame.cov() * (n - 1) / n, atol=1e-9)
    with pytest.raises(JobError, match="were not all among"):
        got.less(Moments.zero({"video": 3}))
