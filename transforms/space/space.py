"""The joint space: what maps each modality into it, as numbers in one file, applied row by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import safetensors.numpy

from unisono.transforms.base.columns import COMPARABLE, NOT_COMPARABLE
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.parts.linear import (
    ZERO,
    Imputer,
    LinearMap,
    Mixer,
    Output,
    Part,
    Projection,
    Tensors,
    Weigher,
)

_FORMAT = 2  # of space.safetensors and space.json
BLOCK_ROWS = 256  # rows mapped at a time, always: see `Space.align`

Batch = Mapping[str, tuple[np.ndarray, np.ndarray]]  # modality: vectors [n, d], present bool [n]


_KINDS = {
    "linear": "unisono.transforms.space.parts.linear:LinearMap",
    "fixed": "unisono.transforms.space.parts.linear:FixedWeights",
    "anchors": "unisono.transforms.space.parts.anchors:AnchorMap",
    "trained_head": "unisono.transforms.space.parts.trained:TrainedHead",
    "cross_attention": "unisono.transforms.space.parts.trained:CrossAttention",
    "gated": "unisono.transforms.space.parts.trained:GatedWeights",
    "attention_pool": "unisono.transforms.space.parts.trained:AttentionWeights",
    "conditional_mean": "unisono.transforms.space.parts.imputer:ConditionalMean",
}


def _part(kind: str, tensors: Tensors) -> Any:
    """Makes a part of a kind, whose module is imported only now."""
    module, _, name = _KINDS[kind].partition(":")
    return getattr(import_module(module), name).from_tensors(tensors)


@dataclass(frozen=True, eq=False)
class Aligned:
    """Items in the joint space, modality by modality.

    Attributes:
        vectors: for each modality float32 [n, dim], unit rows; zeros where neither present nor imputed.
        present: for each modality bool [n].
        imputed: for each modality bool [n]: predicted from the others.
        weights: for each modality float64 [n], ≥ 0: an item's vector has the direction of
            Σ_m weights[m] · vectors[m]. 0 where neither present nor imputed.
    """

    vectors: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    imputed: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


# --- the space ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Space:
    """Maps modalities into the common space, and says how they count in an item.

    What happens to an item: projection of each present modality, unit length, mixer, unit length, weights,
    imputation, output, unit length. A step that is None is left out.

    Attributes:
        method: what was solved or trained.
        projections: of each modality.
        outputs: of each modality; empty: the projections' axes as they are.
        mixer, weigher, imputer: None: none; weights are then 1.
        scale: float64 [dim], the value of an int8 step on each axis; None: not known.
        info: what it was fitted on and how well, in JSON types; see `alignment.fit_space`.
    """

    method: str
    projections: Mapping[str, Projection]
    outputs: Mapping[str, Output] = field(default_factory=dict)
    mixer: Mixer | None = None
    weigher: Weigher | None = None
    imputer: Imputer | None = None
    scale: np.ndarray | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it can map, in ascending order."""
        return tuple(sorted(self.projections))

    @property
    def dim(self) -> int:
        """The number of axes of what comes out."""
        if self.outputs:
            return int(next(iter(self.outputs.values())).map.shape[1])
        return self.inner_dim

    @property
    def inner_dim(self) -> int:
        """The number of axes of the projections."""
        return next(iter(self.projections.values())).dim

    @cached_property
    def space_id(self) -> str:
        """Sixteen hex digits that change whenever a vector could."""
        digest = hashlib.sha256(f"{self.method}|{json.dumps(self._kinds(), sort_keys=True)}".encode())
        for name, array in sorted(self._tensors().items()):
            digest.update(f"|{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def with_info(self, **entries: Any) -> Space:
        """Copies the space with further entries in `info`; its `space_id` stays."""
        return replace(self, info={**self.info, **entries})

    def turned(self, turn: np.ndarray) -> Space:
        """Copies the space with a further linear map behind it, float64 [dim, out], orthonormal columns."""
        outputs = self.outputs or {m: Output(np.zeros(self.dim), np.eye(self.dim)) for m in self.modalities}
        return replace(
            self, outputs={m: Output(o.shift, np.ascontiguousarray(o.map @ turn)) for m, o in outputs.items()}
        )

    # --- applying it ---

    def project(self, modality: str, x: np.ndarray) -> np.ndarray:
        """Maps embeddings of one modality alone, as of a query.

        Args:
            modality: one of `modalities`.
            x: any float [n, d_m], finite.

        Returns:
            float32 [n, dim], unit rows; zeros where x has no part in the space, as when it equals the mean.

        Raises:
            JobError: the embeddings have another length than those that the space was fitted on.
        """
        return self._run({modality: (x, np.ones(len(x), bool))}, impute=False).vectors[modality]

    def align(self, batch: Batch) -> Aligned:
        """Maps the modalities of items.

        Args:
            batch: for each modality its embeddings, any float [n, d_m], and present, bool [n]. Rows that are
                not present may hold anything. Modalities that the space does not know are passed over; one
                that is not there is missing everywhere.

        Guarantees: a row's bits depend on that row alone. (Blocks always have the same size, so that BLAS
        does the same operations in the same order for each row; the arithmetic is float64.)

        Raises:
            JobError: embeddings have another length than those that the space was fitted on.
        """
        return self._run(batch, impute=True)

    def _run(self, batch: Batch, impute: bool) -> Aligned:
        names = self.modalities
        n = len(next(iter(batch.values()))[1]) if batch else 0
        for m in names:
            if m in batch and batch[m][0].shape[1] != self.projections[m].dim_in:
                raise JobError(
                    f"encoders.{m}: embeddings have {batch[m][0].shape[1]} values, and the space was fitted on "
                    f"{self.projections[m].dim_in}; fit it again, or encode with the encoder that it was fitted on"
                )
        vectors = np.zeros((len(names), n, self.dim), np.float32)
        present, imputed = np.zeros((len(names), n), bool), np.zeros((len(names), n), bool)
        weights = np.zeros((len(names), n))
        whole: list[np.ndarray] = [vectors, present, imputed, weights]
        for start in range(0, n, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, n))
            block = self._block(batch, rows, impute)
            for out, got in zip(whole, block, strict=True):
                out[:, rows] = got[:, : rows.stop - rows.start]
        return Aligned(*(dict(zip(names, part, strict=True)) for part in whole))

    def _block(
        self, batch: Batch, rows: slice, impute: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Maps up to BLOCK_ROWS rows: vectors [K, BLOCK_ROWS, dim], present, imputed, weights [K, BLOCK_ROWS]."""
        names, n = self.modalities, rows.stop - rows.start
        parts = np.zeros((len(names), BLOCK_ROWS, self.inner_dim))
        present = np.zeros((len(names), BLOCK_ROWS), bool)
        for k, m in enumerate(names):
            if m not in batch or not batch[m][1][rows].any():
                continue
            present[k, :n] = batch[m][1][rows]
            projection = self.projections[m]
            x = np.zeros((BLOCK_ROWS, projection.dim_in))
            x[:n] = batch[m][0][rows]
            x[~present[k]] = 0.0
            parts[k], kept = _unit(projection.apply(x), present[k], projection.floor)
            present[k] &= kept
        if self.mixer is not None:
            mixed = self.mixer.mix(parts, present)
            for k in range(len(names)):
                parts[k], present[k] = _unit(mixed[k], present[k], 0.0)
        seen = present
        weights = self.weigher.weigh(parts, present) if self.weigher is not None else None
        if impute and self.imputer is not None:
            parts = self.imputer.impute(parts, present)
            # What the weigher cannot know of a modality that is not there is what the others say of it.
            seen = np.broadcast_to(present.any(0), present.shape)
            given = self.weigher.weigh(parts, seen) if self.weigher is not None else None
            weights = None if weights is None or given is None else np.where(present, weights, given)
        weights = np.where(seen, 1.0 if weights is None else weights, 0.0)
        out = np.zeros((len(names), BLOCK_ROWS, self.dim), np.float32)
        for k, m in enumerate(names):
            if not seen[k].any():
                continue
            y = parts[k]
            if m in self.outputs:
                y = (y - self.outputs[m].shift) @ self.outputs[m].map
            length = np.sqrt(np.einsum("ij,ij->i", y, y))
            some = seen[k] & (length > ZERO)
            out[k] = np.where(some[:, None], y / np.where(some, length, 1.0)[:, None], 0.0)
            # A part's own length counts: it is 1 but for an imputed part, and for an output that shortens.
            weights[k] *= np.where(some, length if m in self.outputs or (impute and self.imputer) else 1.0, 0.0)
        return out, present, seen & ~present, weights

    # --- as bytes ---

    def _named(self) -> Iterator[tuple[str, Part]]:
        for m in self.modalities:
            yield f"projection.{m}", self.projections[m]
        for name, part in (("mixer", self.mixer), ("weigher", self.weigher), ("imputer", self.imputer)):
            if part is not None:
                yield name, part

    def _kinds(self) -> dict[str, str]:
        return {name: part.kind for name, part in self._named()}

    def _tensors(self) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for name, part in self._named():
            out |= {f"{name}.{k}": np.ascontiguousarray(v) for k, v in part.tensors().items()}
        for m, output in self.outputs.items():
            out |= {f"output.{m}.shift": output.shift, f"output.{m}.map": np.ascontiguousarray(output.map)}
        return out if self.scale is None else out | {"scale": self.scale}

    def to_bytes(self) -> bytes:
        """Writes `space.safetensors`; what `to_json` gives is its metadata."""
        return safetensors.numpy.save(self._tensors(), metadata={"space": self.to_json(indent=None)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Space:
        """Reads what `to_bytes` wrote.

        Raises:
            JobError: the bytes are not a space, or not the one they say they are.
        """
        try:
            tensors = safetensors.numpy.load(data)
            # safetensors gives metadata of files only; it is in the JSON header, after eight bytes of length.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            body = json.loads(header["__metadata__"]["space"])
            parts = {name: _part(kind, _under(tensors, name)) for name, kind in body["parts"].items()}
            projections = {k.removeprefix("projection."): v for k, v in parts.items() if k.startswith("projection.")}
            shifts = [k.split(".")[1] for k in tensors if k.startswith("output.") and k.endswith(".shift")]
            outputs = {m: Output(tensors[f"output.{m}.shift"], tensors[f"output.{m}.map"]) for m in shifts}
            pieces = (parts.get("mixer"), parts.get("weigher"), parts.get("imputer"))
            out = cls(body["method"], projections, outputs, *pieces, tensors.get("scale"), body["info"])
        except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as e:
            raise JobError(f"space.safetensors: not a space of Unisono's ({e}); fit the space again") from e
        if out.space_id != body["space_id"]:
            raise JobError(
                f"space.safetensors: holds space {out.space_id} and says {body['space_id']}; "
                "the file is damaged; fit the space again"
            )
        return out

    def to_json(self, indent: int | None = 1) -> str:
        """Writes `space.json`: all but the numbers of the parts."""
        body = {
            "format": _FORMAT,
            "space_id": self.space_id,
            "method": self.method,
            "dim": self.dim,
            "modalities": {m: self.projections[m].dim_in for m in self.modalities},
            "parts": self._kinds(),
            "info": self.info,
        }
        return json.dumps(body, indent=indent, sort_keys=True, allow_nan=False) + "\n"


def linear_space(
    method: str, means: Mapping[str, np.ndarray], maps: Mapping[str, np.ndarray], info: Mapping[str, Any] | None = None
) -> Space:
    """Makes a space of one linear map per modality: means float64 [d_m], maps float64 [d_m, dim]."""
    return Space(method, {m: LinearMap(means[m], np.ascontiguousarray(maps[m])) for m in maps}, info=info or {})


def _unit(y: np.ndarray, present: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Scales rows to unit length in float64; zeros, and False, where not present or no longer than `floor`."""
    norm = np.sqrt(np.einsum("ij,ij->i", y, y))
    keep = present & (norm > floor)
    norm[~keep] = np.inf
    return y / norm[:, None], keep


def _under(tensors: Tensors, name: str) -> Tensors:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def comparable_metadata(space: Space) -> dict[bytes, bytes]:
    """Gives what the metadata of item files say of the spaces that theirs may be compared with."""
    known, why = space.info.get("comparable", []), space.info.get("not_comparable", "")
    return {COMPARABLE: json.dumps(known).encode()} | ({NOT_COMPARABLE: why.encode()} if why else {})
