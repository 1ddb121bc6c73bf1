"""Exact search over a run, against brute force in NumPy."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.conftest import Run
from unisono.pipelines.ask.published import PublishedRun
from unisono.pipelines.ask.search import Searcher, print_hits
from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.registry import get_encoder


@pytest.fixture(scope="module")
def searcher(run: Run) -> Searcher:
    return Searcher(PublishedRun.open(run.store))


def best_rows(vectors: np.ndarray, query: np.ndarray, k: int, without: int | None = None) -> list[int]:
    """Sorts all rows by their inner product with a query, ties by row."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.lexsort((np.arange(len(scores)), -scores))
    return [i for i in order.tolist() if i != without][:k]


@pytest.mark.parametrize("k", [1, 7, 150, 1000])
def test_nearest_is_what_sorting_all_scores_finds(searcher: Searcher, k: int) -> None:
    query = searcher.embed_query("text", "small teal kettle")
    hits = searcher.nearest(query, k)
    rows = best_rows(searcher.vectors, query, k)
    assert hits.column_names == ["rank", "score", "item_id", "title", "modalities"]
    assert hits["item_id"].to_pylist() == searcher.items["item_id"].take(pa.array(rows)).to_pylist()
    assert hits["rank"].to_pylist() == list(range(1, min(k, len(searcher.vectors)) + 1))
    np.testing.assert_allclose(hits["score"].to_numpy(), searcher.vectors[rows] @ query, atol=1e-6)


def test_a_text_query_is_the_projected_embedding_of_the_text(searcher: Searcher) -> None:
    encoder = get_encoder(EncoderSpec("text", "lite"))
    words = "vintage guitar"
    expected = searcher.space.project("text", encoder.encode([encoder.prepare(words)]))[0]
    np.testing.assert_allclose(searcher.embed_query("text", words), expected, atol=1e-7)


def test_an_item_finds_its_neighbours_and_not_itself(searcher: Searcher) -> None:
    row = 31
    item = searcher.items["item_id"][row].as_py()
    hits = searcher.search(item=item, k=5)
    rows = best_rows(searcher.vectors, searcher.vectors[row], 5, without=row)
    assert hits["item_id"].to_pylist() == searcher.items["item_id"].take(pa.array(rows)).to_pylist()


def test_similar_answers_for_many_items_in_their_order(searcher: Searcher) -> None:
    asked = searcher.items["item_id"].take(pa.array([40, 3, 40]))
    found = searcher.similar(asked, 4)
    assert found.column_names == ["query_item_id", "rank", "item_id", "score"]
    assert found["query_item_id"].to_pylist() == [i for i in asked.to_pylist() for _ in range(4)]
    assert found["rank"].to_pylist() == [1, 2, 3, 4] * 3
    for place, row in enumerate((40, 3, 40)):
        rows = best_rows(searcher.vectors, searcher.vectors[row], 4, without=row)
        part = found.slice(4 * place, 4)
        assert part["item_id"].to_pylist() == searcher.items["item_id"].take(pa.array(rows)).to_pylist()
        np.testing.assert_allclose(part["score"].to_numpy(), searcher.vectors[rows] @ searcher.vectors[row], atol=1e-6)


def test_similar_to_no_item_is_an_empty_table(searcher: Searcher) -> None:
    assert searcher.similar([]).num_rows == 0
    assert searcher.similar([]).schema.equals(searcher.similar(searcher.items["item_id"][0]).schema)


def test_similar_finds_every_other_item_if_k_is_large(searcher: Searcher) -> None:
    found = searcher.similar(searcher.items["item_id"][0], 10_000)
    assert sorted(found["item_id"].to_pylist()) == sorted(searcher.items["item_id"].to_pylist()[1:])


def test_a_picture_as_bytes_finds_what_its_file_finds(searcher: Searcher, run: Run) -> None:
    faulty = set(pq.read_table(run.shop.truth_faults)["item_id"].to_pylist())
    rows = pq.read_table(run.shop.catalog, columns=["item_id", "image_uri"]).drop_null().to_pylist()
    row = next(r for r in rows if r["item_id"] not in faulty)
    path = run.shop.directory / row["image_uri"]
    assert searcher.search(image=path.read_bytes(), k=3).equals(searcher.search(image=str(path), k=3))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({}, "search: give exactly one of text, image, audio, item; got none"),
        ({"text": "a", "item": "b"}, "exactly one .*; got text, item"),
        ({"item": "nope"}, "item: no item 'nope' in items/ of run r1"),
        ({"image": "/nowhere.png"}, r"image: cannot read /nowhere.png \(No such file or directory\)"),
        ({"image": b"these are no pixels"}, "image: not_an_image"),
        ({"text": "a", "k": 0}, "k: 0; give 1 or more"),
    ],
    ids=["none", "two", "item", "missing file", "not an image", "k"],
)
def test_a_query_that_cannot_be_used_is_one_line(searcher: Searcher, query: dict, said: str) -> None:
    with pytest.raises(JobError, match=said) as e:
        searcher.search(**query)
    assert "\n" not in str(e.value)


def test_a_modality_that_the_run_does_not_have_is_named(searcher: Searcher) -> None:
    with pytest.raises(JobError, match="joint: the run has no modality joint; it has audio, image, text"):
        searcher.embed_query("joint", "x")


def test_printed_hits_show_titles_as_they_are() -> None:
    hits = {"rank": [1, 2], "score": [0.98765, 0.1], "item_id": ["a[x]", "b"], "title": ["Screw [M4]", None]}
    out = Console(file=io.StringIO(), width=100)
    print_hits(out, pa.table(hits | {"modalities": [["text", "image"], []]}), "hits")
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert all(part in shown for part in ("hits", "0.988", "a[x]", "Screw [M4]", "text image"))
