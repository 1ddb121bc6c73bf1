"""The command `unisono`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import warnings
from dataclasses import asdict
from typing import Annotated

import typer

from unisono.transforms.base.errors import JobError, UsageError

app = typer.Typer(
    help="Multimodal item vectors and user profiles for recommenders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Config = Annotated[str, typer.Option("--config", help="The job file: a path or gs://.")]
_SPLIT = "global-time"
RunId = Annotated[str | None, typer.Option("--run-id", help="Names the run; by default the time of launch.")]


def _run(
    config: str, run_id: str | None, argv: list[str], *, items: bool, users: bool, recommend: bool = False
) -> None:
    # Imported here: `--help` and a mistyped option should answer at once.
    from unisono.pipelines.launch import run_job

    run_job(config, run_id, argv, items=items, users=users, recommend=recommend)


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


@app.command(context_settings=_PASS_ON)
def embed(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Encode the catalogue, fit the joint space, write item vectors."""
    _run(config, run_id, ctx.args, items=True, users=False)


@app.command(context_settings=_PASS_ON)
def profile(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Build user profiles from the interaction log and the published items."""
    _run(config, run_id, ctx.args, items=False, users=True)


@app.command(context_settings=_PASS_ON)
def nightly(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """The scheduled job: embed, profile and recommend (as the job file has the keys), under one run id."""
    from unisono.pipelines.job.load import load_job

    job = load_job(config)
    users = job.interactions is not None
    _run(config, run_id, ctx.args, items=True, users=users, recommend=users and job.ranking is not None)


@app.command(context_settings=_PASS_ON)
def recommend(ctx: typer.Context, config: Config, run_id: RunId = None) -> None:
    """Rank the published items for the published users."""
    _run(config, run_id, ctx.args, items=False, users=False, recommend=True)


@app.command()
def search(
    store: Annotated[str, typer.Option(help="The store: a directory or gs:// prefix.")],
    text: Annotated[str | None, typer.Option(help="Words to look for.")] = None,
    image: Annotated[str | None, typer.Option(help="An image file.")] = None,
    audio: Annotated[str | None, typer.Option(help="An audio file.")] = None,
    item: Annotated[str | None, typer.Option(help="An item id.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """Find the items of the published run nearest to a text, a picture, a sound or an item."""
    from unisono.pipelines.ask import search as searching
    from unisono.pipelines.ask.search import print_hits
    from unisono.pipelines.summary import plain_console
    from unisono.transforms.store.runs import Store

    at = store if "://" in store else os.path.abspath(store)
    hits = searching.search(Store(at), text=text, image=image, audio=audio, item=item, k=k)
    if as_json:
        print(json.dumps([asdict(h) for h in hits], ensure_ascii=False))
        return
    print_hits(plain_console(), hits)


@app.command()
def evaluate(
    config: Config,
    what: Annotated[str, typer.Option(help="What to measure: space or ranking.")] = "space",
    methods: Annotated[str, typer.Option(help="Space methods to compare: names with commas, or all.")] = "",
    fusions: Annotated[str, typer.Option(help="Fusion methods to compare: names with commas, or all.")] = "",
    folds: Annotated[int, typer.Option(min=1, help="Into how many parts items are held out; 1: one fifth.")] = 5,
    label: Annotated[str | None, typer.Option(help="A column whose equal values should be neighbours.")] = None,
    labels: Annotated[str | None, typer.Option(help="The Parquet file of that column; default: the catalogue.")] = None,
    split: Annotated[str, typer.Option(help="ranking: global-time, leave-last-out, random, new-items.")] = _SPLIT,
    fraction: Annotated[float, typer.Option(help="ranking: the part of the log that is held out.")] = 0.2,
    relevant: Annotated[float, typer.Option(help="ranking: weights summing to more than this mean liked.")] = 0.0,
    baselines: Annotated[str, typer.Option(help="ranking: names with commas, or all; default: all installed.")] = "",
    ablations: Annotated[bool, typer.Option(help="ranking: rows for modalities, fusion and interests, too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Measure the published run: its space on items held out from each fit, or the ranking of a held-out log."""
    from unisono.pipelines.ask import evaluate_ranking as ranking
    from unisono.pipelines.ask import evaluate_space as evaluating
    from unisono.pipelines.job.load import load_job
    from unisono.transforms.measure.splits import SplitSpec

    names = [[n.strip() for n in given.split(",") if n.strip()] for given in (methods, fusions, baselines)]
    if what == "space":
        result = evaluating.evaluate_space(load_job(config), names[0], names[1], folds, label, labels)
        show = evaluating.print_evaluation
    elif what == "ranking":
        if names[0] or label or labels:
            raise JobError("--what: ranking has no use for --methods, --label and --labels; leave them out")
        spec = SplitSpec(split, fraction, relevant)
        result = ranking.evaluate_ranking(load_job(config), spec, names[2], names[1], ablations)
        show = ranking.print_ranking
    else:
        raise JobError(f"--what: {what!r} is neither space nor ranking; measure one of them")
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
    else:
        show(result)


@app.command()
def explain(
    store: Annotated[str, typer.Option(help="The store: a directory or gs:// prefix.")],
    user: Annotated[str, typer.Option(help="A user id.")],
    item: Annotated[str, typer.Option(help="An item id.")],
    events: Annotated[int, typer.Option(min=0, help="How many events to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every event, for programs.")] = False,
) -> None:
    """Split the score of a user and an item into modalities, and into the user's events."""
    from unisono.pipelines.ask import explain as explaining
    from unisono.pipelines.summary import plain_console
    from unisono.transforms.store.runs import Store

    found = explaining.explain(Store(store if "://" in store else os.path.abspath(store)), user, item)
    if as_json:
        print(json.dumps(asdict(found), ensure_ascii=False))
        return
    explaining.print_explanation(plain_console(), found, events)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Where the shop and the store go.")] = "out/demo",
    items: Annotated[int, typer.Option(min=50, help="How many items the synthetic shop has.")] = 2000,
) -> None:
    """Make a synthetic shop, run the whole job on it, and show what came out."""
    from unisono.pipelines.demo.demo import run_demo

    run_demo(os.path.abspath(out), items)


def main() -> None:
    """Runs the command: 0 done, 1 the job is wrong (one line says how), 2 the command line is wrong."""
    with warnings.catch_warnings():
        # Beam warns about its own deprecations, Pillow about odd metadata in pictures. Neither concerns a user.
        warnings.filterwarnings("ignore", module=r"(apache_beam|PIL)\b")
        try:
            app(standalone_mode=True)
        except JobError as e:
            print(f"unisono: error: {e}", file=sys.stderr)
            sys.exit(2 if isinstance(e, UsageError) else 1)
        except KeyboardInterrupt:
            print("unisono: interrupted; the same run id goes on from here", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
