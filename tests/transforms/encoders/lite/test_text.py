"""The lite text encoder, compared with explicit n-gram counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.transforms.encoders.lite.examples import examples, lite
from unisono.transforms.encoders.lite import text as lite_text


def test_text_keeps_the_cosines_of_its_features() -> None:
    encoder = lite("text")
    texts = [encoder.prepare(t) for t in examples("text", 60)]
    # The expected kernel: sublinear counts of words and word pairs, and of padded character n-grams, each of unit norm.
    views: tuple[dict[str, dict[int, int]], dict[str, dict[int, int]]] = ({}, {})  # term: count by text
    for i, text in enumerate(texts):
        words = text.split()
        grams = words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
        chars = [f" {w} "[j : j + n] for w in words for n in (2, 3, 4) for j in range(max(1, len(w) + 3 - n))]
        for view, terms in zip(views, (grams, chars), strict=True):
            for term in terms:
                view.setdefault(term, {}).setdefault(i, 0)
                view[term][i] += 1
    kernel = np.zeros((len(texts), len(texts)))
    for view in views:
        rows = np.zeros((len(texts), len(view)))
        for column, counts in enumerate(view.values()):
            for i, count in counts.items():
                rows[i, column] = 1 + np.log(count)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        kernel += rows @ rows.T / 2
    embeddings = encoder.encode(texts).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    error = (embeddings @ embeddings.T - kernel)[np.triu_indices(len(texts), 1)]
    # The error of a random projection to 256 places is about 1/√256 on average.
    assert np.sqrt((error**2).mean()) < 0.075
    assert abs(error.mean()) < 0.02


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        pytest.param("wooden chairs", "Wooden chair", "loud drum", id="english"),
        pytest.param("Grüne Holzstühle", "grüner Holzstuhl", "laute Trommel", id="german"),
        pytest.param("一把木头椅子", "红色的木头椅子", "响亮的鼓", id="chinese"),
        pytest.param("ＣＡＦÉ", "cafe\u0301", "tea", id="forms"),
    ],
)
def test_text_of_several_languages(text: str, near: str, far: str) -> None:
    encoder = lite("text")
    a, b, c = encoder.encode([encoder.prepare(t) for t in (text, near, far)])
    assert a @ b > a @ c + 0.2


@pytest.mark.parametrize("text", ["!?", "猫", "👍", "a", "x" * 100_000], ids=["signs", "one", "emoji", "a", "long"])
def test_odd_text_has_a_unit_embedding(text: str) -> None:
    encoder = lite("text")
    row = encoder.encode([encoder.prepare(text)])
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)


def test_projection_keeps_norms() -> None:
    matrix = lite_text.projection(5)
    assert matrix.shape == (2**18, 256)
    rows = matrix[:2000].toarray()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-12)
    assert ((rows != 0).sum(axis=1) == 8).all()
    # Places and signs are uniform: 2,000 rows put about 62.5 entries on each place, half of them positive.
    assert np.abs((rows != 0).sum(axis=0) - 62.5).max() < 5 * np.sqrt(62.5)
    assert abs(np.sign(rows).sum()) < 5 * np.sqrt(16_000)
