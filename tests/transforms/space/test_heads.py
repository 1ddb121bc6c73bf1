"""Trained spaces and fusions against torch's own layers, plain loops and planted data."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.nearest import chance_recall, retrieval
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.space.fit.fusion import FusionSpec, fit_fusion
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.moments import Moments
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.trained import heads as fit
from unisono.transforms.space.fit.trained import objectives
from unisono.transforms.space.fit.trained import weighers as fusion
from unisono.transforms.space.fit.trained.objectives import mix_items, siglip, split_views
from unisono.transforms.space.fit.trained.training import Recipe, split_rows, train
from unisono.transforms.space.fuse import fuse
from unisono.transforms.space.parts.trained import AttentionWeights, CrossAttention, GatedWeights, TrainedHead
from unisono.transforms.space.space import BLOCK_ROWS, Space

METHODS = ["contrastive", "attention", "autoencoder"]


def _table(vectors, present):
    n = len(next(iter(vectors.values())))
    columns = {f"{m}_embedding": to_vector_column(x.astype(np.float32), present[m]) for m, x in vectors.items()}
    return pa.table({"item_id": [f"item-{i:05d}" for i in range(n)], **columns})


def _circles(n, seed=0, missing=0.2):
    """Modalities that share angles, one of them doubled: linear correlation with the doubled one is zero."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, (n, 2))
    vectors = {}
    for m, turns, length in (("audio", 1, 12), ("image", 2, 16), ("text", 1, 10)):
        basis = np.random.default_rng(len(m)).standard_normal((4, length))
        points = np.concatenate([np.cos(turns * angles), np.sin(turns * angles)], axis=1)
        vectors[m] = points @ basis + 0.1 * rng.standard_normal((n, length)) + 3.0
    present = {m: rng.random(n) >= missing for m in vectors}
    return _table(vectors, present)


def _fit(table, method, **more):
    return fit_space(Moments.zero().add(embeddings_of(table)), SpaceSpec(method, dim=8, **more), table)


@pytest.fixture(scope="module")
def circles():
    return _circles(900, missing=0.2), _circles(300, seed=1, missing=0.0)


