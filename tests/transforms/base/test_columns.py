"""Shared helpers for rows, against plain Python and NumPy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.transforms.base.columns import common_rows, embeddings_of, in_sample, row_lengths, unit_rows
from unisono.transforms.base.tables import shard_of, to_vector_column


def test_embeddings_are_found_by_their_suffix() -> None:
    rng = np.random.default_rng(0)
    text, image = rng.random((3, 4), np.float32), rng.random((3, 2)).astype(np.float16)
    table = pa.table({
        "item_id": ["a", "b", "c"],
        "text_embedding": to_vector_column(text),
        "image_embedding": to_vector_column(image, np.array([True, False, True])),
        "text_hash": ["x"] * 3,
    })
    found = embeddings_of(table)
    assert list(found) == ["text", "image"]
    np.testing.assert_array_equal(found["text"][0], text)
    assert found["text"][1].tolist() == [True] * 3
    np.testing.assert_array_equal(found["image"][0][[0, 2]], image[[0, 2]])
    assert found["image"][0].dtype == np.float16
    assert found["image"][1].tolist() == [True, False, True]
    assert embeddings_of(pa.table({"item_id": ["a"]})) == {}


IDS = pa.array([f"item-{i}" for i in range(20_000)])


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.3, 0.999])
def test_a_sample_has_about_its_fraction_of_every_shard(fraction: float) -> None:
    drawn = in_sample(IDS, fraction)
    shard = shard_of(IDS, 8)
    for s in range(8):
        n = int((shard == s).sum())
        # Six standard deviations of a binomial distribution.
        assert abs(drawn[shard == s].mean() - fraction) <= 6 * np.sqrt(fraction * (1 - fraction) / n)


def test_a_smaller_sample_is_part_of_a_larger_one_and_one_is_all() -> None:
    small, large = in_sample(IDS, 0.1), in_sample(IDS, 0.4)
    assert (large | ~small).all()
    assert in_sample(IDS, 1.0).all()
    assert in_sample(IDS, 7.5).all()
    assert in_sample(IDS.slice(0, 0), 0.5).tolist() == []


def test_an_id_is_drawn_whatever_table_it_is_in() -> None:
    drawn = in_sample(IDS, 0.3)
    again = in_sample(pa.chunked_array([IDS.slice(100, 50), IDS.slice(9000, 20)]), 0.3)
    assert again.tolist() == [*drawn[100:150], *drawn[9000:9020]]


KEYS = st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=40)


@given(KEYS, st.lists(st.integers(0, 30), unique=True, max_size=30), st.booleans())
def test_common_rows_agree_with_a_dict(ids: list, known: list, text: bool) -> None:
    def column(values: list, dtype: pa.DataType) -> pa.ChunkedArray:
        array = pa.array([str(v) if text and v is not None else v for v in values], pa.string() if text else dtype)
        return pa.chunked_array([array.slice(0, 7), array.slice(7)], array.type)

    here, there = common_rows(column(ids, pa.int32()), column(known, pa.int64()))
    place = {key: row for row, key in enumerate(known)}
    expected = [(row, place[key]) for row, key in enumerate(ids) if key in place]
    assert list(zip(here.tolist(), there.tolist(), strict=True)) == expected
    assert here.dtype == there.dtype == np.int64


def test_strings_and_integers_have_no_rows_in_common() -> None:
    here, there = common_rows(pa.chunked_array([["1", "2"]]), pa.chunked_array([[1, 2]]))
    assert here.tolist() == there.tolist() == []


@pytest.mark.parametrize("lengths_given", [False, True], ids=["own lengths", "given lengths"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_rows_have_length_one_and_zeros_stay(dtype: type, lengths_given: bool) -> None:
    vectors: np.ndarray = np.random.default_rng(2).standard_normal((50, 7)).astype(dtype) * 100
    vectors[3] = 0
    units = unit_rows(vectors, row_lengths(vectors) if lengths_given else None)
    assert units.dtype == dtype
    length = np.sqrt((units.astype(np.float64) ** 2).sum(1))
    np.testing.assert_allclose(np.delete(length, 3), 1, atol=1e-6)
    assert not units[3].any()
    cosine = (units * vectors).sum(1) / np.where(length > 0, np.linalg.norm(vectors, axis=1), 1)
    np.testing.assert_allclose(np.delete(cosine, 3), 1, atol=1e-6)
    assert unit_rows(np.empty((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_row_lengths_agree_with_sums_of_squares(dtype: type) -> None:
    vectors: np.ndarray = np.random.default_rng(3).standard_normal((20, 9)).astype(dtype)
    lengths = row_lengths(vectors)
    assert lengths.dtype == dtype
    np.testing.assert_allclose(lengths, [sum(float(x) ** 2 for x in row) ** 0.5 for row in vectors], rtol=1e-6)
