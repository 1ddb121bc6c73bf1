"""Interests, compared with SciPy's Ward clustering and with medoids by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from tests.transforms.users.samples import DIM, IDS, ITEMS, draw_events, events_of
from unisono.transforms.rank.user_vectors import read_interests
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import read_shard, table_bytes
from unisono.transforms.users.history import History, order_history
from unisono.transforms.users.interests import find_interests, interest_members, interest_type
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles


def wards_clusters(
    history: History, user: int, vectors: np.ndarray, most: int, split: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One user's liked items, their summed weights, and their cluster labels by SciPy."""
    mine = slice(history.first[user], history.first[user + 1])
    total = np.bincount(history.rows[mine], history.weight[mine], ITEMS)
    liked = np.flatnonzero(total > 0)
    if len(liked) < 2:
        return liked, total[liked], np.ones(len(liked), int)
    tree = linkage(vectors[liked], "ward")
    added = tree[:, 2] ** 2
    clusters = min(most, 1 + int((added >= split * added.sum()).sum()))
    return liked, total[liked], fcluster(tree, clusters, "maxclust")


@pytest.mark.parametrize("most", [1, 3, 6])
@pytest.mark.parametrize("split", [0.0, 0.1, 0.3])
def test_interests_are_wards_clusters_and_their_medoids(items: ItemMatrix, most: int, split: float) -> None:
    history, _ = order_history(draw_events(3000, 60, 1), items)
    found = find_interests(history, history.weight, items, most=most, split=split).to_pylist()
    vectors = np.asarray(items.vectors, np.float64)
    sizes: set[int] = set()
    for u, interests in enumerate(found):
        liked, total, label = wards_clusters(history, u, vectors, most, split)
        if len(liked) < 2:
            assert [(i["item_id"], i["weight"]) for i in interests] == [(IDS[i], 1.0) for i in liked]
            continue
        expected = []
        for c in np.unique(label):
            members = liked[label == c]
            apart = ((vectors[members][:, None] - vectors[members]) ** 2).sum((1, 2))
            mean = total[label == c] @ vectors[members]
            weight = total[label == c].sum() / total.sum()
            expected.append((weight, IDS[members[apart.argmin()]], len(members), mean / np.linalg.norm(mean)))
        sizes.update(n for _, _, n, _ in expected)
        np.testing.assert_allclose([i["weight"] for i in interests], sorted((w for w, *_ in expected), reverse=True))
        # Of two members, either may be the medoid, because both are equally far from the other.
        assert {i["item_id"] for i in interests if i["weight"] > 0} >= {i for _, i, n, _ in expected if n > 2}
        means = np.stack([mean for *_, mean in expected])
        for i in interests:
            assert np.abs(means - i["vector"]).max(1).min() < 1e-6
    assert max(sizes) > 5


def test_each_liked_item_belongs_to_the_interest_that_its_cluster_became(items: ItemMatrix) -> None:
    table = draw_events(400, 1, 4)
    history, _ = order_history(table, items)
    member = interest_members(history, history.weight, items, most=4, split=0.0)
    liked, total, label = wards_clusters(history, 0, np.asarray(items.vectors, np.float64), 4, 0.0)
    assert sorted(member) == liked.tolist()
    assert set(member.values()) == {0, 1, 2, 3}
    # The same items lie together, and interests are numbered by falling weight.
    together = np.array([[member[i] == member[j] for j in liked.tolist()] for i in liked.tolist()])
    np.testing.assert_array_equal(together, label[:, None] == label)
    shares = [sum(w for i, w in zip(liked.tolist(), total, strict=True) if member[i] == n) for n in range(4)]
    assert shares == sorted(shares, reverse=True)


def test_users_who_like_nothing_have_no_interests(items: ItemMatrix) -> None:
    rows = [("a", 3, 0.0, -1.0), ("b", 3, 0.0, 1.0), ("b", 3, 1.0, -1.0), ("c", -1, 0.0, 1.0), ("d", 5, 0.0, 2.0)]
    history, _ = order_history(events_of(rows), items)
    found = find_interests(history, history.weight, items, most=3, split=0.1)
    assert found.type == interest_type(DIM, items.id_type)
    assert [[i["item_id"] for i in user] for user in found.to_pylist()] == [[], [], [], [IDS[5]]]
    np.testing.assert_allclose(found.to_pylist()[3][0]["vector"], items.vectors[5], atol=1e-7)
    nobody, _ = order_history(events_of([]), items)
    assert len(find_interests(nobody, nobody.weight, items, most=3, split=0.1)) == 0


def test_interests_survive_the_store(items: ItemMatrix) -> None:
    built = build_profiles(draw_events(500, 30, 2), Surroundings(items), ProfileSpec(interests=3))
    back = read_shard(table_bytes(built.users).tobytes(), None)
    assert back["interests"].to_pylist() == built.users["interests"].to_pylist()
    vectors, weights, counts = read_interests(back["interests"])
    assert counts.max() == 3
    assert vectors.shape == (counts.sum(), DIM)
    assert (weights > 0).all()
