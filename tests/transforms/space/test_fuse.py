"""Fusion: what always holds, and the table and schema of item vectors."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.spec import FusionSpec
from unisono.transforms.space.fuse import fuse as fuse_weighted
from unisono.transforms.space.fuse import fuse_table, items_schema
from unisono.transforms.space.parts.linear import FixedWeights
from unisono.transforms.space.space import linear_space

NAMES = ("audio", "image", "text")


def fuse(aligned, weights):
    """Fuses with fixed weights. A modality that is not present weighs nothing."""
    return fuse_weighted(
        {m: x for m, (x, _) in aligned.items()}, {m: p * float(weights.get(m, 1.0)) for m, (_, p) in aligned.items()}
    )


def draw(n, dim=6, missing=0.4, seed=0):
    rng = np.random.default_rng(seed)
    aligned = {}
    for m in NAMES:
        x = rng.standard_normal((n, dim))
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        present = rng.random(n) >= missing
        x[~present] = np.nan  # rows that are missing must not be read
        aligned[m] = x, present
    return aligned


@given(
    n=st.integers(0, 40),
    missing=st.sampled_from([0.0, 0.4, 0.9]),
    seed=st.integers(0, 99),
    weights=st.fixed_dictionaries({}, optional={m: st.floats(0.1, 10) for m in NAMES}),
)
@settings(max_examples=80, deadline=None)
def test_fusion_invariants(n, missing, seed, weights):
    aligned = draw(n, missing=missing, seed=seed)
    fused = fuse(aligned, weights)
    anything = np.any([p for _, p in aligned.values()], axis=0) if n else np.zeros(0, bool)
    np.testing.assert_array_equal(fused.ok, anything)  # random directions do not cancel out
    # Unit rows, and zeros (never NaN) where not ok.
    np.testing.assert_allclose(np.linalg.norm(fused.vectors.astype(np.float64), axis=1), fused.ok, atol=3e-7)
    # The weighted parts add up to the vector, and their weights have the ratio of the given ones.
    parts = {m: np.where(p[:, None], x, 0).astype(np.float64) for m, (x, p) in aligned.items()}
    total = sum(fused.part_weights[m][:, None].astype(np.float64) * parts[m] for m in NAMES)
    np.testing.assert_array_equal(fused.vectors, total.astype(np.float32))
    for m, (_, present) in aligned.items():
        assert fused.part_weights[m].dtype == np.float32
        assert not fused.part_weights[m][~present].any()
    both = aligned["text"][1] & aligned["image"][1] & fused.ok
    ratio = fused.part_weights["text"][both] / fused.part_weights["image"][both]
    np.testing.assert_allclose(ratio, weights.get("text", 1.0) / weights.get("image", 1.0), rtol=1e-6)
    # Compared with the formula.
    want = sum(weights.get(m, 1.0) * parts[m] for m in NAMES)
    norm = np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(fused.vectors, np.divide(want, norm, where=norm > 0, out=want), atol=1e-6)


def test_the_order_of_modalities_and_rows_makes_no_difference():
    aligned = draw(2500, dim=33)
    whole = fuse(aligned, {"text": 0.7, "image": 1.3})
    for names in itertools.permutations(NAMES):
        again = fuse({m: aligned[m] for m in names}, {"image": 1.3, "text": 0.7})
        np.testing.assert_array_equal(again.vectors, whole.vectors)
    index = np.random.default_rng(3).permutation(2500)[:1111]
    some = fuse({m: (x[index], p[index]) for m, (x, p) in aligned.items()}, {"text": 0.7, "image": 1.3})
    np.testing.assert_array_equal(some.vectors, whole.vectors[index])
    for m in NAMES:
        np.testing.assert_array_equal(some.part_weights[m], whole.part_weights[m][index])


def test_vectors_that_cancel_and_weights_of_zero_are_not_ok():
    x = np.eye(3, dtype=np.float32)
    one = np.ones(3, bool)
    opposite = np.stack([-x[0], x[1], x[0]])
    fused = fuse({"text": (x, one), "image": (opposite, one)}, {})
    np.testing.assert_array_equal(fused.ok, [False, True, True])
    assert not fused.vectors[0].any()
    only = fuse({"text": (x, one), "image": (opposite, one)}, {"text": 0})
    np.testing.assert_array_equal(only.vectors, opposite)
    assert not only.part_weights["text"].any()
    assert not fuse({"text": (x, one)}, {"text": 0}).ok.any()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weights_are_named(weight):
    rows = pa.table({"item_id": ["a"], "image_embedding": to_vector_column(np.ones((1, 5), np.float32))})
    with pytest.raises(JobError, match=r"fusion\.weights\.image"):
        fit_fusion(space({"image": 5}), rows, FusionSpec("weighted", weights={"image": weight}))
    with pytest.raises(JobError, match="fusion: there is no modality"):
        fuse({}, {})


def space(dims, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    maps = {m: rng.standard_normal((d, dim)) for m, d in dims.items()}
    return linear_space("gcca", {m: rng.standard_normal(d) for m, d in dims.items()}, maps)


@pytest.mark.parametrize("ids", [["d", "b", "a", "c"], [4, 2, 1, 3]], ids=["strings", "integers"])
def test_fuse_table_writes_the_columns_of_items(ids):
    fitted = space({"audio": 3, "image": 5, "text": 6})
    rng = np.random.default_rng(1)
    text = rng.standard_normal((4, 6)).astype(np.float16)
    image = rng.standard_normal((4, 5)).astype(np.float32)
    has_text, has_image = np.array([True, True, False, False]), np.array([True, False, True, False])
    columns = {
        "item_id": ids,
        "title": ["D", None, "A", "C"],
        "text_embedding": to_vector_column(text, has_text),
        "image_embedding": to_vector_column(image, has_image),  # there is no column of audio
    }
    weighted = dataclasses.replace(fitted, weigher=FixedWeights(np.array([1.0, 1.0, 2.0])))
    items, rest = fuse_table(pa.table(columns), weighted, ["title", "subtitle"])
    assert items["item_id"].to_pylist() == ids[:3]
    assert items["title"].to_pylist() == ["D", None, "A"]
    assert rest.to_pylist() == [{"item_id": ids[3], "title": "C"}]
    assert items["modalities"].to_pylist() == [["image", "text"], ["text"], ["image"]]
    assert items.schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert items.schema.field("text_vector").type == pa.list_(pa.float32(), 4)
    assert items.schema.field("text_weight").type == pa.float32()
    assert items["audio_vector"].null_count == items["audio_weight"].null_count == 3
    assert items["image_vector"].is_valid().to_pylist() == [True, False, True]
    assert items["image_weight"].is_valid().to_pylist() == [True, False, True]
    t = (text[0].astype(np.float64) - fitted.projections["text"].mean) @ fitted.projections["text"].map
    i = (image[0].astype(np.float64) - fitted.projections["image"].mean) @ fitted.projections["image"].map
    want = 2 * t / np.linalg.norm(t) + i / np.linalg.norm(i)
    vectors, present = from_vector_column(items["vector"])
    assert present.all()
    np.testing.assert_allclose(vectors[0], want / np.linalg.norm(want), atol=1e-6)
    np.testing.assert_allclose(items["text_weight"][0].as_py(), 2 / np.linalg.norm(want), rtol=1e-6)


def test_fuse_table_of_slices_and_of_nothing():
    fitted = space({"text": 6})
    raw = np.random.default_rng(2).standard_normal((500, 6)).astype(np.float32)
    raw[77] = fitted.projections["text"].mean
    present = np.arange(500) % 7 != 0
    table = pa.table({"item_id": np.arange(500), "text_embedding": to_vector_column(raw, present)})
    items, rest = fuse_table(table, fitted)
    assert items.num_rows + rest.num_rows == 500
    parts = [fuse_table(table.slice(s, 123), fitted)[0] for s in range(0, 500, 123)]
    assert pa.concat_tables(parts).combine_chunks().equals(items.combine_chunks())
    empty, none = fuse_table(table.slice(0, 0), fitted)
    assert empty.schema == items.schema
    assert empty.num_rows == none.num_rows == 0


def test_an_embedding_at_the_mean_counts_as_missing():
    mean = np.array([0.25, -0.5, 3.0])  # exact in float16: the centred embedding is exactly zero
    fitted = linear_space("pca", {"text": mean}, {"text": np.eye(3)})
    raw = np.stack([mean, mean + 1]).astype(np.float16)
    items, rest = fuse_table(
        pa.table({"item_id": ["a", "b"], "text_embedding": to_vector_column(raw)}), fitted
    )
    assert items["item_id"].to_pylist() == ["b"]
    assert rest["item_id"].to_pylist() == ["a"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("imputes", [False, True], ids=["plain", "imputes"])
@pytest.mark.parametrize("id_type", [pa.int64(), pa.string(), pa.large_string()], ids=str)
def test_items_have_the_declared_schema(dtype, imputes, id_type):
    rng = np.random.default_rng(0)
    embeddings = {m: rng.standard_normal((60, d)).astype(np.float32) for m, d in (("image", 5), ("text", 6))}
    columns = {f"{m}_embedding": to_vector_column(x, rng.random(60) < 0.7) for m, x in embeddings.items()}
    columns |= {"item_id": pa.array(range(60)).cast(id_type), "title": pa.array([None] * 60, pa.string())}
    table = pa.table(columns)
    fitted = fit_fusion(space({"image": 5, "text": 6}), table, FusionSpec("mean", impute=imputes))
    fitted = dataclasses.replace(fitted, scale=np.full(4, 1 / 127))
    items, lost = fuse_table(table, fitted, ["title"], dtype)
    schema = items_schema(id_type, 4, ["text", "image"], dtype, imputes, [pa.field("title", pa.string())])
    assert items.schema.equals(schema)
    assert fuse_table(table.slice(0, 0), fitted, ["title"], dtype)[0].schema.equals(schema)
    assert items.num_rows + lost.num_rows == 60
    names = ["item_id", "title", "vector", "modalities", *(["imputed"] if imputes else [])]
    assert schema.names == [*names, "image_vector", "image_weight", "text_vector", "text_weight"]
    assert not schema.field("vector").nullable
    assert schema.field("text_vector").type == pa.list_({"float32": pa.float32(), "float16": pa.float16()}.get(
        dtype, pa.int8()), 4)  # fmt: skip
