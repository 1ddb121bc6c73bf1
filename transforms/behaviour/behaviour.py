"""Behaviour as a modality: item embeddings from what the same people turned to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
import scipy.sparse.linalg
from pydantic import Field

from unisono.transforms.base.columns import EMBEDDING, common_rows
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.settings import NonNegative, Positive, one_of, settings
from unisono.transforms.base.tables import ShardTable, concat_tables, from_vector_column, one_chunk, to_vector_column
from unisono.transforms.behaviour.partial_correlation import leading_axes, partial_correlations
from unisono.transforms.space.fit.whitening import turn_to
from unisono.transforms.store.runs import FileRecord, Store, read_table, shard_path, table_bytes, write_file

BEHAVIOUR = "behaviour"
ENCODER_ID = b"unisono.encoder_id.behaviour"  # in the metadata of a table of behaviour embeddings
_SMOOTHING = 0.75  # of the context's frequency: Levy, Goldberg and Dagan, TACL 3, 2015
_MOST_PAIRS = 50_000_000  # of items that one worker takes for solving: 2 GB


METHODS = ("ppmi", "ridge")


@settings("behaviour")
class BehaviourSpec:
    """How co-occurrence in the log becomes embeddings of the items."""

    dim: Positive = 64
    """Length of an embedding."""
    recent_items: Annotated[int, Field(ge=2)] = 100
    """How many of a user's liked items count as occurring together: the newest ones."""
    min_users: Positive = 2
    """An item that fewer users liked gets no embedding."""
    shift: Annotated[float, Field(ge=1)] = 1.0
    """For `ppmi`: log(shift) is subtracted from the pointwise mutual information. 1 subtracts nothing."""
    method: Annotated[str, one_of(METHODS)] = "ppmi"
    """`ppmi`: shifted mutual information, for any number of items. `ridge`: partial correlations (EASE made
    symmetric), which recommend better, for up to 20,000 items."""
    ridge: Annotated[float, Field(gt=0)] = 200.0
    """For `ridge`: the number added to each item's count."""
    power: NonNegative = 0.5
    """The power of the singular values or eigenvalues in an embedding."""
    liked_above: float = 0.0
    """A user likes an item if the weights of the user's events on it sum to more than this."""


def count_pairs(events: pa.Table, recent_items: int, liked_above: float = 0.0) -> pa.Table:
    """Counts how many users of a shard liked both items of each pair.

    A user likes an item whose events' weights sum to more than `liked_above`; of those, the `recent_items` last acted
    on count (ties by id).

    Args:
        events: as `clean_interactions` gives them, in any order.

    Returns:
        a, b, n: pairs in both orders; a = b: how many users like the item.
    """
    liked = events.group_by(["user_id", "item_id"]).aggregate([("weight", "sum"), ("time", "max")])
    liked = liked.filter(pc.greater(liked["weight_sum"], liked_above))
    liked = liked.sort_by([("user_id", "ascending"), ("time_max", "descending"), ("item_id", "ascending")])
    users = one_chunk(liked["user_id"]).dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    recent = np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users)))) < recent_items
    encoded = one_chunk(liked["item_id"]).dictionary_encode()
    ids, items = encoded.dictionary, encoded.indices.to_numpy()
    shape = (int(users.max(initial=-1)) + 1, len(ids))
    ones = np.ones(int(recent.sum()), np.int64)
    matrix = scipy.sparse.csr_array((ones, (users[recent], items[recent])), shape=shape)
    pairs = (matrix.T @ matrix).tocoo()
    return pa.table({
        "a": ids.take(pa.array(pairs.row.astype(np.int64))),
        "b": ids.take(pa.array(pairs.col.astype(np.int64))),
        "n": pa.array(pairs.data.astype(np.int64)),
    })


def add_pairs(tables: Iterable[pa.Table]) -> pa.Table:
    """Adds up counts of pairs."""
    merged = concat_tables(list(tables)).group_by(["a", "b"]).aggregate([("n", "sum")])
    return pa.table({"a": merged["a"], "b": merged["b"], "n": merged["n_sum"]})


