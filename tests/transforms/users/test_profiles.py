"""User profiles, compared with loops over the events in float64."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.users.samples import draw_events as draw_events_of_users
from tests.transforms.users.samples import draw_modalities
from tests.transforms.users.samples import events_of as events_of_users
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column, shard_of, split_by_shard, to_vector_column
from unisono.transforms.privacy.noise import NoiseSpec
from unisono.transforms.read.interactions import (
    TIME_TYPE,
    InteractionsSpec,
    ReadInteractions,
    check_interactions,
    event_schema,
)
from unisono.transforms.read.user_shards import ShardByUser
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.users.profiles import (
    BuildProfiles,
    ProfileSpec,
    Surroundings,
    profile_schema,
    publish_noised,
)
from unisono.transforms.users.profiles import build_profiles as build

DIM = 6
ITEMS = 30
DAY_US = 86_400_000_000
START_US = 1_770_000_000_000_000
World = tuple[ItemMatrix, dict[Any, np.ndarray], list[str]]


@pytest.fixture(scope="module", params=["strings", "integers"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> World:
    """An item matrix from two files of several row groups, the same vectors as a dict, and the files."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1] = -vectors[0]  # a pair that cancels
    ids = [f"item-{i}" if request.param == "strings" else 1000 + i for i in range(ITEMS)]
    files = []
    for part, rows in enumerate((slice(0, 11), slice(11, ITEMS))):
        files.append(str(folder / f"part-{part}.parquet"))
        table = pa.table({"item_id": ids[rows], "vector": to_vector_column(vectors[rows])})
        pq.write_table(table, files[-1], row_group_size=5)
    matrix = ItemMatrix.open(files, cache_dir=str(folder / "cache"))
    return matrix, dict(zip(ids, vectors.astype(np.float64), strict=True)), files


def build_profiles(table: pa.Table, matrix: ItemMatrix, spec: ProfileSpec) -> tuple[pa.Table, dict[str, int]]:
    built = build(table, Surroundings(matrix), spec)
    return built.users, built.counts


def draw_events(world: World, n: int, users: int, seed: int = 0, unknown: float = 0.1) -> pa.Table:
    ids = list(world[1])
    strings = isinstance(ids[0], str)
    rng = np.random.default_rng(seed)
    items = pa.array(ids).take(pa.array(rng.integers(0, ITEMS, n)))
    stranger = pa.scalar("nowhere" if strings else -5, items.type)
    items = pa.compute.if_else(pa.array(rng.random(n) < unknown), stranger, items)
    people = rng.integers(0, users, n)
    return pa.table([
        pa.array([f"user {u}" for u in people]) if strings else pa.array(people),
        items,
        # Whole hours, so that many events of one user have the same time.
        pa.array(START_US + rng.integers(0, 24 * 90, n) * 3_600_000_000, TIME_TYPE),
        pa.array(rng.choice([1.0, 3.0, 5.0, -3.0], n)),
    ], names=["user_id", "item_id", "time", "weight"])


def reference(table: pa.Table, vectors: dict, half_life_days: float | None) -> dict:
    """Profiles by loops: (unit vector, number of events, newest time) of each user whose events do not cancel."""
    by_user = defaultdict(list)
    for e in table.to_pylist():
        if e["item_id"] in vectors:
            by_user[e["user_id"]].append(e)
    out = {}
    for user, events in by_user.items():
        newest = max(e["time"] for e in events)
        total, size = np.zeros(DIM), 0.0
        for e in events:
            days = (newest - e["time"]) / dt.timedelta(days=1)
            w = e["weight"] * (0.5 ** (days / half_life_days) if half_life_days else 1.0)
            total, size = total + w * vectors[e["item_id"]], size + abs(w)
        if np.linalg.norm(total) > 1e-6 * size:
            out[user] = (total / np.linalg.norm(total), len(events), newest)
    return out


def check(users: pa.Table, expected: dict) -> None:
    assert users["user_id"].to_pylist() == sorted(expected)
    vectors, present = from_vector_column(users["vector"])
    assert present.all()
    for row, (vector, events, newest) in enumerate(expected[u] for u in sorted(expected)):
        np.testing.assert_allclose(vectors[row], vector, atol=1e-6)
        assert users["events"][row].as_py() == events
        assert users["last_event"][row].as_py() == newest
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("half_life_days", [None, 30.0, 0.5], ids=["no decay", "30 days", "half a day"])
def test_profiles_agree_with_loops(world: World, half_life_days: float | None) -> None:
    matrix, vectors, _ = world
    table = draw_events(world, 3000, 80)
    users, stats = build_profiles(table, matrix, ProfileSpec(half_life_days))
    expected = reference(table, vectors, half_life_days)
    check(users, expected)
    assert stats == {
        "events.rows": 3000,
        "events.unknown_item": sum(i not in vectors for i in table["item_id"].to_pylist()),
        "events.set_aside": 0,
        "users.seen": 80,
        "users.rows": len(expected),
        "users.cold": 0,
        "users.without_profile": 80 - len(expected),
    }


