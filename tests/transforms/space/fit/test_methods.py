"""`fit_space`: what holds for every method, what it reports, and what it refuses."""

import numpy as np
import pytest

from tests.transforms.space.sample import DIMS, SAME, draw, draw_views, linear_of, moments_of, table_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.methods import fit_space, max_dim, needs_sample
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.space import Space


@pytest.mark.parametrize("method", ["none", "whiten", "procrustes", "ridge", "gcca", "anchors"])
def test_the_order_of_merging_makes_no_difference_and_bytes_round_trip(method):
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


def test_interleaved_pieces_have_the_same_space_in_any_order():
    batch = draw_views(missing=0.3)
    parts = [{m: (x[i::5], p[i::5]) for m, (x, p) in batch.items()} for i in range(5)]
    ids = set()
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3, 4, 1, 0, 2]):
        moments = Moments.zero()
        for i in order:
            moments.merge(Moments.zero().add(parts[i]))
        ids.add(fit_space(moments, SpaceSpec("gcca", 4)).space_id)
    assert len(ids) == 1


def test_aligned_modalities_find_each_other_and_none_does_not():
    """The modalities share planted factors, each behind another rotation."""
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


def test_a_modality_that_cannot_be_fitted_is_left_out():
    batch = draw_views()
    batch["audio"] = (batch["audio"][0], np.arange(2000) == 5)
    space = fit_space(moments_of(batch), SpaceSpec("gcca", 4, 0.1))
    two = fit_space(moments_of({m: batch[m] for m in ("image", "text")}), SpaceSpec("cca", 4, 0.1))
    assert space.modalities == ("image", "text")
    assert space.info.left_out == {"audio": "1 of at least 2 items have it"}
    assert space.info.items == {"audio": 1, "image": 2000, "text": 2000}
    assert space.info.pairs == {"audio-image": 1, "audio-text": 1, "image-text": 2000}
    assert space.info.asked == "gcca"
    assert space.method == two.method == "cca"
    for m in two.modalities:
        np.testing.assert_allclose(linear_of(space, m).map, linear_of(two, m).map, rtol=1e-8, atol=1e-10)
    batch["audio"] = (np.ones_like(batch["audio"][0]), np.ones(2000, bool))
    alike = fit_space(moments_of(batch), SpaceSpec("gcca", 4, 0.1))
    assert alike.info.left_out == {"audio": "all its embeddings are alike"}


@pytest.mark.parametrize(
    ("dims", "spec", "message"),
    [
        pytest.param(DIMS, {"method": "cca", "dim": 4}, r"space\.method: cca aligns at most 2", id="cca-of-three"),
        pytest.param(DIMS, {"method": "magic", "dim": 4}, r"space\.method: .*'auto', 'cca'.*got 'magic'", id="method"),
        pytest.param(DIMS, {"dim": 17}, r"space\.dim: 17 is not in 1 … 16, .*audio 7, image 9", id="dim"),
        pytest.param(DIMS, {"dim": 0}, r"space\.dim: .*greater than 0 \(got 0\)", id="no-dim"),
        pytest.param(DIMS, {"method": "procrustes", "dim": 8, "hub": "audio"}, r"space\.dim: 8 .* 1 … 7", id="hub-dim"),
        pytest.param(DIMS, {"method": "anchors", "dim": 4}, r"space\.method: anchors is fitted on a s", id="sample"),
        pytest.param({"image": 9, "text": 12}, {"dim": 10}, r"space\.dim: 10 is not in 1 … 9", id="two"),
        pytest.param({"text": 12}, {"dim": 13}, r"space\.dim: 13 is not in 1 … 12", id="one"),
        pytest.param(DIMS, {"dim": 4, "regularization": -1.0}, r"space\.regularization: .*got -1\.0", id="ridge"),
        pytest.param(DIMS, {"dim": 4, "weighting": float("nan")}, r"space\.weighting: .*got nan", id="weighting"),
    ],
)
def test_bad_settings_are_named(dims, spec, message):
    with pytest.raises(JobError, match=message):
        fit_space(moments_of(draw_views(dims=dims)), SpaceSpec(**spec))


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_fit_is_said(n):
    moments = Moments.zero().add({m: (x[:n], p[:n]) for m, (x, p) in draw_views(5).items()})
    with pytest.raises(JobError, match=r"space: no modality can be fitted"):
        fit_space(moments, SpaceSpec("auto", 4))
    with pytest.raises(JobError, match=r"there are no embeddings"):
        fit_space(Moments.zero(), SpaceSpec("auto", 4))


def test_facts_of_methods():
    assert max_dim("gcca", DIMS) == 16
    assert max_dim("cca", {"a": 3, "b": 5}) == 3
    assert max_dim("gcca", {"a": 3}) == 3
    assert max_dim("anchors", DIMS) == 28
    assert needs_sample("anchors")
    assert not needs_sample("auto")
