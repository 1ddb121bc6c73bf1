"""Shows the progress of a local run: a live table on a terminal, or else log lines every ten seconds."""

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
    """Remembers when each stage's count first and last changed."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seen: dict[str, tuple[float, float, int]] = {}  # stage: first change, last change, rows done

    def rate(self, stage: str, done: int) -> float:
        """Returns the stage's rows per second over the time in which its count changed."""
        now = time.monotonic()
        first, last, before = self._seen.get(stage, (self._started, now, -1))
        if stage not in self._seen:
            # Assume that a stage started at the latest change of the stages before it, or else with the run.
            first = max((s[1] for s in self._seen.values()), default=self._started)
        if done != before:
            last = now
        self._seen[stage] = (first, last, done)
        return done / max(last - first, _LIVE_SECONDS)


class ProgressView:
    """Shows the counts of `BOARD` while its `with` block runs.

    Args:
        totals: the number of rows that each stage will see, for the stages where it is known.
        console: the console to print to; None means standard error, because standard output may be piped.
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
        if self._logged:  # A run of less than ten seconds prints no progress.
            self._log()

    def _log(self) -> None:
        for line in self.lines():
            self._console.print(line, highlight=False, soft_wrap=True)

    def lines(self) -> list[str]:
        """Returns a line for each stage whose count changed since the last call."""
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
