"""Batches when memory runs out, and inputs that make the encoder fail."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.transforms.encode.histograms import ByteStatistics, encoded, histogram, image_table, write_files
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.shard import encode_table


def test_out_of_memory_halves_the_batch_and_is_remembered(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    source = write_files(tmp_path, **{f"f{i}": f"content {i}".encode() for i in range(40)})
    encoder = ByteStatistics(most=3)
    batcher = MicroBatcher(encoder)
    result = encode_table(image_table([f"f{i}" for i in range(40)]), "image", batcher, source, pool)
    assert not result.letters
    for i in range(40):
        np.testing.assert_allclose(encoded(result.table)[f"i{i}"], histogram(f"content {i}".encode()))
    assert batcher.safe_cost <= 3
    assert sum(n > 3 for n in encoder.batches) <= 3  # 8 fails, 4 fails, and from then on no batch is larger than 2


def test_one_bad_input_among_500_is_one_dead_letter(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    content = {f"f{i}": f"content {i}".encode() for i in range(500)} | {"f123": b"poison"}
    source = write_files(tmp_path, **content)
    result = encode_table(image_table(list(content)), "image", MicroBatcher(ByteStatistics()), source, pool)
    assert [(x.item_id, str(x.reason)) for x in result.letters] == [("i123", "encoder_failed")]
    assert result.table["image_embedding"].null_count == 1


def test_an_encoder_that_fails_on_everything_is_a_job_error(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    source = write_files(tmp_path, **{f"f{i}": f"poison {i}".encode() for i in range(20)})
    with pytest.raises(JobError, match="every one of 8 inputs failed"):
        encode_table(image_table([f"f{i}" for i in range(20)]), "image", MicroBatcher(ByteStatistics()), source, pool)


class Scripted:
    """An encoder of integers whose cost and whose embedding are the integer; NaN for 7, a JobError for 13."""

    encoder_id, dim, batch_cost = "scripted", 1, 12

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def prepare(self, raw: int) -> int:
        return raw

    def cost(self, prepared: int) -> int:
        return prepared

    def encode(self, batch: Sequence[int]) -> np.ndarray:
        self.batches.append(list(batch))
        if 13 in batch:
            raise JobError("broken")
        return np.array([[np.nan if n == 7 else n] for n in batch], np.float32)


def test_a_batch_costs_its_length_times_its_most_expensive_input() -> None:
    encoder = Scripted()
    results = dict(MicroBatcher(encoder).run([(f"k{i}", n) for i, n in enumerate([1, 1, 4, 4, 6, 6, 40, 1])]))
    assert encoder.batches == [[1, 1, 4], [4, 6], [6], [40], [1]]
    assert [float(v[0]) for v in results.values()] == [1, 1, 4, 4, 6, 6, 40, 1]


def test_an_embedding_that_is_not_finite_is_a_failure_of_its_input_alone() -> None:
    results = dict(MicroBatcher(Scripted()).run([("a", 1), ("b", 7)]))
    assert results["a"] == 1
    failure = results["b"]
    assert isinstance(failure, InputError)
    assert (failure.reason, failure.detail) == (Reason.ENCODER_FAILED, "the embedding is not finite")


def test_a_job_error_of_the_encoder_ends_the_run() -> None:
    with pytest.raises(JobError, match=r"^broken$"):
        list(MicroBatcher(Scripted()).run([("a", 13)]))
