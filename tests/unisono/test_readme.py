"""The Python example of the README runs as it is printed, on the store of a small shop."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import unisono
from tests.conftest import Run
from tests.paths import ROOT


def test_the_python_example_runs(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(run.store.root, store)
    job = unisono.load_job(run.job).model_copy(update={"store": str(store)})
    unisono.run(job, "ranked", items=False, users=False, recommend=True)
    (example,) = re.findall(r"## From Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = example.replace("out/demo/store", str(store)).splitlines()
    names: dict[str, Any] = {}
    values = []
    for line in filter(None, lines):
        if re.match(r"import|[\w, ]+ = ", line):
            exec(line, names)
        else:
            values.append(eval(line, names))
    (items, users, lists), hits, similar, recommended, why = values
    assert len(names["ids"]) == len(names["vectors"]) == items.num_rows
    assert hits.num_rows == similar.num_rows == 5
    row = recommended.to_pylist()[0]
    stored = lists.filter(pc.equal(lists["user_id"], row["user_id"])).to_pylist()[0]
    assert row["item_ids"] == stored["item_ids"][:5]
    assert sum(part for _, part in why.modalities) == pytest.approx(why.score, abs=1e-5)
    assert users.num_rows == lists.num_rows
