"""The fit of a run's space: what is held out, refits, policies, lengths."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.transforms.space.sample import NAMES, draw, moments_of, table_of
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.space.fit.run import FitSettings, fit_run, held_out
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fuse import item_vectors


def settings(output_dim=None, encoder_ids=None, **more):
    """Settings of a space of 8 axes; `more` are settings of the space."""
    return FitSettings(SpaceSpec("gcca", 8, 0.1, **more), FusionSpec("mean"), output_dim, encoder_ids or {})


def fit(batch, how, *published):
    return fit_run(moments_of(batch), table_of(batch), how, *published)


def vectors_table(space, batch):
    table = table_of(batch)
    fused = item_vectors(space, table)[0]
    ok = pa.array(fused.ok)
    return pa.table({"item_id": table["item_id"].filter(ok), "vector": to_vector_column(fused.vectors[fused.ok])})


def test_a_refit_on_other_rows_stays_comparable():
    batch = draw(3000, dict.fromkeys(NAMES, 40), missing=0.2, factors=10)
    first = {m: (x[:2850], p[:2850]) for m, (x, p) in batch.items()}
    old, _ = fit(first, settings())
    previous = vectors_table(old, first)
    new, quality = fit(batch, settings(), old, previous)
    report = new.info.refit
    assert report.mean_cosine >= 0.98
    assert report.top10_overlap >= 0.95
    assert quality["refit"]["mean_cosine"] == report.mean_cosine
    # Computed independently from the vectors of both runs.
    mine = vectors_table(new, first)
    a, b = (from_vector_column(t["vector"])[0].astype(float) for t in (mine, previous))
    assert report.mean_cosine == pytest.approx(np.einsum("ij,ij->i", a, b).mean(), abs=1e-6)
    some = slice(0, 2000)
    nearest = [np.argsort(-(x[some] @ x[some].T - 3 * np.eye(2000)), axis=1)[:, :10] for x in (a, b)]
    overlap = np.mean([len(set(p) & set(q)) / 10 for p, q in zip(*nearest, strict=True)])
    assert report.top10_overlap == pytest.approx(overlap, abs=0.02)
    rotation = np.array(report.rotation)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(8), atol=1e-4)
    assert json.loads(new.to_json())["info"]["refit"]["common"] == report.common == len(a)


def test_policies():
    batch = draw(900, missing=0.1)
    old, _ = fit(batch, settings(encoder_ids={"text": "lite"}))
    previous = vectors_table(old, batch)

    def again(data=batch, ids="lite", space=None, **more):
        spec = replace(space or SpaceSpec("gcca", 8, 0.1), **more)
        how = FitSettings(spec, FusionSpec("mean"), encoder_ids={"text": ids})
        return fit(data, how, old, previous)[0]

    kept = again(refit="never")
    assert kept.space_id == old.space_id
    assert kept.info.refit.refitted is False
    assert again(refit="always").info.refit.refitted is True
    same = again(refit="on_drift")
    assert same.space_id == old.space_id
    assert same.info.refit.drift < 1e-6
    other = draw(900, missing=0.1, seed=9)
    moved = again(other, refit="on_drift", drift_threshold=0.01)
    assert moved.space_id != old.space_id
    assert moved.info.refit.drift > 0.01
    assert again(other, refit="on_drift", drift_threshold=2.0).space_id == old.space_id
    with pytest.raises(JobError, match=r"space\.refit: never, .*its text encoder was lite, now it is mini"):
        again(ids="mini", refit="never")
    with pytest.raises(JobError, match=r"space\.refit: never, .*another space, fusion or length"):
        again(refit="never", space=SpaceSpec("gcca", 5, 0.1))
    assert again(ids="mini", refit="on_drift").info.refit.not_kept.startswith("its text encoder")
    assert fit(batch, settings(refit="never"))[0].info.refit.refitted is True  # nothing is published yet


def test_a_refit_with_another_length():
    batch = draw(600, missing=0.1)
    old, _ = fit(batch, settings(output_dim=4))
    assert old.dim == 4
    previous = vectors_table(old, batch)
    longer, _ = fit(batch, settings(), old, previous)
    assert longer.dim == 8
    assert "4 axes, this run 8" in longer.info.refit.not_anchored
    shorter, _ = fit(batch, settings(output_dim=3), old, previous)
    assert shorter.dim == 3
    assert shorter.info.refit.turned.mean_cosine > 0.99


def test_the_measured_fit_has_not_seen_the_held_out_items():
    batch = draw(1500, missing=0.2)
    table = table_of(batch)
    held = held_out(table, settings())
    assert 0.07 < held.mean() < 0.13
    rest = {m: (x[~held], p[~held]) for m, (x, p) in batch.items()}
    _, quality = fit(batch, settings())
    by_hand, _ = fit(rest, settings())
    rows = table.filter(pa.array(held))
    aligned = by_hand.align(embeddings_of(rows))
    a, b = aligned.vectors["text"], aligned.vectors["image"]
    both = aligned.present["text"] & aligned.present["image"]
    score = a[both] @ b[both].T
    recall = ((score > np.diag(score)[:, None]).sum(1) < 10).mean()
    assert quality["pairs"]["text→image"]["recall@10"] == pytest.approx(recall, abs=0.02)
    assert quality["held_out"] == held.sum()
    few, q = fit({m: (x[:60], p[:60]) for m, (x, p) in batch.items()}, settings())
    assert q["held_out"] == 0
    assert "could be held out" in q["not_measured"]
    assert few.dim == 8


def test_named_anchors_and_items_outside_the_moments_are_not_held_out():
    table = table_of(draw(1000, missing=0.2))
    plain = held_out(table, settings())
    named = tuple(table["item_id"].filter(pa.array(plain)).to_pylist()[:5])
    how = FitSettings(SpaceSpec("anchors", 8, anchors=named))
    assert set(np.flatnonzero(plain)) - set(np.flatnonzero(held_out(table, how))) == {int(i[1:]) for i in named}
    fewer = held_out(table, settings(sample=0.3))
    assert 0 < fewer.sum() < plain.sum()
    assert plain[fewer].all()


def test_a_kept_space_says_why_it_was_kept_and_keeps_its_lineage():
    batch = draw(600, missing=0.1)
    old, first = fit(batch, settings())
    assert old.info.refit.to_json() == {"policy": "always", "refitted": True}
    assert old.info.comparable is None
    assert first["sizes"]["items"] > 500
    previous = vectors_table(old, batch)
    new, _ = fit(batch, settings(), old, previous)
    assert new.info.comparable == (old.space_id,)
    assert new.info.refit.inertia == 0.5
    kept, quality = fit(batch, settings(refit="never"), new, vectors_table(new, batch))
    assert kept.info.comparable == (old.space_id,)
    assert kept.info.refit.to_json() == {"policy": "never", "refitted": False, "published": new.space_id}
    assert quality["refit"] == kept.info.refit.to_json()
    assert quality["held_out"] is None
