"""Alignment by anchors against dense cosines, and which items become anchors."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from tests.transforms.space.sample import DIMS, draw, moments_of, rows_of, table_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import hash_ids
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.parts.anchors import AnchorMap
from unisono.transforms.space.space import Space


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_anchors_are_sparse_cosines(missing):
    batch = draw(dims=DIMS, missing=missing)
    table = table_of(batch)
    space = fit_space(moments_of(batch), SpaceSpec("anchors", 28, 0.2, anchors=28), table)
    whole = np.all([p for _, p in batch.values()], axis=0)
    ids = np.array([f"i{i:05d}" for i in range(1500)])
    by_hash = ids[whole][np.argsort(hash_ids(pa.array(ids[whole])))]
    anchors = space.info.findings["anchors"]
    assert anchors == by_hash[:28].tolist()
    rows = np.array([int(i[1:]) for i in anchors])
    relative = {}
    for m in DIMS:
        x = rows_of(batch, m)
        covariance = np.cov(x.T, ddof=0)
        metric = np.linalg.inv(covariance + 0.2 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
        all_ = batch[m][0].astype(np.float64) - x.mean(0)
        norm = np.sqrt(np.einsum("ij,jk,ik->i", all_, metric, all_))
        cosines = all_ @ metric @ all_[rows].T / np.outer(norm, norm[rows])
        kept = np.sort(cosines, axis=1)[:, ::-1][:, 6, None]  # a quarter of 28 are kept
        sparse = np.where(cosines >= kept, cosines, 0.0)
        relative[m] = sparse - sparse[batch[m][1]].mean(0)
    for a, b in itertools.product(DIMS, DIMS):
        x, y = relative[a][:60], relative[b][:60]
        want = x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
        got = space.project(a, batch[a][0][:60]).astype(float) @ space.project(b, batch[b][0][:60]).T
        np.testing.assert_allclose(got, want, atol=1e-6)
    again = Space.from_bytes(space.to_bytes())
    assert isinstance(again.projections["text"], AnchorMap)
    np.testing.assert_array_equal(
        again.project("text", batch["text"][0]), space.project("text", batch["text"][0])
    )


def test_named_anchors():
    batch = draw(missing=0.3)
    batch["audio"][1][3] = False
    table, whole = table_of(batch), np.flatnonzero(np.all([p for _, p in batch.values()], axis=0))
    names = tuple(f"i{i:05d}" for i in whole[5:25])
    space = fit_space(moments_of(batch), SpaceSpec("anchors", 8, anchors=names), table)
    assert tuple(space.info.findings["anchors"]) == names
    for name, why in (("nobody", "is not in the catalogue"), ("i00003", "lacks one of")):
        with pytest.raises(JobError, match=rf"space\.anchors: '{name}' {why}"):
            fit_space(moments_of(batch), SpaceSpec("anchors", 8, anchors=(*names, name)), table)


def test_too_few_whole_items_are_refused():
    batch = draw(200, missing=0.0)
    batch["audio"] = (batch["audio"][0], np.arange(200) > 100)
    batch["image"] = (batch["image"][0], np.arange(200) < 102)
    with pytest.raises(JobError, match=r"space\.method: anchors needs 2 items with every modality, and 1 have it"):
        fit_space(moments_of(batch), SpaceSpec("anchors", 4), table_of(batch))
