"""Behaviour as a modality: item embeddings computed from which items the same users liked."""

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
from unisono.transforms.base.modalities import BEHAVIOUR
from unisono.transforms.base.settings import NonNegative, Positive, one_of, settings
from unisono.transforms.base.tables import (
    ShardTable,
    concat_tables,
    from_vector_column,
    hash_ids,
    one_chunk,
    to_vector_column,
)
from unisono.transforms.behaviour.partial_correlation import leading_axes, partial_correlations
from unisono.transforms.space.fit.whitening import signs, turn_to
from unisono.transforms.store.runs import FileRecord, Store, read_table, shard_path, table_bytes, write_file

ENCODER_ID = b"unisono.encoder_id.behaviour"  # metadata key of a table of behaviour embeddings
_SMOOTHING = 0.75  # the power of an item's frequency. Source: Levy, Goldberg and Dagan, TACL 3, 2015
_MOST_PAIRS = 50_000_000  # the largest number of pairs of items that one worker can solve for; they take 2 GB
BEHAVIOUR_METHODS = ("ppmi", "ridge")


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
    method: Annotated[str, one_of(BEHAVIOUR_METHODS)] = "ppmi"
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

    Only the `recent_items` liked items with the newest events count. Items with events at the same time are ordered by
    the hash of the id, so that the names of items do not decide which count.

    Args:
        events: events as `clean_interactions` returns them, in any order.
        recent_items: how many liked items of a user count.
        liked_above: a user likes an item if the weights of the user's events on it sum to more than this.

    Returns:
        A table of a, b and n: each pair of items in both orders, and the number of users who liked both. A row with
        a = b holds the number of users who liked the item.
    """
    liked = events.group_by(["user_id", "item_id"]).aggregate([("weight", "sum"), ("time", "max")])
    liked = liked.filter(pc.greater(liked["weight_sum"], liked_above))
    liked = liked.append_column("tie", pa.array(hash_ids(liked["item_id"])))
    liked = liked.sort_by([("user_id", "ascending"), ("time_max", "descending"), ("tie", "ascending")])
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
    """Adds up the counts of several tables that `count_pairs` returned."""
    merged = concat_tables(list(tables)).group_by(["a", "b"]).aggregate([("n", "sum")])
    return pa.table({"a": merged["a"], "b": merged["b"], "n": merged["n_sum"]})


def shifted_ppmi(counts: scipy.sparse.csr_array, shift: float) -> scipy.sparse.csr_array:
    """Computes the shifted positive pointwise mutual information of counted pairs.

    max(0, log(n_ij · Σ n^¾ / (n_i · n_j^¾)) − log shift). Only the frequency of j is smoothed by the power ¾, so the
    result is averaged with its transpose.

    Source: Levy and Goldberg, "Neural word embedding as implicit matrix factorization", NIPS 2014.

    Args:
        counts: [n, n], symmetric, with an empty diagonal.
        shift: ≥ 1. 1 subtracts nothing.
    """
    coo = counts.tocoo()
    total = np.asarray(counts.sum(1)).ravel().astype(np.float64)
    smooth = total**_SMOOTHING
    information = np.log(coo.data * smooth.sum() / (total[coo.row] * smooth[coo.col])) - np.log(shift)
    positive = scipy.sparse.csr_array((np.maximum(information, 0), (coo.row, coo.col)), shape=counts.shape)
    return (positive + positive.T).tocsr() / 2


def embed_pairs(pairs: pa.Table, spec: BehaviourSpec) -> pa.Table:
    """Computes an embedding for each item that enough users liked.

    With the method `ppmi` an embedding is a row of U Σ^power, from the truncated SVD of the items' `shifted_ppmi`. With
    `ridge` it is a row of `leading_axes` of the items' partial correlations.

    Args:
        pairs: a, b and n, as `add_pairs` returns them, in any order.
        spec: the settings.

    Returns:
        A table of `item_id`, in ascending order, and `behaviour_embedding`, float32 [dim]. Values beyond the rank of
        the matrix are zero. Items that share no user with another item are left out.

    Raises:
        JobError: there are more pairs than one worker can hold.
    """
    if pairs.num_rows > _MOST_PAIRS:
        raise JobError(
            f"behaviour: {pairs.num_rows:,} pairs of items, more than {_MOST_PAIRS:,}; lower behaviour.recent_items "
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
    """Computes U Σ^power for the largest singular values: float64 [n, ≤ dim], each column's largest entry positive."""
    n = matrix.shape[0]
    if n <= max(2 * dim, 200):
        u, s, _ = np.linalg.svd(matrix.toarray())
    else:
        # With a fixed start vector, ARPACK returns the same digits in every run.
        u, s, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=np.full(n, n**-0.5))
        u, s = u[:, ::-1], s[::-1]
    u, s = u[:, :dim], s[:dim]
    keep = s > 1e-9 * s.max(initial=1e-300)
    u, s = u[:, keep], s[keep]
    return u * signs(u) * s**power


