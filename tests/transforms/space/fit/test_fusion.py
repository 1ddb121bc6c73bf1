"""Fusion of every linear method: shares, exact splits, imputation, independence of rows, refusals."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tests.transforms.space.sample import NAMES, aligned_rows, draw, moments_of, report_of, table_of, weights_of
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.space.fit.fusion import (
    balanced_weights,
    fit_fusion,
    inner_moments,
    mean_one,
    similarity_spread,
)
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fuse import fuse_table, item_vectors
from unisono.transforms.space.parts.imputer import ConditionalMean
from unisono.transforms.space.registry import FUSIONS
from unisono.transforms.space.space import Space, linear_space

LINEAR = ("mean", "weighted", "concat")


def fitted(missing=0.3, n=1500, dim=6):
    batch = draw(n, missing=missing)
    return fit_space(moments_of(batch), SpaceSpec("gcca", dim, 0.1)), table_of(batch)


def test_spread_is_the_deviation_of_scores_between_items():
    space, table = fitted(0.0, 800)
    moments = inner_moments(space, table)
    for m, z in aligned_rows(space, table).items():
        scores = z @ z.T  # includes an item with itself, as two independent draws from the sample may be
        assert similarity_spread(moments, m) == pytest.approx(scores.std(), rel=1e-6)


def test_a_loud_modality_is_balanced_and_the_report_says_by_how_much():
    """One modality lies in few directions. Its scores are so large that they alone would decide."""
    rng = np.random.default_rng(0)
    n = 1200
    loud = rng.standard_normal((n, 6)) * [3, 3, 0.01, 0.01, 0.01, 0.01]
    quiet = rng.standard_normal((n, 6))
    rare = rng.random(n) < 0.2
    table = pa.table({
        "item_id": np.arange(n),
        "image_embedding": to_vector_column((100 * loud).astype(np.float32)),
        "text_embedding": to_vector_column(quiet.astype(np.float32), rare),
    })  # fmt: skip
    space = linear_space("none", {"image": np.zeros(6), "text": np.zeros(6)}, {"image": np.eye(6), "text": np.eye(6)})
    out = fit_fusion(space, table, FusionSpec("mean"))
    report = report_of(out).modalities
    assert report["image"].share_raw > 0.99
    assert report["image"].share_unit > 0.8
    assert report["image"].share == pytest.approx(0.5)
    assert report["text"].coverage == pytest.approx(rare.mean())
    # In the fused scores, the parts of both modalities vary equally.
    parts = []
    for m, x in (("image", loud), ("text", quiet)):
        z = x / np.linalg.norm(x, axis=1, keepdims=True)
        parts.append((report[m].weight ** 2 * z[rare] @ z[rare].T).std())
    assert parts[0] == pytest.approx(parts[1], rel=0.1)
    assert np.mean([share.weight for share in report.values()]) == pytest.approx(1)
    assert weights_of(out)[0] < weights_of(out)[1]
    assert balanced_weights({"a": 0.0, "b": 2.0})["a"] == 0.0
    assert mean_one({"a": 1.0, "b": 3.0}) == {"a": 0.5, "b": 1.5}
    assert mean_one({"a": 0.0, "b": 0.0}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("impute", [False, True], ids=["plain", "impute"])
@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("dim", [6, 3], ids=["whole", "short"])
def test_the_split_is_exact_for_every_linear_fusion(method, impute, dim):
    space, table = fitted(0.4)
    out = fit_fusion(space, table, FusionSpec(method, impute=impute))
    out = out.turned(np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0][:, :dim])
    items, _ = fuse_table(table, out)
    vectors, _ = from_vector_column(items["vector"])
    total = np.zeros(vectors.shape)
    for m in NAMES:
        part, present = from_vector_column(items[f"{m}_vector"])
        weight = items[f"{m}_weight"].fill_null(0).to_numpy()
        np.testing.assert_array_equal(present, items[f"{m}_weight"].is_valid())
        np.testing.assert_allclose(np.linalg.norm(part[present], axis=1), 1, atol=1e-6)
        total += weight[:, None].astype(np.float64) * np.where(present[:, None], part, 0)
    np.testing.assert_array_equal(vectors, total.astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors.shape[1] == dim
    # A query by one modality has the same vector as an item's own vector of that modality.
    raw, present = embeddings_of(table)["text"]
    stored = dict(zip(items["item_id"].to_pylist(), items["text_vector"].to_pylist(), strict=True))
    ids = np.array(table["item_id"].to_pylist())
    for row in np.flatnonzero(present)[:20]:
        np.testing.assert_array_equal(out.project("text", raw[row : row + 1])[0], stored[ids[row]])
    again = Space.from_bytes(out.to_bytes())
    assert fuse_table(table, again)[0].equals(items)


def test_imputed_modalities_are_marked_and_missing_ones_stay_null():
    space, table = fitted(0.5)
    items, rest = fuse_table(table, fit_fusion(space, table, FusionSpec("mean", impute=True)))
    plain, _ = fuse_table(table, fit_fusion(space, table, FusionSpec("mean")))
    assert "imputed" not in plain.schema.names
    for row in items.select(["modalities", "imputed"]).to_pylist():
        assert sorted(row["modalities"] + row["imputed"]) == list(NAMES)
        assert row["modalities"]
    for m in NAMES:
        assert items[f"{m}_vector"].null_count == 0
        assert plain[f"{m}_vector"].null_count == sum(m not in row for row in plain["modalities"].to_pylist()) > 0
    # Rows without any modality have no vector.
    assert rest.num_rows == sum(not any(r) for r in zip(*(p for _, p in embeddings_of(table).values()), strict=True))
    assert isinstance(fit_fusion(space, table, FusionSpec("mean", impute=True)).imputer, ConditionalMean)


@pytest.mark.parametrize("method", LINEAR)
def test_rows_do_not_depend_on_their_neighbours(method):
    space, table = fitted(0.4, 700)
    out = fit_fusion(space, table, FusionSpec(method, impute=True))
    whole = item_vectors(out, table)[0].vectors
    index = np.random.default_rng(1).permutation(700)[:301]
    np.testing.assert_array_equal(item_vectors(out, table.take(pa.array(index)))[0].vectors, whole[index])


def test_one_modality_and_bad_method():
    batch = {"text": draw(300)["text"]}
    space = fit_space(moments_of(batch), SpaceSpec("auto", 4))
    for method in LINEAR:
        items, _ = fuse_table(table_of(batch), fit_fusion(space, table_of(batch), FusionSpec(method, impute=True)))
        assert items.num_rows == batch["text"][1].sum()
    with pytest.raises(JobError, match=r"fusion\.method: Input should be 'mean', 'weighted'"):
        fit_fusion(space, table_of(batch), FusionSpec("sum"))
    assert set(LINEAR) <= set(FUSIONS)
    assert dataclasses.replace(space, weigher=None).dim == 4
