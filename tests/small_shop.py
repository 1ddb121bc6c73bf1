"""A small shop for tests of what is asked of a run: 80 items of text, 26 users, and jobs that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

WORDS = ["red", "blue", "green", "wool", "silk", "lamp", "chair", "drum", "flute", "stone", "oak", "tin"]
ITEMS, USERS, EVENTS = 80, 25, 900
WEIGHTS = {"view": 1, "buy": 5, "dislike": -3}


def make_shop(folder: Path) -> Path:
    """Writes catalog.parquet and log.parquet. One user, `newcomer`, has a single event; five items are unknown."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 5)) for _ in range(ITEMS)]
    catalog = {"item_id": [f"i{n}" for n in range(ITEMS)], "text": texts, "open": np.arange(ITEMS) % 4 > 0}
    pq.write_table(pa.table(catalog), folder / "catalog.parquet")
    n = EVENTS + 1
    log = {
        "user": [f"u{u}" for u in rng.integers(0, USERS, EVENTS)] + ["newcomer"],
        "item": [f"i{i}" for i in rng.integers(0, ITEMS + 5, n)],
        "time": pa.array(1_770_000_000 + rng.integers(0, 90 * 86_400, n)),
        "event": rng.choice(list(WEIGHTS), n, p=[0.6, 0.3, 0.1]),
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    return folder


def write_job(folder: Path, name: str, **sections: Any) -> Path:
    """Writes a job file for a shop, with a store named like the job.

    Args:
        folder: The folder of the shop.
        name: The name of the job file and of the store.
        sections: A mapping is merged into the default section, any other value replaces it; None leaves it out.
    """
    job: dict = {
        "store": name,
        "catalog": {"path": "catalog.parquet", "id": "item_id", "text": ["text"]},
        "interactions": {
            "path": "log.parquet", "user": "user", "item": "item", "time": "time", "time_unit": "s", "event": "event",
            "weights": WEIGHTS,
        },
        "behaviour": {"dim": 8},
        "ranking": {"k": 10, "device": "cpu"},
        "shards": 2,
    }  # fmt: skip
    for key, value in sections.items():
        job[key] = {**job.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in job.items() if v is not None}))
    return path


def read_log(folder: Path) -> pa.Table:
    """Reads the log of a shop as `Run.recommend(events=…)` takes it: user_id, item_id, time, event."""
    return pq.read_table(folder / "log.parquet").rename_columns(["user_id", "item_id", "time", "event"])
