"""The notebook in examples/ runs from its first cell to its last, and its cells make what they say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tests.conftest import Run
from tests.paths import ROOT

NOTEBOOK = ROOT / "examples" / "demo.ipynb"


def cells() -> list[dict]:
    return [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def made(run: Run) -> dict[str, Any]:
    """Executes the code cells in order, in one namespace, on the store of the small shop."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNISONO_STORE", run.store.root)
        for number, cell in enumerate(cells()):
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    return names


def stored(run: Run, part: str) -> pa.Table:
    return ds.dataset(run.store.run_path(run.manifest.run_id, part), format="parquet").to_table()


def test_no_outputs_are_kept_in_the_repository() -> None:
    assert cells()
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells())


def test_items_and_vectors(made: dict[str, Any], run: Run) -> None:
    assert made["run"].run_id == run.manifest.run_id
    items = stored(run, "items")
    assert sorted(made["items"]["item_id"].to_pylist()) == sorted(items["item_id"].to_pylist())
    place = {i: n for n, i in enumerate(made["ids"].to_pylist())}
    order = [place[i] for i in items["item_id"].to_pylist()]
    np.testing.assert_array_equal(made["vectors"][order], items["vector"].to_pylist())


def test_neighbours_are_those_that_the_notebook_finds_by_hand(made: dict[str, Any]) -> None:
    first = made["neighbours"].slice(0, 3)
    assert first["query_item_id"].to_pylist() == [made["ids"][0].as_py()] * 3
    by_hand = np.argsort(-made["scores"])[:3]
    assert first["item_id"].to_pylist() == [made["ids"][int(n)].as_py() for n in by_hand]


def test_search_and_recommendations(made: dict[str, Any], run: Run) -> None:
    assert made["hits"]["rank"].to_pylist() == [1, 2, 3, 4, 5]
    (listed,) = made["lists"]["item_ids"].to_pylist()
    assert len(set(listed)) == 5
    assert not set(listed) & {e["item_id"] for e in made["visit"]}
    assert set(listed) <= set(stored(run, "items")["item_id"].to_pylist())


def test_the_explanation_adds_up(made: dict[str, Any], run: Run) -> None:
    users = stored(run, "users")
    assert made["users"]["events"][0].as_py() == max(users["events"].to_pylist())
    why = made["why"]
    assert sum(part for _, part in why.modalities) == pytest.approx(why.score, abs=1e-5)
    assert sum(part for *_, part in why.events) + why.rest == pytest.approx(why.score, abs=1e-6)


def test_dead_letters_by_reason(made: dict[str, Any], run: Run) -> None:
    letters = stored(run, "dead_letters")
    counts = {(r["stage"], r["reason"]): r["count_all"] for r in made["reasons"].to_pylist()}
    assert sum(counts.values()) == letters.num_rows > 0
    for (stage, reason), n in counts.items():
        found = [r for r in letters.to_pylist() if (r["stage"], r["reason"]) == (stage, reason)]
        assert len(found) == n
