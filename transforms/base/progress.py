"""How far each stage is: Beam counters for every runner, and a board in this process for a live view."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from apache_beam.metrics import Metrics

NAMESPACE = "unisono"


@dataclass
class StageCount:
    """What a stage has done so far, in rows and dead letters."""

    done: int = 0
    dead: int = 0


class Board:
    """Counts by stage, in the order in which stages first reported."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, StageCount] = {}

    def add(self, stage: str, done: int, dead: int) -> None:
        """Adds to a stage's counts. Thread-safe."""
        with self._lock:
            count = self._counts.setdefault(stage, StageCount())
            count.done += done
            count.dead += dead

    def snapshot(self) -> dict[str, StageCount]:
        """Copies the counts."""
        with self._lock:
            return {k: StageCount(v.done, v.dead) for k, v in self._counts.items()}

    def clear(self) -> None:
        """Starts again at nothing."""
        with self._lock:
            self._counts.clear()


BOARD = Board()


def advance(stage: str, done: int = 0, dead: int = 0) -> None:
    """Reports rows done and dead letters of a stage.

    Call it on the bundle's own thread: Beam loses what other threads count.
    """
    BOARD.add(stage, done, dead)
    if done:
        Metrics.counter(NAMESPACE, f"{stage}-rows").inc(done)
    if dead:
        Metrics.counter(NAMESPACE, f"{stage}-dead-letters").inc(dead)
