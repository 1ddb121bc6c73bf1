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
# Each bucket goes to one place in each of these equal parts of the embedding, with a random sign. Eight is
# enough for the sketch to keep inner products as a dense Gaussian matrix would, at a 32nd of its memory.
_PARTS = 8
_WIDTH = DIM // _PARTS


class LiteTextEncoder:
    """Describes a text by its words, word pairs and the character n-grams in and around its words.

    Needs no vocabulary, so any language works; Chinese, written without spaces, lives on its character
    n-grams.
    """

    encoder_id = "lite-text-1"
    dim = DIM
    batch_cost = 256

    def __init__(self, spec: EncoderSpec) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer  # here, not above: half a second

        # Counts as they are: the projection brings the random signs.
        plain = {"n_features": BUCKETS, "alternate_sign": False, "norm": None, "lowercase": False}
        self._views = (
            HashingVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", **plain),
            HashingVectorizer(ngram_range=(2, 4), analyzer="char_wb", **plain),
        )
        self._projections = tuple(projection(_SEED + i) for i in range(len(self._views)))

    def prepare(self, raw: str) -> str:
        """Cleans one text: NFKC, so that full-width and composed forms meet, and case folded.

        Raises:
            InputError: EMPTY_TEXT.
        """
        return unicodedata.normalize("NFKC", clean_text(raw)).casefold()

    def cost(self, prepared: str) -> int:
        return 1

    def encode(self, batch: Sequence[str]) -> np.ndarray:
        """Encodes cleaned texts: float32 [len(batch), dim], unit rows.

        A row is computed from its own text alone, in float64: it does not depend on the rest of the batch.
        """
        out = np.zeros((len(batch), DIM))
        if not len(batch):
            return out.astype(np.float32)
        for view, matrix in zip(self._views, self._projections, strict=True):
            counts = view.transform(batch)
            counts.data = 1.0 + np.log(counts.data)  # sublinear: a word said ten times is not ten words
            norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).reshape(-1, 1))
            # Each view adds the same squared norm, however many n-grams it counts. A text of signs has no
            # words.
            out += (counts @ matrix).toarray() / np.maximum(norms, 1e-12)
        norms = np.linalg.norm(out, axis=1, keepdims=True)
        return (out / np.maximum(norms, 1e-12)).astype(np.float32)


def projection(seed: int) -> sparse.csr_array:
    """Makes the sparse sign matrix of one view: float64 [BUCKETS, DIM], `_PARTS` entries a row.

    From the generator's raw bits: NumPy keeps those the same for ever, but not its distributions.
    Source: Kane and Nelson, "Sparser Johnson-Lindenstrauss transforms", 2014 (block construction).
    """
    bits = np.random.PCG64(seed).random_raw(BUCKETS * _PARTS).reshape(BUCKETS, _PARTS)
    places = (bits >> np.uint64(32)).astype(np.int64) % _WIDTH + np.arange(_PARTS) * _WIDTH
    signs = np.where(bits & np.uint64(1 << 31), 1.0, -1.0) / np.sqrt(_PARTS)
    starts = np.arange(BUCKETS + 1, dtype=np.int32) * _PARTS
    return sparse.csr_array(
        (signs.ravel(), places.ravel().astype(np.int32), starts.astype(np.int32)), shape=(BUCKETS, DIM)
    )
