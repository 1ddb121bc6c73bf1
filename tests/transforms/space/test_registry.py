"""The tables of methods: their facts, every entry loaded, and new methods, each one file and one line."""

import numpy as np
import pytest

from tests.transforms.space.added import TiltedWeights
from tests.transforms.space.sample import DIMS, draw, moments_of, report_of, table_of
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.registry import Lazy
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fuse import fuse_table
from unisono.transforms.space.registry import FUSIONS, METHODS, AlignmentMethod, FusionMethod, part_class
from unisono.transforms.space.space import Space

HERE = "tests.transforms.space.added"


def test_every_entry_can_be_loaded_and_its_parts_have_their_kind():
    methods: list[AlignmentMethod | FusionMethod] = [*METHODS.values(), *FUSIONS.values()]
    for method in methods:
        assert callable(method.load())
        for kind, part in method.parts.items():
            assert part.load().kind == kind
            assert part_class(kind) is part.load()
    for kind in ("linear", "fixed", "conditional_mean"):
        assert part_class(kind).kind == kind
    with pytest.raises(ValueError, match="'magic' are unknown"):
        part_class("magic")


@pytest.mark.parametrize(
    ("method", "dims", "hub", "want"),
    [
        ("gcca", DIMS, None, 16),
        ("gcca", {"text": 12}, None, 12),
        ("cca", {"image": 9, "text": 12}, None, 9),
        ("ridge", DIMS, None, 12),
        ("ridge", DIMS, "audio", 7),
        ("whiten", DIMS, None, 12),
        ("anchors", DIMS, None, 28),
        ("contrastive", {"text": 12}, None, 12),
    ],
)
def test_the_largest_number_of_axes(method, dims, hub, want):
    assert METHODS[method].max_dim(dims, hub) == want


def saved(space):
    return Space.from_bytes(space.to_bytes())


def test_a_closed_form_is_one_file_and_one_line(monkeypatch):
    monkeypatch.setitem(METHODS._entries, "first", AlignmentMethod(f"{HERE}:solve_first", axes="hub"))
    batch = draw(300)
    space = saved(fit_space(moments_of(batch), SpaceSpec("first", 5)))
    assert space.method == "first"
    assert space.info.findings == {"first": 5}
    for m, (x, present) in batch.items():
        want = (x.astype(float) - x[present].astype(float).mean(0))[:, :5]
        want /= np.linalg.norm(want, axis=1, keepdims=True)
        np.testing.assert_allclose(space.project(m, x), want, atol=1e-6)
    with pytest.raises(JobError, match=r"space\.dim: 13 is not in 1 … 12"):
        fit_space(moments_of(batch), SpaceSpec("first", 13))


def test_trained_heads_are_one_file_and_one_line(monkeypatch):
    entry = AlignmentMethod(f"{HERE}:fit_views", needs_sample=True, axes="own", parts=METHODS["contrastive"].parts)
    monkeypatch.setitem(METHODS._entries, "views", entry)
    batch = draw(400, missing=0.2)
    table = table_of(batch)
    fitted = fit_space(moments_of(batch), SpaceSpec("views", 6, epochs=2), table)
    space = saved(fitted)
    assert space.method == "views"
    assert space.info.findings["training"]["parameters"] == 11  # three for each head, and SigLIP's two
    assert len(space.info.findings["training"]["history"]) == 3
    for m, (x, _) in batch.items():
        np.testing.assert_array_equal(space.project(m, x), fitted.project(m, x))


def test_a_trained_fusion_with_its_own_part_is_one_file_and_one_line(monkeypatch):
    entry = FusionMethod(f"{HERE}:fit_tilted", parts={"tilted": Lazy(f"{HERE}:TiltedWeights")})
    batch = draw(400, missing=0.2)
    table = table_of(batch)
    bare = fit_space(moments_of(batch), SpaceSpec("gcca", 6))
    with monkeypatch.context() as patch:
        patch.setitem(FUSIONS._entries, "tilted", entry)
        fused = fit_fusion(bare, table, FusionSpec("tilted", epochs=4))
        data = fused.to_bytes()
        space = Space.from_bytes(data)
    assert report_of(space).method == "tilted"
    assert report_of(space).findings["training"]["rows"] > 200
    assert isinstance(space.weigher, TiltedWeights)
    assert space.weigher.kind == "tilted"
    direction = space.weigher.weights["direction"].astype(float)
    aligned = space.align(embeddings_of(table))
    z = bare.align(embeddings_of(table))
    for k, m in enumerate(space.modalities):
        want = np.exp(np.tanh(z.vectors[m].astype(float) @ direction[k])) * z.present[m]
        np.testing.assert_allclose(aligned.weights[m], want, rtol=1e-5)
    assert fuse_table(table, space)[0].equals(fuse_table(table, fused)[0])
    with pytest.raises(JobError, match=r"^space\.safetensors: .*parts of kind 'tilted' are unknown"):
        Space.from_bytes(data)
