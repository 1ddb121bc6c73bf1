"""Work on threads: every row once, results in order, errors where they belong."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue
from hypothesis import given
from hypothesis import strategies as st

from unisono.transforms.base.threads import InOrder, at_end_of_bundle, in_threads


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


# --- rows --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200), st.sampled_from([1, 2, 4, 64]))
def test_each_row_is_worked_on_once(costs: list[int], least: int, processors: int) -> None:
    ends = np.concatenate([[0], np.cumsum(costs)]).astype(np.int64)
    ranges: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: processors)
        in_threads(ends, least, lambda a, b: ranges.append((a, b)))
    rows = sorted(row for a, b in ranges for row in range(a, b))
    assert rows == list(range(len(costs)))
    assert len(ranges) <= max(1, min(processors, 16, int(ends[-1]) // least, len(costs)))


@pytest.mark.usefixtures("four")
def test_ranges_cost_about_the_same() -> None:
    costs = np.random.default_rng(0).integers(1, 20, 1000)
    ends = np.concatenate([[0], np.cumsum(costs)])
    ranges: list[tuple[int, int]] = []
    in_threads(ends, 10, lambda a, b: ranges.append((a, b)))
    assert len(ranges) == 4
    shares = [costs[a:b].sum() / costs.sum() for a, b in ranges]
    assert max(shares) < 0.26
    assert all(a[1] == b[0] for a, b in pairwise(sorted(ranges)))


@pytest.mark.usefixtures("four")
def test_ranges_are_worked_on_at_once_and_little_work_on_this_thread() -> None:
    meet = threading.Barrier(4, timeout=10)  # It breaks unless all four wait at the same time.

    def wait(start: int, stop: int) -> None:
        meet.wait()

    in_threads(np.arange(0, 401, 100), 100, wait)
    threads: list[int] = []
    in_threads(np.arange(0, 401, 100), 1000, lambda a, b: threads.append(threading.get_ident()))
    assert threads == [threading.get_ident()]


@pytest.mark.usefixtures("four")
def test_an_error_in_a_thread_is_raised() -> None:
    def work(start: int, stop: int) -> None:
        if start <= 30 < stop:
            raise ZeroDivisionError(f"rows {start} to {stop}")

    with pytest.raises(ZeroDivisionError, match="rows 25 to 50"):
        in_threads(np.arange(101), 1, work)


# --- elements ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("four")
def test_results_come_in_the_order_of_the_elements() -> None:
    rng = np.random.default_rng(1)
    pauses = rng.random(40) * 0.01

    def work(i: int) -> int:
        time.sleep(pauses[i])
        return i * i

    ahead: InOrder[int] = InOrder()
    got = [result for i in range(40) for result in ahead.put(work, i)]
    assert len(got) >= 36  # at most four elements wait
    got += ahead.rest()
    assert got == [i * i for i in range(40)]
    assert list(ahead.rest()) == []


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (3, 3), (9, 4)])
def test_no_more_elements_at_once_than_asked_for_or_processors(most: int, at_once: int) -> None:
    lock, running, peak = threading.Lock(), [0], [0]
    meet = threading.Barrier(at_once, timeout=10)  # It breaks unless so many run at the same time.

    def work() -> None:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        meet.wait()
        with lock:
            running[0] -= 1

    ahead: InOrder[None] = InOrder(most)
    for _ in range(12):
        list(ahead.put(work))
    list(ahead.rest())
    assert peak[0] == at_once


@pytest.mark.usefixtures("four")
def test_an_error_is_raised_in_place_of_its_result() -> None:
    def work(i: int) -> int:
        if i == 2:
            raise ZeroDivisionError("element 2")
        return i

    got: list[int] = []

    def run() -> None:
        ahead: InOrder[int] = InOrder()
        for i in range(5):
            got.extend(ahead.put(work, i))
        got.extend(ahead.rest())

    with pytest.raises(ZeroDivisionError, match="element 2"):
        run()
    assert got == [0, 1]


def test_outputs_at_the_end_of_a_bundle_are_in_the_global_window() -> None:
    plain, tagged = at_end_of_bundle(["a", beam.pvalue.TaggedOutput("side", "b")])
    assert isinstance(plain, WindowedValue)
    assert (plain.value, plain.windows) == ("a", (GlobalWindows.windowed_value(0).windows[0],))
    assert isinstance(tagged, beam.pvalue.TaggedOutput)
    assert (tagged.tag, tagged.value.value) == ("side", "b")


class _LateFn(beam.DoFn):
    def start_bundle(self) -> None:
        self._ahead: InOrder[object] = InOrder()

    def process(self, element: int):
        yield from self._ahead.put(self._work, element)

    def finish_bundle(self):
        yield from at_end_of_bundle(self._ahead.rest())

    @staticmethod
    def _work(element: int) -> object:
        time.sleep(0.001 * (element % 3))
        return beam.pvalue.TaggedOutput("odd", element) if element % 2 else element


def test_beam_gets_every_output_of_every_bundle() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as p:
        out = p | beam.Create(list(range(50))) | beam.ParDo(_LateFn()).with_outputs("odd", main="even")
        assert_that(out.even, equal_to(list(range(0, 50, 2))), "Even")
        assert_that(out.odd, equal_to(list(range(1, 50, 2))), "Odd")
