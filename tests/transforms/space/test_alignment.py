"""The joint space against independent dense computations, and at its edges."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas
from sklearn.decomposition import PCA

from tests.transforms.space.test_space_methods import map_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.methods import fit_space as fit
from unisono.transforms.space.fit.methods import max_dim
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.whitening import oas_intensity
from unisono.transforms.space.space import Space

DIMS = {"audio": 7, "image": 9, "text": 12}


def fit_space(moments, method="auto", dim=256, regularization=None, weighting=1.0, **more):
    return fit(moments, SpaceSpec(method, dim, regularization, weighting, **more))


def draw(n=2000, dims=DIMS, missing=0.0, seed=0, factors=4, noise=1.0):
    """Views of a common factor whose parts differ in strength, so that eigenvalues lie apart."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, factors)) * np.linspace(2.0, 0.6, factors)
    batch = {}
    for m, d in dims.items():
        shown = np.linalg.qr(rng.standard_normal((d, d)))[0][:factors]
        x = common @ shown + noise * rng.standard_normal((n, d))
        batch[m] = (x + rng.standard_normal(d)).astype(np.float32), rng.random(n) >= missing
    return batch


def moments_of(batch, pieces=7):
    """Sums in pieces, merged from the last to the first."""
    n = len(next(iter(batch.values()))[1])
    parts = [
        Moments.zero().add({m: (x[rows], p[rows]) for m, (x, p) in batch.items()})
        for rows in np.array_split(np.arange(n), pieces)
    ]
    out = Moments.zero()
    for part in reversed(parts):
        out.merge(part)
    return out


def centred(batch):
    return {m: x.astype(np.float64) - x.astype(np.float64).mean(0) for m, (x, _) in batch.items()}


def cosines(a, b):
    """Of matching columns, whatever their signs."""
    return np.abs((a * b).sum(0)) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))


def ridge_rows(views, r):
    """Stacks under the centred rows what makes XᵀX into n (C + λI): one block of rows for each view."""
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
    batch = draw(dims={"image": 9, "text": 12})
    space = fit_space(moments_of(batch), "cca", 4, r, weighting=0)
    views = centred(batch)
    stacked = ridge_rows(views, r)
    # Björck and Golub 1973: the singular values of Q_aᵀ Q_b; the canonical variables are Q_a U and Q_b V.
    (q_a, r_a), (q_b, r_b) = np.linalg.qr(stacked["image"]), np.linalg.qr(stacked["text"])
    u, correlations, vt = np.linalg.svd(q_a.T @ q_b)
    axes = {"image": np.linalg.solve(r_a, u[:, :4]), "text": np.linalg.solve(r_b, vt[:4].T)}
    np.testing.assert_allclose(space.info["spectrum"], correlations[:4], rtol=1e-9)
    assert space.method == "cca"
    for m, w in axes.items():
        assert cosines(map_of(space, m), w).min() > 0.999999
        assert cosines(views[m] @ map_of(space, m), views[m] @ w).min() > 0.999999
    # Canonical variables have unit variance, in the metric that the ridge adds to.
    for m, x in stacked.items():
        gram = map_of(space, m).T @ x.T @ x @ map_of(space, m) / len(views[m])
        np.testing.assert_allclose(gram, np.eye(4), atol=1e-9)


@pytest.mark.parametrize("r", [0.0, 0.3])
def test_gcca_is_max_var_on_the_rows(r):
    batch = draw(n=400)
    space = fit_space(moments_of(batch), "gcca", 4, r, weighting=0)
    stacked = ridge_rows(centred(batch), r)
    # Kettenring 1971, Carroll 1968: leading eigenvectors of the summed projections on each view's columns.
    projections = sum(x @ np.linalg.pinv(x) for x in stacked.values())
    values, common = np.linalg.eigh(projections)
    values, common = values[-4:], common[:, -4:]
    mine = sum(x @ map_of(space, m) for m, x in stacked.items())
    np.testing.assert_allclose(np.array(space.info["spectrum"]) * 2 + 1, values[::-1], rtol=1e-9)
    assert cosines(mine, common[:, ::-1]).min() > 0.999999
    for m, x in stacked.items():
        assert cosines(map_of(space, m), np.linalg.pinv(x) @ common[:, ::-1]).min() > 0.999999


