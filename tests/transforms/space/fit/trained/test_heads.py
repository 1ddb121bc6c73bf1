"""What holds for every method with trained heads: it learns, repeats itself, and falls back to the closed form."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from tests.transforms.space.fit.trained.conftest import TRAINED, fit
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.nearest import chance_recall, retrieval
from unisono.transforms.base.tables import to_vector_column


def _recall(space, table, a, b):
    e = embeddings_of(table)
    return retrieval(space.project(a, e[a][0]), space.project(b, e[b][0]))["recall@10"]


@pytest.mark.parametrize("method", TRAINED)
def test_training_finds_what_no_linear_map_can(method, spaces, circles):
    space, held = spaces[method], circles[1]
    chance = chance_recall(held.num_rows, 10)
    assert _recall(spaces["gcca"], held, "text", "image") < 3 * chance
    assert _recall(space, held, "text", "image") > 8 * chance
    # A doubled angle belongs to two angles on each of the two circles: of four candidates one is right.
    assert _recall(space, held, "image", "text") > 4 * chance
    assert _recall(space, held, "text", "audio") > 0.5
    training = space.info.findings["training"]
    assert 0 < training["epoch"] < len(training["history"])
    assert training["history"][training["epoch"]] == max(training["history"]) > training["history"][0]
    assert training["rows"] + training["validation_rows"] == 900


@pytest.mark.parametrize("method", TRAINED)
def test_two_trainings_give_the_same_bits(method, circles):
    small = circles[0].slice(0, 200)
    one, two = (fit(small, method, epochs=2) for _ in range(2))
    assert one.to_bytes() == two.to_bytes()
    assert one.info.findings["training"]["seed"] == 0
    other = fit(small, method, epochs=2, seed=1)
    assert other.info.findings["training"]["history"] != one.info.findings["training"]["history"]


@pytest.mark.parametrize("method", TRAINED)
def test_absent_rows_may_hold_anything(method, circles):
    e = embeddings_of(circles[0])
    junk = {m: (np.where(p[:, None], x, v), p) for (m, (x, p)), v in zip(e.items(), (np.nan, 1e30, -7.0), strict=True)}
    columns = {m: to_vector_column(x.astype(np.float32)) for m, (x, _) in junk.items()}
    for m, (_, present) in junk.items():
        columns[m] = pa.FixedSizeListArray.from_arrays(columns[m].values, len(columns[m].values) // 900,
                                                       mask=pa.array(~present))  # fmt: skip
    dirty = pa.table({"item_id": circles[0]["item_id"], **{f"{m}_embedding": c for m, c in columns.items()}})
    one, two = (fit(t.slice(0, 200), method, epochs=1) for t in (circles[0], dirty))
    assert one.to_bytes() == two.to_bytes()


@pytest.mark.parametrize("method", TRAINED)
def test_a_single_modality_is_its_principal_components(method, circles):
    table = circles[0].select(["item_id", "text_embedding"])
    space = fit(table, method)
    x, present = embeddings_of(table)["text"]
    x = x[present] - x[present].mean(0)
    axes = np.linalg.svd(x.astype(float), full_matrices=False)[2][:8]
    want = x @ axes.T
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(space.project("text", embeddings_of(table)["text"][0][present])), np.abs(want),
                               atol=1e-4)  # fmt: skip


def test_too_few_pairs_leave_the_closed_form(circles):
    few = circles[0].slice(0, 30)
    space = fit(few, "contrastive")
    closed = fit(few, "gcca")
    assert space.info.findings["training"]["epoch"] == 0
    assert "of at least 40 items" in space.info.findings["training"]["why"]
    x = embeddings_of(few)["text"][0]
    np.testing.assert_allclose(space.project("text", x), closed.project("text", x), atol=1e-6)


def test_torch_is_imported_only_to_train():
    code = (
        "import sys\n"
        "from unisono.transforms.space.registry import FUSIONS, METHODS\n"
        "for entry in (*METHODS.values(), *FUSIONS.values()):\n"
        "    entry.load()\n"
        "    [part.load() for part in entry.parts.values()]\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
