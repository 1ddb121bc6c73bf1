"""The progress that a person sees during a run."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from unisono.pipelines import progress_view
from unisono.pipelines.progress_view import ProgressView
from unisono.transforms.base.progress import BOARD


def test_off_a_terminal_there_is_a_line_for_each_stage_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_view, "LOG_SECONDS", 0.1)
    out = io.StringIO()
    with ProgressView({"encode-image": 1000}, Console(file=out, force_terminal=False, width=200)):
        BOARD.add("encode-image", 100, 2)
        time.sleep(0.25)
        BOARD.add("encode-image", 900, 0)
        BOARD.add("write-items", 7, 0)
        time.sleep(0.15)
    first, *rest = out.getvalue().splitlines()
    assert "encode-image: 100 / 1,000 rows" in first
    assert "2 dead letters" in first
    assert "s left" in first
    assert any("encode-image: 1,000 / 1,000 rows" in line and "done" in line for line in rest)
    assert any("write-items: 7 rows" in line for line in rest)
    assert sum("write-items" in line for line in rest) == 1  # A stage that does not change is not printed again.
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_there_is_a_live_table() -> None:
    out = io.StringIO()
    with ProgressView({"encode-text": 10}, Console(file=out, force_terminal=True, width=120)):
        BOARD.add("encode-text", 4, 1)
        time.sleep(0.6)
    shown = out.getvalue()
    assert "encode-text" in shown
    assert "4 / 10" in shown
    assert "1 dead letters" in shown
    assert "rows/s" in shown


def test_time_left_follows_the_rate() -> None:
    view = ProgressView({"a": 300}, Console(file=io.StringIO()))
    BOARD.clear()
    for _ in range(2):
        BOARD.add("a", 50, 0)
        view.lines()
        time.sleep(0.3)
    BOARD.add("a", 50, 0)
    (line,) = view.lines()  # 150 rows took 0.6 s, so the other 150 rows will take 0.6 s.
    assert "150 / 300 rows" in line
    rate = float(line.split(" rows, ")[1].split(" rows/s")[0].replace(",", ""))
    assert 150 < rate < 260
    assert "1 s left" in line
