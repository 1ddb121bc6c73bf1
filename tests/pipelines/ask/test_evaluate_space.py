"""`unisono evaluate --what space`: it reads the embeddings of a published run and needs no encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.transforms.space.sample import draw, moments_of, table_of
from unisono.pipelines.ask.evaluate_space import evaluate_space, pad_embeddings, print_evaluation
from unisono.pipelines.cli import app
from unisono.pipelines.job.load import load_job
from unisono.transforms.base import files
from unisono.transforms.base.columns import embeddings_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import to_vector_column
from unisono.transforms.space.fit.fusion import fit_fusion
from unisono.transforms.space.fit.methods import fit_space
from unisono.transforms.space.fit.quality import isotropy, measure_space, missing_with_and_without
from unisono.transforms.space.fit.spec import FusionSpec, SpaceSpec
from unisono.transforms.space.space import linear_space
from unisono.transforms.store.runs import Manifest, Store, shard_path, table_bytes, write_file

DIMS = {"audio": 24, "image": 24, "text": 24}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a published run of 900 embeddings, and a job file."""
    return write_store(tmp_path_factory.mktemp("evaluated"), 900)


def write_store(root: Path, items: int, part: str = "embeddings") -> Path:
    """Writes a published run that has one part alone, in three shards, and a job file that names the store."""
    root.mkdir(exist_ok=True)
    store, shard = Store(str(root / "store")), items // 3
    table = table_of(draw(items, DIMS, missing=0.2, factors=8))
    records = []
    for i in range(3):
        data = table_bytes(table.slice(i * shard, shard))
        records.append(write_file(store, part, shard_path("r", part, i, 3), data, i, shard))
    files.write_bytes(store.run_path("r", "manifest.json"), Manifest("r", "now", tuple(records)).to_json().encode())
    files.write_bytes(store.path("LATEST"), b"r\n")
    kind = (np.arange(items) % 3).astype(str)
    pq.write_table(pa.table({"item_id": table["item_id"], "kind": kind, "title": kind}), root / "catalog.parquet")
    (root / "job.yaml").write_text("store: store\ncatalog: {path: catalog.parquet, id: item_id, text: title}\n")
    return root / "job.yaml"


def test_every_closed_form_on_the_same_folds(job: Path) -> None:
    names = ["none", "procrustes", "ridge", "gcca", "anchors", "cca"]
    result = evaluate_space(load_job(str(job)), names, ["mean", "concat", "weighted"], folds=2, label="kind")
    assert result["items"] == 900
    found = result["methods"]
    assert list(found) == names
    assert found["cca"]["not_fitted"].startswith("cca aligns two")
    for name in names[:-1]:
        r = found[name]
        assert set(r["pairs"]) == {f"{a}→{b}" for a in DIMS for b in DIMS if a != b}
        assert r["mean_recall@10"] == pytest.approx(np.mean([p["recall@10"] for p in r["pairs"].values()]), abs=1e-9)
        assert len(r["recall@10_by_fold"]) == 2
        assert set(r["without"]) == set(DIMS)
        assert 0 < r["same_label"]["chance"] < 0.5
        json.dumps(r, allow_nan=False)
    for name in ("procrustes", "ridge", "gcca", "anchors"):
        assert found[name]["mean_recall@10"] > 2 * found["none"]["mean_recall@10"], name
    gcca = found["gcca"]["missing"]
    assert 0 < gcca["impute"]["drop"] < gcca["plain"]["drop"] + 0.02
    assert set(result["fusions"]) == {"mean", "concat", "weighted", "weighted (learned)"}
    again = evaluate_space(load_job(str(job)), ["gcca"], folds=2)
    assert again["methods"]["gcca"]["pairs"] == found["gcca"]["pairs"]
    print_evaluation(result)


