"""The method `contrastive`: the loss between pairs of modalities, and the code of an item."""

import numpy as np
import pytest
import torch

from unisono.transforms.space.fit.trained.heads import HeadsObjective
from unisono.transforms.space.fit.trained.objectives import siglip
from unisono.transforms.space.fit.trained.start import Rows


def test_every_pair_of_modalities_agrees():
    rng = np.random.default_rng(0)
    present = np.array([[True] * 6, [True, True, True, False, False, True], [False] * 6])
    values = {m: (np.zeros((6, 2), np.float32), np.zeros((6, 4), np.float32)) for m in ("a", "b", "c")}
    objective = HeadsObjective(Rows(values, present), None, batch=6)
    parts = torch.tensor(rng.standard_normal((3, 6, 4)))
    params = {"loss.scale": torch.tensor(0.5), "loss.bias": torch.tensor(-1.0)}
    found = objective.further_loss(params, parts[0], parts, parts, present)
    rows = [0, 1, 2, 5]  # the items that have a and b; no item has c
    want = siglip(parts[0][rows], parts[1][rows], params["loss.scale"], params["loss.bias"])
    assert float(found) == pytest.approx(float(want), rel=1e-12)


def test_a_space_has_heads_and_no_mixer(spaces):
    assert {p.kind for p in spaces["contrastive"].projections.values()} == {"trained_head"}
    assert spaces["contrastive"].mixer is None


def test_the_code_of_an_item_is_the_mean_direction_of_its_parts():
    present = np.array([[True, True], [True, False]])
    values = {m: (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)) for m in ("a", "b")}
    objective = HeadsObjective(Rows(values, present), None, batch=2)
    parts = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    np.testing.assert_allclose(objective.fuse(np, {}, parts, present), [[0.5**0.5, 0.5**0.5], [0.0, 1.0]])
