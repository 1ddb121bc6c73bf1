"""Applying a space and writing it: independence of rows, bytes, damage, and the spaces it may be compared with."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.space.sample import DIMS, draw_views, linear_of, moments_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.parts.linear import FixedWeights, Output
from unisono.transforms.space.space import BLOCK_ROWS, Space, comparable_metadata, linear_space


def fitted(batch, method="gcca", dim=4):
    return fit_space(moments_of(batch), SpaceSpec(method, dim))


@pytest.fixture(scope="module")
def wide():
    """Text embeddings, a space, and the embeddings projected all at once."""
    batch = draw_views(700, {"image": 37, "text": 129}, seed=5)
    space = fit_space(moments_of(batch), SpaceSpec("cca", 31, 0.1))
    return batch["text"][0], space, space.project("text", batch["text"][0])


@given(index=st.lists(st.integers(0, 699), min_size=1, max_size=600))
@settings(max_examples=25, deadline=None)
def test_a_row_is_projected_the_same_in_any_batch(wide, index):
    x, space, whole = wide
    np.testing.assert_array_equal(space.project("text", x[index]), whole[index])


def test_projection_is_unit_and_close_to_float64():
    batch = draw_views()
    space = fitted(batch)
    x = batch["text"][0]
    got = space.project("text", x)
    want = (x.astype(np.float64) - space.projections["text"].mean) @ space.projections["text"].map
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=6e-8)
    assert not space.project("text", space.projections["text"].mean[None]).any()
    assert space.project("text", x[:0]).shape == (0, 4)
    with pytest.raises(JobError, match=r"encoders\.text: embeddings have 9 values.*fitted on 12"):
        space.project("text", batch["image"][0])


def test_aligning_ignores_unknown_modalities_and_takes_absent_ones_for_missing():
    batch = draw_views(BLOCK_ROWS + 3, missing=0.4)
    space = fitted(batch)
    some = space.align({"text": batch["text"], "smell": batch["image"]})
    assert list(some.vectors) == ["audio", "image", "text"]
    np.testing.assert_array_equal(some.present["text"], batch["text"][1])
    assert not some.present["audio"].any()
    assert not some.vectors["image"].any()
    np.testing.assert_array_equal(some.weights["text"], batch["text"][1].astype(float))
    np.testing.assert_array_equal(some.vectors["text"], space.align(batch).vectors["text"])


def test_outputs_and_turns_are_applied_in_their_order():
    batch = draw_views(300)
    rng = np.random.default_rng(0)
    bare = fitted(batch)
    shift, last = rng.standard_normal(4) / 10, rng.standard_normal((4, 4))
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0][:, :3]
    space = replace(bare, outputs={m: Output(shift, last) for m in DIMS}).turned(turn)
    assert (space.inner_dim, space.dim) == (4, 3)
    found = space.align({"text": batch["text"]})
    want = (bare.project("text", batch["text"][0]).astype(float) - shift) @ last @ turn
    length = np.linalg.norm(want, axis=1)
    np.testing.assert_allclose(found.vectors["text"], want / length[:, None], atol=1e-5)
    np.testing.assert_allclose(found.weights["text"], length, rtol=1e-5)  # the length of an output counts
    turned = bare.turned(turn)
    want = bare.project("image", batch["image"][0]).astype(float) @ turn
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(turned.project("image", batch["image"][0]), want, atol=1e-6)


def test_bytes_round_trip_and_damage():
    space = fitted(draw_views()).with_info(encoder_ids={"text": "lite"})
    data = space.to_bytes()
    again = Space.from_bytes(data)
    assert again.space_id == space.space_id
    assert again.info == space.info
    assert again.to_bytes() == data
    for m in space.modalities:
        np.testing.assert_array_equal(linear_of(again, m).map, linear_of(space, m).map)
    text = json.loads(space.to_json())
    assert text["space_id"] == space.space_id
    assert text["modalities"] == DIMS
    assert text["info"]["encoder_ids"] == {"text": "lite"}
    assert space.space_id != fitted(draw_views(seed=1)).space_id
    damaged = bytearray(data)
    damaged[-3] ^= 1
    for bad in (bytes(damaged), data[:100], b"", Moments.zero(DIMS).to_bytes()):
        with pytest.raises(JobError, match=r"^space\.safetensors: "):
            Space.from_bytes(bad)


def test_the_id_depends_on_the_parts_and_not_on_the_info():
    space = fitted(draw_views())
    assert space.with_info(not_comparable="x").space_id == space.space_id
    assert replace(space, weigher=FixedWeights(np.ones(3))).space_id != space.space_id
    assert replace(space, scale=np.ones(4)).space_id != space.space_id
    assert replace(space, method="ridge").space_id != space.space_id


def test_metadata_name_the_spaces_that_may_be_compared():
    space = linear_space("none", {"text": np.zeros(2)}, {"text": np.eye(2)})
    assert comparable_metadata(space) == {b"unisono.comparable": b"[]"}
    faced = space.with_info(comparable=("b", "a"))
    assert comparable_metadata(faced) == {b"unisono.comparable": b'["b", "a"]'}
    alone = comparable_metadata(space.with_info(comparable=(), not_comparable="it has 3 axes"))
    assert alone == {b"unisono.comparable": b"[]", b"unisono.not_comparable": b"it has 3 axes"}
