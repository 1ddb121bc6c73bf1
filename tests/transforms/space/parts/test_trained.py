"""The trained parts, applied with NumPy, against torch's own layers."""

import numpy as np
import pytest
import torch

from unisono.transforms.space.parts.trained import (
    AttentionWeights,
    CrossAttention,
    GatedWeights,
    TrainedHead,
    gate,
    masked_softmax,
    pool,
    silu,
)
from unisono.transforms.space.space import BLOCK_ROWS, Space


def _weights(rng, **shapes):
    return {k: rng.standard_normal(shape).astype(np.float32) / 3 for k, shape in shapes.items()}


def test_head_is_a_linear_map_and_a_network():
    rng = np.random.default_rng(0)
    mean, inner, outer = rng.standard_normal(9), rng.standard_normal((9, 5)), rng.standard_normal((9, 4))
    w = _weights(rng, w1=(5, 16), w2=(16, 4))
    x = rng.standard_normal((BLOCK_ROWS, 9))
    network = torch.nn.Sequential(
        torch.nn.Linear(5, 16, bias=False), torch.nn.SiLU(), torch.nn.Linear(16, 4, bias=False)
    ).double()
    network[0].weight.data, network[2].weight.data = torch.tensor(w["w1"].T).double(), torch.tensor(w["w2"].T).double()
    centred = torch.tensor(x - mean)
    want = (centred @ torch.tensor(outer) + network(centred @ torch.tensor(inner))).detach().numpy()
    head = TrainedHead(mean, inner, outer, w["w1"], w["w2"])
    np.testing.assert_allclose(head.apply(x), want, rtol=1e-12, atol=1e-12)
    at_mean = Space("", {"text": head}).project("text", np.tile(mean, (3, 1)))
    assert (at_mean == 0).all()


def _parts(rng, k=3, n=40, dim=8):
    parts = rng.standard_normal((k, n, dim))
    present = rng.random((k, n)) < 0.6
    present[:, :2] = [[True, False], [False, False], [False, False]][:k]
    return parts / np.linalg.norm(parts, axis=-1, keepdims=True), present


def test_cross_attention_is_that_of_torch():
    rng = np.random.default_rng(0)
    k, dim, heads = 3, 8, 2
    parts, present = _parts(rng)
    stored = _weights(rng, query=(dim, dim), key=(dim, dim), value=(dim, dim), out=(dim, dim), kind=(k, dim))
    w = {name: value.astype(np.float64) for name, value in stored.items()}
    layer = torch.nn.MultiheadAttention(dim, heads, bias=False, batch_first=True).double()
    # torch divides scores by √(dim / heads); the part scales them to vary by about 1.
    scale = dim**0.5 / heads * (dim / heads) ** 0.5
    layer.in_proj_weight.data = torch.tensor(np.concatenate([w["query"].T * scale, w["key"].T, w["value"].T]))
    layer.out_proj.weight.data = torch.tensor(w["out"].T)
    tokens = torch.tensor(parts + w["kind"][:, None]).transpose(0, 1)
    want = np.where(present[:, :, None], parts, 0.0)
    for a in range(k):
        hidden = ~torch.tensor(present.T.copy())
        hidden[:, a] = True
        rows = (~hidden).any(1) & torch.tensor(present[a])
        answer, _ = layer(tokens[rows][:, [a]], tokens[rows], tokens[rows], key_padding_mask=hidden[rows])
        want[a, rows.numpy()] += answer[:, 0].detach().numpy()
    got = CrossAttention(stored, heads).mix(parts, present)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(got[:, 0], np.where(present[:, 0, None], parts[:, 0], 0.0))  # one modality alone


def test_gates_are_those_of_torch():
    rng = np.random.default_rng(0)
    parts, present = _parts(rng)
    w = _weights(rng, inner=(27, 6), outer=(6, 3), bias=(3,))
    got = GatedWeights(w).weigh(parts, present)
    t = {k: torch.tensor(v).double() for k, v in w.items()}
    for i in range(40):
        side_by_side = np.concatenate([*(parts[a, i] * present[a, i] for a in range(3)), present[:, i]])
        gates = torch.sigmoid(torch.tanh(torch.tensor(side_by_side) @ t["inner"]) @ t["outer"] + t["bias"]).numpy()
        np.testing.assert_allclose(got[:, i], gates * present[:, i], rtol=1e-12)


def test_pooling_is_that_of_torch():
    rng = np.random.default_rng(0)
    parts, present = _parts(rng)
    w = _weights(rng, query=(8, 6), start=(6,), key=(8, 6), kind=(3, 6))
    got = AttentionWeights(w).weigh(parts, present)
    t = {k: torch.tensor(v).double() for k, v in w.items()}
    assert (got[:, 1] == 0).all()
    for i in np.flatnonzero(present.any(0)):
        there = np.flatnonzero(present[:, i])
        z = torch.tensor(parts[there, i])
        asked = torch.nn.functional.normalize(z.sum(0), dim=0) @ t["query"] + t["start"]
        want = torch.softmax((z @ t["key"] + t["kind"][there]) @ asked, 0) * len(there)
        np.testing.assert_allclose(got[there, i], want, rtol=1e-9)
        assert got[~present[:, i], i].sum() == 0


def test_a_softmax_of_nothing_is_zero():
    mask = np.array([[True, False], [True, False]])
    got = masked_softmax(np, np.array([[0.0, 5.0], [np.log(3.0), 5.0]]), mask)
    np.testing.assert_allclose(got, [[0.25, 0.0], [0.75, 0.0]])
    np.testing.assert_allclose(silu(np, np.array([-1e4, 0.0, 1e4])), [0.0, 0.0, 1e4])


@pytest.mark.parametrize(
    ("part", "formula", "shapes"),
    [
        (GatedWeights, gate, {"inner": (27, 6), "outer": (6, 3), "bias": (3,)}),
        (AttentionWeights, pool, {"query": (8, 6), "start": (6,), "key": (8, 6), "kind": (3, 6)}),
    ],
    ids=["gated", "attention"],
)
def test_weighers_have_the_same_result_in_torch_and_after_a_round_trip(part, formula, shapes):
    rng = np.random.default_rng(0)
    parts, present = _parts(rng)
    weigher = part(_weights(rng, **shapes))
    got = weigher.weigh(parts, present)
    in_torch = formula(
        torch, {k: torch.tensor(v).double() for k, v in weigher.weights.items()}, torch.tensor(parts),
        torch.tensor(present),
    )  # fmt: skip
    np.testing.assert_allclose(got, in_torch.numpy(), rtol=1e-12, atol=1e-15)
    again = part.from_tensors(weigher.tensors())
    assert type(again) is part
    np.testing.assert_array_equal(again.weigh(parts, present), got)


def test_heads_and_attention_round_trip():
    rng = np.random.default_rng(0)
    parts, present = _parts(rng)
    mixer = CrossAttention(_weights(rng, query=(8, 8), key=(8, 8), value=(8, 8), out=(8, 8), kind=(3, 8)), 4)
    again = CrossAttention.from_tensors(mixer.tensors())
    assert again.heads == 4
    np.testing.assert_array_equal(again.mix(parts, present), mixer.mix(parts, present))
    w = _weights(rng, w1=(5, 16), w2=(16, 4))
    head = TrainedHead(rng.standard_normal(9), rng.standard_normal((9, 5)), rng.standard_normal((9, 4)), **w)
    x = rng.standard_normal((7, 9))
    np.testing.assert_array_equal(TrainedHead.from_tensors(head.tensors()).apply(x), head.apply(x))
