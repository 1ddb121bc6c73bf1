"""Explanations: parts add up to the score that the published run ranked by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from unisono.pipelines.ask.explain import explain
from unisono.pipelines.graph import nightly
from unisono.pipelines.job.config import load_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.launch import beam_options, launch
from unisono.transforms.base.errors import JobError
from unisono.transforms.store.runs import Store, read_table

WORDS = ["red", "blue", "green", "wool", "silk", "lamp", "chair", "drum", "flute", "stone", "oak", "tin"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A catalogue of texts and a log in which one user has a single event."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 5)) for _ in range(80)]
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(80)], "text": texts}), folder / "catalog.parquet")
    n = 900
    user = [f"u{u}" for u in rng.integers(0, 25, n)] + ["newcomer"]
    pq.write_table(pa.table({
        "user": user,
        "item": [f"i{i}" for i in rng.integers(0, 85, n + 1)],
        "time": pa.array(1_770_000_000 + rng.integers(0, 90 * 86_400, n + 1)),
        "event": rng.choice(["view", "buy", "dislike"], n + 1, p=[0.6, 0.3, 0.1]),
    }), folder / "log.parquet")  # fmt: skip
    return folder


def run(shop: Path, name: str, **sections: dict) -> Store:
    job: dict[str, Any] = {
        "store": name,
        "catalog": {"path": "catalog.parquet", "id": "item_id", "text": ["text"]},
        "interactions": {
            "path": "log.parquet", "user": "user", "item": "item", "time": "time", "time_unit": "s", "event": "event",
            "weights": {"view": 1, "buy": 5, "dislike": -3},
        },
        "behaviour": {"dim": 8},
        "ranking": {"k": 10, "device": "cpu"},
        "shards": 2,
    }  # fmt: skip
    for key, value in sections.items():
        job[key] = {**job.get(key, {}), **value}
    (shop / f"{name}.yaml").write_text(yaml.safe_dump(job))
    plan = plan_run(load_job(str(shop / f"{name}.yaml")), "r", items=True, users=True, recommend=True)
    launch(lambda root: nightly.build(root, plan), beam_options([]), {})
    return plan.store


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="interests"),
        pytest.param({"ranking": {"interests": "weighted"}}, id="weighted interests"),
        pytest.param({"ranking": {"interests": "profile"}, "profiles": {"delta": 0.6}}, id="refined"),
        pytest.param({"ranking": {"fusion": "late", "interests": "profile", "weights": {"text": 2}}}, id="late"),
        pytest.param({"profiles": {"min_events": 3, "session_minutes": 600}}, id="cold"),
    ],
)
def test_parts_add_up_to_the_score_that_was_ranked_by(shop, sections, request):
    store = run(shop, request.node.callspec.id.replace(" ", "-"), **sections)
    served = pa.concat_tables([read_table(store, r) for r in store.published().part("recommendations")])
    users = served["user_id"].to_pylist()
    assert len(users) == 26
    for user in ("u0", "u7", "newcomer"):
        row = users.index(user)
        item, score = served["item_ids"][row][0].as_py(), served["scores"][row][0].as_py()
        found = explain(store, user, item)
        assert found.score == pytest.approx(score, abs=1e-5)
        assert sum(p for _, p in found.modalities) == pytest.approx(score, abs=1e-5)
        assert sum(p for *_, p in found.events) + found.rest == pytest.approx(found.score, abs=1e-9)
        if user == "newcomer" and "min_events" in sections.get("profiles", {}):
            assert abs(found.rest) > 0.01
        elif found.events:
            assert abs(found.rest) < 1e-5


def test_who_or_what_is_not_there_is_said(shop):
    store = run(shop, "plain")
    with pytest.raises(JobError, match="--user: 'nobody' is not in users/"):
        explain(store, "nobody", "i1")
    with pytest.raises(JobError, match="--item: 'i99' is not in items/"):
        explain(store, "u1", "i99")
