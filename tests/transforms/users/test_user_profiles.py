"""Interests, affinities, refinement, cold users, robots, folding nights: against SciPy and plain loops."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.rank.ranking import read_interests
from unisono.transforms.read.interactions import TIME_TYPE
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import read_shard, table_bytes
from unisono.transforms.users.history import order_history
from unisono.transforms.users.interests import find_interests
from unisono.transforms.users.profiles import ProfileSpec, Surroundings, build_profiles, popular_direction
from unisono.transforms.users.state import check_state, state_table

DIM, ITEMS = 7, 80
DAY_US = 86_400_000_000
START_US = 1_770_000_000_000_000
IDS = [f"item-{i:03d}" for i in range(ITEMS)]


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> ItemMatrix:
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pq.write_table(pa.table({"item_id": IDS, "vector": to_vector_column(vectors)}), folder / "part.parquet")
    return ItemMatrix.open([str(folder / "part.parquet")], cache_dir=str(folder / "cache"))


def events_of(rows: list[tuple[str, int, float, float]]) -> pa.Table:
    """Events: user, item's place (outside: unknown), day, weight."""
    return pa.table({
        "user_id": pa.array([r[0] for r in rows], pa.string()),
        "item_id": pa.array([IDS[r[1]] if 0 <= r[1] < ITEMS else "gone" for r in rows], pa.string()),
        "time": pa.array([START_US + round(r[2] * DAY_US) for r in rows], TIME_TYPE),
        "weight": pa.array([r[3] for r in rows], pa.float64()),
    })


def draw_events(n: int, users: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    # Users of one event and users of hundreds.
    who = (users * rng.random(n) ** 3).astype(int)
    item, day, weight = rng.integers(0, ITEMS + 4, n), rng.integers(0, 200, n) / 2, rng.choice([1, 3, 5, -3], n)
    rows = zip(who, item, day, weight, strict=True)
    return events_of([(f"u{u:03d}", int(i), float(t), float(w)) for u, i, t, w in rows])


# --- interests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 6])
@pytest.mark.parametrize("split", [0.0, 0.1, 0.3])
def test_interests_are_wards_clusters_and_their_medoids(items, most, split):
    table = draw_events(3000, 60, 1)
    history, _ = order_history(table, items)
    found = find_interests(history, history.weight, items, most, split).to_pylist()
    vectors = np.asarray(items.vectors, np.float64)
    sizes: set[int] = set()
    for u, interests in enumerate(found):
        mine = slice(history.first[u], history.first[u + 1])
        total = np.bincount(history.rows[mine], history.weight[mine], ITEMS)
        liked = np.flatnonzero(total > 0)
        if len(liked) < 2:
            assert [(i["item_id"], i["weight"]) for i in interests] == [(IDS[i], 1.0) for i in liked]
            continue
        tree = linkage(vectors[liked], "ward")
        added = tree[:, 2] ** 2
        clusters = min(most, 1 + int((added >= split * added.sum()).sum()))
        label = fcluster(tree, clusters, "maxclust")
        expected = []
        for c in np.unique(label):
            members = liked[label == c]
            apart = ((vectors[members][:, None] - vectors[members]) ** 2).sum((1, 2))
            mean = total[members] @ vectors[members]
            weight = total[members].sum() / total[liked].sum()
            expected.append((weight, IDS[members[apart.argmin()]], len(members), mean / np.linalg.norm(mean)))
        sizes.update(n for _, _, n, _ in expected)
        np.testing.assert_allclose([i["weight"] for i in interests], sorted((w for w, *_ in expected), reverse=True))
        # Of two members the medoid is either: both lie equally far from the other.
        assert {i["item_id"] for i in interests if i["weight"] > 0} >= {i for _, i, n, _ in expected if n > 2}
        means = np.stack([mean for *_, mean in expected])
        for i in interests:
            assert np.abs(means - i["vector"]).max(1).min() < 1e-6
    assert max(sizes) > 5


def test_interests_survive_the_store(items):
    built = build_profiles(draw_events(500, 30, 2), Surroundings(items), ProfileSpec(interests=3))
    back = read_shard(table_bytes(built.users).tobytes(), None)
    assert back["interests"].to_pylist() == built.users["interests"].to_pylist()
    vectors, weights, counts = read_interests(back["interests"])
    assert counts.max() == 3
    assert vectors.shape == (counts.sum(), DIM) and (weights > 0).all()  # noqa: PT018


# --- cold users --------------------------------------------------------------------------------------------


def test_the_prior_weighs_items_by_how_many_turned_to_them(items):
    n = np.random.default_rng(0).integers(1, 50, ITEMS)
    counts = pa.table({"item_id": [*IDS, "gone"], "n": [*n.tolist(), 9]})
    mean = n @ np.asarray(items.vectors, np.float64)
    found = popular_direction(counts, items)
    assert found is not None
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)


