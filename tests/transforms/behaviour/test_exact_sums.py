"""Exact sums against rational arithmetic: the same bits whatever the split."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from unisono.transforms.behaviour import exact_sums
from unisono.transforms.behaviour.exact_sums import sum_of_outer, sum_of_products, total


def rows(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-4, 1, (n, 1))
    return (rng.standard_normal((n, d)) * scale).astype(np.float32)


def exact(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)), Fraction(0)))


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_sums_have_the_same_bits_in_any_shards_and_order(shards, monkeypatch):
    monkeypatch.setattr(exact_sums, "_VALUES_A_THREAD", 5000)  # so that threads share the rows
    a, b = rows(1000, 19, 0), rows(1000, 23, 1)
    rng = np.random.default_rng(shards)
    parts = np.array_split(rng.permutation(1000), shards)
    outer = total([sum_of_outer(a[p], b[p]) for p in parts])
    np.testing.assert_array_equal(outer, total([sum_of_outer(a, b)]))
    products = total([sum_of_products(a[p], b[p, :19]) for p in parts])
    np.testing.assert_array_equal(products, total([sum_of_products(a, b[:, :19])]))
    for i, j in ((0, 0), (18, 22), (5, 11)):
        assert outer[i, j] == pytest.approx(exact(a[:, i], b[:, j]), abs=1000 * 2.0**-47)
    for c in (0, 18):
        assert products[c] == pytest.approx(exact(a[:, c], b[:, c]), abs=1000 * 2.0**-47)


def test_large_and_small_terms_are_both_kept():
    a = np.array([[3e7], [1e-5], [-3e7], [2e-5]], np.float32)
    b = np.array([[3e7], [1e-5], [3e7], [1.0]], np.float32)
    expected = exact(a[:, 0], b[:, 0])
    assert total([sum_of_products(a, b)])[0] == pytest.approx(expected, abs=4 * 2.0**-47)


def test_no_rows():
    empty = np.empty((0, 4), np.float32)
    np.testing.assert_array_equal(total([sum_of_outer(empty, empty)]), np.zeros((4, 4)))
