"""What the content of an item says about its factors: a ridge regression from embeddings to factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.modalities import BEHAVIOUR
from unisono.transforms.space.fit.moments import Moments, MomentsCoder

_CONTENT, _TARGET = "content", "target"
_TRUST = 20  # an item with this many users weighs half as much as an item with very many
_RIDGE = 3.0  # in mean variances of the content columns; chosen on MovieLens-100k's new items


@dataclass(frozen=True, eq=False)
class ContentScale:
    """How embeddings become content columns: each modality is centred and scaled to an RMS norm of 1.

    Attributes:
        means: by modality, in ascending order of the names, float64 [k_m].
        sizes: the RMS norm of each modality's centred embeddings.
    """

    means: Mapping[str, np.ndarray]
    sizes: Mapping[str, float]

    @classmethod
    def of(cls, moments: Moments) -> ContentScale:
        """Takes means and sizes from the moments of the embeddings. Behaviour is no content."""
        names = [m for m in moments.dims if m != BEHAVIOUR]
        sizes = {m: float(np.sqrt(max(np.trace(moments.covariance(m, m)), 0.0))) for m in names}
        used = [m for m in names if sizes[m] > 0]
        return cls({m: moments.mean(m) for m in used}, {m: sizes[m] for m in used})

    @property
    def spans(self) -> dict[str, slice]:
        """The content columns of each modality."""
        ends = np.cumsum([len(v) for v in self.means.values()])
        return {m: slice(int(e) - len(v), int(e)) for (m, v), e in zip(self.means.items(), ends, strict=True)}

    def columns(self, table: pa.Table) -> np.ndarray:
        """Returns the content columns of a table with `<m>_embedding` columns: float64 [n, k], 0 where missing."""
        spans, found = self.spans, embeddings_of(table)
        out = np.zeros((table.num_rows, sum(len(v) for v in self.means.values())))
        for m, span in spans.items():
            if m in found:
                vectors, present = found[m]
                out[present, span] = (vectors[present] - self.means[m]) / self.sizes[m]
        return out


def add_weighted(content: np.ndarray, target: np.ndarray, users: np.ndarray) -> Moments:
    """Makes the moments of a weighted regression of targets on content.

    An item with n users weighs n / (n + 20), because the factors of an item with few users are uncertain.

    Args:
        content: float64 [n, k].
        target: float [n, t].
        users: int64 [n], above 0.
    """
    weight = np.sqrt(users / (users + _TRUST))[:, None]
    every = np.ones(len(content), bool)
    return Moments.zero().add({_CONTENT: (weight * content, every), _TARGET: (weight * target, every)})


def solve_content(moments: Moments, columns: int, targets: int) -> np.ndarray:
    """Solves the ridge regression (FᵀWF + 3 tr(FᵀWF) / k · I)⁻¹ FᵀWT.

    Args:
        moments: as `add_weighted` returns them, merged over all items.
        columns: k.
        targets: t.

    Returns:
        float64 [k, t]; zeros if there is no item to learn from or no content.

    Source: Hoerl and Kennard, "Ridge regression", Technometrics 12, 1970.
    """
    if columns == 0 or not moments.dims or moments.count(_CONTENT) == 0:
        return np.zeros((columns, targets))
    gram, cross = _sums(moments, _CONTENT), _sums(moments, _TARGET)
    size = np.trace(gram) / columns
    if size <= 0:
        return np.zeros((columns, targets))
    return np.asarray(np.linalg.solve(gram + _RIDGE * size * np.eye(columns), cross))


def _sums(moments: Moments, other: str) -> np.ndarray:
    """Returns the sum of products of the content columns with the columns of `other`, not centred."""
    means = np.outer(moments.mean(_CONTENT), moments.mean(other))
    return np.asarray(moments.count(_CONTENT) * (moments.covariance(_CONTENT, other) + means))


class MergeMoments(beam.CombineFn):
    """Adds up moments; the order does not change a bit."""

    def create_accumulator(self) -> Moments:
        return Moments.zero()

    def add_input(self, accumulator: Moments, moments: Moments) -> Moments:
        return accumulator.merge(moments)

    def merge_accumulators(self, accumulators: Iterable[Moments]) -> Moments:
        out = Moments.zero()
        for accumulator in accumulators:
            out.merge(accumulator)
        return out

    def extract_output(self, accumulator: Moments) -> Moments:
        return accumulator

    def get_accumulator_coder(self) -> MomentsCoder:
        return MomentsCoder()
