"""Reading MovieLens-100k in RecBole's format, with and without posters and plots."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.movielens import TEXT, TEXT_WITH_PLOT, add_media, find_encoder, read_movielens, write_job
from unisono.pipelines.ask.trial import read_events
from unisono.pipelines.job.load import load_job
from unisono.transforms.base.errors import JobError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Comedy\n"
        '20\tAngel "Blue", The\t1930\tDrama\n'
        "3\tunknown\t\tunknown\n"
    )
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "196\t1\t3\t881250949\n186\t20\t5.0\t891717742.0\n186\t1\t4\t891717743\n"
    )
    return folder


def test_films_and_ratings(data: Path) -> None:
    films, ratings = read_movielens(data)
    assert films["title"].to_pylist() == ["Toy Story", 'Angel "Blue", The', "unknown"]
    assert films["item_id"].to_pylist() == ["1", "20", "3"]
    assert ratings.to_pylist()[1] == {"user_id": "186", "item_id": "20", "rating": 5, "time": 891717742}
    assert ratings["rating"].type == ratings["time"].type == pa.int64()


def test_missing_data_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"--data: no ml-100k.item in .*; run `python -m benchmarks.movielens --downl"):
        read_movielens(tmp_path)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_media_is_matched_by_id_and_counted(data: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "media" / "posters").mkdir(parents=True)
    for name in ("20.png", "1.JPG", "notes.txt", "999.jpg"):
        (tmp_path / "media" / "posters" / name).write_bytes(b"")
    plots = pa.table({"item_id": [20, 3, 777], "plot": ["A teacher falls\nin love.", " ", "Nobody's."]})
    write = pq.write_table if kind == "parquet" else pyarrow.csv.write_csv
    write(plots, str(tmp_path / "media" / f"plots.{kind}"))
    films, counts = add_media(read_movielens(data)[0], tmp_path / "media")
    assert films["poster"].to_pylist() == ["posters/1.JPG", "posters/20.png", None]
    assert films["plot"].to_pylist() == [None, "A teacher falls\nin love.", None]
    assert counts == {"posters": 2, "plots": 1}


def test_an_empty_directory_adds_nothing(data: Path, tmp_path: Path) -> None:
    films = read_movielens(data)[0]
    same, counts = add_media(films, tmp_path)
    assert same.equals(films)
    assert counts == {"posters": 0, "plots": 0}
    with pytest.raises(JobError, match="--media: no directory"):
        add_media(films, tmp_path / "nowhere")
    pq.write_table(pa.table({"item_id": ["1"], "text": ["x"]}), tmp_path / "plots.parquet")
    with pytest.raises(JobError, match="has no column plot; it needs item_id and plot"):
        add_media(films, tmp_path)


def test_job_file_is_valid_and_reads_the_log(data: Path, tmp_path: Path) -> None:
    path, counts = write_job(tmp_path, data, text="lite")
    assert counts == {"films": 3, "ratings": 3, "posters": 0, "plots": 0}
    job = load_job(str(path))
    assert job.modalities == ("text",)
    events, lost = read_events(job)
    assert lost == 0
    assert sorted(events["weight"].to_pylist()) == [3 / 5, 4 / 5, 5 / 5]


def test_job_file_with_media_has_pictures_and_plots(data: Path, tmp_path: Path) -> None:
    media = tmp_path / "media"
    (media / "posters").mkdir(parents=True)
    (media / "posters" / "3.jpg").write_bytes(b"")
    pq.write_table(pa.table({"item_id": ["3"], "plot": ["Who knows."]}), media / "plots.parquet")
    path, counts = write_job(tmp_path, data, media, text="lite")
    body = yaml.safe_load(path.read_text())
    assert (counts["posters"], counts["plots"]) == (1, 1)
    assert body["catalog"]["text"] == TEXT_WITH_PLOT != TEXT
    assert (Path(body["catalog"]["media_root"]) / "posters/3.jpg").exists()
    assert load_job(str(path)).modalities == ("text", "image")


def test_encoder_names_other_than_minilm_are_kept() -> None:
    assert find_encoder("lite") == "lite"
