"""Encodes inputs in batches, makes batches smaller when memory runs out, and isolates inputs that fail."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import Encoder

_LOG = logging.getLogger(__name__)

_ALL_FAIL = 8  # if this many inputs of one batch fail, and no input succeeds, the encoder is at fault


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    by_name = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_name or (isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text))


class MicroBatcher:
    """Encodes inputs in batches that fit in memory.

    If memory runs out, the batch is halved, and later batches stay as small. After any other failure, the batch is
    split until the failing inputs are found.

    Args:
        encoder: the encoder.

    Attributes:
        encoder: the encoder.
        safe_cost: the largest cost of a batch. It begins at the encoder's `batch_cost` and falls if memory runs out.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.safe_cost = encoder.batch_cost

    def run(self, inputs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, np.ndarray | InputError]]:
        """Encodes inputs, and yields each key with its embedding or its failure, in the order of the inputs.

        Args:
            inputs: pairs (key, prepared input).

        Yields:
            Pairs (key, float32 [dim] or InputError).

        Raises:
            JobError: every input of a batch fails.
        """
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
            # The batch is not split here, inside the handler: as long as the exception lives, so do the tensors in the
            # frames that it passed through.
            failure = InputError(
                Reason.OUT_OF_MEMORY if _is_out_of_memory(e) else Reason.ENCODER_FAILED, f"{type(e).__name__}: {e}"
            )
        else:
            finite: list[bool] = np.isfinite(vectors).all(axis=1).tolist()  # type: ignore[assignment]
            bad = InputError(Reason.ENCODER_FAILED, "the embedding is not finite")
            return [v if ok else bad for v, ok in zip(vectors, finite, strict=True)]
        if len(batch) == 1:
            return [failure]
        return self._shrink(batch) if failure.reason is Reason.OUT_OF_MEMORY else self._isolate(batch, failure)

    def _shrink(self, batch: list[Any]) -> list[np.ndarray | InputError]:
        """Halves the largest cost of a batch, from now on, and encodes this batch in pieces that keep to it."""
        half = (len(batch) + 1) // 2
        costs = [self.encoder.cost(p) for p in batch]
        self.safe_cost = min(self.safe_cost, max(1, half * max(costs)))
        _LOG.warning("out of memory at %d inputs; going on with at most %d", len(batch), half)
        results: list[np.ndarray | InputError] = []
        while len(results) < len(batch):  # `safe_cost` may fall again meanwhile
            start = end = len(results)
            while end < len(batch) and (end == start or self._fits(costs[start : end + 1])):
                end += 1
            results += self._encode(batch[start:end])
        return results

    def _fits(self, costs: list[int]) -> bool:
        return len(costs) * max(costs) <= self.safe_cost

    def _isolate(self, batch: list[Any], failure: InputError) -> list[np.ndarray | InputError]:
        """Encodes each half of a batch that failed, and so on down to the inputs that fail alone.

        Raises:
            JobError: every input of a batch fails.
        """
        half = len(batch) // 2
        results = self._encode(batch[:half]) + self._encode(batch[half:])
        if len(batch) >= _ALL_FAIL and all(isinstance(r, InputError) for r in results):
            raise JobError(
                f"encoder {self.encoder.encoder_id}: every one of {len(batch)} inputs failed with "
                f"{failure.detail}; the encoder cannot be used as it is"
            )
        return results
