"""The quality of a space against plain loops: retrieval, labels, dropped modalities, smaller vectors.

`tests/pipelines/ask/test_evaluate_space.py` has more of `measure_space`.
"""

import numpy as np
import pytest

from tests.transforms.space.sample import draw, moments_of, table_of, unit
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.quality import fused_without, isotropy, measure_space, size_costs
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fuse import item_vectors

LABELS = np.array(["a", "b", "c"])[np.arange(300) % 3]


@pytest.fixture(scope="module")
def measured():
    """A space, items that its fit did not see, and what is measured on them."""
    batch = draw(900, missing=0.2, factors=4)
    fit = {m: (x[:600], p[:600]) for m, (x, p) in batch.items()}
    space = fit_fusion(fit_space(moments_of(fit), SpaceSpec("gcca", 6)), table_of(fit), FusionSpec("mean"))
    rows = table_of(batch).slice(600)
    return space, rows, measure_space(space, rows, LABELS)


def neighbours(x, k=10):
    score = x.astype(float) @ x.T.astype(float)
    np.fill_diagonal(score, -2)
    return np.argsort(-score, axis=1)[:, :k]


def same_label(x, labels):
    return np.mean([np.mean(labels[row] == labels[i]) for i, row in enumerate(neighbours(x))])


def test_labels_of_neighbours(measured):
    space, rows, found = measured
    fused = item_vectors(space, rows)[0]
    assert found["coverage"]["vector"] == fused.ok.mean()
    want = same_label(fused.vectors[fused.ok], LABELS[fused.ok])
    assert found["same_label"]["vector"] == pytest.approx(want, abs=2e-3)
    assert found["same_label"]["chance"] == pytest.approx(1 / 3, abs=0.02)
    assert set(found["same_label"]) == {"chance", "vector", "audio", "image", "text"}
    assert "same_label" not in measure_space(space, rows)


def test_dropping_a_modality(measured):
    space, rows, found = measured
    batch = embeddings_of(rows)
    left = fused_without(space, batch, {"text": np.zeros(300, bool)})
    others = batch["audio"][1] | batch["image"][1]
    np.testing.assert_array_equal(left.ok, others)
    assert not left.part_weights["text"].any()
    assert found["without"]["text"]["coverage"] == others.mean()
    whole = item_vectors(space, rows)[0]
    both = whole.ok & left.ok
    a, b = neighbours(whole.vectors[both]), neighbours(left.vectors[both])
    overlap = np.mean([len(set(x) & set(y)) / 10 for x, y in zip(a, b, strict=True)])
    assert found["without"]["text"]["top10_overlap"] == pytest.approx(overlap, abs=2e-3)


def test_missing_modalities_lower_the_recall(measured):
    _, rows, found = measured
    missing = found["missing"]
    assert missing["drop"] == pytest.approx(missing["recall@10"] - missing["recall@10_lost"])
    assert missing["drop"] > 0
    assert 0 < missing["items"] <= 300
    alone = {m: pair for m, pair in embeddings_of(rows).items() if m == "text"}
    only = fit_space(moments_of(alone), SpaceSpec("auto", 4))
    assert measure_space(only, rows)["missing"] == {}
    assert measure_space(only, rows)["pairs"] == {}
    assert measure_space(only, rows)["mean_recall@10"] is None


def test_smaller_vectors_lose_neighbours():
    rng = np.random.default_rng(0)
    x = unit(rng.standard_normal((200, 16)) * np.linspace(2, 0.1, 16))
    scale = np.abs(x).max(0) / 127
    found = size_costs(x, scale.astype(float), 5)
    assert (found["k"], found["items"], found["dim"]) == (5, 200, 16)
    assert set(found) == {"k", "items", "dim", "float16", "int8"} | {
        f"axes_{n}{tail}" for n in (8, 4, 2) for tail in ("", "_int8")
    }
    short = unit(x[:, :4])
    a, b = neighbours(x, 5), neighbours(short, 5)
    want = np.mean([len(set(p) & set(q)) / 5 for p, q in zip(a, b, strict=True)])
    assert found["axes_4"] == pytest.approx(want, abs=2e-3)
    assert found["axes_2"] < found["axes_4"] < found["axes_8"] <= found["float16"] == pytest.approx(1, abs=0.01)


def test_isotropy_of_even_and_flat_vectors():
    even = np.concatenate([np.eye(4), -np.eye(4)])
    assert isotropy(even) == pytest.approx(1)
    flat = np.zeros((4, 4))
    flat[:, 0] = [1, -1, 1, -1]
    assert isotropy(flat) == pytest.approx(1 / 4)
    assert isotropy(np.ones((3, 4))) is None
