"""Embeddings drawn for the tests of the joint space, and the same rows as moments, as a table, as NumPy sees them."""

import numpy as np
import pyarrow as pa
from sklearn.decomposition import PCA

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.info import FusionReport
from unisono.transforms.space.parts.linear import FixedWeights, LinearMap
from unisono.transforms.space.space import Space

DIMS = {"audio": 7, "image": 9, "text": 12}
SAME = {"audio": 9, "image": 9, "text": 9}
NAMES = ("audio", "image", "text")


def draw(n=1500, dims=DIMS, missing=0.5, seed=0, factors=4):
    """Draws views of common factors, with noise, stretched axes and some rows missing."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, factors)) * np.linspace(2.0, 0.6, factors)
    out = {}
    for m, d in dims.items():
        x = common @ np.linalg.qr(rng.standard_normal((d, d)))[0][:factors] + 0.7 * rng.standard_normal((n, d))
        out[m] = (x * np.linspace(2, 0.5, d) + rng.standard_normal(d)).astype(np.float32), rng.random(n) >= missing
    return out


def draw_views(n=2000, dims=DIMS, missing=0.0, seed=0, factors=4, noise=1.0):
    """Draws views of common factors of different strength: their eigenvalues lie apart."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, factors)) * np.linspace(2.0, 0.6, factors)
    batch = {}
    for m, d in dims.items():
        shown = np.linalg.qr(rng.standard_normal((d, d)))[0][:factors]
        x = common @ shown + noise * rng.standard_normal((n, d))
        batch[m] = (x + rng.standard_normal(d)).astype(np.float32), rng.random(n) >= missing
    return batch


def moments_of(batch, order=(2, 0, 4, 1, 3)):
    """Sums the moments in five pieces and merges them in the given order."""
    n = len(next(iter(batch.values()))[1])
    pieces = np.array_split(np.arange(n), 5)
    out = Moments.zero()
    for i in order:
        out.merge(Moments.zero().add({m: (x[pieces[i]], p[pieces[i]]) for m, (x, p) in batch.items()}))
    return out


def table_of(batch):
    """Makes a table of `item_id` and `<m>_embedding`, null where missing."""
    n = len(next(iter(batch.values()))[1])
    columns = {f"{m}_embedding": to_vector_column(x, p) for m, (x, p) in batch.items()}
    return pa.table({"item_id": [f"i{i:05d}" for i in range(n)], **columns})


def rows_of(batch, a, b=None):
    """Returns the embeddings of `a` in the rows where `a` and `b` are present: float64."""
    both = batch[a][1] & (batch[a][1] if b is None else batch[b][1])
    return batch[a][0][both].astype(np.float64)


def unit(x):
    """Scales rows to unit length: float32."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def aligned_rows(space, table):
    """Applies linear projections with NumPy: unit vectors of each modality, float64, NaN where missing."""
    out = {}
    for m, (x, present) in embeddings_of(table).items():
        y = (x.astype(np.float64) - space.projections[m].mean) @ space.projections[m].map
        out[m] = np.where(present[:, None], y / np.linalg.norm(y, axis=1, keepdims=True), np.nan)
    return out


def linear_of(space: Space, m: str) -> LinearMap:
    """Returns the projection of a modality, which must be linear."""
    projection = space.projections[m]
    assert isinstance(projection, LinearMap)
    return projection


def weights_of(space: Space) -> np.ndarray:
    """Returns the weights of the modalities, which must be the same for every item."""
    assert isinstance(space.weigher, FixedWeights)
    return space.weigher.weights


def report_of(space: Space) -> FusionReport:
    """Returns the report of the fusion, which must have been fitted."""
    assert space.info.fusion is not None
    return space.info.fusion


def principal(x, k):
    """Returns the k leading principal axes of the rows of x, as scikit-learn finds them."""
    return PCA(k, svd_solver="full").fit(x).components_.T


def same_up_to_sign(got, want, tolerance=1e-6):
    """Asserts that the columns of two matrices are equal up to their signs."""
    sign = np.sign((got * want).sum(0))
    np.testing.assert_allclose(got, want * sign, atol=tolerance * np.abs(want).max(), rtol=0)


def cosines(a, b):
    """Returns the cosines of the columns of two matrices, whatever their signs."""
    return np.abs((a * b).sum(0)) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))


def recall_of(space, batch, rows, k=10):
    """Measures R@k, averaged over every ordered pair of modalities, on the given rows; returns it and its chance."""
    hits = []
    projected = {m: space.project(m, batch[m][0][rows]) for m in batch}
    for a in batch:
        for b in batch:
            if a != b:
                score = projected[a] @ projected[b].T
                hits.append(((score > np.diag(score)[:, None]).sum(1) < k).mean())
    return np.mean(hits), k / len(rows)