def shifted_ppmi(counts: scipy.sparse.csr_array, shift: float) -> scipy.sparse.csr_array:
    """Turns symmetric counts with an empty diagonal into shifted positive pointwise mutual information.

    max(0, log(n_ij · Σ n^¾ / (n_i · n_j^¾)) − log shift), then averaged with its transpose, since the smoothed
    frequency is of one side.

    Source: Levy and Goldberg, "Neural word embedding as implicit matrix factorization", NIPS 2014.
    """
    coo = counts.tocoo()
    total = np.asarray(counts.sum(1)).ravel().astype(np.float64)
    smooth = total**_SMOOTHING
    information = np.log(coo.data * smooth.sum() / (total[coo.row] * smooth[coo.col])) - np.log(shift)
    positive = scipy.sparse.csr_array((np.maximum(information, 0), (coo.row, coo.col)), shape=counts.shape)
    return (positive + positive.T).tocsr() / 2


def embed_pairs(pairs: pa.Table, spec: BehaviourSpec) -> pa.Table:
    """Gives each item that enough users liked an embedding.

    `ppmi`: U·Σ^power of the truncated SVD of the items' shifted information. `ridge`: the same of the leading
    eigenvectors of their partial correlations.

    Args:
        pairs: a, b, n, as `add_pairs` gives, in any order.

    Returns:
        item_id, by id, and `behaviour_embedding` float32 [dim] (zeros where the rank ends); items that share
        no user with another have none.

    Raises:
        JobError: there are more pairs than one worker holds.
    """
    if pairs.num_rows > _MOST_PAIRS:
        raise JobError(
            f"behaviour: {pairs.num_rows:,} pairs of items, over {_MOST_PAIRS:,}; lower behaviour.recent_items "
            "or raise behaviour.min_users"
        )
    single = pairs.filter(pc.equal(pairs["a"], pairs["b"]))
    often = single.filter(pc.greater_equal(single["n"], spec.min_users))
    ids = one_chunk(often["a"]).take(pc.sort_indices(one_chunk(often["a"])))
    row, column = (pc.index_in(one_chunk(pairs[c]), value_set=ids) for c in ("a", "b"))
    known = pc.and_(row.is_valid(), column.is_valid())
    kept = one_chunk(known).to_numpy(zero_copy_only=False)
    where = [x.fill_null(0).to_numpy()[kept] for x in (row, column)]
    n = len(ids)
    counts = scipy.sparse.csr_array((pairs["n"].to_numpy()[kept].astype(np.float64), where), shape=(n, n))
    vectors = np.zeros((n, spec.dim), np.float32)
    others = counts - scipy.sparse.diags_array(counts.diagonal(), format="csr")
    others.eliminate_zeros()
    if others.nnz:
        if spec.method == "ridge":
            found = leading_axes(partial_correlations(counts, spec.ridge), spec.dim, spec.power)
        else:
            found = _truncated(shifted_ppmi(others, spec.shift), spec.dim, spec.power)
        vectors[:, : found.shape[1]] = found
    some = vectors.any(1)
    table = pa.table({"item_id": ids, BEHAVIOUR + EMBEDDING: to_vector_column(vectors)})
    return table.filter(pa.array(some))


def _truncated(matrix: scipy.sparse.csr_array, dim: int, power: float) -> np.ndarray:
    """U·Σ^power of the highest singular values, signs such that each column's largest entry is positive."""
    n = matrix.shape[0]
    if n <= max(2 * dim, 200):
        u, s, _ = np.linalg.svd(matrix.toarray())
    else:
        # Of a fixed start ARPACK gives fixed digits.
        u, s, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=np.full(n, n**-0.5))
        u, s = u[:, ::-1], s[::-1]
    u, s = u[:, :dim], s[:dim]
    keep = s > 1e-9 * s.max(initial=1e-300)
    u, s = u[:, keep], s[keep]
    signs = np.sign(np.take_along_axis(u, np.abs(u).argmax(0)[None], 0))
    return u * signs * s**power


