"""Tables of recommendation lists: merging and diversity, compared with loops over users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unisono.transforms.base.tables import hash_ids, to_vector_column
from unisono.transforms.rank.lists import diversify, list_table, merge_ranked, recommendation_schema
from unisono.transforms.store.item_matrix import ItemMatrix

DIM, ITEMS = 5, 40
IDS = [f"i{n}" for n in range(ITEMS)]


def lists_of(users: list[str], lists: list[list[tuple[str, float]]]) -> pa.Table:
    """Makes a table from each user's (item, score), best first."""
    flat = [pair for one in lists for pair in one]
    ids, scores = pa.array([i for i, _ in flat], pa.string()), np.array([s for _, s in flat], np.float32)
    return list_table(pa.chunked_array([users], pa.string()), ids, scores, np.array([len(one) for one in lists]))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> ItemMatrix:
    """An item matrix of random unit vectors."""
    folder, rng = tmp_path_factory.mktemp("items"), np.random.default_rng(1)
    vectors = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pq.write_table(pa.table({"item_id": IDS, "vector": to_vector_column(vectors)}), folder / "part.parquet")
    return ItemMatrix.open([str(folder / "part.parquet")], cache_dir=str(folder / "cache"))


def test_list_table_keeps_lists_of_different_lengths() -> None:
    table = lists_of(["a", "b", "c"], [[("i1", 0.5)], [], [("i2", 0.75), ("i0", 0.25)]])
    assert table.schema == recommendation_schema(pa.string(), pa.string())
    assert table.to_pylist() == [
        {"user_id": "a", "item_ids": ["i1"], "scores": [0.5]},
        {"user_id": "b", "item_ids": [], "scores": []},
        {"user_id": "c", "item_ids": ["i2", "i0"], "scores": [0.75, 0.25]},
    ]


@pytest.mark.parametrize("k", [1, 4, 100])
def test_merged_slices_equal_a_sort_of_all_their_lists(k: int) -> None:
    rng = np.random.default_rng(2)
    users = [f"u{n}" for n in range(9)]
    slices = []
    for number in range(3):
        lists = []
        for _ in users:
            chosen = rng.choice(np.arange(number, ITEMS, 3), rng.integers(0, 8), replace=False)
            scores = -np.sort(-rng.integers(0, 4, len(chosen)) / 4)  # many equal scores
            lists.append([(IDS[i], float(s)) for i, s in zip(chosen, scores, strict=True)])
        slices.append(lists_of(users, lists))
    hashes = dict(zip(IDS, hash_ids(pa.array(IDS)).tolist(), strict=True))
    merged = merge_ranked(slices, k)
    for row, user in enumerate(users):
        every = [
            pair for t in slices for pair in zip(t["item_ids"][row].as_py(), t["scores"][row].as_py(), strict=True)
        ]
        expected = sorted(every, key=lambda p: (-p[1], hashes[p[0]]))[:k]
        assert merged["user_id"][row].as_py() == user
        assert merged["item_ids"][row].as_py() == [i for i, _ in expected]
        assert merged["scores"][row].as_py() == [s for _, s in expected]


@pytest.mark.parametrize("users", [3, 150], ids=["one block", "several blocks"])
@pytest.mark.parametrize("diversity", [0.0, 0.4, 1.0])
def test_diversify_agrees_with_a_greedy_loop(items: ItemMatrix, diversity: float, users: int) -> None:
    rng = np.random.default_rng(3)
    lists = []
    for _ in range(users):
        some = rng.choice(ITEMS, rng.integers(0, 12), replace=False)
        lists.append([(IDS[i], float(s)) for i, s in zip(some, -np.sort(-rng.random(len(some))), strict=True)])
    pool = lists_of([f"u{n}" for n in range(users)], lists)
    found = diversify(pool, items, 5, diversity)
    vectors = {i: v.astype(float) for i, v in zip(items.ids(np.arange(ITEMS)).to_pylist(), items.vectors, strict=True)}
    for row in range(users):
        left = dict(zip(pool["item_ids"][row].as_py(), pool["scores"][row].as_py(), strict=True))
        scores = dict(left)
        chosen: list[str] = []
        while left and len(chosen) < 5:
            value = {
                i: (1 - diversity) * s - diversity * max((vectors[i] @ vectors[c] for c in chosen), default=0.0)
                for i, s in left.items()
            }
            chosen.append(max(value, key=value.__getitem__))
            del left[chosen[-1]]
        assert found["item_ids"][row].as_py() == chosen
        assert found["scores"][row].as_py() == [scores[i] for i in chosen]


def test_nobody_has_no_lists(items: ItemMatrix) -> None:
    empty = recommendation_schema(pa.string(), pa.string()).empty_table()
    assert diversify(empty, items, 5, 0.5).num_rows == 0
    assert merge_ranked([empty, empty], 5).num_rows == 0