@pytest.mark.parametrize("missing", [0.1, 0.5])
@pytest.mark.parametrize("r", [1e-6, 0.2])
@pytest.mark.parametrize("dims", [DIMS, {"image": 9, "text": 12}], ids=["three", "two"])
def test_missing_modalities_agree_with_pandas_and_scipy(dims, missing, r):
    batch = draw(3000, dims, missing)
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
        np.array(space.info["spectrum"]) * (len(dims) - 1) + 1, values[::-1][:4], rtol=1e-8
    )
    for m in dims:
        w = vectors[spans[m], ::-1][:, :4]
        x = frame[m].dropna().to_numpy() - frame[m].mean().to_numpy()
        assert cosines(map_of(space, m), w).min() > 0.999999
        assert cosines(x @ map_of(space, m), x @ w).min() > 0.999999
        np.testing.assert_allclose(space.projections[m].mean, frame[m].mean(), rtol=1e-9)


def test_one_modality_is_pca():
    batch = draw(dims={"text": 12})
    space = fit_space(moments_of(batch), "auto", 5)
    reference = PCA(5, svd_solver="full").fit(batch["text"][0].astype(np.float64))
    assert space.method == "pca"
    assert cosines(map_of(space, "text"), reference.components_.T).min() > 0.999999
    np.testing.assert_allclose(space.info["spectrum"], reference.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(map_of(space, "text"), axis=0), 1, rtol=1e-12)


def test_oas_is_that_of_scikit_learn():
    x = np.random.default_rng(0).standard_normal((90, 200)) * np.linspace(0.1, 3, 200)
    # scikit-learn leaves out the paper's 2/d, which is 0.01 here.
    expected = oas(x)[1]
    assert oas_intensity(np.cov(x.T, ddof=0), 90) == pytest.approx(expected, rel=0.02)
    assert oas_intensity(np.eye(4), 10) == 1.0


def retrieval(space, batch, rows, k=10):
    """Mean R@k over every ordered pair, on rows that the fit did not see, with chance."""
    hits = []
    projected = {m: space.project(m, batch[m][0][rows]) for m in batch}
    for a in batch:
        for b in batch:
            if a != b:
                score = projected[a] @ projected[b].T
                hits.append(((score > np.diag(score)[:, None]).sum(1) < k).mean())
    return np.mean(hits), k / len(rows)


def test_default_does_not_overfit_few_rows():
    batch = draw(900, {"audio": 256, "image": 256, "text": 256}, seed=3, factors=12, noise=0.6)
    train, test = np.arange(720), np.arange(720, 900)
    moments = moments_of({m: (x[train], p[train]) for m, (x, p) in batch.items()})
    default, chance = retrieval(fit_space(moments, "gcca", 64), batch, test)
    bare, _ = retrieval(fit_space(moments, "gcca", 64, 1e-6, weighting=0), batch, test)
    assert default > 8 * chance
    assert default > 1.5 * bare


def test_null_space_gives_no_axes():
    """Fewer rows than values: the rank, not rounding, says how many axes there are."""
    batch = draw(20, {"image": 40, "text": 50})
    space = fit_space(moments_of(batch), "cca", 40, 0.0, weighting=0)
    assert space.info["rank"] == {"image": 19, "text": 19}
    assert space.dim == 19
    assert space.info["axes_asked"] == 40
    for m, x in centred(batch).items():
        np.testing.assert_allclose((x @ map_of(space, m)).std(0), 1, rtol=1e-6)


def test_a_modality_that_is_not_there_is_left_out():
    batch = draw()
    batch["audio"] = (batch["audio"][0], np.arange(2000) == 5)
    space = fit_space(moments_of(batch), "gcca", 4, 0.1)
    two = fit_space(moments_of({m: batch[m] for m in ("image", "text")}), "cca", 4, 0.1)
    assert space.modalities == ("image", "text")
    assert space.info["left_out"] == {"audio": "1 of at least 2 items have it"}
    assert space.method == two.method == "cca"
    for m in two.modalities:
        np.testing.assert_allclose(map_of(space, m), map_of(two, m), rtol=1e-8, atol=1e-10)


def test_pairs_never_seen_together():
    batch = draw()
    first = np.arange(2000) < 1000
    batch["image"] = (batch["image"][0], first)
    batch["audio"] = (batch["audio"][0], ~first)
    chain = fit_space(moments_of(batch), "gcca", 4, 0.1)
    assert chain.info["unseen_pairs"] == ["audio-image"]
    assert chain.info["unaligned"] == []
    # image and audio never met, and text brought them together
    rate, chance = retrieval(chain, {m: batch[m] for m in ("audio", "image")}, np.arange(500))
    assert rate > 5 * chance
    # no modality meets audio: it keeps the order of its own neighbours
    batch["text"] = (batch["text"][0], first)
    alone = fit_space(moments_of(batch), "gcca", 4, 0.1)
    assert alone.info["unaligned"] == ["audio"]
    own = PCA(4).fit(batch["audio"][0][~first].astype(np.float64)).components_.T
    assert cosines(map_of(alone, "audio"), own).min() > 0.999999
    # nothing meets anything
    batch["text"] = (batch["text"][0], np.zeros(2000, bool))
    none = fit_space(moments_of(batch), "gcca", 4, 0.1)
    assert none.info["unaligned"] == ["audio", "image"]
    assert none.dim == 4
    assert np.isfinite(none.project("image", batch["image"][0])).all()