def face_published(table: pa.Table, spec: BehaviourSpec, published: pa.Table | None) -> pa.Table:
    """Turns behaviour embeddings to the published ones, as a refit turns the space, and names their axes.

    A log of one more day gives a decomposition with other axes. Turned back (Procrustes over the common items), an
    item's embedding stays near yesterday's, so that the published map of the modality still fits it.

    Args:
        table: as `embed_pairs` gives.
        published: such a table, of the published run, with its metadata; None: there is none.

    Returns:
        The table, its metadata with an encoder_id: the published one where the axes are, else a new one, made of
        the spec and the embeddings.
    """
    name = BEHAVIOUR + EMBEDDING
    vectors, _ = from_vector_column(table[name])
    own = f"ridge{spec.ridge:g}" if spec.method == "ridge" else f"{spec.shift:g}"
    how = f"behaviour-{spec.dim}-{spec.recent_items}-{spec.min_users}-{own}-{spec.power:g}-{spec.liked_above:g}"
    axes = hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:12]
    if published is not None:
        old, _ = from_vector_column(published[name])
        here, there = common_rows(table["item_id"], published["item_id"])
        if old.shape[1] == spec.dim <= len(here):
            vectors = (vectors.astype(np.float64) @ turn_to(vectors[here], old[there])).astype(np.float32)
            axes = (published.schema.metadata or {}).get(ENCODER_ID, b"").decode().rpartition("-")[2] or axes
            table = table.set_column(table.schema.get_field_index(name), name, to_vector_column(vectors))
    return table.replace_schema_metadata({ENCODER_ID: f"{how}-{axes}".encode()})


def join_behaviour(table: pa.Table, behaviour: pa.Table) -> pa.Table:
    """Adds the column `behaviour_embedding` to a shard of embeddings: null for items nobody has touched."""
    name = BEHAVIOUR + EMBEDDING
    vectors, _ = from_vector_column(behaviour[name])
    ids = one_chunk(behaviour["item_id"])
    if pa.types.is_integer(ids.type):
        ids = ids.cast(table["item_id"].type, safe=False)
    else:
        ids = ids.cast(table["item_id"].type)
    place = one_chunk(pc.index_in(one_chunk(table["item_id"]), value_set=ids))
    present = place.is_valid().to_numpy(zero_copy_only=False)
    out = np.zeros((table.num_rows, vectors.shape[1]), np.float32)
    out[present] = vectors[place.drop_null().to_numpy()]
    return table.append_column(name, to_vector_column(out, present))


# --- Beam --------------------------------------------------------------------------------------------------


class EmbedBehaviour(beam.PTransform):
    """Turns events, `(shard, pa.Table)` as `ShardByUser` gives, into the one table of behaviour embeddings.

    Args:
        spec: how.
        store, run_id: where to.
        published: the file of the published run's; None: there is none.

    Returns:
        A dict of PCollections: `table` (one pa.Table, as `face_published` gives), `files` (FileRecord), `encoder`
        (one ("behaviour", encoder_id)).
    """

    def __init__(self, spec: BehaviourSpec, store: Store, run_id: str, published: FileRecord | None = None) -> None:
        super().__init__()
        self._spec, self._store, self._run_id, self._published = spec, store, run_id, published

    def expand(self, events: beam.PCollection) -> dict[str, beam.PCollection]:
        spec, store, run_id, published = self._spec, self._store, self._run_id, self._published
        how = spec.recent_items, spec.liked_above

        def solve(pairs: pa.Table) -> pa.Table:
            return face_published(embed_pairs(pairs, spec), spec, read_table(store, published) if published else None)

        def write(table: pa.Table) -> FileRecord:
            path = shard_path(run_id, BEHAVIOUR, 0, 1)
            return write_file(store, BEHAVIOUR, path, table_bytes(table, {"run_id": run_id}), 0, table.num_rows)

        table = (
            events
            | "Pairs" >> beam.MapTuple(lambda _, t: count_pairs(t, *how)).with_output_types(pa.Table)
            | "AddPairs" >> beam.CombineGlobally(add_pairs).without_defaults()
            | "Solve" >> beam.Map(solve).with_output_types(pa.Table)
        )
        named = table | "EncoderId" >> beam.Map(lambda t: (BEHAVIOUR, t.schema.metadata[ENCODER_ID].decode()))
        return {"table": table, "files": table | "Write" >> beam.Map(write), "encoder": named}


class JoinBehaviour(beam.PTransform):
    """Adds `behaviour_embedding` to `(shard, embeddings)`; takes the table of `EmbedBehaviour`."""

    def __init__(self, table: beam.PCollection) -> None:
        super().__init__()
        self._table = table

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        side = beam.pvalue.AsSingleton(self._table)
        return shards | "Join" >> beam.Map(_join, side).with_output_types(ShardTable)


def _join(element: ShardTable, behaviour: pa.Table) -> ShardTable:
    return element[0], join_behaviour(element[1], behaviour)
