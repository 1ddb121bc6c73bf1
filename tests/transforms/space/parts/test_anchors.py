"""The projection by anchors against loops."""

import numpy as np

from unisono.transforms.space.parts.anchors import AnchorMap
from unisono.transforms.space.space import Space


def example(kept=2):
    rng = np.random.default_rng(0)
    anchors = rng.standard_normal((6, 4))
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    whitening, shift, axes = rng.standard_normal((5, 4)), rng.standard_normal(6), rng.standard_normal((6, 3))
    return AnchorMap(rng.standard_normal(5), whitening, anchors, kept, shift, axes), rng.standard_normal((9, 5))


def test_only_the_largest_cosines_are_kept():
    part, x = example()
    got = part.similarities(x)
    for i, row in enumerate(x):
        y = (row - part.mean) @ part.whitening
        cosines = [a @ y / np.linalg.norm(y) for a in part.anchors]
        largest = sorted(cosines)[-2:]
        np.testing.assert_allclose(got[i], [c if c in largest else 0.0 for c in cosines], atol=1e-12)
    np.testing.assert_allclose(part.apply(x), (got - part.shift) @ part.axes, atol=1e-12)
    assert (example(6)[0].similarities(x) != 0).all()


def test_an_embedding_at_the_mean_has_no_similarities():
    part, _ = example()
    assert not part.similarities(part.mean[None]).any()


def test_tensors_round_trip():
    part, x = example()
    again = AnchorMap.from_tensors(part.tensors())
    assert again.kept == 2
    np.testing.assert_array_equal(again.apply(x), part.apply(x))
    data = Space("anchors", {"text": part}).to_bytes()
    assert Space.from_bytes(data).projections["text"].kind == "anchors"