@given(index=st.lists(st.integers(0, 699), min_size=1, max_size=600))
@settings(max_examples=25, deadline=None)
def test_a_row_is_projected_the_same_in_any_batch(index):
    batch = draw(700, {"image": 37, "text": 129}, seed=5)
    space = fit_space(moments_of(batch), "cca", 31, 0.1)
    whole = space.project("text", batch["text"][0])
    np.testing.assert_array_equal(space.project("text", batch["text"][0][index]), whole[index])


def test_projection_is_unit_and_close_to_float64():
    batch = draw()
    space = fit_space(moments_of(batch), "gcca", 4)
    x = batch["text"][0]
    got = space.project("text", x)
    want = (x.astype(np.float64) - space.projections["text"].mean) @ map_of(space, "text")
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=6e-8)
    assert not space.project("text", space.projections["text"].mean[None]).any()
    assert space.project("text", x[:0]).shape == (0, 4)
    with pytest.raises(JobError, match=r"encoders\.text: embeddings have 9 values.*fitted on 12"):
        space.project("text", batch["image"][0])


def test_bytes_round_trip_and_damage():
    space = fit_space(moments_of(draw()), "gcca", 4).with_info(encoders={"text": "lite"})
    data = space.to_bytes()
    again = Space.from_bytes(data)
    assert again.space_id == space.space_id
    assert again.info == space.info
    assert again.to_bytes() == data
    for m in space.modalities:
        np.testing.assert_array_equal(map_of(again, m), map_of(space, m))
    text = json.loads(space.to_json())
    assert text["space_id"] == space.space_id
    assert text["modalities"] == DIMS
    assert text["info"]["encoders"] == {"text": "lite"}
    assert space.space_id != fit_space(moments_of(draw(seed=1)), "gcca", 4).space_id
    damaged = bytearray(data)
    damaged[-3] ^= 1
    for bad in (bytes(damaged), data[:100], b"", Moments.zero(DIMS).to_bytes()):
        with pytest.raises(JobError, match=r"^space\.safetensors: "):
            Space.from_bytes(bad)


def test_order_of_merging_does_not_reach_the_space():
    batch = draw(missing=0.3)
    parts = [{m: (x[i::5], p[i::5]) for m, (x, p) in batch.items()} for i in range(5)]
    ids = set()
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3, 4, 1, 0, 2]):
        moments = Moments.zero()
        for i in order:
            moments.merge(Moments.zero().add(parts[i]))
        ids.add(fit_space(moments, "gcca", 4).space_id)
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("dims", "arguments", "message"),
    [
        pytest.param(DIMS, {"method": "cca", "dim": 4}, r"space\.method: cca aligns two", id="cca-of-three"),
        pytest.param(DIMS, {"method": "magic", "dim": 4}, r"space\.method: 'magic' is none of", id="method"),
        pytest.param(DIMS, {"dim": 17}, r"space\.dim: 17 is not in 1 … 16, .*audio 7, image 9", id="dim"),
        pytest.param(DIMS, {"dim": 0}, r"space\.dim: 0", id="no-dim"),
        pytest.param({"image": 9, "text": 12}, {"dim": 10}, r"space\.dim: 10 is not in 1 … 9", id="two"),
        pytest.param({"text": 12}, {"dim": 13}, r"space\.dim: 13 is not in 1 … 12", id="one"),
        pytest.param(DIMS, {"dim": 4, "regularization": -1.0}, r"space\.regularization: -1", id="ridge"),
        pytest.param(DIMS, {"dim": 4, "weighting": float("nan")}, r"space\.weighting: nan", id="weighting"),
    ],
)
def test_bad_settings_are_named(dims, arguments, message):
    with pytest.raises(JobError, match=message):
        fit_space(moments_of(draw(dims=dims)), **arguments)


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_fit_is_said(n):
    moments = Moments.zero().add({m: (x[:n], p[:n]) for m, (x, p) in draw(5).items()})
    with pytest.raises(JobError, match=r"space: no modality can be fitted"):
        fit_space(moments, "auto", 4)
    with pytest.raises(JobError, match=r"there are no embeddings"):
        fit_space(Moments.zero(), "auto", 4)


def test_max_dim():
    assert max_dim("gcca", DIMS) == 16
    assert max_dim("cca", {"a": 3, "b": 5}) == 3
    assert max_dim("gcca", {"a": 3}) == 3
