"""The plan's part for items: the catalogue, the encoders, the number of axes and of shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import require, require_all
from unisono.transforms.base.files import exists
from unisono.transforms.base.modalities import BEHAVIOUR
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import EncoderInfo, describe_encoder
from unisono.transforms.read.catalog import Catalog, check_catalog
from unisono.transforms.space.fit.methods import max_dim, possible_axes
from unisono.transforms.space.registry import FUSIONS, METHODS
from unisono.transforms.store.parquet import open_parquet
from unisono.transforms.store.runs import Manifest, Store

ROWS_A_SHARD = 4096  # a shard is the unit of retry: seconds of encoding, tens of MB of embeddings
MOST_ROWS_A_SHARD = 4 * ROWS_A_SHARD  # a grown catalogue keeps its number of shards up to here


@dataclass(frozen=True)
class ItemsPlan:
    """What a run needs to make item vectors.

    Attributes:
        catalog: the catalogue's files and rows.
        encoders: for each encoded modality its settings, and its encoder_id and dimension.
        dim: the number of axes of the joint space.
        shards: the number of item shards.
    """

    catalog: Catalog
    encoders: tuple[tuple[EncoderSpec, EncoderInfo], ...]
    dim: int
    shards: int

    @property
    def encoder_ids(self) -> dict[str, str]:
        """The encoder_id of each modality."""
        return {spec.modality: info.encoder_id for spec, info in self.encoders}

    @property
    def encoder_metadata(self) -> dict[str, str]:
        """The encoder_ids as the Parquet metadata of a run's files names them."""
        return {f"encoder_id.{m}": e for m, e in self.encoder_ids.items()}


def plan_items(job: Job, base: Manifest | None) -> ItemsPlan:
    """Checks everything that making item vectors needs.

    Args:
        base: the published run, if there is one.

    Raises:
        JobError: the catalogue cannot be read, an encoder cannot be loaded, or the space cannot be fitted.
    """
    catalog = check_catalog(job.read_catalog)
    _check_media_root(job)
    specs = [job.encoder_spec(m) for m in job.modalities]
    encoders = tuple((spec, describe_encoder(spec)) for spec in specs)
    dims = {spec.modality: info.dim for spec, info in encoders}
    require_all(METHODS[job.space.method].libraries, "space.method", job.space.method)
    require_all(FUSIONS[job.fusion.method].libraries, "fusion.method", job.fusion.method)
    dim = choose_dim(job, dims | ({BEHAVIOUR: job.behaviour.dim} if job.behaviour else {}))
    return ItemsPlan(catalog, encoders, dim, job.shards or default_shards(catalog.rows, base))


def choose_dim(job: Job, dims: Mapping[str, int]) -> int:
    """Chooses the number of axes of the joint space, and refuses settings that do not fit the modalities.

    Args:
        dims: the length of each modality's embeddings.

    Raises:
        JobError: the method, the number of axes, or a named modality does not fit the modalities.
    """
    method, have = job.space.method, ", ".join(dims)
    lengths = ", ".join(f"{m} {d}" for m, d in dims.items())
    most = max_dim(method, dims, job.space.hub)
    if method == "cca" and len(dims) != 2:
        raise JobError(f"space.method: cca aligns two modalities, the catalogue has {have}; use gcca or auto")
    if job.space.dim is not None and job.space.dim > most:
        raise JobError(f"space.dim: {job.space.dim} is over {most}, the most that embeddings of {lengths} allow")
    if method == "none" and len(set(dims.values())) > 1:
        raise JobError(f"space.method: none needs embeddings of one length, the encoders give {lengths}; use gcca")
    named = {
        "fusion.weights": [] if job.fusion.weights == "learned" else sorted(job.fusion.weights),
        "space.hub": [job.space.hub] if job.space.hub else [],
    }
    for key, modalities in named.items():
        if unknown := sorted(set(modalities) - set(dims)):
            raise JobError(f"{key}: {unknown[0]} is no modality of the catalogue; it has {have}")
    dim = possible_axes(job.space, dims)
    if job.output.dim is not None and job.output.dim > dim:
        raise JobError(f"output.dim: {job.output.dim} is over space.dim, {dim}; give no more than that")
    return dim


def power_of_two(rows: int, rows_a_shard: int) -> int:
    """Returns the smallest power of two of shards with at most `rows_a_shard` rows each, on average."""
    return 1 << max(0, -(-rows // rows_a_shard) - 1).bit_length()


def default_shards(rows: int, base: Manifest | None) -> int:
    """Returns the number of item shards if the job file does not give it.

    The number of the published run is kept, so that its embeddings can be reused, until the shards get too large.
    Otherwise it is a power of two, with up to `ROWS_A_SHARD` rows in a shard.
    """
    kept = len(base.part("embeddings")) if base else 0
    return kept if kept and rows <= kept * MOST_ROWS_A_SHARD else power_of_two(rows, ROWS_A_SHARD)


def published_id_type(store: Store, base: Manifest | None) -> pa.DataType:
    """Reads the type of the published items' ids.

    Raises:
        JobError: the published run has no items.
    """
    records = base.part("items") if base else []
    if not records:
        raise JobError(f"store: the published run in {store.root} has no items/; run `unisono embed` first")
    with open_parquet(store.path(records[0].path)) as f:
        return f.schema_arrow.field("item_id").type


def _check_media_root(job: Job) -> None:
    root = job.media_source.root
    if not job.catalog.media:
        return
    if not job.catalog.media_root and any(c in root for c in "*?["):
        raise JobError(f"catalog.media_root: required, because catalog.path names many directories ({root})")
    if job.catalog.media_root and "://" not in root and not exists(root):
        raise JobError(f"catalog.media_root: no directory {root}; relative URIs resolve there")
    for key, place in (("catalog.media_root", root), *(("catalog.allow", prefix) for prefix in job.catalog.allow)):
        if place.startswith("gs://"):
            require("google.cloud.storage", "gcp", key, place)