def turn_to_published(table: pa.Table, spec: BehaviourSpec, published: pa.Table | None) -> pa.Table:
    """Turns behaviour embeddings to the published ones, as a refit turns the space, and sets their encoder_id.

    One more day of events changes the axes of the decomposition. After the turn (Procrustes over the common items), an
    item's embedding is close to its published one, so the published map of the modality still suits it.

    Args:
        table: a table that `embed_pairs` returned.
        spec: the settings.
        published: the table of the published run, with its metadata. None means that there is none.

    Returns:
        The table with an encoder_id in its metadata. The encoder_id names the settings and the axes: the published axes
        if the embeddings were turned to them, otherwise new ones, named by a hash of the embeddings.
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
    """Adds the column `behaviour_embedding` to a shard of embeddings. It is null for items that are not in `behaviour`.

    Args:
        table: a shard of embeddings, with `item_id`.
        behaviour: a table that `embed_pairs` returned.
    """
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
    """Turns events, `(shard, pa.Table)` as `ShardByUser` returns them, into one table of behaviour embeddings.

    Args:
        spec: the settings.
        store: where to write the table.
        run_id: the run to write to.
        published: the file of the published run's table. None means that there is none.

    Returns:
        A dict of PCollections. `table`: one element, a table that `turn_to_published` returned. `files`: the FileRecord
        of the table. `encoder`: one element, (`behaviour`, encoder_id).
    """

    def __init__(self, spec: BehaviourSpec, store: Store, run_id: str, published: FileRecord | None = None) -> None:
        super().__init__()
        self._spec, self._store, self._run_id, self._published = spec, store, run_id, published

    def expand(self, events: beam.PCollection) -> dict[str, beam.PCollection]:
        spec, store, run_id, published = self._spec, self._store, self._run_id, self._published
        how = spec.recent_items, spec.liked_above

        def solve(pairs: pa.Table) -> pa.Table:
            before = read_table(store, published) if published else None
            return turn_to_published(embed_pairs(pairs, spec), spec, before)

        def write(table: pa.Table) -> FileRecord:
            path = shard_path(run_id, BEHAVIOUR, 0, 1)
            return write_file(
                store, BEHAVIOUR, path, table_bytes(table, {"run_id": run_id}), shard=0, rows=table.num_rows
            )

        table = (
            events
            | "Pairs" >> beam.MapTuple(lambda _, t: count_pairs(t, *how)).with_output_types(pa.Table)
            | "AddPairs" >> beam.CombineGlobally(add_pairs).without_defaults()
            | "Solve" >> beam.Map(solve).with_output_types(pa.Table)
        )
        named = table | "EncoderId" >> beam.Map(lambda t: (BEHAVIOUR, t.schema.metadata[ENCODER_ID].decode()))
        return {"table": table, "files": table | "Write" >> beam.Map(write), "encoder": named}


class JoinBehaviour(beam.PTransform):
    """Adds the column `behaviour_embedding` to `(shard, embeddings)`.

    Args:
        table: a PCollection of one element, the `table` of `EmbedBehaviour`.
    """

    def __init__(self, table: beam.PCollection) -> None:
        super().__init__()
        self._table = table

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        side = beam.pvalue.AsSingleton(self._table)
        return shards | "Join" >> beam.Map(_join, side).with_output_types(ShardTable)


def _join(element: ShardTable, behaviour: pa.Table) -> ShardTable:
    return element[0], join_behaviour(element[1], behaviour)
