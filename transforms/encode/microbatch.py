"""Feeds an encoder batches it can hold, and narrows a failure down to the inputs that cause it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import Encoder

_LOG = logging.getLogger(__name__)

_ALL_FAIL = 8  # this many inputs of one batch, all failing, mean that the encoder is broken


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    by_name = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_name or (isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))


class MicroBatcher:
    """Feeds an encoder batches it can hold.

    Out of memory halves the batch and is remembered; any other failure is narrowed down to the inputs that cause it.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.safe_cost = encoder.batch_cost

    def run(self, inputs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, np.ndarray | InputError]]:
        """Encodes `(key, prepared)` pairs in batches; gives each key its embedding [dim] or its failure."""
        keys: list[Any] = []
        batch: list[Any] = []
        widest = 0
        for key, prepared in inputs:
            cost = self.encoder.cost(prepared)
            if batch and (len(batch) + 1) * max(widest, cost) > self.safe_cost:
                yield from zip(keys, self._encode(batch), strict=True)
                keys, batch, widest = [], [], 0
            keys.append(key)
            batch.append(prepared)
            widest = max(widest, cost)
        if batch:
            yield from zip(keys, self._encode(batch), strict=True)

    def _encode(self, batch: list[Any]) -> list[np.ndarray | InputError]:
        try:
            vectors = np.asarray(self.encoder.encode(batch), np.float32)
        except JobError:
            raise
        except Exception as e:
            # Not handled in here: while the exception lives, so do the frames it passed and the tensors in them.
            failure = InputError(
                Reason.OUT_OF_MEMORY if _is_out_of_memory(e) else Reason.ENCODER_FAILED, f"{type(e).__name__}: {e}"
            )
        else:
            finite: list[bool] = np.isfinite(vectors).all(axis=1).tolist()  # type: ignore[assignment]
            bad = InputError(Reason.ENCODER_FAILED, "the embedding is not finite")
            return [v if ok else bad for v, ok in zip(vectors, finite, strict=True)]
        if len(batch) == 1:
            return [failure]
        return self._smaller(batch) if failure.reason is Reason.OUT_OF_MEMORY else self._narrow(batch, failure)

    def _smaller(self, batch: list[Any]) -> list[np.ndarray | InputError]:
        """Halves what a batch may cost, for good, and encodes this one in pieces that keep to it."""
        half = (len(batch) + 1) // 2
        costs = [self.encoder.cost(p) for p in batch]
        self.safe_cost = min(self.safe_cost, max(1, half * max(costs)))
        _LOG.warning("out of memory at %d inputs; going on with at most %d", len(batch), half)
        results: list[np.ndarray | InputError] = []
        while len(results) < len(batch):  # `safe_cost` may fall on the way
            start = end = len(results)
            while end < len(batch) and (end == start or self._fits(costs[start : end + 1])):
                end += 1
            results += self._encode(batch[start:end])
        return results

    def _fits(self, costs: list[int]) -> bool:
        return len(costs) * max(costs) <= self.safe_cost

    def _narrow(self, batch: list[Any], failure: InputError) -> list[np.ndarray | InputError]:
        """Encodes a batch by halves, down to the inputs that fail alone."""
        half = len(batch) // 2
        results = self._encode(batch[:half]) + self._encode(batch[half:])
        if len(batch) >= _ALL_FAIL and all(isinstance(r, InputError) for r in results):
            raise JobError(
                f"encoder {self.encoder.encoder_id}: every one of {len(batch)} inputs failed with "
                f"{failure.detail}; the encoder cannot be used as it is"
            )
        return results
