"""Weights, concatenation and imputation against independent computations."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from tests.transforms.space.test_space_methods import draw, moments_of, table_of
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.space.fit.fusion import (
    FUSIONS,
    FusionSpec,
    balanced_weights,
    fit_fusion,
    inner_moments,
    reliability,
    similarity_spread,
)
from unisono.transforms.space.fit.impute import fit_conditional_mean
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fuse import fuse_table, item_vectors
from unisono.transforms.space.parts.imputer import ConditionalMean
from unisono.transforms.space.parts.linear import FixedWeights
from unisono.transforms.space.space import Space, linear_space

NAMES = ("audio", "image", "text")
LINEAR = ("mean", "weighted", "concat")


def weights_of(space: Space) -> np.ndarray:
    """The fixed weights of a space's modalities."""
    assert isinstance(space.weigher, FixedWeights)
    return space.weigher.weights


def fitted(missing=0.3, n=1500, dim=6):
    batch = draw(n, missing=missing)
    return fit_space(moments_of(batch), SpaceSpec("gcca", dim, 0.1)), table_of(batch)


def aligned_rows(space, table):
    """Unit vectors of each modality, float64 with NaN where missing."""
    out = {}
    for m, (x, present) in embeddings_of(table).items():
        y = (x.astype(np.float64) - space.projections[m].mean) @ space.projections[m].map
        out[m] = np.where(present[:, None], y / np.linalg.norm(y, axis=1, keepdims=True), np.nan)
    return out


def test_spread_is_the_deviation_of_scores_between_items():
    space, table = fitted(0.0, 800)
    moments = inner_moments(space, table)
    for m, z in aligned_rows(space, table).items():
        scores = z @ z.T  # with an item and itself, as independent draws from the sample have them
        assert similarity_spread(moments, m) == pytest.approx(scores.std(), rel=1e-6)


def test_a_loud_modality_is_balanced_and_the_report_says_by_how_much():
    """One modality lies in few directions: its scores are large, and alone they would decide."""
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
    report = fit_fusion(space, table, FusionSpec("mean")).info["fusion"]["modalities"]
    assert report["image"]["share_raw"] > 0.99
    assert report["image"]["share_unit"] > 0.8
    assert report["image"]["share"] == pytest.approx(0.5)
    assert report["text"]["coverage"] == pytest.approx(rare.mean())
    # By fused scores: each modality's part varies as much as the other's.
    out = fit_fusion(space, table, FusionSpec("mean"))
    parts = []
    for m, x in (("image", loud), ("text", quiet)):
        z = x / np.linalg.norm(x, axis=1, keepdims=True)
        parts.append((report[m]["weight"] ** 2 * z[rare] @ z[rare].T).std())
    assert parts[0] == pytest.approx(parts[1], rel=0.1)
    assert np.mean([report[m]["weight"] for m in report]) == pytest.approx(1)
    # Given weights are used as they are.
    given = fit_fusion(space, table, FusionSpec("weighted", {"text": 3.0}))
    np.testing.assert_array_equal(weights_of(given), [1, 3])
    assert weights_of(out)[0] < weights_of(out)[1]
    assert balanced_weights({"a": 0.0, "b": 2.0})["a"] == 0.0


def test_learned_weights_follow_agreement_on_held_out_items():
    batch = draw(1500, missing=0.1, factors=6)
    rng = np.random.default_rng(5)
    audio, present = batch["audio"]
    batch["audio"] = audio + 6 * rng.standard_normal(audio.shape).astype(np.float32), present  # mostly noise
    train = {m: (x[:1000], p[:1000]) for m, (x, p) in batch.items()}
    space = fit_space(moments_of(train), SpaceSpec("gcca", 6, 0.1))
    rows = table_of(batch).slice(1000)
    found = reliability(space, rows)
    # Independently: mean reciprocal rank, by sorting.
    z = aligned_rows(space, rows)
    want: dict[str, list[float]] = {m: [] for m in NAMES}
    for a, b in itertools.permutations(NAMES, 2):
        both = ~np.isnan(z[a][:, 0] + z[b][:, 0])
        order = np.argsort(-(z[a][both] @ z[b][both].T), axis=1)
        rank = np.argmax(order == np.arange(both.sum())[:, None], axis=1) + 1
        chance = np.mean(1 / np.arange(1, both.sum() + 1))
        for m in (a, b):
            want[m].append(max(((1 / rank).mean() - chance) / (1 - chance), 0))
    for m in NAMES:
        assert found[m] == pytest.approx(np.mean(want[m]), rel=1e-3)
    out = fit_fusion(space, table_of(train), FusionSpec("weighted", "learned"), (space, rows))
    plain = fit_fusion(space, table_of(train), FusionSpec("mean"))
    assert weights_of(out)[0] < weights_of(plain)[0]  # audio comes first
    assert out.info["fusion"]["reliability"] == found
    with pytest.raises(JobError, match=r"fusion\.weights: learned needs items"):
        fit_fusion(space, table_of(train), FusionSpec("weighted", "learned"))


def test_concat_is_pca_of_the_modalities_side_by_side():
    space, table = fitted(0.0)
    out = fit_fusion(space, table, FusionSpec("concat"))
    weights = {m: out.info["fusion"]["modalities"][m]["weight"] for m in NAMES}
    z = aligned_rows(space, table)
    side_by_side = np.concatenate([weights[m] * z[m] for m in NAMES], axis=1)
    want = PCA(space.dim, svd_solver="full").fit_transform(side_by_side)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    got = item_vectors(out, table)[0].vectors
    np.testing.assert_allclose(got * np.sign((got * want).sum(0)), want, atol=2e-6)


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
    # A query by one modality lies where that modality's own vectors lie.
    raw, present = embeddings_of(table)["text"]
    stored = dict(zip(items["item_id"].to_pylist(), items["text_vector"].to_pylist(), strict=True))
    ids = np.array(table["item_id"].to_pylist())
    for row in np.flatnonzero(present)[:20]:
        np.testing.assert_array_equal(out.project("text", raw[row : row + 1])[0], stored[ids[row]])
    again = Space.from_bytes(out.to_bytes())
    assert fuse_table(table, again)[0].equals(items)


def test_imputation_is_linear_regression_on_whole_rows():
    """Without missing rows and without a ridge, the conditional mean is ordinary least squares."""
    space, table = fitted(0.0)
    fit = fit_conditional_mean(inner_moments(space, table), 0.0)
    z = aligned_rows(space, table)
    block = np.stack([z[m][:256] for m in NAMES])
    for pattern in itertools.product([True, False], repeat=3):
        if all(pattern) or not any(pattern):
            continue
        present = np.repeat(np.array(pattern)[:, None], 256, axis=1)
        got = fit.impute(np.where(present[:, :, None], block, 7.0), present)
        given = [m for m, p in zip(NAMES, pattern, strict=True) if p]
        for k, m in enumerate(NAMES):
            if pattern[k]:
                np.testing.assert_array_equal(got[k], block[k])
                continue
            ols = LinearRegression().fit(np.concatenate([z[g] for g in given], axis=1), z[m])
            want = ols.predict(np.concatenate([z[g][:256] for g in given], axis=1))
            np.testing.assert_allclose(got[k], want, atol=1e-6)


def test_imputed_is_marked_and_missing_stays_null():
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
    # Rows without any modality stay without a vector.
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
    with pytest.raises(JobError, match=r"fusion\.method: 'sum' is none of mean, weighted"):
        fit_fusion(space, table_of(batch), FusionSpec("sum"))
    assert set(LINEAR) <= set(FUSIONS)
    assert dataclasses.replace(space, weigher=None).dim == 4
