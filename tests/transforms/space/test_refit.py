"""Versions of a space, smaller vectors, and the whole job twice: on the demo shop, as a graph."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.linalg
from scipy.stats import special_ortho_group

from tests.transforms.space.test_space_methods import draw, moments_of, table_of
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.search import Searcher
from unisono.pipelines.demo.shop import generate_shop
from unisono.pipelines.graph import nightly
from unisono.pipelines.job.config import load_job
from unisono.pipelines.job.plan import plan_run
from unisono.pipelines.launch import beam_options, launch
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.nearest import neighbour_overlap
from unisono.transforms.base.tables import from_vector_column, to_vector_column, unpack_vectors
from unisono.transforms.space.fit.fusion import FusionSpec
from unisono.transforms.space.fit.refit import anchor, order_axes
from unisono.transforms.space.fit.run import FitSettings, fit_run, held_out
from unisono.transforms.space.fit.spec import SpaceSpec
from unisono.transforms.space.fit.whitening import turn_to
from unisono.transforms.space.fuse import item_vectors
from unisono.transforms.store.item_matrix import ItemMatrix
from unisono.transforms.store.runs import Store, read_table, table_bytes
from unisono.transforms.store.small_vectors import axis_scale, encode_vectors, read_vectors, scale_metadata

NAMES = ("audio", "image", "text")


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def settings(**more):
    return FitSettings(SpaceSpec("gcca", 8, 0.1), FusionSpec("mean"), **more)


def fit(batch, how, *published):
    return fit_run(moments_of(batch), table_of(batch), how, *published)


def vectors_table(space, batch):
    table = table_of(batch)
    fused = item_vectors(space, table)[0]
    ok = pa.array(fused.ok)
    return pa.table({"item_id": table["item_id"].filter(ok), "vector": to_vector_column(fused.vectors[fused.ok])})


# --- axes and turns ---


def test_turn_is_that_of_scipy_and_recovers_a_rotation():
    rng = np.random.default_rng(0)
    new, turn = unit(rng.standard_normal((300, 6))), special_ortho_group.rvs(6, random_state=1)
    np.testing.assert_allclose(turn_to(new, new @ turn), turn, atol=1e-6)
    old = unit(new @ turn + 0.3 * rng.standard_normal((300, 6)))
    np.testing.assert_allclose(turn_to(new, old), scipy.linalg.orthogonal_procrustes(new, old)[0], atol=1e-6)
    short = turn_to(new, old[:, :4])
    np.testing.assert_allclose(short.T @ short, np.eye(4), atol=1e-9)


def test_a_prefix_of_ordered_axes_keeps_what_the_svd_keeps():
    x = unit(np.random.default_rng(0).standard_normal((500, 9)) * np.linspace(0.3, 2, 9))
    turned = x @ order_axes(x)
    values = np.linalg.svd(x.astype(float), compute_uv=False)
    np.testing.assert_allclose((turned**2).sum(0), values**2, rtol=1e-5)
    np.testing.assert_allclose(turned @ turned.T, x @ x.T, atol=1e-6)


def test_a_refit_on_other_rows_stays_comparable():
    batch = draw(3000, dict.fromkeys(NAMES, 40), missing=0.2, factors=10)
    first = {m: (x[:2850], p[:2850]) for m, (x, p) in batch.items()}
    old, _ = fit(first, settings())
    previous = vectors_table(old, first)
    new, quality = fit(batch, settings(), old, previous)
    report = new.info["refit"]
    assert report["mean_cosine"] >= 0.98
    assert report["top10_overlap"] >= 0.95
    assert quality["refit"]["mean_cosine"] == report["mean_cosine"]
    # Independently, from the vectors as they come out.
    mine = vectors_table(new, first)
    a, b = (from_vector_column(t["vector"])[0].astype(float) for t in (mine, previous))
    assert report["mean_cosine"] == pytest.approx(np.einsum("ij,ij->i", a, b).mean(), abs=1e-6)
    some = slice(0, 2000)
    nearest = [np.argsort(-(x[some] @ x[some].T - 3 * np.eye(2000)), axis=1)[:, :10] for x in (a, b)]
    overlap = np.mean([len(set(p) & set(q)) / 10 for p, q in zip(*nearest, strict=True)])
    assert report["top10_overlap"] == pytest.approx(overlap, abs=0.02)
    rotation = np.array(report["rotation"])
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(8), atol=1e-4)
    assert json.loads(new.to_json())["info"]["refit"]["common"] == report["common"] == len(a)


def test_policies():
    batch = draw(900, missing=0.1)
    old, _ = fit(batch, settings(encoder_ids={"text": "lite"}))
    previous = vectors_table(old, batch)

    def again(data=batch, ids="lite", space=None, **more):
        how = FitSettings(space or SpaceSpec("gcca", 8, 0.1), FusionSpec("mean"), encoder_ids={"text": ids}, **more)
        return fit(data, how, old, previous)[0]

    kept = again(refit="never")
    assert kept.space_id == old.space_id
    assert kept.info["refit"]["refitted"] is False
    assert again(refit="always").info["refit"]["refitted"] is True
    same = again(refit="on_drift")
    assert same.space_id == old.space_id
    assert same.info["refit"]["drift"] < 1e-6
    other = draw(900, missing=0.1, seed=9)
    moved = again(other, refit="on_drift", drift_threshold=0.01)
    assert moved.space_id != old.space_id
    assert moved.info["refit"]["drift"] > 0.01
    assert again(other, refit="on_drift", drift_threshold=2.0).space_id == old.space_id
    with pytest.raises(JobError, match=r"space\.refit: never, .*its text encoder was lite, now it is mini"):
        again(ids="mini", refit="never")
    with pytest.raises(JobError, match=r"space\.refit: never, .*another space, fusion or length"):
        again(refit="never", space=SpaceSpec("gcca", 5, 0.1))
    assert again(ids="mini", refit="on_drift").info["refit"]["not_kept"].startswith("its text encoder")
    assert fit(batch, settings(refit="never"))[0].info["refit"]["refitted"] is True  # nothing is published yet


def test_lengths_that_differ_are_said():
    batch = draw(600, missing=0.1)
    old, _ = fit(batch, settings(output_dim=4))
    assert old.dim == 4
    previous = vectors_table(old, batch)
    longer, _ = fit(batch, settings(), old, previous)
    assert longer.dim == 8
    assert "4 axes, this run 8" in longer.info["refit"]["not_anchored"]
    shorter, _ = fit(batch, settings(output_dim=3), old, previous)
    assert shorter.dim == 3
    assert shorter.info["refit"]["turned"]["mean_cosine"] > 0.99
    few = previous.slice(0, 3)
    assert "fewer than 4" in anchor(old, previous["item_id"], from_vector_column(previous["vector"])[0], few, 4)[1][
        "not_anchored"
    ]


def test_what_is_held_out_is_not_in_the_fit_that_is_measured():
    batch = draw(1500, missing=0.2)
    table = table_of(batch)
    held = held_out(table, settings())
    assert 0.07 < held.mean() < 0.13
    rest = {m: (x[~held], p[~held]) for m, (x, p) in batch.items()}
    _, quality = fit(batch, settings())
    by_hand, _ = fit(rest, settings())
    rows = table.filter(pa.array(held))
    aligned = by_hand.align(embeddings_of(rows))
    a, b = aligned.vectors["text"], aligned.vectors["image"]
    both = aligned.present["text"] & aligned.present["image"]
    score = a[both] @ b[both].T
    recall = ((score > np.diag(score)[:, None]).sum(1) < 10).mean()
    assert quality["pairs"]["text→image"]["recall@10"] == pytest.approx(recall, abs=0.02)
    assert quality["held_out"] == held.sum()
    few, q = fit({m: (x[:60], p[:60]) for m, (x, p) in batch.items()}, settings())
    assert q["held_out"] == 0
    assert "could be held out" in q["not_measured"]
    assert few.dim == 8


# --- small vectors ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_dtype_is_read_back(tmp_path, dtype):
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((400, 16)) * np.linspace(2, 0.1, 16))
    scale = axis_scale(vectors)
    present = rng.random(400) < 0.7
    table = pa.table({
        "item_id": [f"i{i}" for i in range(400)],
        "vector": to_vector_column(encode_vectors(vectors, dtype, scale)),
        "text_vector": to_vector_column(encode_vectors(vectors, dtype, scale), present),
    }).replace_schema_metadata(scale_metadata(dtype, scale))  # fmt: skip
    path = tmp_path / "items.parquet"
    path.write_bytes(table_bytes(table))
    back = unpack_vectors(pq.read_table(path))
    tolerance = {"float32": 0, "float16": 5e-4, "int8": scale.max()}[dtype]
    got, _ = read_vectors(back)
    np.testing.assert_allclose(got, vectors, atol=tolerance)
    assert got.dtype == np.float32
    part, here = read_vectors(back, "text_vector")
    np.testing.assert_array_equal(here, present)
    np.testing.assert_allclose(part[here], vectors[here], atol=tolerance)
    matrix = ItemMatrix.open([str(path)], cache_dir=str(tmp_path / "cache"))
    np.testing.assert_allclose(matrix.vectors, got, atol=1e-7)
    assert neighbour_overlap(vectors, got) > (0.9 if dtype == "int8" else 0.99)
    if dtype == "int8":
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
        with pytest.raises(JobError, match=r"items\.vector: int8 of 16 axes"):
            read_vectors(back.replace_schema_metadata({}))
        with pytest.raises(JobError, match=r"output\.dtype: int8 needs"):
            encode_vectors(vectors, dtype, None)


# --- the demo shop, as a graph ---


class Shop:
    """Runs the whole job on the first items of a demo shop."""

    def __init__(self, root, items, columns):
        self.root, self.columns = root, columns
        self.made = generate_shop(root / "shop", items, 60)
        self.catalog = pq.read_table(self.made.catalog)

    def run(self, run_id, rows, extra=""):
        pq.write_table(self.catalog.slice(0, rows), self.root / "catalog.parquet")
        (self.root / "job.yaml").write_text(
            f"store: store\nshards: 2\ncatalog: {{path: catalog.parquet, {self.columns}, media_root: shop}}\n"
            f"interactions: {{path: shop/interactions.parquet, user: user_id, item: item_id, time: timestamp}}\n{extra}"
        )
        plan = plan_run(load_job(str(self.root / "job.yaml")), run_id, items=True, users=True)
        launch(lambda p: nightly.build(p, plan), beam_options([]), {})
        return Store(str(self.root / "store"))


def items_of(store, run_id):
    parts = [read_table(store, r) for r in store.manifest(run_id).part("items")]
    return pa.concat_tables(parts)


@pytest.mark.slow
def test_demo_refit_with_new_items_keeps_what_the_issue_asks(tmp_path):
    columns = "id: item_id, title: title, text: [title, description], image: image_uri, audio: audio_uri"
    shop = Shop(tmp_path, 2000, columns)
    shop.run("one", 1900)
    store = shop.run("two", 2000)
    quality = json.loads(Path(store.run_path("two", "quality.json")).read_text())
    assert quality["refit"]["mean_cosine"] >= 0.98
    assert quality["refit"]["top10_overlap"] >= 0.95
    assert quality["sizes"]["int8"] >= 0.98
    assert quality["sizes"]["axes_64"] >= 0.8


def test_demo_refit_small_vectors_and_readers(tmp_path):
    shop = Shop(tmp_path, 600, "id: item_id, title: title, text: [title, description], image: image_uri").run
    store = shop("one", 570, "space: {dim: 32}")
    first = items_of(store, "one")
    store = shop("two", 600, "space: {dim: 32}")
    second = items_of(store, "two")
    space = json.loads(Path(store.run_path("two", "space/space.json")).read_text())
    report = space["info"]["refit"]
    assert report["common"] == first.num_rows > 500
    here = second.filter(pa.compute.is_in(second["item_id"], value_set=first["item_id"].combine_chunks()))
    a, b = (from_vector_column(t.sort_by("item_id")["vector"])[0].astype(float) for t in (here, first))
    assert report["mean_cosine"] == pytest.approx(np.einsum("ij,ij->i", a, b).mean(), abs=1e-6)
    assert report["mean_cosine"] >= 0.98
    assert report["top10_overlap"] >= 0.9  # of so few items; see the slow test
    sizes = json.loads(Path(store.run_path("two", "quality.json")).read_text())["sizes"]
    assert sizes["int8"] >= 0.98
    kept = shop("three", 600, "space: {dim: 32, refit: never}")
    assert json.loads(Path(kept.run_path("three", "space/space.json")).read_text())["space_id"] == space["space_id"]
    assert items_of(kept, "three").equals(second)

    store = shop("four", 600, "space: {dim: 32}\nfusion: {impute: true}\noutput: {dtype: int8, dim: 16}")
    items = items_of(store, "four")
    assert items.schema.field("vector").type == pa.list_(pa.int8(), 16)
    quality = json.loads(Path(store.run_path("four", "quality.json")).read_text())
    assert quality["sizes"]["int8"] > 0.95
    assert any(items["imputed"].to_pylist())
    searcher = Searcher(PublishedRun.open(store))
    np.testing.assert_allclose(np.linalg.norm(searcher.vectors, axis=1), 1, atol=1e-6)
    hit = searcher.nearest(searcher.vectors[searcher.row_of("item-00007")], 1)
    assert hit["item_id"].to_pylist() == ["item-00007"]
    assert searcher.embed_query("text", "a red guitar").shape == (16,)
    users = [read_table(store, r) for r in store.manifest("four").part("users")]
    assert users[0].schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert sum(t.num_rows for t in users) > 50
