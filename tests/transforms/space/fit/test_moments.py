"""Moments against pandas, for every partition of the rows, and through Beam."""

import apache_beam as beam
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.transforms.base.columns import in_sample
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.space.fit.moments import Moments, MomentsCombineFn

DIMS = {"text": 5, "image": 4, "audio": 3}


def draw(n, dims=DIMS, missing=0.3, seed=0, dtype=np.float32):
    """Draws views of a common factor, with means far from zero and NaN where a modality is missing."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n, 3))
    batch = {}
    for i, (m, d) in enumerate(dims.items()):
        x = factor @ rng.standard_normal((3, d)) + rng.standard_normal((n, d)) + 3.0 * (i + 1)
        present = rng.random(n) >= missing
        x[~present] = np.nan
        batch[m] = x.astype(dtype), present
    return batch


def rows(batch, index):
    return {m: (x[index], p[index]) for m, (x, p) in batch.items()}


def frame(batch):
    """Returns the same rows for pandas, NaN where missing."""
    columns: dict[tuple[str, int], np.ndarray] = {}
    for m, (x, present) in batch.items():
        x = np.where(present[:, None], x.astype(np.float64), np.nan)
        columns |= {(m, j): x[:, j] for j in range(x.shape[1])}
    return pd.DataFrame(columns)


def table(batch, start=0):
    columns = {"item_id": [f"i{start + j}" for j in range(len(next(iter(batch.values()))[1]))]}
    return pa.table(columns | {f"{m}_embedding": to_vector_column(x, p) for m, (x, p) in batch.items()})


@pytest.mark.parametrize("missing", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: d.__name__)
def test_covariance_is_that_of_pandas(missing, dtype):
    batch = draw(5000, missing=missing, dtype=dtype)
    moments = Moments.zero(DIMS).add(batch)
    reference = frame(batch)
    expected = reference.cov(ddof=1)
    for a in DIMS:
        assert moments.count(a) == batch[a][1].sum()
        np.testing.assert_allclose(moments.mean(a), reference[a].mean(), rtol=1e-12)
        for b in DIMS:
            n = int((batch[a][1] & batch[b][1]).sum())
            assert moments.count(a, b) == n
            want = expected.loc[a, b].to_numpy() * (n - 1) / n  # pandas divides by n − 1
            np.testing.assert_allclose(moments.covariance(a, b), want, rtol=1e-10, atol=1e-10)


@given(
    cuts=st.lists(st.integers(0, 200), max_size=6),
    order=st.randoms(use_true_random=False),
    missing=st.sampled_from([0.0, 0.3, 0.9]),
    scale=st.sampled_from([0.02, 1.0, 300.0]),
)
@settings(max_examples=60, deadline=None)
def test_moments_do_not_depend_on_the_partition(cuts, order, missing, scale):
    batch = {m: (x * np.float32(scale), p) for m, (x, p) in draw(200, missing=missing).items()}
    index = list(range(200))
    order.shuffle(index)
    whole = Moments.zero().add(batch)
    parts = [Moments.zero().add(rows(batch, part)) for part in np.split(np.array(index), sorted(cuts))]
    blobs = [part.to_bytes() for part in parts]
    left = Moments.zero()
    for blob in blobs:
        left.merge(Moments.from_bytes(blob))
    # The same parts, merged in another order and along another tree, have the same bits.
    order.shuffle(blobs)
    heap = [Moments.from_bytes(blob) for blob in blobs]
    while len(heap) > 1:
        heap.append(heap.pop(0).merge(heap.pop(0)))
    assert left.to_bytes() == heap[0].to_bytes()
    # Another partition is equal up to the rounding of float64.
    for a in DIMS:
        for b in DIMS:
            assert left.count(a, b) == whole.count(a, b)
            np.testing.assert_allclose(
                left.covariance(a, b), whole.covariance(a, b), rtol=1e-11, atol=1e-12 * scale**2 * 100
            )


def test_a_modality_may_be_seen_late_or_never():
    first, second = draw(300, {"text": 5}, seed=1), draw(300, DIMS, seed=2)
    second["audio"] = (second["audio"][0], np.zeros(300, bool))
    late = Moments.zero().add(first).add(second)
    named = Moments.zero(DIMS).add(second).merge(Moments.zero(DIMS).add(first))
    assert late.to_bytes() == named.to_bytes()
    assert list(late.dims) == ["audio", "image", "text"]
    assert late.count("audio") == late.count("audio", "text") == 0
    assert not late.covariance("audio", "text").any()
    assert not late.mean("audio").any()


@pytest.mark.parametrize("n", [0, 1, 2047, 2048, 2049, 5000])
def test_bytes_round_trip(n):
    moments = Moments.zero().add(draw(n))
    again = Moments.from_bytes(moments.to_bytes())
    assert again.dims == moments.dims
    assert again.to_bytes() == moments.to_bytes()
    np.testing.assert_array_equal(again.covariance("text", "audio"), moments.covariance("text", "audio"))
    np.testing.assert_array_equal(again.covariance("audio", "text"), moments.covariance("text", "audio").T)


def test_embeddings_that_are_not_finite_or_differ_in_length_are_named():
    bad = draw(20, missing=0.0)
    bad["image"][0][7, 2] = np.inf
    with pytest.raises(JobError, match=r"encoders\.image: .*NaN or infinity"):
        Moments.zero().add(bad)
    with pytest.raises(JobError, match=r"encoders\.text: embeddings of 6 and of 5 values"):
        Moments.zero(DIMS).add(draw(3, {"text": 6}))
    with pytest.raises(JobError, match=r"encoders\.text"):
        Moments.zero(DIMS).merge(Moments.zero({"text": 6}))


def test_a_sample_depends_on_the_ids_alone():
    ids = pa.array([f"item-{i}" for i in range(20_000)])
    chosen = in_sample(ids, 0.1)
    assert 0.09 < chosen.mean() < 0.11
    assert (in_sample(ids, 0.3) | ~chosen).all()  # a larger sample contains a smaller one
    assert (in_sample(ids.take(pa.array(np.arange(19_999, -1, -1))), 0.1) == chosen[::-1]).all()
    assert in_sample(ids, 1.0).all()
    assert not in_sample(ids, 0.0).any()


@pytest.mark.parametrize("sample", [None, 0.5], ids=["all", "half"])
def test_combining_in_a_pipeline_equals_plain_sums(sample):
    batch = draw(700, missing=0.4)
    batch["image"] = (batch["image"][0], np.zeros(700, bool))  # a modality that is null in every row
    tables = [table(rows(batch, slice(s, s + 100)), s) for s in range(0, 700, 100)]
    ids = pa.concat_tables(tables)["item_id"]
    expected = Moments.zero()
    for t, s in zip(tables, range(0, 700, 100), strict=True):
        keep = np.arange(s, s + 100)[in_sample(t["item_id"], 1.0 if sample is None else sample)]
        expected.add(rows(batch, keep))
    assert expected.count("text") < len(ids)

    def same(actual):
        (moments,) = actual
        assert moments.to_bytes() == expected.to_bytes()

    with beam.Pipeline(runner=FnApiRunner()) as p:
        combined = p | beam.Create(tables) | beam.Reshuffle() | beam.CombineGlobally(MomentsCombineFn(sample))
        assert_that(combined, same)


def test_less_undoes_add():
    batch = draw(1500, missing=0.5)
    part = rows(batch, slice(100, 400))
    rest = rows(batch, np.delete(np.arange(1500), np.s_[100:400]))
    whole = Moments.zero().add(batch)
    got = whole.less(Moments.zero().add(part))
    n = rest["text"][1].sum()
    assert got.count("text") == n
    want = frame(rest)["text"].cov().to_numpy() * (n - 1) / n
    np.testing.assert_allclose(got.covariance("text", "text"), want, atol=1e-9)
    assert whole.count("text") == batch["text"][1].sum()
    with pytest.raises(JobError, match="moments: video was not added, only"):
        got.less(Moments.zero({"video": 3}))
