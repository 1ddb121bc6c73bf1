"""The `lite` text encoder: hashed words and character n-grams through a fixed random projection."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.media.text import clean_text

DIM = 256
BUCKETS = 2**18
_SEED = 20_261_122
# The embedding is divided into this many equal parts. Each bucket goes to one place in each part, with a random sign.
# Eight parts keep inner products as well as a dense Gaussian matrix does, with a 32nd of its memory.
_PARTS = 8
_WIDTH = DIM // _PARTS


class LiteTextEncoder:
    """Describes a text by its words, its word pairs and the character n-grams of its words.

    It has no vocabulary, so it takes any language. Chinese has no spaces between words; there the character n-grams
    do most of the work.
    """

    encoder_id = "lite-text-1"
    dim = DIM
    batch_cost = 256

    def __init__(self, spec: EncoderSpec) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer  # takes half a second

        # Plain counts: the projection adds the random signs.
        plain = {"n_features": BUCKETS, "alternate_sign": False, "norm": None, "lowercase": False}
        self._counters = (
            HashingVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **plain),
            HashingVectorizer(ngram_range=(2, 4), analyzer="char_wb", **plain),
        )
        self._projections = tuple(projection(_SEED + i) for i in range(len(self._counters)))

    def prepare(self, raw: str) -> str:
        """Strips and normalises one text: NFKC, which unifies full-width and composed forms, then case folding.

        Raises:
            InputError: EMPTY_TEXT.
        """
        return unicodedata.normalize("NFKC", clean_text(raw)).casefold()

    def cost(self, prepared: str) -> int:
        """Returns 1."""
        return 1

    def encode(self, batch: Sequence[str]) -> np.ndarray:
        """Encodes prepared texts: float32 [len(batch), dim], unit rows.

        Guarantees: a row depends on its own text alone, bit for bit, not on the rest of the batch.
        """
        out = np.zeros((len(batch), DIM))
        if not len(batch):
            return out.astype(np.float32)
        for counter, matrix in zip(self._counters, self._projections, strict=True):
            counts = counter.transform(batch)
            # Sublinear: ten occurrences of a word do not count ten times as much as one.
            counts.data = 1.0 + np.log(counts.data)
            norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).reshape(-1, 1))
            # Words and characters contribute the same squared norm, however many n-grams they have. A text of
            # punctuation only has no words, and a norm of zero here.
            out += (counts @ matrix).toarray() / np.maximum(norms, 1e-12)
        norms = np.linalg.norm(out, axis=1, keepdims=True)
        return (out / np.maximum(norms, 1e-12)).astype(np.float32)


def projection(seed: int) -> sparse.csr_array:
    """Makes the sparse random sign matrix of one counter: float64 [BUCKETS, DIM], `_PARTS` entries in each row.

    It uses the generator's raw bits, because NumPy keeps these equal between versions, but not its distributions.

    Source: Kane and Nelson, "Sparser Johnson-Lindenstrauss transforms", 2014 (block construction).
    """
    bits = np.random.PCG64(seed).random_raw(BUCKETS * _PARTS).reshape(BUCKETS, _PARTS)
    places = (bits >> np.uint64(32)).astype(np.int64) % _WIDTH + np.arange(_PARTS) * _WIDTH
    signs = np.where(bits & np.uint64(1 << 31), 1.0, -1.0) / np.sqrt(_PARTS)
    starts = np.arange(BUCKETS + 1, dtype=np.int32) * _PARTS
    return sparse.csr_array(
        (signs.ravel(), places.ravel().astype(np.int32), starts.astype(np.int32)), shape=(BUCKETS, DIM)
    )
