"""Second moments of embeddings over every pair of modalities. The order of merging does not change a bit of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

import apache_beam as beam
import numpy as np
import pyarrow as pa
import safetensors.numpy

from unisono.transforms.base.columns import embeddings_of, in_sample
from unisono.transforms.base.errors import JobError

_BLOCK_ROWS = 2048  # rows cast to float64 at a time: 25 MB for 3 × 512 columns
# A sum is stored as `coarse + fine`, each a multiple of a fixed step. Adding two sums then rounds nothing, and the
# order of merging makes no difference: float64 adds multiples of 2^-10 exactly below 2^43, those of 2^-62 below 2^-9.
_COARSE = 2.0**10
_FINE = 2.0**62


class Moments:
    """The sums n, Σx_a, Σx_b and Σx_a x_bᵀ for every pair of modalities, over the rows where both are present.

    One symmetric matrix ZᵀZ holds all sums. A row of Z is [x_a, 1, x_b, 1, …]. Where a modality is missing, its values
    and its 1 are zero. No shift is subtracted from the embeddings: all workers would have to agree on it before they
    see the data. In float64 the covariance keeps twelve digits even if a mean is a hundred times the spread.

    Guarantees: for sums below 2^43, `merge` is exact, so the order of merging does not change a bit. The resolution is
    2^-62.

    Attributes:
        dims: the embedding length of each modality, in ascending order of the modalities.
    """

    def __init__(self, dims: Mapping[str, int], coarse: np.ndarray, fine: np.ndarray) -> None:
        self.dims = dict(sorted(dims.items()))
        self._coarse = coarse
        self._fine = fine
        self._span = _spans(self.dims)

    @classmethod
    def zero(cls, dims: Mapping[str, int] | None = None) -> Moments:
        """Makes the sums of no rows.

        Args:
            dims: the embedding length of each modality. A modality that is not named is added when it is first seen.
        """
        size = sum(d + 1 for d in (dims or {}).values())
        return cls(dims or {}, np.zeros((size, size)), np.zeros((size, size)))

    def add(self, batch: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Moments:
        """Adds rows, in place.

        Args:
            batch: for each modality its embeddings, of any float dtype, [n, d], and present, bool [n]. Rows that are
                not present may hold anything.

        Raises:
            JobError: embeddings of a modality differ in length from earlier ones, or a present embedding is not finite.
        """
        self._grow({m: vectors.shape[1] for m, (vectors, _) in batch.items()})
        used = {m: pair for m, pair in sorted(batch.items()) if pair[1].any()}
        if not used:
            return self
        gram = _gram(used)
        for m, span in _spans({m: self.dims[m] for m in used}).items():
            if not np.isfinite(np.diagonal(gram)[span]).all():
                raise JobError(
                    f"encoders.{m}: embeddings hold NaN or infinity; only finite values are allowed; "
                    "look at the encoder and encode again"
                )
        where = self._where(used)
        coarse = np.floor(gram * _COARSE) / _COARSE
        gram -= coarse
        fine = np.floor(gram * _FINE) / _FINE
        self._coarse[where] += coarse
        self._fine[where] += fine
        self._carry()
        return self

    def merge(self, other: Moments) -> Moments:
        """Adds the sums of `other`, in place.

        Raises:
            JobError: a modality has another length in `other`.
        """
        self._grow(other.dims)
        where = self._where(other.dims)
        self._coarse[where] += other._coarse
        self._fine[where] += other._fine
        self._carry()
        return self

    def less(self, other: Moments) -> Moments:
        """Returns these sums without the rows of `other`, exactly. Neither operand changes.

        Args:
            other: the sums of rows that were added before.

        Raises:
            JobError: `other` has a modality that these sums lack, or one of another length.
        """
        if not other.dims.keys() <= self.dims.keys():
            missing, known = ", ".join(other.dims.keys() - self.dims.keys()), ", ".join(self.dims)
            raise JobError(f"moments: {missing} was not added, only {known}; add a row before taking it off")
        out = Moments(self.dims, self._coarse.copy(), self._fine.copy())
        negative = Moments(other.dims, -other._coarse, -other._fine)
        return out.merge(negative)

    def count(self, a: str, b: str | None = None) -> int:
        """Counts the rows where `a` and `b` (or `a` alone) are present."""
        return int(self._block(self._one(a), self._one(a if b is None else b))[0, 0])

    def mean(self, a: str) -> np.ndarray:
        """Averages `a` over the rows where it is present: float64 [d_a], zeros if there is no such row."""
        return self._block(self._span[a], self._one(a))[:, 0] / max(self.count(a), 1)

    def covariance(self, a: str, b: str) -> np.ndarray:
        """Estimates Cov(x_a, x_b) from the available cases.

        The means and the products are averaged over the n_ab rows where both modalities are present.

        Returns:
            float64 [d_a, d_b], zeros if the two were never present together.
        """
        n = max(self.count(a, b), 1)
        mean_a = self._block(self._span[a], self._one(b)) / n
        mean_b = self._block(self._one(a), self._span[b]) / n
        return self._block(self._span[a], self._span[b]) / n - mean_a * mean_b

    def to_bytes(self) -> bytes:
        """Returns the sums as a safetensors file, without the half that follows from symmetry."""
        upper = np.triu(np.ones(self._coarse.shape, bool))
        tensors = {f"dim.{m}": np.array(d, np.int64) for m, d in self.dims.items()}
        tensors |= {"coarse": self._coarse[upper], "fine": self._fine[upper]}
        return safetensors.numpy.save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Moments:
        """Reads what `to_bytes` returned."""
        tensors = safetensors.numpy.load(data)
        out = cls.zero({k.removeprefix("dim."): int(v) for k, v in tensors.items() if k.startswith("dim.")})
        upper = np.triu(np.ones(out._coarse.shape, bool))
        for full, packed in ((out._coarse, tensors["coarse"]), (out._fine, tensors["fine"])):
            full[upper] = packed
            full.T[upper] = packed
        return out

    def _one(self, a: str) -> slice:
        """Returns the place of a modality's column of ones."""
        return slice(self._span[a].stop, self._span[a].stop + 1)

    def _where(self, names: Iterable[str]) -> tuple:
        """Returns the index of the rows and columns of some modalities, in ascending order of their names."""
        names = sorted(names)
        if names == list(self.dims):
            return np.s_[:, :]
        columns = [np.arange(self._span[m].start, self._span[m].stop + 1) for m in names]
        flat = np.concatenate(columns) if columns else np.empty(0, int)
        return np.ix_(flat, flat)

    def _block(self, rows: slice, columns: slice) -> np.ndarray:
        return self._coarse[rows, columns] + self._fine[rows, columns]

    def _carry(self) -> None:
        """Moves multiples of the coarse step from `fine` to `coarse`. With 0 ≤ fine < 2^-10 a sum has only one form."""
        carry = np.floor(self._fine * _COARSE)
        carry /= _COARSE
        self._coarse += carry
        self._fine -= carry

    def _grow(self, dims: Mapping[str, int]) -> None:
        """Adds rows and columns for modalities that were not seen before."""
        for m, d in dims.items():
            if self.dims.get(m, d) != d:
                raise JobError(
                    f"encoders.{m}: embeddings of {d} and of {self.dims[m]} values in one run; "
                    "all must come from one encoder; encode again"
                )
        if dims.keys() <= self.dims.keys():
            return
        out = Moments.zero(self.dims | dict(dims))
        where = out._where(self.dims)
        out._coarse[where] = self._coarse
        out._fine[where] = self._fine
        self.__dict__ = out.__dict__


