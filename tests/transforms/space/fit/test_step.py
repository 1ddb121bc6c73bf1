"""The steps of the graph around the fit: samples, and the files that a fitted space is written to."""

import json

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from tests.transforms.space.sample import draw, moments_of, table_of
from unisono.transforms.base import files
from unisono.transforms.base.columns import in_sample
from unisono.transforms.base.tables import from_vector_column, to_vector_column
from unisono.transforms.space.fit.run import FitSettings, fit_run
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.fit.step import FitSpace, SampleEmbeddings, SampleVectors
from unisono.transforms.space.fuse import fuse_table
from unisono.transforms.space.space import Space
from unisono.transforms.store.runs import Store, table_bytes, write_file

SETTINGS = FitSettings(SpaceSpec("gcca", 6, 0.1), FusionSpec("mean"), encoder_ids={"text": "lite-text-1"})


def slices(table):
    return [table.slice(start, 100) for start in range(0, table.num_rows, 100)]


def ids_of(tables):
    return sorted(i for t in tables for i in t["item_id"].to_pylist())


def test_a_sample_is_drawn_by_hash_and_has_the_named_items():
    table = table_of(draw(500)).append_column("title", pa.array(["x"] * 500))
    chosen = in_sample(table["item_id"], 0.2)
    absent = table["item_id"].filter(pa.array(~chosen)).to_pylist()[:2]
    want = sorted([*table["item_id"].filter(pa.array(chosen)).to_pylist(), *absent])

    def check(found):
        assert ids_of(found) == want
        assert all(t.num_rows for t in found)
        assert all("title" not in t.column_names for t in found)

    with beam.Pipeline(runner=FnApiRunner()) as p:
        drawn = p | beam.Create(slices(table)) | SampleEmbeddings(0.2, absent)
        assert_that(drawn, check)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A store with a fitted space and the item vectors of a first run."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    batch = draw(500, missing=0.2)
    table = table_of(batch)
    space, _ = fit_run(moments_of(batch), table, SETTINGS)
    items, _ = fuse_table(table, space)
    record = write_file(store, "items", "runs/one/items/a.parquet", table_bytes(items), 0, items.num_rows)
    saved = write_file(store, "space", "runs/one/space/space.safetensors", space.to_bytes())
    return store, batch, items, record, saved, space


def test_published_vectors_are_read_for_the_same_sample(published):
    store, _, items, record, _, _ = published
    chosen = pa.array(in_sample(items["item_id"], 0.3))

    def check(found):
        (table,) = found
        assert table["item_id"].to_pylist() == items["item_id"].filter(chosen).to_pylist()
        want = from_vector_column(items["vector"].filter(chosen))[0]
        np.testing.assert_array_equal(from_vector_column(table["vector"])[0], want)

    with beam.Pipeline(runner=FnApiRunner()) as p:
        assert_that(p | beam.Create([record]) | SampleVectors(store, 0.3), check)


def test_the_space_of_the_graph_is_that_of_fit_run(published):
    store, batch, items, _, saved, old = published
    table = table_of(batch)
    vectors = to_vector_column(from_vector_column(items["vector"])[0])
    previous = pa.table({"item_id": items["item_id"], "vector": vectors})
    encoders = {"text": "lite-text-1", "audio": "made-1"}
    want, quality = fit_run(
        moments_of(batch), table, FitSettings(SETTINGS.space, SETTINGS.fusion, encoder_ids=encoders), old, previous
    )

    def check_space(found):
        assert found == [want.to_bytes()]

    def check_files(found):
        assert sorted((r.part, r.path) for r in found) == [
            ("quality", "runs/two/quality.json"),
            ("space", "runs/two/space/space.json"),
            ("space", "runs/two/space/space.safetensors"),
        ]

    with beam.Pipeline(runner=FnApiRunner()) as p:
        sample = p | "S" >> beam.Create(slices(table)[::-1])
        before = p | "P" >> beam.Create([previous])
        made = p | "M" >> beam.Create([("audio", "made-1")])
        step = FitSpace(store, "two", SETTINGS, sample, previous=before, published=saved, made=made)
        out = p | beam.Create([moments_of(batch)]) | step
        assert_that(out["space"], check_space, "space")
        assert_that(out["files"], check_files, "files")
    assert Space.from_bytes(files.read_bytes(store.path("runs/two/space/space.safetensors"))).space_id == want.space_id
    assert files.read_bytes(store.path("runs/two/space/space.json")).decode() == want.to_json()
    written = json.loads(files.read_bytes(store.path("runs/two/quality.json")))
    assert written == json.loads(json.dumps(quality))
    assert written["refit"]["published"] == old.space_id


def test_a_run_without_a_sampled_row_is_fitted_and_not_measured(tmp_path):
    store = Store(str(tmp_path))
    batch = draw(200, missing=0.0)

    def check(found):
        assert Space.from_bytes(found[0]).dim == 6

    with beam.Pipeline(runner=FnApiRunner()) as p:
        sample = p | "S" >> beam.Create([], reshuffle=False)
        out = p | beam.Create([moments_of(batch)]) | FitSpace(store, "one", SETTINGS, sample)
        assert_that(out["space"], check)
    assert json.loads(files.read_bytes(store.path("runs/one/quality.json")))["held_out"] == 0
