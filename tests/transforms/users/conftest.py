"""Fixtures of the tests of `users/`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.transforms.users.samples import DIM, IDS, ITEMS
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.store.item_matrix import ItemMatrix


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> ItemMatrix:
    """An item matrix of random unit vectors, with the ids `IDS`."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pq.write_table(pa.table({"item_id": IDS, "vector": to_vector_column(vectors)}), folder / "part.parquet")
    return ItemMatrix.open([str(folder / "part.parquet")], cache_dir=str(folder / "cache"))
