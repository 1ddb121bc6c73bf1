"""Inputs are fetched ahead of the encoder, in order, and within limits."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from tests.transforms.encode.histograms import ByteStatistics, write_files
from unisono.transforms.base.errors import Reason
from unisono.transforms.encode.prefetch import Loaded, load, load_ahead


def test_results_keep_their_order_and_few_of_them_wait(pool: ThreadPoolExecutor) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def job(i: int) -> Loaded:
        nonlocal running, most
        time.sleep(0.001 * (i % 3))
        with lock:
            running += 1
            most = max(most, running)
        return Loaded(i, nbytes=100)

    seen = []
    for item in load_ahead([partial(job, i) for i in range(60)], pool, held_items=50, held_bytes=1000):
        time.sleep(0.002)
        with lock:
            running -= 1
        seen.append(item.index)
    assert seen == list(range(60))
    assert most <= 10 + 4 + 1  # held_bytes / nbytes, the threads, and the result that the consumer has


def test_jobs_run_ahead_of_a_slow_consumer(pool: ThreadPoolExecutor) -> None:
    def job(i: int) -> Loaded:
        time.sleep(0.02)
        return Loaded(i)

    started = time.monotonic()
    for _ in load_ahead([partial(job, i) for i in range(20)], pool):
        time.sleep(0.02)
    assert time.monotonic() - started < 0.7  # one after the other takes 0.8


def test_a_consumer_that_stops_early_leaves_no_job_behind(pool: ThreadPoolExecutor) -> None:
    done = 0

    def job(i: int) -> Loaded:
        nonlocal done
        done += 1
        return Loaded(i, nbytes=10)

    results = load_ahead([partial(job, i) for i in range(1000)], pool, held_items=20, held_bytes=20)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert pool.submit(lambda: "free").result(timeout=5) == "free"  # no thread still waits for room
    assert done <= 21


@pytest.mark.parametrize("threads", [True, False])
def test_what_a_job_raises_is_raised_in_its_place(threads: bool, pool: ThreadPoolExecutor) -> None:
    def job(i: int) -> Loaded:
        if i == 3:
            raise ZeroDivisionError
        return Loaded(i)

    results = load_ahead([partial(job, i) for i in range(6)], pool if threads else None)
    assert [next(results).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)


# --- one value ---------------------------------------------------------------------------------------------


def content_of(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def test_a_file_is_fetched_hashed_and_prepared(tmp_path: Path) -> None:
    source, encoder = write_files(tmp_path, a=b"hello"), ByteStatistics()
    loaded = load(4, pa.scalar("a"), source, encoder, lambda content: False)
    assert (loaded.index, loaded.content, loaded.failure, loaded.nbytes) == (4, content_of(b"hello"), None, 5)
    assert loaded.prepared.tobytes() == b"hello"


def test_a_known_content_is_not_prepared(tmp_path: Path) -> None:
    source, encoder = write_files(tmp_path, a=b"hello"), ByteStatistics()
    loaded = load(0, pa.scalar("a"), source, encoder, {content_of(b"hello")}.__contains__)
    assert (loaded.content, loaded.prepared) == (content_of(b"hello"), None)
    assert not encoder.prepared


@pytest.mark.parametrize(
    ("value", "reason"),
    [("gone", Reason.NOT_FOUND), ("empty", Reason.EMPTY_FILE), ("../x", Reason.URI_NOT_ALLOWED)],
)
def test_a_value_that_cannot_be_used_has_its_reason(value: str, reason: Reason, tmp_path: Path) -> None:
    loaded = load(0, pa.scalar(value), write_files(tmp_path, empty=b""), ByteStatistics(), lambda content: False)
    assert loaded.content is None
    assert loaded.failure is not None
    assert loaded.failure.reason is reason


def test_a_blank_text_is_not_prepared() -> None:
    encoder = ByteStatistics()
    loaded = load(0, pa.scalar(" \n"), None, encoder, lambda content: False)
    assert loaded.failure is not None
    assert loaded.failure.reason is Reason.EMPTY_TEXT
    assert not encoder.prepared


class JointBytes(ByteStatistics):
    """An encoder whose prepared input is the dict of parts."""

    def prepare(self, raw: Any) -> Any:
        return SimpleNamespace(parts=raw, nbytes=1, lost=())


def test_the_parts_of_a_joint_value_are_fetched_and_hashed_with_their_names(tmp_path: Path) -> None:
    source = write_files(tmp_path, a=b"one", b=b"two")
    raw = pa.scalar({"text": " red ", "image": ["a", "b"], "audio": None})
    loaded = load(0, raw, source, JointBytes(), lambda content: False)
    assert loaded.prepared.parts == {"text": " red ", "image": [b"one", b"two"]}
    assert loaded.content == content_of(b"text 5 ", b" red ", b"image 3 ", b"one", b"image 3 ", b"two")
    missing = load(0, pa.scalar({"text": "red", "image": "gone"}), source, JointBytes(), lambda content: False)
    assert missing.prepared.parts == {"text": "red"}
    assert [(part, why.reason) for part, why in missing.lost] == [("image", Reason.NOT_FOUND)]
    nothing = load(0, pa.scalar({"text": " ", "image": "gone"}), source, JointBytes(), lambda content: False)
    assert (nothing.content, nothing.failure, len(nothing.lost)) == (None, None, 1)
