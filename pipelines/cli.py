"""The command `unisono`. Each command is a thin layer over the Python API of the package."""

# Commands import what they need when they run, so that `--help` and a mistyped option answer at once.
from __future__ import annotations

import importlib.metadata
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from unisono.transforms.base.errors import JobError, UsageError

app = typer.Typer(
    help="Multimodal item vectors and user profiles for recommenders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # what we do not know is an option for Beam
Config = Annotated[str, typer.Option("--config", help="The job file: a path or gs://.")]
RunId = Annotated[str | None, typer.Option("--run-id", help="The name of the run. Default: the time of launch.")]
StorePath = Annotated[str, typer.Option("--store", help="The store: a directory or a gs:// prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("unisono"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


# --- runs --------------------------------------------------------------------------------------------------


@app.command(context_settings=_PASS_ON)
def nightly(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Run the whole job: item vectors, profiles if it has `interactions`, recommendations if it has `ranking`."""
    import unisono

    unisono.run(config, run_id, beam_options=ctx.args)


@app.command(context_settings=_PASS_ON)
def embed(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Encode the catalogue, fit the joint space, and write item vectors."""
    import unisono

    unisono.run(config, run_id, users=False, beam_options=ctx.args)


@app.command(context_settings=_PASS_ON)
def profile(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Build user profiles from the interaction log and the published items."""
    import unisono

    unisono.run(config, run_id, items=False, users=True, recommend=False, beam_options=ctx.args)


@app.command(context_settings=_PASS_ON)
def recommend(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Rank the published items for the published users."""
    import unisono

    unisono.run(config, run_id, items=False, users=False, recommend=True, beam_options=ctx.args)


# --- questions to a store ----------------------------------------------------------------------------------


@app.command()
def search(
    store: StorePath,
    text: Annotated[str | None, typer.Option(help="Words to search for.")] = None,
    image: Annotated[str | None, typer.Option(help="An image file.")] = None,
    audio: Annotated[str | None, typer.Option(help="An audio file.")] = None,
    item: Annotated[str | None, typer.Option(help="The id of an item.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="The most items to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find the published items nearest to a text, an image, a sound or an item."""
    import unisono

    hits = unisono.open(store).search(text=text, image=image, audio=audio, item=item, k=k)
    if as_json:
        _print_json([h | {"score": round(h["score"], 4)} for h in hits.to_pylist()])
        return
    from unisono.pipelines.ask.search import print_hits
    from unisono.pipelines.summary import plain_console

    print_hits(plain_console(), hits)


@app.command()
def explain(
    store: StorePath,
    user: Annotated[str, typer.Option(help="The id of a user.")],
    item: Annotated[str, typer.Option(help="The id of an item.")],
    events: Annotated[int, typer.Option(min=0, help="The most events to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Split the score of a user and an item into modalities, and into the user's events."""
    import unisono

    found = unisono.open(store).explain(user, item)
    if as_json:
        _print_json(asdict(found))
        return
    from unisono.pipelines.ask.explain import print_explanation
    from unisono.pipelines.summary import plain_console

    print_explanation(plain_console(), found, events)


# --- measures ----------------------------------------------------------------------------------------------

Methods = Annotated[str, typer.Option(help="space: the space methods to compare, separated by commas, or all.")]
Fusions = Annotated[str, typer.Option(help="The fusion methods to compare, separated by commas, or all.")]
Folds = Annotated[int, typer.Option(min=1, help="space: the number of folds. 1 holds out one fifth of the items.")]
Label = Annotated[str | None, typer.Option(help="space: a column whose equal values should be neighbours.")]
Labels = Annotated[str | None, typer.Option(help="space: the Parquet file with that column. Default: the catalogue.")]
Split = Annotated[str, typer.Option(help="ranking: global-time, leave-last-out, random or new-items.")]
Fraction = Annotated[float, typer.Option(help="ranking: the fraction of the log that is held out.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="ranking: the seed of splits, baselines and intervals.")]
Train = Annotated[str | None, typer.Option(help="ranking: a log to learn from, in place of a split; with --test.")]
Test = Annotated[str | None, typer.Option(help="ranking: the log of the events to find; with --train.")]
Candidates = Annotated[
    str | None, typer.Option(help="ranking: a Parquet file of user_id and item_ids; only these items are ranked.")
]
PerUser = Annotated[str | None, typer.Option(help="ranking: the Parquet file to write each user's figures to.")]
Relevant = Annotated[float, typer.Option(help="ranking: an item is liked if its weights sum to more than this.")]
Baselines = Annotated[str, typer.Option(help="ranking: names separated by commas, or all. Default: all installed.")]
Ablations = Annotated[bool, typer.Option(help="ranking: also measure modalities, fusion and interests one by one.")]


@app.command()
def evaluate(
    config: Config,
    what: Annotated[str, typer.Option(help="What to measure: space or ranking.")] = "space",
    methods: Methods = "",
    fusions: Fusions = "",
    folds: Folds = 5,
    label: Label = None,
    labels: Labels = None,
    split: Split = "global-time",
    fraction: Fraction = 0.2,
    relevant: Relevant = 0.0,
    baselines: Baselines = "",
    ablations: Ablations = True,
    seed: Seed = 0,
    train: Train = None,
    test: Test = None,
    candidates: Candidates = None,
    per_user: PerUser = None,
    as_json: AsJson = False,
) -> None:
    """Measure the published run: its joint space on held-out items, or its ranking on a held-out part of the log."""
    from unisono.pipelines.ask import evaluate_ranking as ranking
    from unisono.pipelines.ask import evaluate_space as space
    from unisono.pipelines.ask.evaluation_files import EvaluationFiles
    from unisono.pipelines.ask.ranking_report import print_ranking
    from unisono.pipelines.job.load import load_job
    from unisono.transforms.measure.splits import SplitSpec

    files = EvaluationFiles(train, test, candidates, per_user)
    if files.train and (split, fraction) != (SplitSpec.method, SplitSpec.fraction):
        raise JobError("--split: --train and --test are a split already; leave out --split and --fraction")
    if what == "space":
        if files != EvaluationFiles():
            raise JobError("--what: space does not use --train, --test, --candidates and --per-user; leave them out")
        result = space.evaluate_space(
            load_job(config), _names(methods), _names(fusions), folds=folds, label=label, labels_path=labels
        )
        show = space.print_evaluation
    elif what == "ranking":
        if _names(methods) or label or labels:
            raise JobError("--what: ranking does not use --methods, --label and --labels; leave them out")
        held_out = SplitSpec(split, fraction, relevant, seed)
        result = ranking.evaluate_ranking(
            load_job(config), held_out, _names(baselines), _names(fusions), ablations, files
        )
        show = print_ranking
    else:
        raise JobError(f"--what: {what!r} is neither space nor ranking; give one of them")
    if as_json:
        _print_json(result, indent=1)
    else:
        show(result)


Minutes = Annotated[float, typer.Option(help="The time that the search may take; a later call goes on from there.")]
Cuts = Annotated[str, typer.Option("--split", help="Which cuts count: global-time, leave-last-out or both.")]
Write = Annotated[bool, typer.Option("--write", help="Change the job file itself, and keep its comments.")]


@app.command()
def tune(
    config: Config, minutes: Minutes = 10.0, split: Cuts = "both", write: Write = False, as_json: AsJson = False
) -> None:
    """Choose how fast things age and other settings of the learned ranking, on earlier parts of the log."""
    from unisono.pipelines.job.load import load_job
    from unisono.pipelines.tune.job_file import write_tuned
    from unisono.pipelines.tune.report import as_json as in_json
    from unisono.pipelines.tune.report import print_tuned, print_written
    from unisono.pipelines.tune.tune import tune as choose

    found = choose(load_job(config), minutes, split)
    written = write_tuned(config, found, in_place=write) if found.changes else None
    if as_json:
        _print_json(in_json(found, written), indent=1)
    else:
        print_tuned(found)
        print_written(config, written, write)


def _names(given: str) -> Sequence[str]:
    return [n.strip() for n in given.split(",") if n.strip()]


def _print_json(value: Any, indent: int | None = None) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=indent))


# --- the demo ----------------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="The directory for the shop and the store.")] = "out/demo",
    items: Annotated[int, typer.Option(min=60, help="The number of items of the synthetic shop.")] = 2000,
) -> None:
    """Make a synthetic shop, run the whole job on it, and show what came out."""
    import os

    from unisono.pipelines.demo.demo import run_demo

    run_demo(os.path.abspath(out), items)


def main() -> None:
    """Runs the command and exits: 0 done, 1 the job or an input is wrong, 2 the command line is wrong.

    An error is one line on standard error.
    """
    with warnings.catch_warnings():
        # Beam warns about its own deprecations, Pillow about odd metadata in pictures. Neither concerns a user.
        warnings.filterwarnings("ignore", module=r"(apache_beam|PIL)\b")
        try:
            app(standalone_mode=True)
        except JobError as e:
            print(f"unisono: error: {e}", file=sys.stderr)
            sys.exit(2 if isinstance(e, UsageError) else 1)
        except KeyboardInterrupt:
            print("unisono: interrupted; run it again with the same run id to go on from here", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
