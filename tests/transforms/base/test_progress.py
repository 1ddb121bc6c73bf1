"""Progress in this process and as Beam counters."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from unisono.transforms.base.progress import BOARD, NAMESPACE, Board, StageCount, advance


@pytest.fixture(autouse=True)
def _clean():
    BOARD.clear()
    yield
    BOARD.clear()


def test_counts_add_up_from_many_threads() -> None:
    board = Board()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: board.add("a" if i % 2 else "b", i, 1), range(4000)))
    odd = sum(range(1, 4000, 2))
    assert board.snapshot() == {"a": StageCount(odd, 2000), "b": StageCount(sum(range(4000)) - odd, 2000)}


def test_stages_stay_in_the_order_in_which_they_first_reported() -> None:
    board = Board()
    for stage in ("read", "encode", "read", "write"):
        board.add(stage, 1, 0)
    assert list(board.snapshot()) == ["read", "encode", "write"]
    board.clear()
    assert board.snapshot() == {}


def test_a_snapshot_is_a_copy() -> None:
    board = Board()
    board.add("read", 1, 0)
    before = board.snapshot()
    board.add("read", 1, 0)
    assert before["read"].done == 1
    assert board.snapshot()["read"].done == 2


def test_the_board_and_beams_counters_agree() -> None:
    def count(element: int) -> int:
        advance("encode-image", done=element, dead=element % 2)
        return element

    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create([1, 2, 3]) | beam.Map(count)
    result = pipeline.run()
    result.wait_until_finish()
    found = {
        m.key.metric.name: m.committed
        for m in result.metrics().query()["counters"]
        if m.key.metric.namespace == NAMESPACE
    }
    assert found == {"encode-image-rows": 6, "encode-image-dead-letters": 2}
    assert BOARD.snapshot() == {"encode-image": StageCount(6, 2)}


def test_nothing_done_makes_no_counter_but_shows_the_stage() -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create([0]) | beam.Map(lambda _: advance("shard"))
    result = pipeline.run()
    result.wait_until_finish()
    assert not [m for m in result.metrics().query()["counters"] if m.key.metric.namespace == NAMESPACE]
    assert BOARD.snapshot() == {"shard": StageCount(0, 0)}
