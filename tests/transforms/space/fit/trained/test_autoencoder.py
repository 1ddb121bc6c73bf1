"""The method `autoencoder`: the reconstruction error, the decoder before training, and what a trained code explains."""

import numpy as np
import pytest
import torch

from unisono.transforms.space.fit.trained.autoencoder import AutoencoderObjective, decode
from unisono.transforms.space.fit.trained.start import Rows


def example():
    rng = np.random.default_rng(0)
    present = rng.random((2, 12)) < 0.7
    values = {m: (rng.standard_normal((12, 3)).astype(np.float32), rng.standard_normal((12, 4)).astype(np.float32))
              for m in ("a", "b")}  # fmt: skip
    return AutoencoderObjective(Rows(values, present), None, batch=12), present, rng


def test_before_training_the_decoder_returns_the_code():
    objective, _, rng = example()
    params = objective.initial(np.random.default_rng(1))
    code = rng.standard_normal((5, 4))
    np.testing.assert_allclose(decode(np, params, "a", code), code, atol=1e-12)


def test_the_error_is_averaged_over_the_items_that_have_a_modality():
    objective, present, rng = example()
    params = {k: torch.tensor(rng.standard_normal(v.shape) / 4) for k, v in
              objective.initial(np.random.default_rng(1)).items()}  # fmt: skip
    code, goals = rng.standard_normal((12, 4)), rng.standard_normal((2, 12, 4))
    found = objective.further_loss(params, torch.tensor(code), torch.tensor(goals), torch.tensor(goals), present)
    want = 0.0
    for i, m in enumerate(("a", "b")):
        d0, d1, d2 = (params[f"{m}.d{j}"].numpy() for j in range(3))
        errors = []
        for row in np.flatnonzero(present[i]):
            hidden = code[row] @ d1
            made = code[row] @ d0 + (hidden / (1 + np.exp(-hidden))) @ d2
            errors.append(np.sum((made - goals[i, row] / np.linalg.norm(goals[i, row])) ** 2))
        want += np.mean(errors)
    assert float(found) == pytest.approx(want, rel=1e-9)


def test_the_code_of_the_other_modalities_explains_a_modality(spaces):
    explained = spaces["autoencoder"].info.findings["training"]["explained"]
    assert set(explained) == {"audio", "image", "text"}
    assert explained["text"] > 0.5
