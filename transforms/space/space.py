"""The joint space: the parts that map each modality into it, how they are applied, and how they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy

from unisono.transforms.base.columns import COMPARABLE, NOT_COMPARABLE, row_lengths
from unisono.transforms.base.errors import JobError
from unisono.transforms.space.info import SpaceInfo
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
from unisono.transforms.space.registry import part_class

_FORMAT = 2  # the version of space.safetensors and space.json
BLOCK_ROWS = 256  # `Space.align` always maps this many rows at a time; a shorter last block is filled up with zeros

Batch = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by modality: vectors [n, d], and present, bool [n]


@dataclass(frozen=True, eq=False)
class Aligned:
    """Items in the joint space, one modality at a time.

    Attributes:
        vectors: for each modality float32 [n, dim], unit rows. Rows are zero where the modality is neither present nor
            imputed.
        present: whether the item has each modality, with an embedding that has a direction in the space: bool [n].
        imputed: whether the vector of each modality was predicted from the item's other modalities: bool [n].
        weights: the weight of each modality, float64 [n], ≥ 0. An item's vector has the direction of
            Σ_m weights[m] · vectors[m]. A weight is 0 where the modality is neither present nor imputed.
    """

    vectors: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    imputed: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Space:
    """Maps each modality into the joint space and weighs the modalities of an item.

    The steps for an item: project each present modality, scale to unit length, mix, scale to unit length, weigh,
    impute, apply the outputs, scale to unit length. A step is left out if its part is None.

    Attributes:
        method: the name of the method that fitted the projections.
        projections: the map of each modality.
        outputs: the last map of each modality. Empty means that the projections' axes are the axes of the space.
        mixer: lets the modalities of an item change one another. None means that each stays as it was projected.
        weigher: weighs the modalities of an item. None means that every weight is 1.
        imputer: predicts missing modalities. None means that they stay missing.
        scale: float64 [dim], the size of an int8 step on each axis. None means that it is not known.
        info: what the space was fitted on and how.
    """

    method: str
    projections: Mapping[str, Projection]
    outputs: Mapping[str, Output] = field(default_factory=dict)
    mixer: Mixer | None = None
    weigher: Weigher | None = None
    imputer: Imputer | None = None
    scale: np.ndarray | None = None
    info: SpaceInfo = field(default_factory=SpaceInfo)

    def __repr__(self) -> str:
        return f"<Space {self.space_id}: {self.method}, {self.dim} axes, {' '.join(self.modalities)}>"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the space can map, in ascending order."""
        return tuple(sorted(self.projections))

    @property
    def dim(self) -> int:
        """The number of axes of the vectors that `align` and `project` return."""
        if self.outputs:
            return int(next(iter(self.outputs.values())).map.shape[1])
        return self.inner_dim

    @property
    def inner_dim(self) -> int:
        """The number of axes of the projections, before the outputs."""
        return next(iter(self.projections.values())).dim

    @cached_property
    def space_id(self) -> str:
        """Sixteen hexadecimal digits, different for spaces that could map an embedding differently."""
        digest = hashlib.sha256(f"{self.method}|{json.dumps(self._kinds(), sort_keys=True)}".encode())
        for name, array in sorted(self._tensors().items()):
            digest.update(f"|{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def with_info(self, **entries: Any) -> Space:
        """Copies the space with some fields of `info` replaced. The `space_id` stays the same."""
        return replace(self, info=replace(self.info, **entries))

    def turned(self, turn: np.ndarray) -> Space:
        """Copies the space with one more linear map at its end.

        Args:
            turn: float64 [dim, out], orthonormal columns.
        """
        outputs = self.outputs or {m: Output(np.zeros(self.dim), np.eye(self.dim)) for m in self.modalities}
        return replace(
            self, outputs={m: Output(o.shift, np.ascontiguousarray(o.map @ turn)) for m, o in outputs.items()}
        )

    # --- applying it ---

    def project(self, modality: str, x: np.ndarray) -> np.ndarray:
        """Maps embeddings of a single modality, such as those of a query.

        Args:
            modality: one of `modalities`.
            x: of any float dtype, [n, d_m], finite.

        Returns:
            float32 [n, dim], unit rows. A row is zero if its embedding has no direction in the space, for example
            because it equals the mean.

        Raises:
            JobError: the space was fitted on embeddings of another length.
        """
        return self._run({modality: (x, np.ones(len(x), bool))}, impute=False).vectors[modality]

    def align(self, batch: Batch) -> Aligned:
        """Maps the modalities of items.

        Args:
            batch: for each modality its embeddings, of any float dtype, [n, d_m], and present, bool [n]. Rows that are
                not present may hold anything. A modality that the space does not know is ignored. A modality of the
                space that the batch lacks is missing in every item.

        Guarantees: the bits of a row depend on that row alone. All blocks have the same size, because BLAS orders its
        operations by the size of the matrix. The arithmetic is float64.

        Raises:
            JobError: the space was fitted on embeddings of another length.
        """
        return self._run(batch, impute=True)

    def _run(self, batch: Batch, impute: bool) -> Aligned:
        names = self.modalities
        n = len(next(iter(batch.values()))[1]) if batch else 0
        for m in names:
            if m in batch and batch[m][0].shape[1] != self.projections[m].dim_in:
                raise JobError(
                    f"encoders.{m}: embeddings have {batch[m][0].shape[1]} values, and the space was fitted on "
                    f"{self.projections[m].dim_in}; fit the space again, or encode with the encoder it was fitted on"
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
        """Maps up to BLOCK_ROWS rows.

        Returns:
            vectors float32 [K, BLOCK_ROWS, dim]; present, imputed and weights [K, BLOCK_ROWS]. K counts the modalities
            of the space, in ascending order.
        """
        names = self.modalities
        parts, present = self._projected(batch, rows)
        if self.mixer is not None:
            mixed = self.mixer.mix(parts, present)
            for k in range(len(names)):
                parts[k], present[k] = _unit(mixed[k], present[k], 0.0)
        seen = present
        weights = self.weigher.weigh(parts, present) if self.weigher is not None else None
        if impute and self.imputer is not None:
            parts = self.imputer.impute(parts, present)
            # For an imputed modality, weigh its predicted vector.
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
            length = row_lengths(y)
            some = seen[k] & (length > ZERO)
            out[k] = np.where(some[:, None], y / np.where(some, length, 1.0)[:, None], 0.0)
            # The length counts too. It differs from 1 for an imputed vector, or if an output does not keep lengths.
            weights[k] *= np.where(some, length if m in self.outputs or (impute and self.imputer) else 1.0, 0.0)
        return out, present, seen & ~present, weights

    def _projected(self, batch: Batch, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Projects up to BLOCK_ROWS rows: unit vectors float64 [K, BLOCK_ROWS, inner_dim], present [K, BLOCK_ROWS]."""
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
        return parts, present

    # --- as bytes ---

    def _named(self) -> Iterator[tuple[str, Part]]:
        """Yields every part with the name that its tensors have in space.safetensors."""
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
        """Returns the content of space.safetensors. Its metadata hold the content of space.json."""
        return safetensors.numpy.save(self._tensors(), metadata={"space": self.to_json(indent=None)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Space:
        """Reads what `to_bytes` returned.

        Raises:
            JobError: the bytes are not a space, or the tensors do not belong to the space_id in the metadata.
        """
        try:
            tensors = safetensors.numpy.load(data)
            # `safetensors.numpy.load` does not return the metadata. They are in the JSON header, which follows eight
            # bytes with its length.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            body = json.loads(header["__metadata__"]["space"])
            parts = {
                name: part_class(kind).from_tensors(_under(tensors, name)) for name, kind in body["parts"].items()
            }
            projections = {k.removeprefix("projection."): v for k, v in parts.items() if k.startswith("projection.")}
            shifts = [k.split(".")[1] for k in tensors if k.startswith("output.") and k.endswith(".shift")]
            outputs = {m: Output(tensors[f"output.{m}.shift"], tensors[f"output.{m}.map"]) for m in shifts}
            out = cls(
                body["method"],
                projections,
                outputs=outputs,
                mixer=parts.get("mixer"),
                weigher=parts.get("weigher"),
                imputer=parts.get("imputer"),
                scale=tensors.get("scale"),
                info=SpaceInfo.from_json(body["info"]),
            )
        except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as e:
            raise JobError(f"space.safetensors: not a joint space written by Unisono ({e}); fit the space again") from e
        if out.space_id != body["space_id"]:
            raise JobError(
                f"space.safetensors: holds space {out.space_id} and says {body['space_id']}; "
                "the file is damaged; fit the space again"
            )
        return out

    def to_json(self, indent: int | None = 1) -> str:
        """Returns the content of space.json: everything except the numbers of the parts."""
        body = {
            "format": _FORMAT,
            "space_id": self.space_id,
            "method": self.method,
            "dim": self.dim,
            "modalities": {m: self.projections[m].dim_in for m in self.modalities},
            "parts": self._kinds(),
            "info": self.info.to_json(),
        }
        return json.dumps(body, indent=indent, sort_keys=True, allow_nan=False) + "\n"


def linear_space(
    method: str, means: Mapping[str, np.ndarray], maps: Mapping[str, np.ndarray], info: SpaceInfo | None = None
) -> Space:
    """Makes a space of one linear map for each modality.

    Args:
        method: the name of the method that found the maps.
        means: the mean embedding of each modality, float64 [d_m].
        maps: the map of each modality, float64 [d_m, dim].
        info: what the space was fitted on. None means that nothing is known.
    """
    projections = {m: LinearMap(means[m], np.ascontiguousarray(maps[m])) for m in maps}
    return Space(method, projections, info=info or SpaceInfo())


def _unit(y: np.ndarray, present: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Scales rows to unit length.

    Args:
        y: float64 [n, dim].
        present: bool [n].
        floor: a row of this length or shorter has no direction.

    Returns:
        float64 [n, dim], zero rows where a row is not present or has no direction; kept, bool [n], False for those.
    """
    norm = row_lengths(y)
    keep = present & (norm > floor)
    norm[~keep] = np.inf
    return y / norm[:, None], keep


def _under(tensors: Tensors, name: str) -> Tensors:
    """Returns the tensors of one part, by their names within the part."""
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def comparable_metadata(space: Space) -> dict[bytes, bytes]:
    """Returns the metadata of items/ that list the comparable earlier spaces, see `SpaceInfo.comparable`."""
    known, why = list(space.info.comparable or ()), space.info.not_comparable
    return {COMPARABLE: json.dumps(known).encode()} | ({NOT_COMPARABLE: why.encode()} if why else {})
