"""The training loop: early stopping, smaller rates, divergence, and the choice of validation rows."""

import numpy as np
import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.space.fit.trained.training import Recipe, split_rows, train, untrained


class _Walk:
    """A parameter that falls by the learning rate in each step. Its validation score is best at −0.24."""

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
    closer = train(_Walk(), Recipe(epochs=50, patience=3, cuts=1, rate=0.1))  # returns to −0.2 and goes on by 0.03
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


def test_a_recipe_takes_the_settings_that_are_given():
    recipe = Recipe(epochs=7, seed=3)
    assert recipe.asked(None, None) == recipe
    assert recipe.asked(5, 2) == Recipe(epochs=2, seed=5)
    assert untrained(12) == {"epoch": 0, "why": "12 of at least 40 items have two modalities"}


def test_rows_that_cannot_be_trained_on_are_passed_over():
    class Never(_Walk):
        def loss(self, params, rows, rng):
            return None

    found = train(Never(), Recipe(epochs=2, rate=0.1))
    assert found.epoch == 0
    assert found.history == [-0.24] * 3