def _spans(dims: Mapping[str, int]) -> dict[str, slice]:
    """Returns the place of each modality's embedding in a row [x_a, 1, x_b, 1, …]."""
    ends = accumulate(d + 1 for d in dims.values())
    return {m: slice(end - d - 1, end - 1) for (m, d), end in zip(dims.items(), ends, strict=True)}


def _gram(batch: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Computes ZᵀZ, see `Moments`: float64 [Σ(d + 1), Σ(d + 1)]."""
    spans = _spans({m: vectors.shape[1] for m, (vectors, _) in batch.items()})
    size = max(span.stop for span in spans.values()) + 1
    n = len(next(iter(batch.values()))[1])
    out = np.zeros((size, size))
    buffer = np.empty((min(n, _BLOCK_ROWS), size))
    for start in range(0, n, _BLOCK_ROWS):
        z = buffer[: min(n - start, _BLOCK_ROWS)]
        rows = slice(start, start + len(z))
        for m, span in spans.items():
            vectors, present = batch[m][0][rows], batch[m][1][rows]
            z[:, span] = vectors
            z[:, span.stop] = present
            if not present.all():
                z[~present, span] = 0.0
        out += z.T @ z  # NumPy sees one matrix on both sides and calls syrk: half the work, exactly symmetric
    return out


# --- Beam --------------------------------------------------------------------------------------------------


class MomentsCoder(beam.coders.Coder):
    """Encodes moments as their bytes."""

    def encode(self, value: Moments) -> bytes:
        return value.to_bytes()

    def decode(self, encoded: bytes) -> Moments:
        return Moments.from_bytes(encoded)

    def is_deterministic(self) -> bool:
        return True

    def to_type_hint(self) -> type:
        return Moments


beam.coders.registry.register_coder(Moments, MomentsCoder)


class MomentsCombineFn(beam.CombineFn):
    """Combines tables with `<m>_embedding` columns (null: missing) into `Moments`.

    Guarantees: the same tables have the same moments bit for bit, whatever the runner's grouping and order.

    Args:
        sample: the fraction of the rows to use, chosen by hash of `item_id`. None means all rows.
    """

    def __init__(self, sample: float | None = None) -> None:
        self._sample = sample

    def create_accumulator(self) -> Moments:
        return Moments.zero()

    def add_input(self, accumulator: Moments, table: pa.Table) -> Moments:
        if self._sample is not None and self._sample < 1.0:
            table = table.filter(pa.array(in_sample(table["item_id"], self._sample)))
        return accumulator.add(embeddings_of(table))

    def merge_accumulators(self, accumulators: list[Moments]) -> Moments:
        out = Moments.zero()
        for accumulator in accumulators:
            out.merge(accumulator)
        return out

    def extract_output(self, accumulator: Moments) -> Moments:
        return accumulator

    def get_accumulator_coder(self) -> MomentsCoder:
        return MomentsCoder()
