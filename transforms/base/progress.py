"""Progress of each stage: Beam counters for every runner, and counts in this process for the live view."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from apache_beam.metrics import Metrics

NAMESPACE = "unisono"


@dataclass
class StageCount:
    """Progress of one stage.

    Attributes:
        done: rows done.
        dead: dead letters.
    """

    done: int = 0
    dead: int = 0


class Board:
    """Counts by stage, in the order in which the stages first reported."""

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
        """Removes all counts."""
        with self._lock:
            self._counts.clear()


BOARD = Board()


def advance(stage: str, done: int = 0, dead: int = 0) -> None:
    """Reports progress of a stage: adds to its Beam counters and to `BOARD`.

    Call it on the thread on which Beam called the DoFn: Beam loses counts from other threads.

    Args:
        stage: the name of the stage, such as `encode-image`.
        done: further rows done.
        dead: further dead letters.
    """
    BOARD.add(stage, done, dead)
    if done:
        Metrics.counter(NAMESPACE, f"{stage}-rows").inc(done)
    if dead:
        Metrics.counter(NAMESPACE, f"{stage}-dead-letters").inc(dead)
