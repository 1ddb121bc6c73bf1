"""Runs of the whole job, from a catalogue and a log to a published run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import Run, run_with
from tests.paths import ROOT, STAMPS
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.launch import run_job
from unisono.transforms.base import files
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.store.runs import Store


def vectors(table: pa.Table, column: str = "vector") -> np.ndarray:
    return from_vector_column(table[column])[0]


def counts(run: Run) -> dict[str, int]:
    return json.loads(files.read_bytes(run.store.run_path(run.manifest.run_id, "metrics.json")))


def test_every_row_is_an_item_vector_or_a_catalog_dead_letter(run: Run) -> None:
    n = counts(run)
    lost = sum(v for k, v in n.items() if k.startswith("dead.catalog."))
    assert n["catalog.rows"] == run.shop.counts["items"] == n["items.rows"] + lost
    assert run.part("items").num_rows == n["items.rows"]


def test_planted_faults_and_nothing_else_are_dead_letters(run: Run) -> None:
    planted = pq.read_table(run.shop.truth_faults).select(["item_id", "modality", "reason"]).to_pylist()
    found = run.part("dead_letters").select(["item_id", "modality", "reason"]).to_pylist()
    assert Counter(map(str, found)) == Counter(map(str, planted))
    n = counts(run)
    assert sum(v for k, v in n.items() if k.startswith("dead.")) == len(planted)  # The counters agree with the rows.


def test_missing_modalities_are_null_and_the_others_make_the_vector(run: Run) -> None:
    catalog = pq.read_table(run.shop.catalog)
    faults = {(f["item_id"], f["modality"]) for f in pq.read_table(run.shop.truth_faults).to_pylist()}
    have = {}
    for row in catalog.to_pylist():
        has = {"text": row["title"] is not None, "image": bool(row["image_uri"]), "audio": bool(row["audio_uri"])}
        have[row["item_id"]] = sorted(m for m, h in has.items() if h and (row["item_id"], m) not in faults)
    items = run.part("items")
    assert dict(zip(items["item_id"].to_pylist(), items["modalities"].to_pylist(), strict=True)) == have
    for m in ("text", "image", "audio"):
        present = pc.is_valid(items[f"{m}_vector"]).to_pylist()
        assert present == [m in have[i] for i in items["item_id"].to_pylist()]
        assert pc.is_valid(items[f"{m}_weight"]).to_pylist() == present


def test_a_vector_is_the_weighted_sum_of_its_modalities(run: Run) -> None:
    items = run.part("items")
    total = np.zeros_like(vectors(items))
    for m in ("text", "image", "audio"):
        part, present = from_vector_column(items[f"{m}_vector"])
        weight = items[f"{m}_weight"].fill_null(0).to_numpy()
        total += np.where(present[:, None], weight[:, None] * part, 0)
    np.testing.assert_allclose(vectors(items), total, atol=1e-6)


def test_three_readers_see_unit_vectors_of_one_length_and_unique_ids(run: Run) -> None:
    pattern = run.store.run_path(run.manifest.run_id, "items", "*.parquet")
    dim = PublishedRun(run.store, run.manifest).space.dim
    n = counts(run)["items.rows"]

    # pyarrow, without any code of Unisono
    table = pq.read_table(str(Path(pattern).parent))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), dim)
    by_arrow = np.array(table["vector"].to_pylist(), np.float64)
    assert by_arrow.shape == (n, dim)
    assert np.isfinite(by_arrow).all()
    np.testing.assert_allclose(np.linalg.norm(by_arrow, axis=1), 1, atol=1e-6)
    assert len(set(table["item_id"].to_pylist())) == n

    answer = duckdb.sql(
        f"""select count(*), count(distinct item_id), count(distinct len(vector)),
            min(list_dot_product(vector, vector)), max(list_dot_product(vector, vector)) from '{pattern}'"""
    )
    assert answer is not None
    rows, ids, lengths, low, high = answer.fetchall()[0]
    assert (rows, ids, lengths) == (n, n, 1)
    assert low == pytest.approx(1, abs=1e-5)
    assert high == pytest.approx(1, abs=1e-5)

    frame = pl.read_parquet(pattern)
    assert frame.schema["vector"] == pl.Array(pl.Float32, dim)
    assert frame["item_id"].n_unique() == frame.height == n
    by_polars = frame.sort("item_id")["vector"].to_numpy()
    np.testing.assert_array_equal(by_polars, by_arrow[np.argsort(table["item_id"].to_pylist())].astype(np.float32))
    # Polars also reads columns with nulls, which Arrow before 26 cannot read as FixedSizeList.
    assert frame["text_vector"].null_count() == table["text_vector"].null_count > 0


def test_the_manifest_names_every_file_with_its_hash_and_rows(run: Run) -> None:
    root = Path(run.store.root)
    run_dir = root / "runs" / run.manifest.run_id
    on_disk = {str(p.relative_to(root)) for p in run_dir.rglob("*") if p.is_file()}
    listed = {f.path for f in run.manifest.files}
    assert on_disk - listed == {f"runs/{run.manifest.run_id}/{name}" for name in ("manifest.json", "STARTED")}
    for record in run.manifest.files:
        data = (root / record.path).read_bytes()
        assert len(data) == record.bytes
        assert hashlib.sha256(data).hexdigest() == record.sha256
        if record.path.endswith(".parquet"):
            assert pq.read_metadata(root / record.path).num_rows == record.rows
    assert (root / "LATEST").read_text().strip() == run.manifest.run_id


def test_parquet_metadata_names_run_space_and_encoders(run: Run) -> None:
    space = PublishedRun(run.store, run.manifest).space
    for part in ("items", "users"):
        said = pq.read_schema(run.store.path(run.manifest.part(part)[0].path)).metadata
        assert said[b"unisono.space_id"].decode() == space.space_id
        assert said[b"unisono.run_id"].decode() == run.manifest.run_id
        assert said[b"unisono.dim"].decode() == str(space.dim)
    said = pq.read_schema(run.store.path(run.manifest.part("embeddings")[0].path)).metadata
    assert said[b"unisono.encoder_id.text"].startswith(b"lite-text")


def test_rows_are_sorted_within_a_shard(run: Run) -> None:
    for part in ("embeddings", "items", "users"):
        assert [r.shard for r in run.manifest.part(part)] == [0, 1, 2, 3]
        for record in run.manifest.part(part):
            ids = pq.read_table(run.store.path(record.path))[0].to_pylist()
            assert ids == sorted(ids)


@pytest.fixture(scope="module")
def unsharded(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_with(tmp_path_factory.mktemp("one"), run.shop, shards=1)


def test_the_same_job_in_two_stores_gives_equal_rows(run: Run, tmp_path: Path) -> None:
    other = run_with(tmp_path, run.shop, shards=4, run_id="another")
    for part in ("embeddings", "items", "users", "dead_letters"):
        assert run.part(part).equals(other.part(part))
    assert [f.sha256 for f in run.manifest.part("space")] == [f.sha256 for f in other.manifest.part("space")]


@pytest.mark.parametrize("shards", [7, 64])
def test_the_number_of_shards_does_not_show(unsharded: Run, tmp_path: Path, shards: int) -> None:
    other = run_with(tmp_path, unsharded.shop, shards=shards)
    assert len(other.manifest.part("items")) == shards
    for part in ("items", "users"):
        a, b = unsharded.part(part), other.part(part)
        assert a[0].to_pylist() == b[0].to_pylist()
        np.testing.assert_allclose(vectors(a), vectors(b), atol=1e-5)


def test_a_second_run_leaves_the_first_whole_and_reuses_its_embeddings(run: Run, tmp_path: Path) -> None:
    first = run_with(tmp_path, run.shop, run_id="monday", shards=2)
    before = {f.path: (tmp_path / "store" / f.path).read_bytes() for f in first.manifest.files}
    second = run_job(str(first.job), "tuesday", [], items=True, users=True)
    assert second is not None
    assert {p: (tmp_path / "store" / p).read_bytes() for p in before} == before
    assert first.store.latest() == "tuesday"
    tuesday = Run(first.store, second, first.job, run.shop)
    # The items are the same, so the new space, after it is turned to the published space, is equal to that space.
    np.testing.assert_allclose(vectors(tuesday.part("items")), vectors(first.part("items")), atol=1e-5)
    n = counts(tuesday)
    for m in ("text", "image", "audio"):
        assert n[f"reused.{m}"] == n[f"embeddings.{m}"] > 0
        assert n[f"encoded.{m}"] == 0
    with pytest.raises(JobError, match="already finished"):
        run_job(str(first.job), "monday", [], items=True, users=True)


def test_a_run_cut_short_resumes_from_the_shards_it_had(run: Run, tmp_path: Path) -> None:
    first = run_with(tmp_path, run.shop, run_id="cut", shards=4)
    # As if the run had been killed after two shards: there are some embeddings, no manifest, and no published run.
    root = tmp_path / "store"
    (root / "LATEST").unlink()
    (root / "runs/cut/manifest.json").unlink()
    for shard in (2, 3):
        (root / f"runs/cut/embeddings/part-{shard:05d}-of-00004.parquet").unlink()
    again = run_job(str(first.job), "cut", [], items=True, users=True)
    assert again is not None
    n = counts(Run(first.store, again, first.job, run.shop))
    assert 0 < n["reused.image"] < n["embeddings.image"]
    assert Run(first.store, again, first.job, run.shop).part("items").equals(first.part("items"))


def test_if_an_earlier_run_was_deleted_its_items_are_encoded_again(run: Run, tmp_path: Path) -> None:
    first = run_with(tmp_path, run.shop, run_id="old", shards=2, interactions=None)
    for record in first.manifest.part("embeddings"):
        (tmp_path / "store" / record.path).unlink()
    second = run_job(str(first.job), "new", [], items=True, users=False)
    assert second is not None
    assert counts(Run(first.store, second, first.job, run.shop))["reused.text"] == 0


def test_a_resume_with_other_shards_leaves_no_rows_twice(run: Run, tmp_path: Path) -> None:
    first = run_with(tmp_path, run.shop, run_id="a", shards=4)
    (tmp_path / "store/LATEST").unlink()
    (tmp_path / "store/runs/a/manifest.json").unlink()
    body = yaml.safe_load(first.job.read_text()) | {"shards": 2}
    first.job.write_text(yaml.safe_dump(body))
    assert run_job(str(first.job), "a", [], items=True, users=True) is not None
    for part in ("items", "users", "embeddings"):
        assert len(list((tmp_path / "store/runs/a" / part).glob("*.parquet"))) == 2
    assert pq.read_table(tmp_path / "store/runs/a/items").num_rows == 150


def test_a_log_that_fits_no_item_does_not_replace_yesterdays_profiles(run: Run, tmp_path: Path) -> None:
    log = pq.read_table(run.shop.interactions)
    strange = pc.binary_join_element_wise("other-", log["item_id"], "")
    pq.write_table(log.set_column(log.schema.get_field_index("item_id"), "item_id", strange), tmp_path / "log.parquet")
    with pytest.raises(JobError, match="publish refused: none of 1299 events gave a user profile"):
        run_with(tmp_path / "run", run.shop, interactions={"path": str(tmp_path / "log.parquet")})


def test_profiles_alone_stand_on_the_published_items(run: Run, tmp_path: Path) -> None:
    first = run_with(tmp_path, run.shop, run_id="items-only", shards=2, interactions=None)
    assert not first.manifest.part("users")
    body = yaml.safe_load(first.job.read_text()) | {"interactions": yaml.safe_load(run.job.read_text())["interactions"]}
    first.job.write_text(yaml.safe_dump(body))
    manifest = run_job(str(first.job), "profiles", [], items=False, users=True)
    assert manifest is not None
    assert manifest.part("items") == first.manifest.part("items")
    alone = Run(first.store, manifest, first.job, run.shop)
    np.testing.assert_allclose(vectors(alone.part("users")), vectors(run.part("users")), atol=1e-5)
    assert alone.part("users").num_rows == run.part("users").num_rows


def test_too_many_dead_letters_refuse_the_publish(run: Run, tmp_path: Path) -> None:
    first = run_with(tmp_path, run.shop, run_id="good", shards=2)
    body = yaml.safe_load(first.job.read_text())
    body["limits"]["max_dead_letter_fraction"] = 0.01
    first.job.write_text(yaml.safe_dump(body))
    with pytest.raises(JobError, match=r"publish refused: 9 dead letters for 150 catalogue rows") as e:
        run_job(str(first.job), "bad", [], items=True, users=True)
    assert "\n" not in str(e.value)
    assert first.store.latest() == "good"
    assert first.store.manifest("bad") is None


def test_integer_ids_stay_integers(run: Run, tmp_path: Path) -> None:
    def number(column: pa.ChunkedArray) -> pa.ChunkedArray:
        digits = pc.replace_substring_regex(column, r"\D", "")
        return pc.if_else(pc.starts_with(column, "item-"), digits, "999999").cast(pa.int32())  # 999999 is unknown.

    for name, column in (("catalog", "item_id"), ("interactions", "item_id")):
        table = pq.read_table(getattr(run.shop, name))
        table = table.set_column(table.schema.get_field_index(column), column, number(table[column]))
        pq.write_table(table, tmp_path / f"{name}.parquet")
    paths: dict[str, Any] = {n: {"path": str(tmp_path / f"{n}.parquet")} for n in ("catalog", "interactions")}
    other = run_with(tmp_path / "run", run.shop, shards=4, **paths)
    items = other.part("items")
    assert items.schema.field("item_id").type == pa.int32()
    assert items["item_id"].to_pylist() == [int(i[-5:]) for i in run.part("items")["item_id"].to_pylist()]
    np.testing.assert_allclose(vectors(items), vectors(run.part("items")), atol=1e-5)
    np.testing.assert_allclose(vectors(other.part("users")), vectors(run.part("users")), atol=1e-5)


def test_null_and_duplicate_ids_and_items_with_nothing_are_catalog_dead_letters(run: Run, tmp_path: Path) -> None:
    table = pq.read_table(run.shop.catalog).select(["item_id", "title", "description", "image_uri", "audio_uri"])
    nothing: dict[str, Any] = {"title": None, "description": None, "image_uri": None, "audio_uri": None}
    extra = [{"item_id": None, "title": "no id"} | {k: None for k in nothing if k != "title"}]
    extra += [{"item_id": "item-00050", "title": "again", "image_uri": None}, {"item_id": "bare"} | nothing]
    extra_table = pa.Table.from_pylist([nothing | e for e in extra], schema=table.schema)
    pq.write_table(pa.concat_tables([table, extra_table]), tmp_path / "catalog.parquet")
    other = run_with(tmp_path / "run", run.shop, shards=3, catalog={"path": str(tmp_path / "catalog.parquet")})
    n = counts(other)
    assert n["catalog.rows"] == 153
    assert n["items.rows"] == 150
    dead = {k: v for k, v in n.items() if k.startswith("dead.catalog")}
    assert dead == {"dead.catalog.-.null_id": 1, "dead.catalog.-.duplicate_id": 1, "dead.catalog.-.no_modality": 1}


@pytest.mark.skipif(not STAMPS.is_dir(), reason="the stamps are not here")
def test_stamps(tmp_path: Path) -> None:
    example = ROOT / "examples" / "stamps.yaml"
    body = yaml.safe_load(example.read_text())
    body["store"] = str(tmp_path / "store")
    body["catalog"] |= {"path": str(STAMPS / "catalog.parquet"), "media_root": str(STAMPS)}
    job = tmp_path / "stamps.yaml"
    job.write_text(yaml.safe_dump(body))
    manifest = run_job(str(job), "stamps", [], items=True, users=False)
    assert manifest is not None
    run = Run(Store(body["store"]), manifest, job, None)  # type: ignore[arg-type]
    n = counts(run)
    assert n["items.rows"] == run.part("items").num_rows == 950
    assert n["embeddings.audio"] == 925
    assert n["embeddings.image"] == 785
    dead = run.part("dead_letters")
    svg = pc.sum(pc.ends_with(pq.read_table(STAMPS / "catalog.parquet")["image_uri"], ".svg")).as_py()
    assert dead.num_rows == svg == 165
    assert set(dead["reason"].to_pylist()) == {"unsupported_format"}
    assert all(u.endswith(".svg") for u in dead["uri"].to_pylist())