EVENT = st.tuples(
    st.integers(0, 3),
    st.integers(0, ITEMS + 2),
    st.integers(0, 40),
    st.sampled_from([1.0, 5.0, -3.0, -1.0, 0.0]),
)


@given(events=st.lists(EVENT, max_size=25), half_life=st.sampled_from([None, 3.0]))
@settings(max_examples=60, deadline=None)
def test_profiles_agree_with_loops_on_any_events(
    world: World, events: list[tuple[int, int, int, float]], half_life: float | None
) -> None:
    matrix, vectors, _ = world
    ids = list(vectors)
    rows = [
        {
            "user_id": user if isinstance(ids[0], int) else f"u{user}",
            "item_id": (ids + ([-1, -2, -3] if isinstance(ids[0], int) else ["x", "", "y"]))[item],
            "time": dt.datetime.fromtimestamp(START_US / 1e6, dt.UTC) + dt.timedelta(days=day),
            "weight": weight,
        }
        for user, item, day, weight in events
    ]
    table = pa.Table.from_pylist(rows, schema=event_schema(pa.array(ids).type, pa.array(ids).type))
    expected = reference(table, vectors, half_life)
    users, stats = build_profiles(table, matrix, ProfileSpec(half_life))
    check(users, expected)
    assert stats["users.without_profile"] == len({r["user_id"] for r in rows}) - len(expected)


def events_of(world: World, *rows: tuple[int, float, float]) -> pa.Table:
    """Makes events of one user from (index of the item, day, weight)."""
    ids = list(world[1])
    return pa.table({
        "user_id": ["ann"] * len(rows),
        "item_id": [ids[i] for i, _, _ in rows],
        "time": pa.array([START_US + int(day * DAY_US) for _, day, _ in rows], TIME_TYPE),
        "weight": pa.array([w for _, _, w in rows], pa.float64()),
    })


def vector_of(users: pa.Table) -> np.ndarray:
    return from_vector_column(users["vector"])[0][0]


def test_one_disliked_item_gives_its_opposite(world: World) -> None:
    matrix, vectors, _ = world
    users, _ = build_profiles(events_of(world, (5, 0, -3.0)), matrix, ProfileSpec(30))
    np.testing.assert_allclose(vector_of(users), -list(vectors.values())[5], atol=1e-6)


def test_after_one_half_life_an_event_counts_half(world: World) -> None:
    matrix, vectors, _ = world
    v = list(vectors.values())
    users, _ = build_profiles(events_of(world, (4, 0, 1.0), (7, 10, 1.0)), matrix, ProfileSpec(10))
    mean = 0.5 * v[4] + v[7]
    np.testing.assert_allclose(vector_of(users), mean / np.linalg.norm(mean), atol=1e-6)


def test_events_a_thousand_half_lives_old_do_not_break_the_sum(world: World) -> None:
    matrix, vectors, _ = world
    table = events_of(world, (4, 0, 1.0), (7, 9000, 1.0))
    users, _ = build_profiles(table, matrix, ProfileSpec(1))
    np.testing.assert_allclose(vector_of(users), list(vectors.values())[7], atol=1e-6)
    assert users["events"].to_pylist() == [2]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(0, 0, 2.0), (1, 0, 2.0)], id="opposite items"),
        pytest.param([(4, 0, 3.0), (4, 0, -3.0)], id="weights cancel"),
        pytest.param([(4, 0, 0.1), (4, 0, 0.1), (4, 0, 0.1), (4, 0, -0.3)], id="weights cancel up to rounding"),
        pytest.param([(4, 0, 0.0)], id="weight zero"),
    ],
)
def test_events_that_cancel_give_no_profile(world: World, rows: list[tuple[int, float, float]]) -> None:
    users, stats = build_profiles(events_of(world, *rows), world[0], ProfileSpec(30))
    assert users.num_rows == 0
    assert (stats["users.seen"], stats["users.without_profile"], stats["events.rows"]) == (1, 1, len(rows))


