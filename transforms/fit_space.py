"""Fits the joint space as a step of the graph and writes it to the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import apache_beam as beam

from transforms.alignment import SpaceSpec, fit_space
from transforms.moments import Moments
from transforms.space import Space
from transforms.store import Store, write_file


class FitSpace(beam.PTransform):
    """Turns the one `Moments` of a run into its `Space`, and writes `space/`.

    Args:
        store, run_id: where to.
        method, dim, regularization: see `transforms.alignment.fit_space`.
        encoder_ids: of each modality; kept in the space's `info`, so that a query is encoded alike.

    Returns:
        A dict of PCollections: `space` (one, bytes as of `Space.to_bytes`), `files` (FileRecord).
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        method: str,
        dim: int,
        regularization: float | None,
        encoder_ids: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._fit = (method, dim, regularization)
        self._place = (store, run_id)
        self._encoder_ids = dict(encoder_ids)

    def expand(self, moments: beam.PCollection) -> dict[str, beam.PCollection]:
        fn = _FitSpaceFn(*self._place, self._fit, self._encoder_ids)
        out = moments | "Solve" >> beam.ParDo(fn).with_outputs("files", main="space")
        return {"space": out.space, "files": out.files}


class _FitSpaceFn(beam.DoFn):
    def __init__(
        self, store: Store, run_id: str, fit: tuple[str, int, float | None], encoder_ids: dict[str, str]
    ) -> None:
        self._store, self._run_id, self._fit, self._encoder_ids = store, run_id, fit, encoder_ids

    def process(self, moments: Moments) -> Iterable[object]:
        space: Space = fit_space(moments, SpaceSpec(*self._fit)).with_info(encoder_ids=self._encoder_ids)
        data = space.to_bytes()
        for name, content in (("space.safetensors", data), ("space.json", space.to_json().encode())):
            path = f"runs/{self._run_id}/space/{name}"
            yield beam.pvalue.TaggedOutput("files", write_file(self._store, "space", path, content))
        yield data