def test_cold_users_lean_on_the_prior_and_less_with_every_event(items):
    prior = np.asarray(items.vectors[11])
    table = events_of([
        ("a", 5, 0, 1), ("b", 5, 0, 1), ("b", 5, 0, 1), ("c", 5, 0, 1), ("c", 5, 1, 1), ("c", 5, 2, 1),
        ("d", -1, 0, 1), ("e", 5, 0, 1), ("e", 5, 1, -1),
    ])  # fmt: skip
    spec = ProfileSpec(min_events=3, interests=2)
    built = build_profiles(table, Surroundings(items, prior=prior), spec)
    users = built.users
    assert users["user_id"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert users["cold"].to_pylist() == [True, True, False, True, True]
    assert users["last_event"].is_valid().to_pylist() == [True, True, True, False, True]
    own = np.asarray(items.vectors[5], np.float64)
    for row, mixed in enumerate([own + 3 * prior, 2 * own + 3 * prior, own, prior, prior]):
        vector = from_vector_column(users["vector"])[0][row]
        np.testing.assert_allclose(vector, mixed / np.linalg.norm(mixed), atol=1e-6)
    assert [len(i) for i in users["interests"].to_pylist()] == [0, 0, 1, 0, 0]
    assert built.dead["reason"].to_pylist() == ["weights_cancel"]
    assert built.dead["detail"].to_pylist() == ["user=e"]


# --- what does not count -----------------------------------------------------------------------------------


def test_repeats_count_once_a_session(items):
    minute = 1 / 1440
    table = events_of([
        ("a", 1, 0, 1), ("a", 1, 10 * minute, 1), ("a", 2, 20 * minute, 1), ("a", 1, 45 * minute, 1),  # one session
        ("a", 1, 45 * minute, 3),  # another event type
        ("a", 1, 80 * minute, 1),  # another session
        ("b", 1, 80 * minute, 1),
    ])  # fmt: skip
    built = build_profiles(table, Surroundings(items), ProfileSpec(session_minutes=30))
    assert built.users["events"].to_pylist() == [4, 1]
    assert built.counts["events.set_aside"] == 2
    kept = [START_US + round(t * minute * DAY_US) for t in (20, 45)]
    assert built.sums.recent.time[:2].tolist() == kept


@pytest.mark.parametrize("robots", ["cap", "drop"])
def test_a_user_of_a_million_events_is_named(items, robots):
    rng = np.random.default_rng(0)
    n = 1_000_000
    robot = pa.table({
        "user_id": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["bot"])).cast(pa.string()),
        "item_id": pa.array(IDS).take(pa.array(rng.integers(0, ITEMS, n))),
        "time": pa.array(START_US + rng.integers(0, 2 * DAY_US, n), TIME_TYPE),
        "weight": np.ones(n),
    })
    table = pa.concat_tables([events_of([("ann", 4, 0, 1)]), robot])
    built = build_profiles(table, Surroundings(items), ProfileSpec(max_events_per_day=1000, robots=robots))
    (letter,) = built.dead.to_pylist()
    assert (letter["stage"], letter["reason"]) == ("profiles", "too_many_events")
    assert letter["detail"].startswith("user=bot ")
    days = len({t // DAY_US for t in robot["time"].cast(pa.int64()).to_pylist()[:5000]})
    expected = {"cap": (["ann", "bot"], [1, 1000 * days]), "drop": (["ann"], [1])}[robots]
    assert (built.users["user_id"].to_pylist(), built.users["events"].to_pylist()) == expected
    assert built.counts["users.seen"] == 2
    if robots == "cap":  # the newest of each day
        time, row = robot["time"].cast(pa.int64()).to_numpy(), 1
        kept = np.concatenate([np.sort(time[time // DAY_US == d])[-1000:] for d in np.unique(time // DAY_US)])
        assert built.sums.newest[row] == kept.max()
        assert built.users["events"][row].as_py() == len(kept)


# --- modalities --------------------------------------------------------------------------------------------


def modalities_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for m, part in (("image", 0.5), ("text", 0.9)):
        vectors = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[rng.random(ITEMS) > part] = 0
        out[m] = vectors
    return out


@pytest.mark.parametrize("delta", [1.0, 0.6, 0.0])
def test_affinity_and_refinement_agree_with_loops(items, delta):
    table, matrices = draw_events(800, 40, 5), modalities_of(6)
    names = ("image", "text")
    spec = ProfileSpec(20, recent_events=15, delta=delta, temperature=0.2, modalities=names, modality_vectors=True)
    users = build_profiles(table, Surroundings(items, matrices), spec).users
    plain = build_profiles(table, Surroundings(items), ProfileSpec(20)).users
    profiles = from_vector_column(plain["vector"])[0].astype(np.float64)
    history, _ = order_history(table, items)
    place = {u: i for i, u in enumerate(history.user_ids.to_pylist())}
    for row, user in enumerate(users["user_id"].to_pylist()):
        u, z = place[user], profiles[row]
        mine = np.arange(history.first[u], history.first[u + 1])[-15:]
        newest = history.time[history.first[u + 1] - 1]
        weight = history.weight[mine] * 0.5 ** ((newest - history.time[mine]) / DAY_US / 20)
        contexts = []
        for m, matrix in matrices.items():
            v = matrix[history.rows[mine]].astype(np.float64)
            use = (weight > 0) & v.any(1)
            affinity, own = users[f"{m}_affinity"][row].as_py(), users[f"{m}_vector"][row].as_py()
            if not use.any():
                assert affinity is None
                assert own is None
                continue
            total = weight[use] @ v[use]
            np.testing.assert_allclose(affinity, np.linalg.norm(total) / weight[use].sum(), rtol=1e-5)
            np.testing.assert_allclose(own, total / np.linalg.norm(total), atol=1e-6)
            a = weight[use] * np.exp(v[use] @ z / 0.2)
            contexts.append(a @ v[use] / a.sum())
        expected = z
        if contexts:
            expected = delta * z + (1 - delta) * np.mean(contexts, axis=0)
            expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(users["vector"][row].as_py(), expected, atol=1e-6)


# --- nights ------------------------------------------------------------------------------------------------

FULL = ProfileSpec(15, min_events=2, interests=3, recent_events=20, delta=0.7, modalities=("image", "text"))


def test_neither_the_order_of_rows_nor_the_shard_shows(items):
    table = draw_events(2000, 50, 8)
    around = Surroundings(items, modalities_of(1), np.asarray(items.vectors[0]))
    whole = build_profiles(table, around, FULL).users
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    even = pa.array([int(u[1:]) % 2 == 0 for u in shuffled["user_id"].to_pylist()])
    parts = [build_profiles(shuffled.filter(m), around, FULL).users for m in (even, pa.compute.invert(even))]
    assert pa.concat_tables(parts).sort_by("user_id").combine_chunks().equals(whole.combine_chunks())  # bit for bit


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)], ids=["in order", "out of order"])
def test_nights_folded_one_by_one_equal_one_pass(items, order):
    table = draw_events(2500, 70, 9)
    around = Surroundings(items, modalities_of(1), np.asarray(items.vectors[0]))
    night = (table["time"].cast(pa.int64()).to_numpy() - START_US) // (25 * DAY_US)
    state = None
    for number in order:
        built = build_profiles(table.filter(pa.array(night == number)), around, FULL, state)
        state = read_shard(table_bytes(state_table(built.sums, items)).tobytes())  # through the file's form
    whole = build_profiles(table, around, FULL)
    for column in whole.users.column_names:
        if column == "vector" or column.endswith("affinity"):
            a, b = (np.array(t[column].to_pylist(), float) for t in (built.users, whole.users))
            np.testing.assert_allclose(a, b, atol=1e-6)
        elif column != "interests":
            assert built.users[column].to_pylist() == whole.users[column].to_pylist()
    for a, b in zip(built.users["interests"].to_pylist(), whole.users["interests"].to_pylist(), strict=True):
        assert [i["item_id"] for i in a] == [i["item_id"] for i in b]
        np.testing.assert_allclose([i["weight"] for i in a], [i["weight"] for i in b], atol=1e-6)
    np.testing.assert_allclose(built.sums.vectors, whole.sums.vectors, atol=1e-6)


def test_a_night_without_events_keeps_everybody(items):
    table = draw_events(300, 20, 3)
    first = build_profiles(table, Surroundings(items), FULL_PLAIN)
    again = build_profiles(table.slice(0, 0), Surroundings(items), FULL_PLAIN, state_table(first.sums, items))
    assert again.users.equals(first.users)


FULL_PLAIN = ProfileSpec(15, interests=3)


MARKS = {b"unisono.space_id": b"old", b"unisono.half_life_days": b"15"}
TURNED = {b"unisono.space_id": b"now", b"unisono.comparable": b'["mid", "old"]'}


@pytest.mark.parametrize(
    ("have", "said", "dim", "says"),
    [
        (MARKS, {b"unisono.space_id": b"old"}, DIM, ""),
        (MARKS, TURNED, DIM, ""),
        (
            MARKS,
            {b"unisono.space_id": b"now", b"unisono.comparable": b"[]", b"unisono.not_comparable": b"too far"},
            DIM,
            r"profiles.incremental: .*space old.*now, which does not face it \(too far\)",
        ),
        (MARKS, {b"unisono.space_id": b"now"}, DIM, "which does not face it; run once with .*restart"),
        (MARKS, TURNED, 5, "their vectors have 5 values, not 7"),
        (MARKS | {b"unisono.half_life_days": b"30"}, TURNED, DIM, "profiles.half_life_days: 15.*30"),
    ],
    ids=["the same", "faced", "not faced", "nothing said", "length", "half-life"],
)
def test_a_state_of_something_else_is_refused(items, have, said, dim, says):
    sums = build_profiles(draw_events(30, 3, 0), Surroundings(items), FULL_PLAIN).sums
    state = state_table(sums, items).replace_schema_metadata(have)
    with pytest.raises(JobError, match=says) if says else contextlib.nullcontext():
        check_state(state, said, dim, 15)