def test_the_command_prints_tables_or_json(job: Path) -> None:
    out = CliRunner().invoke(app, ["evaluate", "--config", str(job), "--what", "space", "--folds", "1", "--json"])
    assert out.exit_code == 0, out.output
    result = json.loads(out.stdout)
    assert result["methods"]["auto"]["mean_recall@10"] > 0.2
    printed = CliRunner().invoke(app, ["evaluate", "--config", str(job), "--folds", "1"])
    assert "text→image" in printed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"methods": ["magic"]}, r"--methods: 'magic' is none of .*gcca, none, whiten", id="method"),
        pytest.param({"fusions": ["sum"]}, r"--fusions: 'sum' is none of mean", id="fusion"),
        pytest.param({"label": "colour"}, r"--label: no column 'colour'", id="label"),
    ],
)
def test_bad_arguments_are_named(job: Path, arguments: dict, message: str) -> None:
    with pytest.raises(JobError, match=message):
        evaluate_space(load_job(str(job)), **arguments)


def test_a_run_without_enough_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"evaluate: 30 items with embeddings; 50 or more are needed"):
        evaluate_space(load_job(str(write_store(tmp_path / "few", 30))))
    with pytest.raises(JobError, match=r"store: run r in .* has no embeddings/; run `unisono embed` first"):
        evaluate_space(load_job(str(write_store(tmp_path / "none", 60, "items"))))


def test_what_is_measured_is_what_numpy_computes() -> None:
    batch = draw(400, DIMS, missing=0.2, factors=8)
    table = table_of(batch)
    rng = np.random.default_rng(3)
    space = linear_space("x", dict.fromkeys(DIMS, np.zeros(24)), {m: rng.standard_normal((24, 8)) for m in DIMS})
    measured = measure_space(space, table)
    z = {m: batch[m][0].astype(float) @ space.projections[m].map for m in DIMS}  # type: ignore[attr-defined]
    z = {m: y / np.linalg.norm(y, axis=1, keepdims=True) for m, y in z.items()}
    both = batch["text"][1] & batch["image"][1]
    score = z["text"][both] @ z["image"][both].T
    rank = (score > np.diag(score)[:, None]).sum(1) + 1
    got = measured["pairs"]["text→image"]
    assert got["recall@5"] == pytest.approx((rank <= 5).mean(), abs=1e-9)
    assert got["mrr"] == pytest.approx((1 / rank).mean(), rel=1e-5)
    gap = np.linalg.norm(z["text"][both].mean(0) - z["image"][both].mean(0))
    assert measured["gap"]["image-text"] == pytest.approx(gap, rel=1e-5)
    assert measured["coverage"]["text"] == batch["text"][1].mean()
    values = np.array([3.0, 1.0, 0.0, 0.0])
    x = rng.standard_normal((200_000, 4)) * np.sqrt(values)
    assert isotropy(x) == pytest.approx(16 / 10 / 4, rel=0.02)
    assert isotropy(x[:1]) is None


def test_imputation_makes_up_for_part_of_what_is_lost() -> None:
    """A missing modality can be predicted in part only, because each modality has noise of its own."""
    batch = draw(3000, DIMS, missing=0.0, factors=6)
    table = table_of({m: (x[2000:], p[2000:]) for m, (x, p) in batch.items()})
    fit = {m: (x[:2000], p[:2000]) for m, (x, p) in batch.items()}
    bare = fit_space(moments_of(fit), SpaceSpec("procrustes", 12))
    space = fit_fusion(bare, table_of(fit), FusionSpec("mean", {}, True))
    found = missing_with_and_without(space, table)
    assert 0 < found["impute"]["drop"] < found["plain"]["drop"]


def test_embeddings_are_padded_for_the_method_none() -> None:
    batch = draw(60)
    x = embeddings_of(pad_embeddings(table_of(batch)))
    assert {v.shape[1] for v, _ in x.values()} == {12}
    present = batch["audio"][1]
    np.testing.assert_array_equal(x["audio"][0][present, :7], batch["audio"][0][present])
    assert not x["audio"][0][present, 7:].any()
    assert to_vector_column(x["text"][0]).type.list_size == 12