def test_users_with_fewer_events_than_asked_are_counted(world: World) -> None:
    table = events_of(world, (4, 0, 1.0), (5, 0, 1.0))
    users, stats = build_profiles(table, world[0], ProfileSpec(30, min_events=3))
    assert (users.num_rows, stats["users.without_profile"]) == (0, 1)


def test_an_empty_shard_keeps_the_schema(world: World) -> None:
    for user_type in (pa.string(), pa.int32()):
        empty = event_schema(user_type, pa.array(list(world[1])).type).empty_table()
        users, stats = build_profiles(empty, world[0], ProfileSpec(30))
        assert users.schema == profile_schema(user_type, DIM, world[0].id_type)
        assert (users.num_rows, set(stats.values())) == (0, {0})


def test_a_user_with_a_hundred_thousand_events(world: World) -> None:
    matrix, vectors, _ = world
    n = 100_000
    table = draw_events(world, n, 1, seed=5, unknown=0)
    users, _ = build_profiles(table, matrix, ProfileSpec(30))
    time = table["time"].cast(pa.int64()).to_numpy()
    weight = table["weight"].to_numpy() * 0.5 ** ((time.max() - time) / DAY_US / 30)
    place = {key: i for i, key in enumerate(vectors)}
    per_item = np.bincount([place[i] for i in table["item_id"].to_pylist()], weight, ITEMS)
    total = per_item @ np.stack(list(vectors.values()))
    np.testing.assert_allclose(vector_of(users), total / np.linalg.norm(total), atol=1e-6)
    assert users["events"].to_pylist() == [n]


@pytest.mark.parametrize("shards", [1, 7, 64])
def test_profiles_do_not_depend_on_shards_or_on_the_order_of_rows(world: World, shards: int) -> None:
    matrix = world[0]
    table = draw_events(world, 3000, 80, seed=9)
    whole, whole_stats = build_profiles(table, matrix, ProfileSpec(7))
    shuffled = table.take(pa.array(np.random.default_rng(shards).permutation(len(table))))
    built = [
        build_profiles(part, matrix, ProfileSpec(7))
        for _, part in split_by_shard(shuffled, shard_of(shuffled["user_id"], shards))
    ]
    users = pa.concat_tables([t for t, _ in built]).sort_by("user_id").combine_chunks()
    assert users.equals(whole.combine_chunks())  # bit for bit
    assert {k: sum(s[k] for _, s in built) for k in whole_stats} == whole_stats


def test_times_too_far_apart_to_be_packed_into_one_integer_are_ordered_too(world: World) -> None:
    matrix, vectors, _ = world
    table = draw_events(world, 2000, 60, seed=2)
    time = table["time"].cast(pa.int64()).to_numpy().copy()
    time[::50] -= 2 * 10**17  # about six thousand years
    table = table.set_column(2, "time", pa.array(time, pa.timestamp("us")).cast(TIME_TYPE))
    users, _ = build_profiles(table, matrix, ProfileSpec(10**6))
    vectors_of = from_vector_column(users["vector"])[0]
    # Python's dates do not reach so far back, so the expected profiles are computed from integers.
    for row, user in enumerate(users["user_id"].to_pylist()):
        mine = np.array([u == user and i in vectors for u, i in zip(
            table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)])
        weight = table["weight"].to_numpy()[mine] * 0.5 ** ((time[mine].max() - time[mine]) / DAY_US / 10**6)
        total = weight @ np.stack([vectors[i] for i in table["item_id"].filter(pa.array(mine)).to_pylist()])
        np.testing.assert_allclose(vectors_of[row], total / np.linalg.norm(total), atol=1e-6)


@pytest.mark.parametrize("bad", [{"half_life_days": 0}, {"half_life_days": -1}, {"min_events": 0}], ids=str)
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=f"profiles.{next(iter(bad))}"):
        ProfileSpec(**bad)


