"""Logs become events in shards of users: compared with one pass over the whole table."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from tests.transforms.read.test_interactions import write
from unisono.transforms.base.tables import shard_of
from unisono.transforms.read.interactions import ReadInteractions, check_interactions, clean_interactions
from unisono.transforms.read.user_shards import GroupUsersOfDead, ShardByUser
from unisono.transforms.store import dead_letters


@pytest.mark.parametrize("shards", [1, 7, 64])
def test_every_event_reaches_the_shard_of_its_user(tmp_path, shards):
    rng = np.random.default_rng(shards)
    n = 400
    table = pa.table({
        "user": [None if u == 0 else f"u{u}" for u in rng.integers(0, 20, n)],
        "item": [f"i{i}" for i in rng.integers(0, 50, n)],
        "ts": pa.array(rng.integers(0, 10**15, n), pa.timestamp("us")),
        "event": rng.choice(["view", "buy", "share"], n),
        "unused": ["x" * 100] * n,
    })
    looked = check_interactions(write(tmp_path, table.slice(0, 250), table.slice(250), row_group_size=60))
    expected, dead = clean_interactions(table, looked.spec)
    assert 0 < dead.num_rows < n

    def check_shards(elements: list) -> None:
        assert sorted(s for s, _ in elements) == list(range(shards))
        for shard, events in elements:
            assert events.schema == looked.schema
            assert (shard_of(events["user_id"], shards) == shard).all()
        got = pa.concat_tables([t for _, t in elements])
        key = [(name, "ascending") for name in got.schema.names]
        assert got.sort_by(key).equals(expected.sort_by(key))

    def check_dead(elements: list) -> None:
        got = pa.concat_tables(elements)
        assert dead_letters.sort_letters(got).equals(dead_letters.sort_letters(dead))

    def check_rows(elements: list) -> None:
        assert sum(elements) == n

    with beam.Pipeline(runner=FnApiRunner()) as p:
        read = p | ReadInteractions(looked)
        assert_that(read["events"] | ShardByUser(shards, looked), check_shards, "Shards")
        assert_that(read["dead"], check_dead, "Dead")
        assert_that(read["rows"], check_rows, "Rows")


def test_users_of_dead_letters_come_once_in_the_shard_of_their_id():
    tables = [pa.table({"user_id": ids}) for ids in (["a", "b", "c"], ["b", "d"], ["a"])]

    def check(elements: list) -> None:
        users = [(shard, user) for shard, table in elements for user in table["user_id"].to_pylist()]
        assert sorted(user for _, user in users) == ["a", "b", "c", "d"]
        assert len(elements) == len({shard for shard, _ in elements})
        assert all(shard_of(pa.array([user]), 3)[0] == shard for shard, user in users)

    with beam.Pipeline(runner=FnApiRunner()) as p:
        users = p | beam.Create(tables).with_output_types(pa.Table)
        assert_that(users | GroupUsersOfDead(3), check)
