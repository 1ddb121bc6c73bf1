"""Measures recommendations on held-out events: Unisono's ranking vectors, and tuned rivals, on the same splits.

    python -m benchmarks.movielens --download                                  # once; nothing else uses a network
    python -m benchmarks.ranking [--data DIR] [--media DIR] [--minutes 5] [--out FILE]
    python -m benchmarks.ranking --job job.yaml                                # another shop, whose items are embedded
    python -m benchmarks.ranking --tuned FILE                                  # measures again with earlier settings

A held-out item is relevant if the user likes it and had not turned to it before the cut. On MovieLens, to like is to
rate 4 or more. Every row is tuned for NDCG@10 on validation splits of the training events alone, made by the same
method as the test split; for global time, three earlier cuts are averaged. Each row tries the points of its grid in an
order drawn by `--seed` until its grid or `--minutes` of the processor's time are used up, so all have the same time for
each split. BLAS runs on one thread. Rivals are given the liked pairs or all pairs, whichever validates better.

Scores of Unisono are plain inner products of float32 ranking vectors; seen items are left out, and nothing else is
done. Intervals are 95%, by bootstrap over users; differences are paired. `best rival` is the one with the highest
figure on the held-out events, so the difference to it is on the safe side. It is chosen among rivals that do not age
for a row in which nothing ages, and among all for the others. One rival has its name left out of that choice: EASE with
the ageing and the trend of our vectors, which shows what they are worth beside the model.

Prints tables to standard error and one JSON object to standard output.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.movielens import LIKED, default_place, write_job
from benchmarks.own_rows import OWN_ROWS, TOGETHER, Row, own_scorer, start_of, with_settings
from benchmarks.ranking_tables import ALL, AMONG_NEW, OF_NEW, K, compare, print_split, ratios
from benchmarks.rivals import RIVALS, Rival
from benchmarks.tuning import Found, search
from unisono.pipelines.ask.ranking_case import Case, make_case
from unisono.pipelines.ask.ranking_lists import rank_by_scores
from unisono.pipelines.ask.trial import read_embeddings, read_events
from unisono.pipelines.job.load import load_job, parse_job
from unisono.transforms.base.errors import JobError
from unisono.transforms.measure.baselines import Scorer
from unisono.transforms.measure.rank_metrics import Ranked, measure_users
from unisono.transforms.measure.splits import SplitSpec, split_events

SPLITS = ("global-time", "leave-last-out", "new-items")
VALIDATION = {"global-time": (0.2, 0.35, 0.5), "leave-last-out": (0.2,), "new-items": (0.2,), "random": (0.2,)}
RATINGS = ("liked", "all")
NEW_ITEMS, FLOOR = "new-items", ("popular", "random")  # other rivals without content find new items by chance only


# --- splits ------------------------------------------------------------------------------------------------

Cases = Mapping[str, Case]  # one split of the log, by the ratings that `Case.log` holds
Fit = Callable[[Cases, Mapping[str, Any]], Scorer]


@dataclass(frozen=True, eq=False)
class Setup:
    """A split and the validation splits of its training events."""

    test: Cases
    folds: Sequence[Cases]


def make_setup(embeddings: pa.Table, events: pa.Table, method: str, liked_above: float, *, folds: bool = True) -> Setup:
    """Splits a log, and its training events again.

    Args:
        embeddings: the embeddings of all items, in ascending order of the ids.
        events: the events, as `clean_interactions` returns them.
        method: a method of `splits.SplitSpec`.
        liked_above: an item is liked if the user's weights on it sum to more than this.
        folds: makes the validation splits.
    """
    seen = {"liked": liked_above, "all": 0.0}
    spec = SplitSpec(method, relevant=liked_above)
    train = split_events(events, spec).train if folds else events
    inner = [SplitSpec(method, f, relevant=liked_above, seed=1) for f in VALIDATION[method]] if folds else []
    return Setup(
        test={name: make_case(embeddings, events, spec, above) for name, above in seen.items()},
        folds=[{name: make_case(embeddings, train, s, above) for name, above in seen.items()} for s in inner],
    )


# --- one row -----------------------------------------------------------------------------------------------


def fit_of_rival(rival: Rival) -> Fit:
    """Returns how a rival is fitted, with the setting `ratings` beside its own."""
    return lambda cases, settings: rival.fit(
        cases[settings["ratings"]], {k: v for k, v in settings.items() if k != "ratings"}
    )


def fit_of_job(content: Mapping[str, Any], path: str) -> Fit:
    """Returns how a job is fitted, with keys of its file as settings."""
    return lambda cases, settings: own_scorer(parse_job(with_settings(content, settings), path), cases["liked"])


def ndcg_of(score: Scorer, case: Case, parts: Iterable[str] = (ALL,)) -> dict[str, np.ndarray]:
    """Measures NDCG@10 on parts of the held-out pairs: float64 [who] each, NaN for a user without such pairs."""
    user, item = case.relevant
    new = case.new[item]
    lists: dict[bool, Ranked] = {}
    out = {}
    for part in parts:
        if (only := part == AMONG_NEW) not in lists:
            lists[only] = rank_by_scores(score, case, K, hidden=~case.new if only else None)
        pairs = (user, item) if part == ALL else (user[new], item[new])
        out[part] = measure_users(lists[only], pairs, case.items, [K])[f"ndcg@{K}"]
    return out


def validate(fit: Fit, folds: Sequence[Cases], settings: Mapping[str, Any], for_new: bool = False) -> float:
    """Returns the mean NDCG@10 over validation splits.

    Args:
        fit: how the method is fitted.
        folds: the validation splits.
        settings: the settings.
        for_new: measures new items among new ones, in the validation splits that hold out such items.
    """
    values = []
    for fold in folds:
        case = fold["liked"]
        part = AMONG_NEW if for_new and case.new[case.relevant[1]].any() else ALL
        values.append(np.nanmean(ndcg_of(fit(fold, settings), case, [part])[part]))
    return float(np.mean(values))


@dataclass(eq=False)
class Bench:
    """Everything that rows are tuned and measured on, and what was found.

    Attributes:
        setups: by split.
        seconds: the processor time that a row is tuned on each split.
        seed: seed of the order of the points.
        earlier: settings and validation values of an earlier result, by split and row; such rows are not tuned.
        rows: what is known about each row, by split.
        values: NDCG@10 of each user, by split, row and part.
        save: called after each row.
    """

    setups: Mapping[str, Setup]
    seconds: float
    seed: int
    earlier: Mapping[str, Mapping[str, Any]]
    rows: dict[str, dict[str, Any]]
    values: dict[str, dict[str, dict[str, np.ndarray]]]
    save: Callable[[], None]

    def tuned_before(self, name: str, splits: Sequence[str]) -> dict[str, Any] | None:
        """Returns what an earlier result says about a row on the first of some splits. None means nothing."""
        known = [self.earlier.get(split, {}).get(name, {}) for split in splits]
        return next((row for row in known if "settings" in row), None)

    def run(self, name: str, fit: Fit, tune: Callable[[float], Found], splits: Sequence[str]) -> None:
        """Tunes a row and measures it on some splits with the settings that were found."""
        started = time.process_time()
        try:
            before = self.tuned_before(name, splits)
            if before is None:
                found = tune(self.seconds * len(splits))
                about: dict[str, Any] = {"settings": found.settings, "validation": found.value, "tried": found.tried}
                about |= {"points": found.points, "seconds": time.process_time() - started}
            else:
                about = {k: before[k] for k in ("settings", "validation", "tried", "points", "seconds")}
            for split in splits:
                test, begun = self.setups[split].test, time.process_time()
                score = fit(test, about["settings"])
                self.values[split][name] = ndcg_of(score, test["liked"], (ALL, OF_NEW, AMONG_NEW))
                self.rows[split][name] = {**about, "measure_seconds": time.process_time() - begun}
        except JobError as e:
            for split in splits:
                self.rows[split][name] = {"not_measured": str(e)}
        for split in splits:
            self.say(split, name)
        self.save()

    def say(self, split: str, name: str) -> None:
        """Prints a row in one line."""
        row = self.rows[split][name]
        found = row.get("not_measured") or f"{np.nanmean(self.values[split][name][ALL]):.4f} {json.dumps(row)}"
        print(f"{split} {name}: {found}", file=sys.stderr, flush=True)

    def run_rival(self, name: str, rival: Rival) -> None:
        """Tunes and measures a rival on each split that it knows something about."""
        fit = fit_of_rival(rival)
        for split, setup in self.setups.items():
            if split == NEW_ITEMS and not rival.content and name not in FLOOR:
                continue

            def tune(seconds: float, folds: Sequence[Cases] = setup.folds) -> Found:
                return search(
                    [{"ratings": RATINGS, **rival.grid}],
                    lambda settings: validate(fit, folds, settings, rival.for_new),
                    seconds=seconds,
                    seed=self.seed,
                )

            self.run(name, fit, tune, [split])

    def run_own(self, name: str, row: Row, fit: Fit) -> None:
        """Tunes and measures a row of Unisono, on each split or with one setting for all splits."""
        every = list(self.setups)
        for splits in [every] if row.together else [[split] for split in every]:
            chosen_on = [s for s in splits if s in TOGETHER] or splits

            def tune(seconds: float, splits: Sequence[str] = splits, chosen_on: Sequence[str] = chosen_on) -> Found:
                given: Mapping[str, Any] = {}
                if row.like is not None:
                    above = self.rows[splits[0]].get(row.like, {"not_measured": f"{row.like} was not run"})
                    if "not_measured" in above:
                        raise JobError(above["not_measured"])
                    given = above["settings"]

                def value(settings: Mapping[str, Any]) -> float:
                    each = [validate(fit, self.setups[s].folds, settings) for s in chosen_on]
                    return float(np.exp(np.mean(np.log(np.maximum(each, 1e-12)))))

                return search(row.tune, value, seconds=seconds, start=start_of(row, given), seed=self.seed)

            self.run(name, fit, tune, splits)


# --- the command -------------------------------------------------------------------------------------------


def run_all(
    bench: Bench, fit_own: Fit, rivals: Mapping[str, Rival], rows: Mapping[str, Row], only: str | None = None
) -> None:
    """Tunes and measures the rivals and the rows of Unisono whose names match a regular expression."""
    for name, rival in rivals.items():
        if re.search(only or "", name):
            bench.run_rival(name, rival)
    for name, row in rows.items():
        if re.search(only or "", name):
            bench.run_own(name, row, fit_own)


def results(bench: Bench) -> dict[str, Any]:
    """Returns what was found, by split."""
    out = {}
    for split, setup in bench.setups.items():
        figures = compare(bench.values[split])
        rows = {n: {**row, "figures": figures.get(n, {})} for n, row in bench.rows[split].items()}
        out[split] = {"about": setup.test["liked"].about, "ratios": ratios(bench.values[split]), "rows": rows}
    return out


def report(bench: Bench, args: argparse.Namespace, data: Mapping[str, Any]) -> str:
    """Returns the JSON object that is printed and saved."""
    found = {"data": data, "minutes": args.minutes, "seed": args.seed, "splits": results(bench)}
    return json.dumps(found, indent=1, ensure_ascii=False)


def read_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_place(), help="directory of MovieLens-100k")
    parser.add_argument("--media", type=Path, help="directory of its posters/ and plots.parquet or plots.csv")
    parser.add_argument("--encoder", default="minilm", help="text encoder: minilm, lite, or as in a job file")
    parser.add_argument("--image-encoder", default="lite", help="image encoder, as in a job file")
    parser.add_argument("--job", type=Path, help="a job file with a log, instead of MovieLens; its items are embedded")
    parser.add_argument("--liked-above", type=float, help="weight above which an item is liked; 0 with --job")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(VALIDATION))
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time to tune each row on each split")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order in which settings are tried")
    parser.add_argument("--only", help="regular expression: only rows whose names match")
    parser.add_argument("--tuned", type=Path, help="an earlier result; its rows are measured with its settings")
    parser.add_argument("--out", type=Path, help="a file that the JSON is written to after every row")
    return parser.parse_args()


def prepare(args: argparse.Namespace, home: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the job file, whose items are embedded, and facts about the data."""
    if args.job is not None:
        return args.job, {"job": str(args.job)}
    path, counts = write_job(home, args.data, args.media, args.encoder, args.image_encoder)
    command = [sys.executable, "-m", "unisono.pipelines.cli", "embed", "--config", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return path, {**counts, "encoder": args.encoder}


def run(args: argparse.Namespace) -> None:
    """Runs the chosen rows on the chosen splits, prints tables and one JSON object."""
    liked = args.liked_above if args.liked_above is not None else 0.0 if args.job else LIKED
    earlier = json.loads(args.tuned.read_text())["splits"] if args.tuned else {}
    with tempfile.TemporaryDirectory(prefix="unisono-ranking-") as home:
        path, data = prepare(args, Path(home))
        job = load_job(str(path))
        embeddings, (events, _) = read_embeddings(job.store_at), read_events(job)
        setups = {split: make_setup(embeddings, events, split, liked) for split in args.splits}
        before = {split: found["rows"] for split, found in earlier.items()}

        def save() -> None:
            if args.out is not None:
                args.out.write_text(report(bench, args, data) + "\n")

        bench = Bench(
            setups=setups,
            seconds=args.minutes * 60,
            seed=args.seed,
            earlier=before,
            rows={split: {} for split in args.splits},
            values={split: {} for split in args.splits},
            save=save,
        )
        with threadpool_limits(1):
            run_all(bench, fit_of_job(yaml.safe_load(path.read_text()), str(path)), RIVALS, OWN_ROWS, args.only)
        for split, found in results(bench).items():
            print_split(split, found, Console(stderr=True, width=200))
        print(report(bench, args, data))


def main() -> None:
    """Runs what the command line asks for."""
    try:
        run(read_arguments())
    except JobError as e:
        raise SystemExit(str(e)) from None


if __name__ == "__main__":
    main()