@pytest.mark.parametrize("shards", [1, 7])
def test_logs_to_profiles_through_beam(world: World, tmp_path: Path, shards: int) -> None:
    _, vectors, files = world
    raw = draw_events(world, 1200, 40, seed=7).rename_columns(["who", "what", "when", "stars"])
    names = {1.0: "view", 3.0: "cart", 5.0: "buy", -3.0: "dislike"}
    events = pa.array([names[w] for w in raw["stars"].to_pylist()])
    logs = raw.drop_columns(["stars"]).append_column("event", events)
    for part, rows in enumerate((logs.slice(0, 700), logs.slice(700))):
        pq.write_table(rows, tmp_path / f"log-{part}.parquet", row_group_size=150)
    weights = {name: w for w, name in names.items()}
    spec = InteractionsSpec(str(tmp_path / "log-*.parquet"), "who", "what", "when", "event", weights)
    looked = check_interactions(spec)
    expected = reference(raw.rename_columns(["user_id", "item_id", "time", "weight"]), vectors, 14)

    def check_users(elements: list) -> None:
        assert sorted(s for s, _ in elements) == list(range(shards))
        assert all((shard_of(t["user_id"], shards) == s).all() for s, t in elements)
        assert all(t["user_id"].to_pylist() == sorted(t["user_id"].to_pylist()) for _, t in elements)
        check(pa.concat_tables([t for _, t in elements]).sort_by("user_id"), expected)

    counts = {
        "events.rows": 1200,
        "events.unknown_item": sum(i not in vectors for i in raw["what"].to_pylist()),
        "events.set_aside": 0,
        "users.seen": 40,
        "users.rows": len(expected),
        "users.cold": 0,
        "users.without_profile": 40 - len(expected),
    }

    def check_counts(elements: list) -> None:
        assert {name: sum(n for key, n in elements if key == name) for name, _ in elements} == counts

    p = beam.Pipeline(runner=FnApiRunner())
    items = beam.pvalue.AsList(p | "Items" >> beam.Create(files))
    events = p | ReadInteractions(looked)
    built = (
        events["events"]
        | ShardByUser(shards, looked)
        | BuildProfiles(items, ProfileSpec(14), cache_dir=str(tmp_path / "cache"))
    )
    assert_that(built["users"], check_users, "Users")
    assert_that(built["counts"], check_counts, "Counts")
    result = p.run()
    result.wait_until_finish()
    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    assert {name: counters.get(name, 0) for name in counts} == counts


def test_neither_the_order_of_rows_nor_the_shards_change_a_whole_profile(items: ItemMatrix) -> None:
    table = draw_events_of_users(2000, 50, 8)
    around = Surroundings(items, draw_modalities(1), np.asarray(items.vectors[0]))
    spec = ProfileSpec(15, min_events=2, interests=3, recent_events=20, delta=0.7)
    whole = build(table, around, spec).users
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    even = pa.array([int(u[1:]) % 2 == 0 for u in shuffled["user_id"].to_pylist()])
    parts = [build(shuffled.filter(m), around, spec).users for m in (even, pa.compute.invert(even))]
    assert pa.concat_tables(parts).sort_by("user_id").combine_chunks().equals(whole.combine_chunks())  # bit for bit


def test_users_are_counted_by_what_became_of_them(items: ItemMatrix) -> None:
    table = events_of_users([("a", 5, 0, 1), ("b", -1, 0, 1), ("c", 5, 0, 1), ("c", 5, 0, -1), ("d", 5, 0, 1)])
    robot = events_of_users([("e", i, 0.01 * i, 1) for i in range(9)])
    lost = pa.table({"user_id": ["a", "x", "y"]})
    spec = ProfileSpec(None, interests=0, max_events_per_day=5, robots="drop")
    found = build(pa.concat_tables([table, robot]), Surroundings(items), spec, users_of_dead=lost).counts
    assert found == {
        "events.rows": 14,
        "events.unknown_item": 1,
        "events.set_aside": 9,
        "users.without_usable_event": 2,  # x and y
        "users.seen": 7,
        "users.rows": 2,  # a and d
        "users.cold": 0,
        "users.without_profile": 5,
    }


def test_noise_leaves_one_noised_vector_of_each_user(items: ItemMatrix) -> None:
    table = events_of_users([("a", 5, 0, 1), ("b", -1, 0, 1), ("c", 5, 0, 1), ("c", 5, 0, -1)])
    built = build(table, Surroundings(items), ProfileSpec(None, interests=0))
    noise = NoiseSpec(400.0, 0.5)
    hidden = publish_noised(built, noise)
    assert hidden.users["user_id"].to_pylist() == ["a", "b", "c"]
    vectors, _ = from_vector_column(hidden.users["vector"])
    expected = np.stack([items.vectors[5], np.zeros(items.dim), np.zeros(items.dim)])
    np.testing.assert_allclose(vectors, expected, atol=10 * noise.sigma)
    assert (vectors[1:] != 0).all()
    assert hidden.users["events"].null_count == 3
    assert hidden.dead["detail"].null_count == hidden.dead.num_rows == 1
    assert (hidden.counts["users.rows"], hidden.counts["users.without_profile"]) == (3, 0)
