"""The closed form that training starts from: what heads see, and the spaces made of it."""

import numpy as np

from tests.transforms.space.sample import DIMS, draw, moments_of, table_of
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained.start import Start

SPEC = SpaceSpec("contrastive", 6, 0.1)


def example():
    batch = draw(700, missing=0.3)
    return batch, Start(moments_of(batch), list(DIMS), SPEC)


def test_heads_see_whitened_coordinates_and_a_projection_of_length_one():
    batch, start = example()
    rows = start.rows(embeddings_of(table_of(batch)))
    assert start.dim == 6
    np.testing.assert_array_equal(rows.present, [batch[m][1] for m in DIMS])
    closed = fit_space(moments_of(batch), SpaceSpec("gcca", 6, 0.1))
    for m, (x, present) in batch.items():
        y, g = rows.values[m]
        assert not y[~present].any()
        assert not g[~present].any()
        covariance = np.cov(x[present].astype(float).T, ddof=0)
        values = np.sort(np.linalg.eigvalsh(covariance))[::-1]
        shrunk = values / (values + 0.1 * np.trace(covariance) / len(covariance))
        np.testing.assert_allclose(np.mean(y[present].astype(float) ** 2, axis=0), shrunk, rtol=1e-4)
        np.testing.assert_allclose(np.mean(np.sum(g[present].astype(float) ** 2, axis=1)), 1, rtol=1e-5)
        want = closed.project(m, x[present]).astype(float)
        np.testing.assert_allclose(g[present] / np.linalg.norm(g[present], axis=1, keepdims=True), want, atol=1e-5)


def test_untrained_heads_are_the_closed_form():
    batch, start = example()
    closed = fit_space(moments_of(batch), SpaceSpec("gcca", 6, 0.1))
    inner = {m: start.rows(embeddings_of(table_of(batch))).values[m][0].shape[1] for m in DIMS}
    params: dict[str, np.ndarray] = {}
    for m, k in inner.items():
        shapes = {"w0": (k, 6), "w1": (k, 4), "w2": (4, 6)}
        params |= {f"{m}.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    untrained, trained = start.untrained({"epoch": 0}), start.trained({"epoch": 3}, params, None)
    assert untrained.info.findings["training"] == {"epoch": 0}
    assert trained.info.findings["training"] == {"epoch": 3}
    assert trained.info.findings["spectrum"] == closed.info.findings["spectrum"]
    assert trained.projections["text"].kind == "trained_head"
    for m, (x, _) in batch.items():
        np.testing.assert_allclose(untrained.project(m, x), closed.project(m, x), atol=1e-6)
        np.testing.assert_allclose(trained.project(m, x), closed.project(m, x), atol=1e-6)


def test_the_trained_linear_map_goes_into_the_projection():
    batch, start = example()
    rows = start.rows(embeddings_of(table_of(batch)))
    rng = np.random.default_rng(0)
    params: dict[str, np.ndarray] = {}
    for m in DIMS:
        k = rows.values[m][0].shape[1]
        shapes = {"w0": (k, 6), "w1": (k, 4), "w2": (4, 6)}
        params |= {f"{m}.{n}": 0.1 * rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    space = start.trained({}, params, None)
    y, g = (v.astype(float) for v in rows.values["text"])
    hidden = y @ params["text.w1"]
    want = g + y @ params["text.w0"] + hidden / (1 + np.exp(-hidden)) @ params["text.w2"]
    x, present = batch["text"]
    want /= np.where(present, np.linalg.norm(want, axis=1), 1)[:, None]
    np.testing.assert_allclose(space.project("text", x)[present], want[present], atol=1e-4)
