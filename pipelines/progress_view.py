"""How far a local run is: a live line per stage on a terminal, a log line every ten seconds off one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from unisono.transforms.base.progress import BOARD, StageCount

LOG_SECONDS = 10.0
_LIVE_SECONDS = 0.25


class _Clock:
    """When each stage was first and last seen to move."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seen: dict[str, tuple[float, float, int]] = {}  # first, last, done

    def rate(self, stage: str, done: int) -> float:
        """Rows a second while the stage was moving."""
        now = time.monotonic()
        first, last, before = self._seen.get(stage, (self._started, now, -1))
        if stage not in self._seen:
            # A stage starts when the one before it last moved; before anything moved, at the start.
            first = max((s[1] for s in self._seen.values()), default=self._started)
        if done != before:
            last = now
        self._seen[stage] = (first, last, done)
        return done / max(last - first, _LIVE_SECONDS)


class ProgressView:
    """Shows the board while its `with` block runs.

    Args:
        totals: rows that each stage will see, where known.
        console: where to; standard error unless told otherwise, so that output can be piped.
    """

    def __init__(self, totals: Mapping[str, int], console: Console | None = None) -> None:
        self._totals, self._console = totals, console or Console(stderr=True)
        self._clock = _Clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._logged: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> ProgressView:
        BOARD.clear()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=1 / _LIVE_SECONDS, transient=False) as live:
                while not self._stop.wait(_LIVE_SECONDS):
                    live.update(self._table())
                live.update(self._table())
            return
        while not self._stop.wait(LOG_SECONDS):
            self._log()
        if self._logged:  # a run of less than ten seconds has nothing to say
            self._log()

    def _log(self) -> None:
        for line in self.lines():
            self._console.print(line, highlight=False, soft_wrap=True)

    def lines(self) -> list[str]:
        """A line for each stage that moved since the last call."""
        out = []
        for stage, count in BOARD.snapshot().items():
            now = (count.done, count.dead)
            done, rate, dead, left = self._cells(stage, count)
            if self._logged.get(stage) != now:
                out.append(f"{time.strftime('%H:%M:%S')} {stage}: {done} rows, {rate}, {dead} dead letters, {left}")
            self._logged[stage] = now
        return out

    def _cells(self, stage: str, count: StageCount) -> tuple[str, str, str, str]:
        rate = self._clock.rate(stage, count.done)
        total = self._totals.get(stage)
        done = f"{count.done:,}" + (f" / {total:,}" if total else "")
        if total is None:
            left = ""
        elif count.done >= total:
            left = "done"
        else:
            left = f"{(total - count.done) / rate:,.0f} s left" if rate > 0 else "…"
        return done, f"{rate:,.0f} rows/s", f"{count.dead:,}", left

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for stage, count in BOARD.snapshot().items():
            done, rate, dead, left = self._cells(stage, count)
            table.add_row(f"[bold]{stage}[/bold]", done, rate, f"{dead} dead letters", left)
        return table
