"""Order of axes, the turn to the published space, lineage, blending, and when a published space can be kept."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.transforms.space.sample import draw, linear_of, moments_of, table_of, unit
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.refit import blend, compare, lineage, may_keep, order_axes, turn_to_published
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fuse import item_vectors
from unisono.transforms.space.parts.linear import Output
from unisono.transforms.space.space import linear_space


def fitted(n=600, method="gcca", seed=0):
    batch = draw(n, missing=0.1, seed=seed)
    return fit_space(moments_of(batch), SpaceSpec(method, 6, 0.1), table_of(batch)), table_of(batch)


def vectors_of(space, table):
    fused = item_vectors(space, table)[0]
    ok = pa.array(fused.ok)
    return table["item_id"].filter(ok), fused.vectors[fused.ok]


def test_a_prefix_of_ordered_axes_keeps_what_the_svd_keeps():
    x = unit(np.random.default_rng(0).standard_normal((500, 9)) * np.linspace(0.3, 2, 9))
    turned = x @ order_axes(x)
    values = np.linalg.svd(x.astype(float), compute_uv=False)
    np.testing.assert_allclose((turned**2).sum(0), values**2, rtol=1e-5)
    np.testing.assert_allclose(turned @ turned.T, x @ x.T, atol=1e-6)


def test_comparing_is_the_mean_cosine_and_the_shared_neighbours():
    rng = np.random.default_rng(0)
    new = unit(rng.standard_normal((80, 5)))
    old = unit(new + 0.3 * rng.standard_normal((80, 5)))
    found = compare(new, old)
    assert found.mean_cosine == pytest.approx((new.astype(float) * old).sum(1).mean())
    nearest = [np.argsort(-(x @ x.T - 3 * np.eye(80)), axis=1)[:, :10] for x in (new, old)]
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)]
    assert found.top10_overlap == pytest.approx(np.mean(shared))


def test_a_turned_space_is_turned_back():
    space, table = fitted()
    ids, vectors = vectors_of(space, table)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    previous = pa.table({"item_id": ids, "vector": to_vector_column(unit(vectors @ turn))})
    out, found = turn_to_published(space, ids, vectors, previous, 6)
    assert found.rotation is not None
    np.testing.assert_allclose(found.rotation, turn, atol=1e-5)
    assert found.common == len(ids)
    assert found.turned is not None
    assert found.turned.mean_cosine == pytest.approx(1, abs=1e-6)
    assert found.before is not None
    assert found.before.mean_cosine < 0.9
    np.testing.assert_allclose(vectors_of(out, table)[1], vectors @ turn, atol=1e-5)


def test_too_few_common_items_or_axes_leave_the_space_as_it_is():
    space, table = fitted()
    ids, vectors = vectors_of(space, table)
    previous = pa.table({"item_id": ids, "vector": to_vector_column(unit(vectors[:, :4]))})
    out, found = turn_to_published(space, ids, vectors, previous, 6)
    assert out.space_id == space.space_id
    assert found.not_anchored == "it has 4 axes, this run 6"
    assert found.turned is found.rotation is None
    short, found = turn_to_published(space, ids, vectors, previous.slice(0, 3), 4)
    assert short.dim == 4
    assert found.not_anchored == "fewer than 4 items in common"


def test_lineage_names_the_spaces_that_a_new_one_faces():
    space, _ = fitted()
    old = space.with_info(comparable=("x", "y"))
    assert lineage(space, old, 0.95, None) == ((old.space_id, "x", "y"), "")
    assert lineage(space, space, 0.95, None) == ((space.space_id,), "")
    many = space.with_info(comparable=tuple(str(i) for i in range(500)))
    assert len(lineage(space, many, 0.95, None)[0]) == 400
    assert lineage(space, old, 0.5, None) == (
        (), "vectors of the same items have a mean cosine of 0.50, and 0.9 is needed"
    )  # fmt: skip
    assert lineage(space.turned(np.eye(6)[:, :4]), old, 0.95, None)[1] == "it has 6 axes, this run 4"
    assert lineage(space, old, None, "fewer than 6 items in common") == ((), "fewer than 6 items in common")
    assert lineage(space, old, None, None) == ((), "none of the published items is in the sample")


def test_blending_is_the_mean_of_maps_of_one_length():
    space, other = fitted()[0], fitted(seed=3)[0]
    other = other.turned(3.0 * np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0])
    mixed = blend(space, other, 0.25)
    assert mixed is not None
    maps = {m: (space.projections[m].map, other.projections[m].map @ other.outputs[m].map) for m in space.modalities}
    lengths = [np.sqrt(sum(np.linalg.norm(pair[i]) ** 2 for pair in maps.values())) for i in (0, 1)]
    for m, (new, old) in maps.items():
        want = 0.75 * new + 0.25 * old * lengths[0] / lengths[1]
        np.testing.assert_allclose(linear_of(mixed, m).map, want, rtol=1e-12)
        mean = 0.75 * space.projections[m].mean + 0.25 * other.projections[m].mean
        np.testing.assert_allclose(linear_of(mixed, m).mean, mean, rtol=1e-12)


def test_spaces_that_are_not_linear_or_differ_in_shape_are_not_blended():
    space, _ = fitted()
    assert blend(space, fitted(method="anchors")[0], 0.5) is None
    assert blend(space, space.turned(np.eye(6)[:, :4]), 0.5) is None
    shifted = replace(space, outputs={m: Output(np.ones(6), np.eye(6)) for m in space.modalities})
    assert blend(space, shifted, 0.5) is None
    two = linear_space("x", {"text": np.zeros(12)}, {"text": np.ones((12, 6))})
    assert blend(space, two, 0.5) is None


def test_a_published_space_can_be_kept_if_it_knows_every_encoder():
    space = fitted()[0].with_info(encoder_ids={"text": "lite", "image": "clip"}, left_out={"joint": "why"})
    dims = {"text": 12, "image": 9, "video": 3, "joint": 4}
    assert may_keep(space, {"text": "lite", "image": "clip"}, dims) == ""
    assert may_keep(space, {"text": "lite", "joint": "omni"}, dims) == ""
    assert may_keep(space, {"text": "mini"}, dims) == "its text encoder was lite, now it is mini"
    assert may_keep(space, {"video": "v"}, dims) == "it does not know video"
    assert may_keep(space, {"smell": "s"}, dims) == ""  # no item has it