@pytest.fixture(scope="module")
def spaces(circles):
    """Each method trained on the circles, faster than on real data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "HIDDEN", 128)
        patch.setattr(fit, "_REFIT_ROWS", 0)
        recipe = Recipe(rate=3e-3, epochs=40, patience=20, batch=128, decay=0.01)
        patch.setattr(fit, "RECIPES", dict.fromkeys(METHODS, recipe))
        return {m: _fit(circles[0], m) for m in [*METHODS, "gcca"]}


def _recall(space, table, a, b):
    e = embeddings_of(table)
    return retrieval(space.project(a, e[a][0]), space.project(b, e[b][0]))["recall@10"]


# --- learning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_training_finds_what_no_linear_map_can(method, spaces, circles):
    space, held = spaces[method], circles[1]
    chance = chance_recall(held.num_rows, 10)
    assert _recall(spaces["gcca"], held, "text", "image") < 3 * chance
    assert _recall(space, held, "text", "image") > 8 * chance
    assert _recall(space, held, "image", "text") > 4 * chance  # half an angle is two: no better than one of four
    assert _recall(space, held, "text", "audio") > 0.5
    training = space.info["training"]
    assert 0 < training["epoch"] < len(training["history"])
    assert training["history"][training["epoch"]] == max(training["history"]) > training["history"][0]
    assert training["rows"] + training["validation_rows"] == 900


def test_code_of_other_modalities_gives_a_modality_back(spaces):
    explained = spaces["autoencoder"].info["training"]["explained"]
    assert set(explained) == {"audio", "image", "text"}
    assert explained["text"] > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_two_trainings_give_the_same_bits(method, circles):
    small = circles[0].slice(0, 200)
    one, two = (_fit(small, method, epochs=2) for _ in range(2))
    assert one.to_bytes() == two.to_bytes()
    assert one.info["training"]["seed"] == 0
    other = _fit(small, method, epochs=2, seed=1)
    assert other.info["training"]["history"] != one.info["training"]["history"]


class _Walk:
    """A parameter that moves by one rate a step; validation likes it best at −2.4 rates."""

    rows = 4

    def __init__(self):
        self.losses = 0

    def initial(self, rng):
        return {"loss.x": np.zeros((), np.float32)}

    def bind(self, device):
        pass

    def loss(self, params, rows, rng):
        self.losses += 1
        return params["loss.x"] * 1.0

    def score(self, params):
        return -abs(float(params["loss.x"]) + 0.24)


def test_early_stopping_keeps_the_best_epoch():
    objective = _Walk()
    found = train(objective, Recipe(epochs=50, patience=3, cuts=0, rate=0.1))
    assert found.epoch == 2
    assert found.params["loss.x"] == pytest.approx(-0.2, abs=1e-6)
    assert len(found.history) == 6
    assert objective.losses == 5
    again = train(_Walk(), Recipe(epochs=50, patience=3, cuts=0, rate=0.1), found.rates)
    assert again.params == found.params
    assert again.history == []
    closer = train(_Walk(), Recipe(epochs=50, patience=3, cuts=1, rate=0.1))  # goes back to −0.2, then by 0.03
    assert closer.rates == pytest.approx([0.1, 0.1, 0.03])
    assert closer.params["loss.x"] == pytest.approx(-0.23, abs=1e-6)
    assert closer.epoch == 6


def test_training_that_diverges_is_refused():
    class Diverges(_Walk):
        def loss(self, params, rows, rng):
            return params["loss.x"] * float("nan")

    with pytest.raises(JobError, match="diverged"):
        train(Diverges(), Recipe(epochs=1))


def test_validation_rows_follow_the_ids():
    ids = pa.array([f"i{k}" for k in range(5000)])
    usable = np.arange(5000) % 3 > 0
    rest, held = split_rows(ids, usable)
    assert len(held) == 333
    assert usable[held].all()
    assert sorted([*rest, *held]) == list(range(5000))
    order = np.random.default_rng(0).permutation(5000)
    _, again = split_rows(ids.take(pa.array(order)), usable[order])
    assert set(order[again]) == set(held)
    assert len(split_rows(ids.slice(0, 50), np.ones(50, bool))[1]) == 15


# --- losses ------------------------------------------------------------------------------------------------


def test_siglip_is_its_double_sum():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 5))
    want = 0.0
    for i in range(7):
        for j in range(7):
            logit = 2.0 * (a[i] @ b[j]) - 1.5
            want += np.log1p(np.exp(-logit if i == j else logit)) / 7
    got = siglip(torch.tensor(a), torch.tensor(b), torch.tensor(np.log(2.0)), torch.tensor(-1.5))
    assert float(got) == pytest.approx(want, rel=1e-12)


def test_views_share_nothing_and_lose_nothing():
    rng = np.random.default_rng(0)
    present = rng.random((3, 4000)) < 0.6
    one, other = split_views(present, rng)
    assert (one | other == present).all()
    several = present.sum(0) > 1
    assert not (one & other)[:, several].any()
    assert one[:, several].any(0).all()
    assert other[:, several].any(0).all()
    assert (one == present)[:, ~several].all()
    assert (other == present)[:, ~several].all()
    whole = present.all(0)
    for m in range(3):  # each modality is as often on either side, and alone
        assert 0.4 < one[m, whole].mean() < 0.6


def test_mixtures_have_one_share_for_all_modalities():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 4)).astype(np.float32)
    y = np.concatenate([x, x], axis=1)
    present = rng.random((2, 50)) < 0.8
    values, both = mix_items({"a": [torch.tensor(x)], "b": [torch.tensor(y)]}, present, np.random.default_rng(5))
    mixed = values["a"][0].numpy()
    np.testing.assert_array_equal(values["b"][0].numpy()[:, 4:], mixed)
    for i in range(50):  # each is a point between two of the rows, nearer to its own
        found = []
        for j in range(50):
            line = x[j] - x[i]
            share = (mixed[i] - x[i]) @ line / max(line @ line, 1e-9)
            if np.allclose(x[i] + share * line, mixed[i], atol=1e-5) and -1e-6 <= share <= 0.5 + 1e-6:
                found.append((both[:, i] == (present[:, i] & present[:, j])).all())
        assert any(found)


# --- applying without torch, against torch's own layers ----------------------------------------------------


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
    scale = dim**0.5 / heads * (dim / heads) ** 0.5  # torch divides scores by √(dim / heads); here they vary by 1
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


# --- spaces ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gated", "attention"])
def full(request, spaces, circles):
    """Everything that can be trained, in one space."""
    return fit_fusion(spaces["attention"], circles[0], FusionSpec(request.param, epochs=3))


def _arrays(aligned):
    return [{**a} for a in (aligned.vectors, aligned.present, aligned.weights)]


def test_round_trip(full, circles):
    again = Space.from_bytes(full.to_bytes())
    assert again.space_id == full.space_id
    e = embeddings_of(circles[1])
    for a, b in zip(_arrays(full.align(e)), _arrays(again.align(e)), strict=True):
        for m in a:
            np.testing.assert_array_equal(a[m], b[m])


def test_a_row_does_not_depend_on_its_batch(full, circles):
    e = embeddings_of(circles[0])
    order = np.random.default_rng(2).permutation(700)
    whole = _arrays(full.align(e))
    part = _arrays(full.align({m: (x[order], p[order]) for m, (x, p) in e.items()}))
    one = _arrays(full.align({m: (x[611:612], p[611:612]) for m, (x, p) in e.items()}))
    for a, b, c in zip(whole, part, one, strict=True):
        for m in a:
            np.testing.assert_array_equal(a[m][order], b[m])
            np.testing.assert_array_equal(a[m][611:612], c[m])


def test_absent_rows_may_hold_anything(full, circles):
    e = embeddings_of(circles[0])
    junk = {m: (np.where(p[:, None], x, v), p) for (m, (x, p)), v in zip(e.items(), (np.nan, 1e30, -7.0), strict=True)}
    for a, b in zip(_arrays(full.align(e)), _arrays(full.align(junk)), strict=True):
        for m in a:
            np.testing.assert_array_equal(a[m], b[m])
    columns = {m: to_vector_column(x.astype(np.float32)) for m, (x, _) in junk.items()}
    for m, (_, present) in junk.items():
        columns[m] = pa.FixedSizeListArray.from_arrays(columns[m].values, len(columns[m].values) // 900,
                                                       mask=pa.array(~present))  # fmt: skip
    dirty = pa.table({"item_id": circles[0]["item_id"], **{f"{m}_embedding": c for m, c in columns.items()}})
    for method in METHODS:
        one, two = (_fit(t.slice(0, 200), method, epochs=1) for t in (circles[0], dirty))
        assert one.to_bytes() == two.to_bytes()


def test_an_item_without_any_modality_has_no_vector(full, circles):
    e = {m: (x[:5], np.array([False, True, False, True, True])) for m, (x, _) in embeddings_of(circles[1]).items()}
    aligned = full.align(e)
    fused = fuse(aligned.vectors, aligned.weights)
    assert fused.ok.tolist() == [False, True, False, True, True]
    np.testing.assert_allclose(np.linalg.norm(fused.vectors[fused.ok], axis=1), 1.0, atol=1e-6)
    assert (fused.vectors[~fused.ok] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_single_modality_is_its_principal_components(method, circles):
    table = circles[0].select(["item_id", "text_embedding"])
    space = _fit(table, method)
    x, present = embeddings_of(table)["text"]
    x = x[present] - x[present].mean(0)
    axes = np.linalg.svd(x.astype(float), full_matrices=False)[2][:8]
    want = x @ axes.T
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(space.project("text", embeddings_of(table)["text"][0][present])), np.abs(want),
                               atol=1e-4)  # fmt: skip


def test_too_few_pairs_leave_the_closed_form(circles):
    few = circles[0].slice(0, 30)
    space = _fit(few, "contrastive")
    closed = _fit(few, "gcca")
    assert space.info["training"]["epoch"] == 0
    assert "of at least 40 items" in space.info["training"]["why"]
    x = embeddings_of(few)["text"][0]
    np.testing.assert_allclose(space.project("text", x), closed.project("text", x), atol=1e-6)
    fused = fit_fusion(closed, few, FusionSpec("gated"))
    assert fused.info["fusion"]["training"]["epoch"] == 0
    assert fused.weigher is not None
    assert fused.weigher.weigh(np.ones((3, BLOCK_ROWS, 8)), np.ones((3, BLOCK_ROWS), bool)) == pytest.approx(0.5)


# --- learned weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gated", "attention"])
def test_learned_weights_find_items_by_their_rest(method, monkeypatch):
    """A modality is noise in the items whose last value says so: only weights that look at it can know."""
    rng = np.random.default_rng(0)
    n, dim = 1000, 12
    latent = rng.standard_normal((n, dim))
    noisy = rng.random(n) < 0.5
    vectors = {m: latent + 0.4 * rng.standard_normal((n, dim)) for m in ("audio", "image", "text")}
    vectors["image"][noisy] = rng.standard_normal((noisy.sum(), dim))
    for m, x in vectors.items():
        vectors[m] = np.concatenate([x, np.where((m == "image") & noisy, 3.0, -3.0)[:, None]], axis=1)
    everything = dict.fromkeys(vectors, np.ones(n, bool))
    table = _table(vectors, everything)
    train_rows, test = table.slice(0, 600), table.slice(600)
    moments = Moments.zero().add(embeddings_of(train_rows))
    space = fit_space(moments, SpaceSpec("none", dim=dim + 1), train_rows)
    monkeypatch.setattr(fusion, "_RECIPE", replace(fusion._RECIPE, rate=1e-2))
    learned = fit_fusion(space, train_rows, FusionSpec(method))
    aligned = learned.align(embeddings_of(test))
    bad = noisy[600:]
    share = aligned.weights["image"] / sum(aligned.weights.values())
    assert share[bad].mean() < 0.8 * share[~bad].mean()
    e = embeddings_of(test)

    def found(s):
        rest = s.align({m: (x, np.full(400, m != "text")) for m, (x, _) in e.items()})
        return retrieval(fuse(rest.vectors, rest.weights).vectors, rest_of_it)["mrr"]

    rest_of_it = space.project("text", e["text"][0])
    assert found(learned) > 1.1 * found(fit_fusion(space, train_rows, FusionSpec("mean")))


def test_torch_is_imported_only_to_train():
    code = (
        "import sys; from unisono.transforms.space.fit.trained import heads, weighers; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
