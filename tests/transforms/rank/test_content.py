"""From content to factors: against a dense ridge regression in NumPy."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.rank.content import ContentScale, MergeMoments, add_weighted, solve_content
from unisono.transforms.space.fit.moments import Moments

N, TEXT, IMAGE, TARGETS = 70, 5, 3, 4


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Embeddings of two modalities of different size, and of behaviour; a third of the items have no image."""
    rng = np.random.default_rng(0)
    text, image = 5 + 2 * rng.standard_normal((N, TEXT)), 0.1 * rng.standard_normal((N, IMAGE)) - 1
    has = np.arange(N) % 3 > 0
    return pa.table({
        "item_id": [f"i{n}" for n in range(N)],
        "text_embedding": to_vector_column(text.astype(np.float32)),
        "image_embedding": to_vector_column(image.astype(np.float32), has),
        "behaviour_embedding": to_vector_column(rng.standard_normal((N, 2)).astype(np.float32)),
    })


def scale_of(table: pa.Table) -> ContentScale:
    return ContentScale.of(Moments.zero().add(embeddings_of(table)))


def test_modalities_are_centred_and_equally_long(table: pa.Table) -> None:
    scale = scale_of(table)
    columns = scale.columns(table)
    assert list(scale.means) == ["image", "text"]  # behaviour is no content
    assert scale.spans == {"image": slice(0, IMAGE), "text": slice(IMAGE, IMAGE + TEXT)}
    has = np.arange(N) % 3 > 0
    assert not columns[~has, :IMAGE].any()
    for part in (columns[has, :IMAGE], columns[:, IMAGE:]):
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-6)
        assert np.sqrt(np.mean(np.sum(part**2, axis=1))) == pytest.approx(1, abs=1e-6)
    one = np.array(table["text_embedding"][4].as_py()) - np.array(table["text_embedding"].to_pylist()).mean(0)
    np.testing.assert_allclose(columns[4, IMAGE:] / np.linalg.norm(columns[4, IMAGE:]), one / np.linalg.norm(one),
                               atol=1e-6)  # fmt: skip


def test_a_modality_that_is_the_same_for_all_items_says_nothing(table: pa.Table) -> None:
    same = to_vector_column(np.ones((N, 3), np.float32))
    table = table.set_column(table.column_names.index("image_embedding"), "image_embedding", same)
    assert list(scale_of(table).means) == ["text"]


def test_columns_of_a_table_without_a_modality_are_zero(table: pa.Table) -> None:
    scale = scale_of(table)
    columns = scale.columns(table.drop_columns(["image_embedding"]))
    assert columns.shape == (N, IMAGE + TEXT)
    assert not columns[:, :IMAGE].any()


def dense_ridge(f: np.ndarray, target: np.ndarray, users: np.ndarray) -> np.ndarray:
    w = np.diag(users / (users + 20))
    gram, k = f.T @ w @ f, f.shape[1]
    return np.linalg.inv(gram + 3 * np.trace(gram) / k * np.eye(k)) @ f.T @ w @ target


@pytest.mark.parametrize("parts", [1, 4])
def test_the_map_is_a_ridge_regression_in_which_few_users_weigh_less(table: pa.Table, parts: int) -> None:
    rng = np.random.default_rng(1)
    f, target, users = scale_of(table).columns(table), rng.standard_normal((N, TARGETS)), rng.integers(1, 90, N)
    moments = Moments.zero()
    for rows in np.array_split(np.arange(N), parts):
        moments.merge(add_weighted(f[rows], target[rows], users[rows]))
    np.testing.assert_allclose(solve_content(moments, IMAGE + TEXT, TARGETS), dense_ridge(f, target, users), atol=1e-9)


def test_without_items_or_content_the_map_is_zero() -> None:
    assert solve_content(Moments.zero(), 3, 2).tolist() == np.zeros((3, 2)).tolist()
    nothing = add_weighted(np.zeros((5, 3)), np.ones((5, 2)), np.ones(5, int))
    assert not solve_content(nothing, 3, 2).any()
    assert solve_content(nothing, 0, 2).shape == (0, 2)


def test_beam_adds_the_parts_up_to_the_same_bits(table: pa.Table) -> None:
    rng = np.random.default_rng(2)
    f, target, users = scale_of(table).columns(table), rng.standard_normal((N, TARGETS)), rng.integers(1, 90, N)
    parts = [add_weighted(f[r], target[r], users[r]) for r in np.array_split(np.arange(N), 5)]
    whole = Moments.zero()
    for part in (add_weighted(f[r], target[r], users[r]) for r in np.array_split(np.arange(N), 5)[::-1]):
        whole.merge(part)
    expected = solve_content(whole, IMAGE + TEXT, TARGETS)

    def check(found: list[Moments]) -> None:
        (moments,) = found
        np.testing.assert_array_equal(solve_content(moments, IMAGE + TEXT, TARGETS), expected)

    with beam.Pipeline(FnApiRunner()) as p:
        assert_that(p | beam.Create(parts) | beam.CombineGlobally(MergeMoments()), check)
